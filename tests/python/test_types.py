"""Type checkers see the package's types, and the stub of the native module is true."""

import subprocess
import sys

from conftest import ROOT

USE = """
import numpy as np
import numpy.typing as npt
from embedding_server import Embedder, RankedDocument, Server, SparseVector, Tokens
embedder = Embedder("path", dimensions=3, norm="rms")
vectors: npt.NDArray[np.float32] = embedder.encode(["a", [1, 2]])
one: Tokens = embedder.tokenize("a")
many: list[Tokens] = embedder.tokenize(["a"])
sparse: SparseVector = embedder.sparse("a", kind="query")
ranked: list[RankedDocument] = embedder.rerank("a", ["b"])
with Server() as server:
    address: str = server.base_url
wrong: int = embedder.encode("a")
embedder.sparse("a", kind="title")
"""


def mypy(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "mypy", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_uses_are_checked(tmp_path):
    (tmp_path / "use.py").write_text(USE)
    found = mypy("--strict", "--cache-dir", str(tmp_path / "cache"), "use.py", cwd=tmp_path).stdout
    lines = [line for line in found.splitlines() if "error:" in line]
    assert [line.split(":")[1] for line in lines] == ["13", "14"], found


def test_the_package_is_typed(tmp_path):
    package = ROOT / "packaging/python/python/embedding_server"
    files = [str(package / name) for name in ("__init__.py", "embedder.py", "server.py", "errors.py", "_command.py", "_served.py")]
    done = mypy("--strict", "--cache-dir", str(tmp_path / "cache"), *files, cwd=package.parent)
    assert done.returncode == 0, done.stdout


def test_the_stub_matches_the_native_module(tmp_path):
    command = [sys.executable, "-m", "mypy.stubtest", "embedding_server._native", "--ignore-missing-stub"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
