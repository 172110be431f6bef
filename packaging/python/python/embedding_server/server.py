"""The class `Server`: the HTTP server as a child process, for tests and notebooks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from .errors import ServerError


class Server:
    """The server on a free port of this machine.

    It is ready when the block begins, and stops at its end, or when this process ends in any way.

    >>> with Server() as server:
    ...     print(server.base_url)  # doctest: +ELLIPSIS
    http://127.0.0.1:.../v1
    """

    def __init__(
        self,
        *models: str | os.PathLike[str],
        config: str | os.PathLike[str] | None = None,
        port: int = 0,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Describes a server. Nothing starts before `start` or a `with` block.

        Args:
            models: The models to serve: paths, IDs on the Hugging Face Hub, or "NAME=PATH". The default is the built-in model.
            config: A configuration file.
            port: The port. 0 is any free port.
            arguments: Further arguments of the command, for example `["--api-key-file", "keys"]`.
            environment: Environment variables beside those of this process.
            timeout: The time in seconds until the server must be ready.
        """
        self._command = [sys.executable, "-m", "embedding_server._served", "serve", "--host", "127.0.0.1", "--port", str(port)]
        for model in models:
            self._command += ["--model", os.fspath(model)]
        if config is not None:
            self._command += ["--config", os.fspath(config)]
        self._command += arguments
        self._environment, self._timeout = environment, timeout
        self._url: str | None = None
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of the server, without a slash at its end."""
        if self._url is None:
            raise ServerError("the server is not running: use it in a `with` block, or call `start`")
        return self._url

    @property
    def base_url(self) -> str:
        """The address for clients of OpenAI's API."""
        return self.url + "/v1"

    @property
    def pid(self) -> int:
        """The ID of the server's process."""
        if self._process is None:
            raise ServerError("the server is not running: use it in a `with` block, or call `start`")
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has logged."""
        if self._log is None:
            return ""
        return Path(self._log.name).read_text(encoding="utf-8", errors="replace")

    def start(self) -> Server:
        """Starts the server and waits until its models are loaded.

        Raises:
            ServerError: The server ended, or was not ready in time.
        """
        if self._process is not None:
            raise ServerError("the server is running already")
        self._log = tempfile.NamedTemporaryFile(prefix="embedding-server-", suffix=".log")
        # The child imports this package even if it lies in a directory that only this process knows.
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, "PYTHONPATH": paths, **(self._environment or {})}
        process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment, text=True, encoding="utf-8"
        )
        self._process = process
        self._stop = weakref.finalize(self, _stop, process, self._log)
        end = time.monotonic() + self._timeout
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            while line and not line.startswith("listening on "):
                line = process.stdout.readline()
            if line:
                self._url = line.removeprefix("listening on ").strip().rstrip("/")
            while not (self._url and _is_ready(self._url)):
                if not line or process.poll() is not None:
                    raise ServerError(f"the server ended with exit code {process.wait(10)}:\n{self._last_lines()}")
                if time.monotonic() > end:
                    raise ServerError(f"the server was not ready within {self._timeout} s:\n{self._last_lines()}")
                time.sleep(0.02)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Lets requests in flight finish and stops the server. It may be called more than once."""
        if self._process is not None:
            self._stop()
            self._process, self._log, self._url = None, None, None

    def _last_lines(self) -> str:
        return "\n".join(self.log.splitlines()[-10:])

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Server({self._url!r})" if self._url else "Server(not running)"


def _is_ready(url: str) -> bool:
    try:
        # The server is on this machine, so there is no proxy in front of it.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url + "/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _stop(process: subprocess.Popen[str], log: Any) -> None:
    # The child drains when its standard input is closed.
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
    log.close()
