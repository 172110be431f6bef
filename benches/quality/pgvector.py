#!/usr/bin/env python3
"""nDCG@10 of the recipe for pgvector (docs/retrieval.md) on XQuAD among 100,000 passages: of the SQL query alone, and reranked.

    tests/stores/run --collect-only -q                       # installs what the recipe needs
    NODE_PACKAGES=$PWD/target/node-stores target/venv-stores/bin/python benches/quality/pgvector.py --data DIR [--split dev|test]

DIR holds xquad.LANGUAGE.json of google-deepmind/xquad (CC BY-SA 4.0). The passages are the 240 English paragraphs among the sentences of
tests/stores/conftest.py, written by `embed --sparse`. Questions are asked in English and in the languages of --languages. PostgreSQL is PGlite, so the
milliseconds are those of WebAssembly, without an index.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/stores"), str(ROOT / "tests/real")]

from conftest import PASSAGES, passages  # noqa: E402
from harness import BINARY, Server  # noqa: E402
from rerank import mean, ndcg, read  # noqa: E402
from sparse import batches, post  # noqa: E402
from test_stores import copy_for_pgvector, sparsevec  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", choices=["dev", "test"], default="dev")
    parser.add_argument("--languages", default="de,ru,zh")
    args = parser.parse_args()
    paragraphs, _ = read(args.data / "xquad.en.json")
    texts = paragraphs + passages()[:PASSAGES - len(paragraphs)]
    with tempfile.TemporaryDirectory() as directory, Server() as server:
        directory = Path(directory)
        lines = (json.dumps({"id": number, "text": text}) for number, text in enumerate(texts))
        (directory / "passages.jsonl").write_text("\n".join(lines) + "\n")
        out = directory / "passages.parquet"
        subprocess.run([BINARY, "embed", directory / "passages.jsonl", "--sparse", "-o", out], check=True, capture_output=True)
        duckdb.execute(copy_for_pgvector(directory / "passages.csv"), {"passages": str(out)})
        for language in ["en", *args.languages.split(",")]:
            _, questions = read(args.data / f"xquad.{language}.json")
            questions = [(text, right) for text, article, right in questions if (article < 24) == (args.split == "dev")]
            asked = [text for text, _ in questions]
            dense = [entry for batch in batches(asked) for entry in post(server.url, "/v1/embeddings", {"input": batch})["data"]]
            sparse = [
                entry for batch in batches(asked)
                for entry in post(server.url, "/v1/sparse-embeddings", {"input": batch, "input_type": "query"})["data"]
            ]
            job = {
                "rows": str(directory / "passages.csv"), "query": (ROOT / "examples/hybrid_pgvector.sql").read_text(), "dimensions": 384, "tokens": 92000,
                "questions": [
                    {"dense": json.dumps(a["embedding"]), "sparse": sparsevec(b["indices"], b["values"])} for a, b in zip(dense, sparse, strict=True)
                ],
            }
            (directory / "job.json").write_text(json.dumps(job))
            node = ["node", ROOT / "tests/stores/pgvector.mjs", directory / "job.json"]
            answer = json.loads(subprocess.run(node, check=True, capture_output=True, text=True, env={**os.environ}).stdout)
            place = {text: number for number, text in enumerate(texts)}
            first, reranked, found = [], [], []
            for (question, right), candidates in zip(questions, answer["candidates"], strict=True):
                first.append(ndcg([place[text] for text in candidates[:10]], right))
                found.append(float(texts[right] in candidates))
                ranked = post(server.url, "/v1/rerank", {"query": question, "documents": candidates, "top_n": 10})["results"]
                reranked.append(ndcg([place[candidates[result["index"]]] for result in ranked], right))
            milliseconds = sorted(answer["milliseconds"])[len(questions) // 2]
            print(
                f"{language}: one SQL query {100 * mean(first):.1f}, reranked {100 * mean(reranked):.1f}, recall of the candidates {100 * mean(found):.1f}, "
                f"median {milliseconds} ms, n {len(questions)}", flush=True,
            )


if __name__ == "__main__":
    main()
