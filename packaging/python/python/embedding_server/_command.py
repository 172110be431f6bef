"""The command `embedding-server`.

The command line is in the native module, so that the package contains the code and the built-in model once. This function gives it a process as
the operating system starts a program: without Python's signal handlers, and with open standard streams.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line without the name of the program (default: the arguments of this process), and returns its exit code."""
    from ._native import run_command

    # Python's handler of SIGINT only sets a flag for the interpreter, which does not run until the command ends. Python also ignores SIGXFSZ.
    for name in ("SIGINT", "SIGXFSZ"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    # A file or a socket of the command must not get the number of a standard stream that the caller closed.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    return run_command(["embedding-server", *(sys.argv[1:] if arguments is None else arguments)])
