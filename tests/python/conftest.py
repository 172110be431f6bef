"""What the tests share: the fixtures' checkpoints, texts, and requests to a server."""

import base64
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = ROOT / "tests/fixtures/checkpoints"
BROKEN = ROOT / "tests/fixtures/broken"
LLAMA = CHECKPOINTS / "llama"
# The program with which the command of the package is compared.
BINARY = os.environ["EMBEDDING_SERVER_BIN"]
# The command that pip installed.
COMMAND = str(Path(sys.executable).with_name("embedding-server"))

WORDS = ["hello", "안녕하세요", "Straße", "مرحبا", "naïve café", "🦀 and 👩‍👩‍👧", "x = [1, 2]", "", " ", "\x00", "a\nb", "word " * 300]


def texts(count: int) -> list[str]:
    """Returns texts of different lengths in different scripts."""
    return [" ".join(WORDS[(i * 7 + k) % len(WORDS)] for k in range(1 + i % 5)) + f" {i}" for i in range(count)]


def post(server, path: str, **body):
    """Returns the answer to a request. The models of these tests have the name of the first one."""
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def served_vectors(server, inputs, **fields) -> np.ndarray:
    """Returns the vectors of the server, which base64 carries without rounding."""
    data = post(server, "/v1/embeddings", input=inputs, encoding_format="base64", **fields)["data"]
    return np.stack([np.frombuffer(base64.b64decode(entry["embedding"]), dtype="<f4") for entry in data])


def run_python(code: str, **options) -> subprocess.CompletedProcess:
    """Runs code in a new interpreter. A process that hangs is a failure."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options)


@pytest.fixture(scope="session")
def embedder():
    from embedding_server import Embedder

    return Embedder()


@pytest.fixture(scope="session")
def server():
    from embedding_server import Server

    with Server() as server:
        yield server
