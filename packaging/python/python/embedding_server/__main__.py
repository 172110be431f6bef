"""Runs the command line: `python -m embedding_server`."""

import sys

from ._command import main

sys.exit(main())
