#!/usr/bin/env python3
"""Computes nDCG@10 of BM25 (PyPI rank-bm25, Okapi with its defaults) on the BEIR directories that `eval --retrieval` reads.

    pip install rank-bm25==0.2.2 numpy && benches/quality/bm25.py data/xquad/*

Terms are words in lower case. In scripts without spaces between words, terms are pairs of characters.
"""

import json
import math
import re
import sys
from pathlib import Path

from rank_bm25 import BM25Okapi

UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
# Vowel signs, which Python's \w does not match.
SIGNS = r"\u0300-\u036f\u064b-\u065f\u0900-\u0963"


def terms(text: str) -> list[str]:
    found = []
    for run in re.findall(rf"[{UNSPACED}]+|(?:[^\W{UNSPACED}]|[{SIGNS}])+", text.lower()):
        pairs = re.match(rf"[{UNSPACED}]", run) and len(run) > 1
        found += [run[i:i + 2] for i in range(len(run) - 1)] if pairs else [run]
    return found


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def ndcg(directory: Path) -> float:
    passages, queries = lines(directory / "corpus.jsonl"), lines(directory / "queries.jsonl")
    relevant: dict[str, set[str]] = {}
    for row in (directory / "qrels/test.tsv").read_text().splitlines()[1:]:
        query, passage, score = row.split("\t")
        if float(score) > 0:
            relevant.setdefault(query, set()).add(passage)
    index = BM25Okapi([terms(" ".join(filter(None, (p.get("title"), p["text"])))) for p in passages])
    total = 0.0
    for query in queries:
        right = relevant[query["_id"]]
        best = index.get_scores(terms(query["text"])).argsort(kind="stable")[::-1][:10]
        gain = sum(1 / math.log2(rank + 2) for rank, i in enumerate(best) if passages[i]["_id"] in right)
        total += gain / sum(1 / math.log2(rank + 2) for rank in range(min(len(right), 10)))
    return 100 * total / len(queries)


if __name__ == "__main__":
    found = {Path(name).name: ndcg(Path(name)) for name in sys.argv[1:]}
    for name, value in found.items():
        print(f"{name:10} {value:.1f}")
    print(f"mean of {len(found)} {sum(found.values()) / len(found):.1f}")
