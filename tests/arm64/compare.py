"""Starts a program on this machine and another one in an emulator, and compares their answers.

    compare.py PROGRAM COMMAND...

PROGRAM runs as it is. COMMAND is the emulator, followed by the program that it runs. Only Python's own library is needed.
"""

import base64
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

# The emulated program of a development build reads its model in half a minute, and ten times as long on a machine with other work.
SECONDS_TO_START = 600
# The sums of a vector are taken in another order, so its numbers differ by the rounding of f32. A number of a unit vector is below 1.
ROUNDING = 1e-6
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures/checkpoints"

# The body of the README's curl.
README = {"input": "hello", "model": "text-embedding-3-small"}
BUILTIN = README["model"]
WORDS = ["hello", "안녕하세요", "Straße", "مرحبا", "naïve café", "🦀 and 👩‍👩‍👧", "x = [1, 2]", "don't", "\tint main() { return 0; }\r\n", "word " * 300]
TEXTS = [" ".join(WORDS[(i * 7 + k) % len(WORDS)] for k in range(1 + i % 5)) + f" {i}" for i in range(100)]
# Tables in bf16, f16 and f32. That of the built-in model has integers.
MODELS = ["llama", "llama-f16", "llama-f32", "gemma3"]


@contextmanager
def server(command, kernel):
    """Starts a server on a free port, and gives its address once it is ready. Its log must name the kernel of pooling."""
    models = [argument for name in MODELS for argument in ("--model", f"{name}={FIXTURES / name}")]
    line = [*command, "serve", "--host", "127.0.0.1", "--port", "0", "--model", f"{BUILTIN}=builtin:default", *models]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EMBEDDING_SERVER_")}
    start = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        try:
            # The program prints its address as a line of its own. Without a line, the program has ended.
            url = next((line.split()[-1] for line in process.stdout if line.startswith("listening on ")), None)
            while url and process.poll() is None:
                if time.monotonic() - start > SECONDS_TO_START:
                    raise SystemExit(f"{' '.join(line)} is not ready after {SECONDS_TO_START} s")
                try:
                    urllib.request.urlopen(url + "/ready", timeout=60).close()
                    break
                except urllib.error.HTTPError:
                    time.sleep(0.1)
            else:
                raise SystemExit(f"{' '.join(line)} ended with {process.wait()}:\n{os.pread(log.fileno(), 1 << 20, 0).decode()}")
            print(f"{' '.join(map(str, command))}: ready after {time.monotonic() - start:.1f} s")
            yield url
            logged = os.pread(log.fileno(), 1 << 20, 0).decode()
            assert f"cpu ({kernel}" in logged, f"{line[0]} does not pool by {kernel}:\n{logged}"
        finally:
            process.terminate()
            stopped = process.wait(60)
            process.stdout.close()
        if stopped:
            raise SystemExit(f"{' '.join(line)} ended with {stopped} when it was asked to stop")


def post(url, path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def vectors(url, body):
    """Returns the numbers of an answer, which base64 carries without rounding."""
    entries = post(url, "/v1/embeddings", body | {"encoding_format": "base64"})["data"]
    return [x for entry in entries for (x,) in struct.iter_unpack("<f", base64.b64decode(entry["embedding"]))]


def compare(what, ours, theirs):
    """Checks that numbers are equal up to rounding."""
    assert len(ours) == len(theirs) > 0, f"{what}: {len(ours)} and {len(theirs)} numbers"
    worst = max(abs(a - b) for a, b in zip(ours, theirs))
    equal = sum(a == b for a, b in zip(ours, theirs)) / len(ours)
    print(f"{what}: the largest difference is {worst:.1e}, and {equal:.1%} of {len(ours):,} numbers are equal")
    # Written so that a number that is not a number fails.
    assert worst <= ROUNDING, f"{what}: the largest difference is {worst}, more than {ROUNDING}"


def main(program, *emulated):
    with ExitStack() as servers:
        here = servers.enter_context(server([program], ""))
        there = servers.enter_context(server(emulated, "neon"))
        numbers = [post(url, "/v1/embeddings", README)["data"][0]["embedding"] for url in (here, there)]
        compare("the vector of the README's request", *numbers)
        for model in [BUILTIN, *MODELS]:
            compare(f"vectors of {model}", *(vectors(url, {"input": TEXTS, "model": model}) for url in (here, there)))
            tokens = [post(url, "/v1/tokenize", {"input": TEXTS, "model": model})["data"] for url in (here, there)]
            assert tokens[0] == tokens[1], f"the tokens of {model} differ"
        for method in ("combined", "soft", "lexical", "cosine"):
            body = {"query": "hello don't", "documents": TEXTS, "model": BUILTIN, "method": method}
            scores = [post(url, "/v1/rerank", body)["results"] for url in (here, there)]
            by_index = [[one["relevance_score"] for one in sorted(found, key=lambda one: one["index"])] for found in scores]
            compare(f"scores by {method}", *by_index)
        fingerprints = [[one.get("fingerprint") for one in json.load(urllib.request.urlopen(url + "/v1/models"))["data"]] for url in (here, there)]
        assert fingerprints[0] == fingerprints[1] and all(fingerprints[0]), f"the fingerprints differ: {fingerprints}"


main(*sys.argv[1:])
