#!/usr/bin/env python3
"""Lists the difference between the GGUF architectures that docs/checkpoints.md has and those of the `gguf` package.

    tests/real/architectures.py [FILE]

FILE is the package's constants.py, or a directory that holds the package; without it, the package of this Python is taken. `tests/real/run`
fetches the newest release. A unit test holds the tables of docs/checkpoints.md against the program, so a name that is in neither table
is one that the program does not know: read llama.cpp's converter and graph for it, and add it to
crates/layer0/src/checkpoint/gguf/architecture.rs, with a case in tests/fixtures/make_architectures.py. The exit code is 1 then.
"""

import importlib.util
import re
import sys
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/checkpoints.md"


def documented():
    """The names in the tables under "Architectures"."""
    section = DOCUMENT.read_text().split("\n### Architectures\n")[1].split("\n##")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def constants(path):
    """The module gguf.constants, without what the package imports beside it."""
    if path.is_dir():
        path = next(path.glob("**/gguf/constants.py"))
    spec = importlib.util.spec_from_file_location("gguf_constants", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main():
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
    else:
        path = Path(importlib.util.find_spec("gguf").origin).parent / "constants.py"
    released = set(constants(path).MODEL_ARCH_NAMES.values())
    known = documented()
    new, ahead = sorted(released - known), sorted(known - released)
    print(f"{len(released)} architectures in the gguf package, {len(known)} in docs/checkpoints.md")
    if ahead:
        print("in docs/checkpoints.md alone, as later versions of llama.cpp have them:", ", ".join(ahead))
    if new:
        print("in neither table of docs/checkpoints.md:", ", ".join(new))
    return 1 if new or not released else 0


if __name__ == "__main__":
    sys.exit(main())
