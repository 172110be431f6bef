"""gunicorn with a preloaded application: the model is loaded once, and its workers are forks."""

import json
import socket
import subprocess
import sys
import threading
import urllib.request

from conftest import served_vectors  # noqa: F401

APPLICATION = """
import json, os
from embedding_server import Embedder
embedder = Embedder()
embedder.encode(["warm up the threads"] * 5000)
loaded_in = os.getpid()

def application(environment, start):
    vectors = embedder.encode(["some words of a text"] * 3000)
    start("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([loaded_in, os.getpid(), vectors.shape]).encode()]
"""


def test_workers_of_a_preloaded_application_answer(tmp_path):
    (tmp_path / "app.py").write_text(APPLICATION)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        # gunicorn takes a socket that is open already, as from systemd.
        address = listener.getsockname()
        command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--bind", f"fd://{listener.fileno()}", "app"]
        process = subprocess.Popen(command, cwd=tmp_path, pass_fds=[listener.fileno()], stderr=subprocess.PIPE)
        try:
            found = []

            def ask():
                with urllib.request.urlopen(f"http://127.0.0.1:{address[1]}/", timeout=60) as answer:
                    found.append(json.load(answer))

            # Requests wait in the socket until the workers accept them.
            threads = [threading.Thread(target=ask) for _ in range(16)]
            [thread.start() for thread in threads]
            [thread.join(90) for thread in threads]
        finally:
            process.terminate()
            process.communicate(timeout=60)
    assert len(found) == 16 and all(shape == [3000, 384] for _, _, shape in found)
    assert len({loaded for loaded, _, _ in found}) == 1
    assert all(loaded != worker for loaded, worker, _ in found)
