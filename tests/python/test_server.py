"""`Server`: a server for tests and notebooks, which never outlives its process."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from conftest import BROKEN, LLAMA, post

from embedding_server import Server
from embedding_server.errors import ServerError


def test_it_is_ready_in_the_block_and_gone_after_it():
    with Server(LLAMA, f"other={LLAMA}") as server:
        with urllib.request.urlopen(server.url + "/ready", timeout=10) as answer:
            assert answer.status == 200
        assert server.base_url == server.url + "/v1" and server.url in repr(server)
        assert len(post(server, "/v1/embeddings", input="a", model="other")["data"]) == 1
        assert "ready" in server.log
        url, pid = server.url, server.pid
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url + "/ready", timeout=10)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ServerError, match="not running"):
        server.base_url  # noqa: B018


def test_two_servers_have_two_ports_and_settings_of_their_own():
    with Server(arguments=["--log-format", "json"]) as a, Server(environment={"EMBEDDING_SERVER_MAX_INPUTS": "1"}) as b:
        assert a.url != b.url
        assert len(post(a, "/v1/embeddings", input=["a", "b"])["data"]) == 2
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(b, "/v1/embeddings", input=["a", "b"])


def test_a_server_that_cannot_start_is_an_exception_with_its_log():
    with pytest.raises(ServerError, match="exit code 78(.|\n)*config.json"):
        Server(BROKEN / "no-config").start()
    with pytest.raises(ServerError, match="exit code 2"):
        Server(arguments=["--no-such-flag"]).start()


def test_an_error_in_the_block_stops_the_server():
    with pytest.raises(ZeroDivisionError), Server() as server:
        pid = server.pid
        raise ZeroDivisionError
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_server_ends_with_its_process_even_if_that_is_killed():
    code = "from embedding_server import Server; s = Server().start(); print(s.url, flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    url = process.stdout.readline().strip()
    urllib.request.urlopen(url + "/health", timeout=10).close()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    # Each request is answered or refused. The server drains, and then refuses.
    for _ in range(10_000):
        try:
            urllib.request.urlopen(url + "/health", timeout=10).close()
        except OSError:
            break
    else:
        pytest.fail("the server still answers")
