#!/usr/bin/env python3
"""nDCG@10 of sparse vectors on XQuAD, over a running server: alone, and added to the cosine of dense vectors.

    benches/quality/sparse.py --url http://127.0.0.1:5000 --data DIR [--split dev|test] [--cross] [--expand 0,16,32]

DIR holds xquad.LANGUAGE.json of google-deepmind/xquad (CC BY-SA 4.0). Articles 0 to 23 are the development half, 24 to 47 the test half; the
paragraphs of both halves are ranked for each question by the dot product. With --cross, the questions of the other languages are asked over the
English paragraphs. `+ dense` is 0.8 of the dot product plus 0.2 of the cosine. Needs nothing beyond Python's standard library.
"""

import json
import urllib.request

from rerank import LANGUAGES, arguments, mean, ndcg, read

BATCH = 500


def post(url: str, path: str, body: dict) -> dict:
    request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def batches(texts: list[str]) -> list[list[str]]:
    return [texts[start:start + BATCH] for start in range(0, len(texts), BATCH)]


def sparse(url: str, texts: list[str], **fields) -> list[dict[int, float]]:
    answers = [post(url, "/v1/sparse-embeddings", {"input": batch, **fields})["data"] for batch in batches(texts)]
    return [dict(zip(entry["indices"], entry["values"])) for answer in answers for entry in answer]


def cosines(url: str, queries: list[str], documents: list[str]) -> list[list[float]]:
    answers = [post(url, "/v1/similarity", {"input": documents, "queries": batch})["data"] for batch in batches(queries)]
    return [row["similarity"] for answer in answers for row in answer]


def best(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:10]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--expand", default="0,16,32")
    args = parser.parse_args()
    expansions = [int(number) for number in args.expand.split(",")]
    languages = [language for language in LANGUAGES if not (args.cross and language == "en")]
    english, _ = read(args.data / "xquad.en.json")
    columns = ["cosine"] + [f"{expand}{dense}" for expand in expansions for dense in ("", " + dense")]
    print(f"{'':6}" + "".join(f"{column:>14}" for column in columns) + f"{'numbers':>24}")
    means: dict[str, list[float]] = {column: [] for column in columns}
    for language in languages:
        paragraphs, questions = read(args.data / f"xquad.{language}.json")
        questions = [(text, right) for text, article, right in questions if (article < 24) == (args.split == "dev")]
        documents = english if args.cross else paragraphs
        texts, rights = [text for text, _ in questions], [right for _, right in questions]
        dense = cosines(args.url, texts, documents)
        vectors = sparse(args.url, documents)
        postings: dict[int, list[tuple[int, float]]] = {}
        for number, vector in enumerate(vectors):
            for token, value in vector.items():
                postings.setdefault(token, []).append((number, value))
        means["cosine"].append(mean([ndcg(best(row), right) for row, right in zip(dense, rights)]))
        lengths = [mean([len(vector) for vector in vectors])]
        for expand in expansions:
            queries = sparse(args.url, texts, input_type="query", expand=expand)
            lengths.append(mean([len(query) for query in queries]))
            alone, added = [], []
            for query, cosine, right in zip(queries, dense, rights):
                scores = [0.0] * len(documents)
                for token, weight in query.items():
                    for number, value in postings.get(token, []):
                        scores[number] += weight * value
                alone.append(ndcg(best(scores), right))
                added.append(ndcg(best([0.8 * s + 0.2 * c for s, c in zip(scores, cosine)]), right))
            means[str(expand)].append(mean(alone))
            means[f"{expand} + dense"].append(mean(added))
        line = f"{language:6}" + "".join(f"{100 * means[column][-1]:14.1f}" for column in columns)
        print(line + "   " + " / ".join(f"{length:.0f}" for length in lengths), flush=True)
    print(f"{'mean':6}" + "".join(f"{100 * mean(means[column]):14.1f}" for column in columns))


if __name__ == "__main__":
    main()
