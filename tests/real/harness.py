"""Runs the real binary as a child process, and computes in plain numpy the vectors that it should return."""

import http.client
import json
import os
import queue
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("EMBEDDING_SERVER_BIN", ROOT / "target/release/embedding-server"))
REAL_DIR = Path(os.environ.get("REAL_DIR", ROOT / "target/real"))


class Server:
    """A server on a free port, which runs for the length of a `with` block. `ready_after` is the time from the start of the process until
    the server was ready, in seconds."""

    def __init__(self, models=None, config=None, deadline=120):
        self.arguments = [str(BINARY), "serve", "--host", "127.0.0.1", "--port", "0"]
        for name, path in (models or {}).items():
            self.arguments += ["--model", f"{name}={path}"]
        if config is not None:
            self.arguments += ["--config", str(config)]
        self.deadline = deadline

    def __enter__(self):
        if not BINARY.exists():
            raise FileNotFoundError(f"{BINARY}: run `cargo build --release`, or set EMBEDDING_SERVER_BIN")
        # Settings of the caller's environment must not reach the server under test.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("EMBEDDING_SERVER_")}
        self.log = tempfile.TemporaryFile()
        start = time.monotonic()
        self.process = subprocess.Popen(
            self.arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
        )
        try:
            self.url = self._listening(start + self.deadline)
            self.host = self.url.removeprefix("http://")
            self._wait_until_ready(start + self.deadline)
            self.ready_after = time.monotonic() - start
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def _listening(self, end):
        """Returns the URL that the server prints when it listens. A thread continues to read, so that the pipe never fills up."""
        lines = queue.Queue()

        def read():
            for line in self.process.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                raise self._failure("did not say where it listens") from None
            if line is None:
                raise self._failure("stopped before it listened")
            if line.startswith("listening on "):
                return line.removeprefix("listening on ").strip()

    def _wait_until_ready(self, end):
        status = None
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise self._failure("stopped before it was ready")
            status, body = self.request("GET", "/ready")
            if status == 200:
                return
            assert status == 503, f"/ready answered {status}: {body}"
            time.sleep(0.002)
        raise self._failure(f"was not ready after {self.deadline} s (/ready: {status})")

    def _failure(self, what):
        self.process.kill()
        return RuntimeError(f"{' '.join(self.arguments)} {what}; exit status {self.process.wait()}, log:\n{self.logged()}")

    def logged(self):
        return os.pread(self.log.fileno(), 1 << 20, 0).decode(errors="replace")

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def request(self, method, path, body=None):
        """Sends a request, and returns the status and the parsed JSON, or the text if the body is not JSON."""
        connection = http.client.HTTPConnection(self.host, timeout=self.deadline)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            raw = answer.read()
        finally:
            connection.close()
        try:
            return answer.status, json.loads(raw)
        except ValueError:
            return answer.status, raw.decode(errors="replace")

    def embed(self, text, **fields):
        """Sends an embeddings request that must succeed, and returns the whole response."""
        status, body = self.request("POST", "/v1/embeddings", {"input": text, **fields})
        assert status == 200, f"{status}: {body}"
        return body

    def vector(self, text, **fields):
        return np.array(self.embed(text, **fields)["data"][0]["embedding"], dtype=np.float64)

    def memory(self):
        """Returns VmRSS, RssAnon, RssFile, ... of the server in MB, from /proc."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        pairs = (line.split(":", 1) for line in lines)
        return {key: int(value.split()[0]) / 1e3 for key, value in pairs if value.strip().endswith("kB")}


class Checkpoint:
    """A layer-0 directory, read with numpy alone. Its vectors are the reference for the server's arithmetic."""

    # model_type -> whether the embedding is scaled by sqrt(hidden) and 1 is added to the weight of the norm
    GEMMA = {"llama": False, "mistral": False, "qwen3": False, "gemma": True, "gemma2": True, "gemma3_text": True}

    def __init__(self, path):
        from tokenizers import Tokenizer

        self.path = Path(path)
        assert self.path.is_dir(), f"{path} is missing: run `tests/real/fetch {self.path.parent} ...`"
        self.config = json.loads((self.path / "config.json").read_text())
        self.gemma = self.GEMMA[self.config["model_type"]]
        self.tokenizer = Tokenizer.from_file(str(self.path / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.table = self._tensor("model.embed_tokens.weight")
        self.norm = self._decode(self._tensor("model.norm.weight"))
        self.rows, self.hidden = self.table.shape

    @property
    def weights(self):
        return self.path / "model.safetensors"

    def _tensor(self, name):
        with open(self.weights, "rb") as f:
            size = int.from_bytes(f.read(8), "little")
            tensor = json.loads(f.read(size))[name]
        dtype = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}[tensor["dtype"]]
        return np.memmap(self.weights, dtype, "r", 8 + size + tensor["data_offsets"][0], tuple(tensor["shape"]))

    @staticmethod
    def _decode(x):
        return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else np.asarray(x, dtype=np.float32)

    def ids(self, text):
        return self.tokenizer.encode(text).ids

    def hidden_states(self, ids):
        x = self._decode(self.table[np.asarray(ids)])
        if self.gemma:
            x = x * np.float32(np.sqrt(self.hidden))
        rms = np.sqrt(np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32) + np.float32(self.config["rms_norm_eps"]))
        return x / rms * (self.norm + np.float32(1) if self.gemma else self.norm)

    def vector(self, text):
        return unit(self.hidden_states(self.ids(text)).mean(axis=0, dtype=np.float32))


def unit(x):
    x = np.asarray(x, dtype=np.float64)
    return x / np.linalg.norm(x)


def read_through(path):
    """Reads a file, so that it is in the page cache."""
    buffer = bytearray(1 << 20)
    with open(path, "rb", buffering=0) as f:
        while f.readinto(buffer):
            pass
