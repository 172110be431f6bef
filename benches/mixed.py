"""One-line requests while a batch is worked on: their latency, and how far memory grows.

    python3 benches/mixed.py CHECKPOINT [BINARY]

The batch is 2048 texts of 500 bytes, answered in floats: over 100 MB at 4096 dimensions. Only the standard library.
"""

import http.client
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

WORDS = "the of and to in is that for it was on are as with they at be this from have or by one had not but what all were".split()


def text(size):
    words = []
    while sum(map(len, words)) + len(words) < size:
        words.append(random.choice(WORDS) + random.choice("aeiou") * random.randrange(2))
    return " ".join(words)[:size]


def post(address, body):
    connection = http.client.HTTPConnection(address, timeout=300)
    connection.request("POST", "/v1/embeddings", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    size = 0
    while chunk := answer.read(1 << 16):
        size += len(chunk)
    connection.close()
    return size


def memory(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "VmHWM", "RssAnon"))}


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main(checkpoint, binary="target/release/embedding-server"):
    server = subprocess.Popen([binary, "serve", "--port", "0", "--model", checkpoint], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address = server.stdout.readline().strip().rsplit("/", 1)[1]
        while http_status(address) != 200:
            time.sleep(0.01)
        batch = {"input": [text(500) for _ in range(2048)]}
        # The table's rows become resident by being used: once before it is measured, so that only the answers' memory counts.
        post(address, {**batch, "dimensions": 1})
        quiet = latencies(address, seconds=2)
        before = memory(server.pid)
        Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # the peak starts anew
        done, sizes, times = threading.Event(), [], []

        def batches():
            for _ in range(3):
                start = time.monotonic()
                sizes.append(post(address, batch))
                times.append(time.monotonic() - start)
            done.set()

        thread = threading.Thread(target=batches)
        thread.start()
        busy = latencies(address, until=done)
        thread.join()
        peak = memory(server.pid)["VmHWM"]
        print(f"answer {sizes[0] / 1e6:.0f} MB in {min(times):.2f} s; memory {before['VmRSS']:.0f} MiB before, peak {peak:.0f} MiB: +{peak - before['VmRSS']:.0f} MiB")
        for name, values in (("quiet", quiet), ("during the batches", busy)):
            print(f"one-line requests, {name}: {len(values)}, p50 {1e3 * percentile(values, 0.5):.2f} ms, p99 {1e3 * percentile(values, 0.99):.2f} ms")
    finally:
        server.terminate()


def http_status(address):
    connection = http.client.HTTPConnection(address)
    connection.request("GET", "/ready")
    return connection.getresponse().status


def latencies(address, seconds=None, until=None):
    end = time.monotonic() + (seconds or 1e9)
    values = []
    while time.monotonic() < end and not (until and until.is_set()):
        start = time.monotonic()
        post(address, {"input": text(60)})
        values.append(time.monotonic() - start)
    return values


if __name__ == "__main__":
    main(*sys.argv[1:])
