"""Pools the batch of `cargo bench --bench device` with torch's EmbeddingBag: peer.py cuda:0 [ROWS DIMENSIONS TEXTS TOKENS]

The batch is a weighted sum of rows, which is what a mean of scaled rows is. It is measured with and without the transfers of token IDs from host
memory and of vectors to host memory. In bf16 torch's vectors are bf16, too, so it transfers half as many bytes.
"""

import statistics
import sys
import time

import torch

ROUNDS = 9


def main():
    device = sys.argv[1].replace("candle-cpu", "cpu").replace("metal", "mps")
    rows, dimensions, texts, tokens = map(int, sys.argv[2:6]) if len(sys.argv) > 2 else (128_256, 4096, 2048, 500)
    kind = device.split(":")[0]
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(kind, lambda: None)
    name = torch.cuda.get_device_name(device) if kind == "cuda" else device
    print(f"torch {torch.__version__} EmbeddingBag, {rows} x {dimensions}, {texts} x {tokens} tokens on {name}; median of {ROUNDS}")

    ids = torch.randint(rows, (texts, tokens))
    weights = torch.full((texts, tokens), 0.5 / tokens)
    for dtype in [torch.bfloat16, torch.float16, torch.float32]:
        table = torch.randn(rows, dimensions, dtype=dtype, device=device)
        on_device = ids.to(device), weights.to(device, dtype)

        def bag(ids, weights):
            return torch.nn.functional.embedding_bag(ids, table, mode="sum", per_sample_weights=weights)

        def whole():
            bag(ids.to(device), weights.to(device, dtype)).cpu()

        def alone():
            bag(*on_device)
            wait()

        for label, run in [("with transfers", whole), ("without", alone)]:
            seconds = median(run)
            count = texts * tokens
            speed = count * dimensions * table.element_size() / seconds / 1e9
            print(f"{str(dtype):<16}{label:<16}{count / seconds:>14.0f} tokens/s{speed:>10.1f} GB/s")
        del table


def median(run):
    run()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


with torch.inference_mode():
    main()
