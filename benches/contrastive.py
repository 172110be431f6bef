#!/usr/bin/env python3
"""Compares the speed of `embedding-server fit --pairs` with the same steps in torch, in turns within one run.

    python3 -m venv venv && venv/bin/pip install numpy==2.4.6 safetensors==0.8.0 tokenizers==0.23.3 torch==2.15.0
    cargo build --release && venv/bin/python benches/contrastive.py target/release/embedding-server [--threads 1] [--tokens 12] [--batch 768]

The pairs are random words of the built-in model's tokenizer with Zipf's frequencies. Both sides start from the rows of the built-in model
[92,000 x 384] as f32 and do the same step: vectors of the batch, symmetric InfoNCE with masks, gradients, row-wise update. Torch gathers the distinct rows of
the batch and sums them by embedding_bag, which was its fastest way. Reading and tokenizing are not counted on either side.
"""

import argparse
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

MODEL = Path(__file__).parent.parent / "models/default"
DIMENSIONS, SCALE = 384, 20.0


def write_pairs(path: Path, pairs: int, words: int) -> list[list[str]]:
    random = np.random.default_rng(1)
    vocabulary = [t[1:] for t in Tokenizer.from_file(str(MODEL / "tokenizer.json")).get_vocab() if t.startswith("\u2581") and t[1:].isalpha()]
    vocabulary.sort()
    random.shuffle(vocabulary)
    chances = 1 / (10 + np.arange(len(vocabulary)))
    drawn = random.choice(len(vocabulary), size=(pairs, 2, words), p=chances / chances.sum())
    texts = [[" ".join(vocabulary[i] for i in side) for side in pair] for pair in drawn]
    path.write_text("".join(f"{a}\t{p}\n" for a, p in texts))
    return texts


def ours(binary: str, path: Path, out: Path, args) -> float:
    command = [binary, "fit", str(MODEL), str(out), "--pairs", str(path), "--batch", str(args.batch), "--train-steps", str(args.steps), "--held-out", "0",
               "--keep-weight", "0", "--force"]
    environment = dict(os.environ, RAYON_NUM_THREADS=str(args.threads))
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    speeds = [float(x) for x in re.findall(r"(\d+) pairs/s", found.stderr)]
    if not speeds:
        raise SystemExit(found.stdout + found.stderr)
    return len(speeds) / sum(1 / speed for speed in speeds)


class Torch:
    def __init__(self, texts: list[list[str]], args):
        torch.set_num_threads(args.threads)
        tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        encode = lambda side: [np.array(e.ids) for e in tokenizer.encode_batch([pair[side] for pair in texts], add_special_tokens=False)]
        self.sides, self.batch, self.steps = [encode(0), encode(1)], args.batch, args.steps
        rows = tokenizer.get_vocab_size()
        self.table = torch.randn(rows, DIMENSIONS)
        self.square, self.changes = torch.zeros(rows), torch.zeros(rows)

    def run(self) -> float:
        random = np.random.default_rng(2)
        batches = [random.choice(len(self.sides[0]), self.batch, replace=False) for _ in range(self.steps)]
        start = time.perf_counter()
        for number, batch in enumerate(batches):
            self.step(batch, 0.03 * min(1, (number + 1) / 50) * (1 - number / self.steps))
        return self.batch * self.steps / (time.perf_counter() - start)

    def step(self, batch, rate):
        texts = [side[i] for side in self.sides for i in batch]
        offsets = torch.from_numpy(np.cumsum([0] + [len(t) for t in texts[:-1]]))
        rows, local = torch.unique(torch.from_numpy(np.concatenate(texts)), return_inverse=True)
        gathered = self.table[rows].requires_grad_(True)
        vectors = torch.nn.functional.normalize(torch.nn.functional.embedding_bag(local, gathered, offsets, mode="sum"), dim=1)
        logits = SCALE * vectors[: self.batch] @ vectors[self.batch :].T
        own = torch.arange(self.batch)
        loss = (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2
        loss.backward()
        with torch.no_grad():
            gradient = gathered.grad
            self.changes[rows] += 1
            square = 0.99 * self.square[rows] + 0.01 * (gradient**2).mean(1)
            self.square[rows] = square
            corrected = (square / (1 - 0.99 ** self.changes[rows])).sqrt() + 1e-9
            self.table[rows] = self.table[rows] - (rate / corrected)[:, None] * gradient


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--batch", type=int, default=768)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.txt"
        peer = Torch(write_pairs(path, args.pairs, args.tokens), args)
        for _ in range(args.rounds):
            mine, theirs = ours(args.binary, path, Path(folder) / "out", args), peer.run()
            print(f"{args.threads} threads, batch {args.batch}, {args.tokens} words a text: fit {mine:,.0f} pairs/s, torch {theirs:,.0f}, ratio {mine / theirs:.1f}",
                  flush=True)


if __name__ == "__main__":
    main()
