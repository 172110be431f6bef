#!/usr/bin/env python3
"""nDCG@10 on XQuAD of plain cosines with a lexical tail, by its definition in numpy, for a table in int4.

    pip install numpy==2.4.6 safetensors==0.8.0 tokenizers==0.23.3
    benches/quality/lexical_tail.py --data DIR [--model models/default] [--split dev|test]

DIR and the splits are those of rerank.py. The script shares no code with the server: it computes the signs of crates/layer0/src/pooling/kernel/signs.rs
again. It prints the mean of 12 languages, times 100, for each exponent of token counts, number of columns and weight.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

LANGUAGES = "en de es ru zh ar hi th tr vi el ro".split()
COLUMNS, WEIGHTS, EXPONENTS = [128, 384, 640, 1152], [0.6, 0.8, 1.0], [1.0, 0.7]


def read(path: Path, split: str) -> tuple[list[str], list[tuple[str, int]]]:
    """The paragraphs, and the questions of the split with the index of their paragraph."""
    paragraphs, questions = [], []
    for article, entry in enumerate(json.loads(path.read_text(encoding="utf-8"))["data"]):
        for paragraph in entry["paragraphs"]:
            if (article < 24) == (split == "dev"):
                questions += [(question["question"], len(paragraphs)) for question in paragraph["qas"]]
            paragraphs.append(paragraph["context"])
    return paragraphs, questions


def table(model: Path) -> np.ndarray:
    tensors = load_file(model / "model.safetensors")
    pairs = tensors["embeddings"]
    numbers = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(len(pairs), -1).astype(np.float32) - 8
    return numbers * tensors["scales"][:, None]


def words(rows: int, blocks: int) -> np.ndarray:
    z = np.arange(rows, dtype=np.uint64)[:, None] << np.uint64(32) | np.arange(blocks, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("models/default"))
    parser.add_argument("--split", choices=["dev", "test"], default="dev")
    args = parser.parse_args()
    rows, tokenizer = table(args.model), Tokenizer.from_file(str(args.model / "tokenizer.json"))
    lengths, bits = np.linalg.norm(rows, axis=1), words(len(rows), max(COLUMNS) // 64)

    def vectors(texts: list[str], exponent: float) -> tuple[np.ndarray, np.ndarray]:
        """The sums of rows, and of signs times the lengths of rows."""
        sums, tails = [], []
        for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
            ids, counts = np.unique(np.array(encoding.ids, dtype=np.int64), return_counts=True)
            weights = counts[ids < len(rows)].astype(np.float32) ** exponent
            ids = ids[ids < len(rows)]
            negative = np.unpackbits(bits[ids].astype("<u8").view(np.uint8), axis=1, bitorder="little")
            sums.append(weights @ rows[ids])
            tails.append((weights * lengths[ids]) @ (1 - 2 * negative.astype(np.float32)))
        return np.stack(sums), np.stack(tails)

    found = {}
    for language in LANGUAGES:
        paragraphs, questions = read(args.data / f"xquad.{language}.json", args.split)
        right = np.array([index for _, index in questions])
        for exponent in EXPONENTS:
            made = [vectors(texts, exponent) for texts in (paragraphs, [text for text, _ in questions])]
            for columns, weight in [(0, 0.0)] + [(columns, weight) for columns in COLUMNS for weight in WEIGHTS]:
                scale = weight / max(columns, 1) ** 0.5
                documents, queries = (unit(np.hstack([sums, scale * tails[:, :columns]])) for sums, tails in made)
                scores = queries @ documents.T
                rank = (scores > scores[np.arange(len(right)), right][:, None]).sum(1)
                ndcg = np.where(rank < 10, 1 / np.log2(rank + 2), 0).mean()
                found.setdefault((exponent, columns, weight), []).append(100 * float(ndcg))
    for (exponent, columns, weight), values in found.items():
        print(f"exponent {exponent}, {columns:>4} columns, weight {weight}: {np.mean(values):.1f} (en {values[0]:.1f})")


if __name__ == "__main__":
    main()
