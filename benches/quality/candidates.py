#!/usr/bin/env python3
"""Mean average precision of /v1/rerank and of BM25 among the candidates of each query, over a running server.

    benches/quality/candidates.py --url http://127.0.0.1:5000 DIR...

Each DIR is a directory that tests/real/retrieval-data wrote with candidates.tsv: WikiQA (answers among the sentences of a page) and SemEval 2016
(similar questions among ten). The last column is the mean of the paired differences between `combined` and `lexical`, which is BM25, with its 95 %
bootstrap interval. Needs nothing beyond Python's standard library.
"""

import argparse
import json
import random
from pathlib import Path

from sparse import post

METHODS = ["lexical", "cosine", "soft", "combined"]
RESAMPLES = 1000


def precision(order: list[str], relevant: set[str]) -> float:
    """The average precision of a ranking that has all relevant documents."""
    found, total = 0, 0.0
    for rank, document in enumerate(order, 1):
        if document in relevant:
            found += 1
            total += found / rank
    return total / len(relevant)


def grouped(path: Path) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        query, document, *_ = line.split("\t")
        groups.setdefault(query, []).append(document)
    return groups


def texts(path: Path) -> dict[str, str]:
    return {entry["_id"]: entry["text"] for entry in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def interval(values: list[float]) -> tuple[float, float]:
    drawn = random.Random(0)
    means = sorted(sum(drawn.choices(values, k=len(values))) / len(values) for _ in range(RESAMPLES))
    return means[RESAMPLES * 25 // 1000], means[RESAMPLES * 975 // 1000 - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:5000")
    parser.add_argument("directories", nargs="+", type=Path)
    args = parser.parse_args()
    print(f"{'':10}" + "".join(f"{method:>10}" for method in METHODS) + "   combined - lexical")
    for directory in args.directories:
        documents, queries = texts(directory / "corpus.jsonl"), texts(directory / "queries.jsonl")
        relevant, candidates = grouped(directory / "qrels/test.tsv"), grouped(directory / "candidates.tsv")
        found: dict[str, list[float]] = {method: [] for method in METHODS}
        for query, names in candidates.items():
            for method in METHODS:
                body = {"query": queries[query], "documents": [documents[name] for name in names], "method": method}
                order = [names[result["index"]] for result in post(args.url, "/v1/rerank", body)["results"]]
                found[method].append(precision(order, set(relevant[query])))
        mean = lambda values: 100 * sum(values) / len(values)
        differences = [a - b for a, b in zip(found["combined"], found["lexical"])]
        low, high = interval(differences)
        line = "".join(f"{mean(found[method]):10.1f}" for method in METHODS)
        print(f"{directory.name:10}{line}   {mean(differences):+.1f} [{100 * low:.1f}, {100 * high:.1f}] (n {len(differences)})", flush=True)


if __name__ == "__main__":
    main()
