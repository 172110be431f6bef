"""Runs the server as a child of `Server`: it stops when its standard input is closed, so it never outlives its parent."""

import os
import signal
import sys
import threading

from ._command import main


def _stop_with_parent() -> None:
    while os.read(0, 1024):
        pass
    # The first signal lets requests in flight finish.
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    sys.exit(main())
