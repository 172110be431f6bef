#!/usr/bin/env python3
"""nDCG@10 of /v1/rerank and of BM25 on XQuAD, with paired differences, over a running server.

    benches/quality/rerank.py --url http://127.0.0.1:5000 --data DIR [--split dev|test] [--cross] [--methods combined,cosine,lexical,soft]

DIR holds xquad.LANGUAGE.json of google-deepmind/xquad (CC BY-SA 4.0). Articles 0 to 23 are the development half, 24 to 47 the test half; the
paragraphs of both halves are ranked for each question. With --cross, the questions of the other languages are asked over the English
paragraphs. Needs nothing beyond Python's standard library.

The table has the mean over the questions of each language, times 100, and the last column the mean of the paired differences between the
first method and `lexical`, which is BM25, with its standard error.
"""

import argparse
import json
import math
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LANGUAGES = "en de es ru zh ar hi th tr vi el ro".split()


def read(path: Path) -> tuple[list[str], list[tuple[str, int, int]]]:
    """The paragraphs, and the questions with their article and the index of their paragraph."""
    paragraphs, questions = [], []
    for article, entry in enumerate(json.loads(path.read_text(encoding="utf-8"))["data"]):
        for paragraph in entry["paragraphs"]:
            questions += [(question["question"], article, len(paragraphs)) for question in paragraph["qas"]]
            paragraphs.append(paragraph["context"])
    return paragraphs, questions


def rank(url: str, method: str, query: str, documents: list[str]) -> list[int]:
    body = json.dumps({"query": query, "documents": documents, "method": method, "top_n": 10}).encode()
    request = urllib.request.Request(f"{url}/v1/rerank", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return [result["index"] for result in json.load(response)["results"]]


def ndcg(found: list[int], right: int) -> float:
    return 1 / math.log2(found.index(right) + 2) if right in found else 0.0


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def error(values: list[float]) -> float:
    middle = mean(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1) / len(values))


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The parser of the arguments that the scripts over XQuAD share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:5000")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", choices=["dev", "test"], default="dev")
    parser.add_argument("--cross", action="store_true")
    return parser


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--methods", default="combined,soft,cosine,lexical")
    args = parser.parse_args()
    methods = args.methods.split(",")
    languages = [language for language in LANGUAGES if not (args.cross and language == "en")]
    english, _ = read(args.data / "xquad.en.json")
    print(f"{'':6}" + "".join(f"{method:>10}" for method in methods) + f"{methods[0]:>15} - lexical")
    means: dict[str, list[float]] = {method: [] for method in methods}
    for language in languages:
        paragraphs, questions = read(args.data / f"xquad.{language}.json")
        questions = [(text, right) for text, article, right in questions if (article < 24) == (args.split == "dev")]
        documents = english if args.cross else paragraphs
        scores = {}
        with ThreadPoolExecutor(2) as pool:
            for method in methods:
                scores[method] = list(pool.map(lambda q: ndcg(rank(args.url, method, q[0], documents), q[1]), questions))
                means[method].append(mean(scores[method]))
        line = f"{language:6}" + "".join(f"{100 * mean(scores[method]):10.1f}" for method in methods)
        if "lexical" in scores:
            differences = [a - b for a, b in zip(scores[methods[0]], scores["lexical"])]
            line += f"{100 * mean(differences):+15.1f} +- {100 * error(differences):.1f}  (n {len(differences)})"
        print(line, flush=True)
    print(f"{'mean':6}" + "".join(f"{100 * mean(means[method]):10.1f}" for method in methods))


if __name__ == "__main__":
    main()
