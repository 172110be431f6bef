#!/usr/bin/env python3
"""Measures the time from the start of the release binary to its first 200 on /ready, with the built-in model or with the given arguments.

    cargo build --release && benches/start.py [--runs 10] [server arguments]
"""

import argparse
import http.client
import os
import statistics
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARY = os.environ.get("EMBEDDING_SERVER_BIN", ROOT / "target/release/embedding-server")


def start(arguments):
    began = time.perf_counter()
    server = subprocess.Popen([BINARY, "--port", "0", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        connection = http.client.HTTPConnection(server.stdout.readline().rsplit("/", 1)[-1].strip())
        while True:
            connection.request("GET", "/ready")
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                return time.perf_counter() - began
            time.sleep(0.001)
    finally:
        server.kill()
        server.wait()


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--runs", type=int, default=10)
options, arguments = parser.parse_known_args()
times = sorted(start(arguments) * 1e3 for _ in range(options.runs))
print(f"{options.runs} starts: {times[0]:.0f} to {times[-1]:.0f} ms, median {statistics.median(times):.0f} ms")
