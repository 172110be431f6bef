"""Measures the latency of one-line requests while the server works on a batch, and the growth of its memory.

    python3 benches/mixed.py CHECKPOINT [BINARY]

The batch is 2048 texts of 500 bytes. Its response, as floats, is over 100 MB at 4096 dimensions. Needs only the standard library.
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


def anonymous(pid):
    """Returns the anonymous memory of the process in MiB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def wait_for_the_last_tokenizer(log):
    """Waits until the model uses its final tokenizer: a faster one may be loaded after the model is ready."""
    final = ready = False
    for line in log:
        event = json.loads(line)
        if event["message"] == "model loaded":
            final = event["tokenizer"] != "tokenizers"
        ready |= event["message"] == "ready"
        final |= event["message"].startswith("tokenizer ") or "not by a faster one" in event["message"]
        if final and ready:
            break
    threading.Thread(target=log.read, daemon=True).start()


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main(checkpoint, binary="target/release/embedding-server"):
    command = [binary, "serve", "--port", "0", "--model", checkpoint, "--log-format", "json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().strip().rsplit("/", 1)[1]
        wait_for_the_last_tokenizer(server.stderr)
        batch = {"input": [text(500) for _ in range(2048)]}
        quiet = latencies(address, seconds=2)
        # A batch makes many rows of the mapped table resident. They belong to the page cache, so only anonymous memory is measured.
        before = anonymous(server.pid)
        done, sizes, times, sampled = threading.Event(), [], [], []

        def batches():
            for _ in range(3):
                start = time.monotonic()
                sizes.append(post(address, batch))
                times.append(time.monotonic() - start)
            done.set()

        def sample():
            while not done.wait(0.002):
                sampled.append(anonymous(server.pid))

        threads = [threading.Thread(target=work) for work in (batches, sample)]
        for thread in threads:
            thread.start()
        busy = latencies(address, until=done)
        for thread in threads:
            thread.join()
        print(f"answer {sizes[0] / 1e6:.0f} MB in {min(times):.2f} s; anonymous memory {before:.0f} MiB before, at most {max(sampled):.0f} MiB: +{max(sampled) - before:.0f} MiB")
        for name, values in (("quiet", quiet), ("during the batches", busy)):
            print(f"one-line requests, {name}: {len(values)}, p50 {1e3 * percentile(values, 0.5):.2f} ms, p99 {1e3 * percentile(values, 0.99):.2f} ms")
    finally:
        server.terminate()


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
