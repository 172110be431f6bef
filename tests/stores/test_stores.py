"""Runs the recipes of docs/retrieval.md: each store must have the wanted passage among its candidates, and reranking must put it first."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import duckdb
from conftest import PASSAGES, ROOT, WANTED
from qdrant_client import QdrantClient

EXAMPLES = ROOT / "examples"


def copy_for_pgvector(rows):
    """Returns the statement of docs/retrieval.md that makes a file for pgvector from the Parquet file of `embed --sparse`."""
    recipe = (ROOT / "docs/retrieval.md").read_text()
    statement = re.search(r"```sql\n(COPY .*?);\n```", recipe, re.DOTALL)[1]
    return statement.replace("'passages.parquet'", "$passages").replace("'passages.csv'", f"'{rows}'")


def sparsevec(indices, values):
    """Returns a sparse vector in the form of pgvector, whose indices begin at 1."""
    return "{" + ",".join(f"{index + 1}:{value}" for index, value in zip(indices, values, strict=True)) + "}/92000"


def vectors(ask):
    """Returns the dense and the sparse vector of each question."""
    questions = [question for question, _ in WANTED]
    dense = ask("/v1/embeddings", input=questions, dimensions=128)["data"]
    sparse = ask("/v1/sparse-embeddings", input=questions, input_type="query")["data"]
    return [(a["embedding"], b["indices"], b["values"]) for a, b in zip(dense, sparse, strict=True)]


def test_qdrant(server, reranked, texts, monkeypatch):
    monkeypatch.setenv("BASE_URL", server.url + "/v1")
    example = EXAMPLES / "hybrid_qdrant.py"
    printed = subprocess.run([sys.executable, example], check=True, capture_output=True, text=True, timeout=60).stdout
    assert printed.splitlines()[0].endswith(WANTED[0][1]), printed
    spec = importlib.util.spec_from_file_location("hybrid_qdrant", example)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    client = QdrantClient(":memory:")
    # The local mode compares every point in Python, so it gets a part of the passages.
    few = [text for text in texts if text in dict(WANTED).values()] + texts[:1000]
    recipe.fill(client, few)
    reranked([recipe.candidates(client, question) for question, _ in WANTED])


def test_duckdb(ask, embedded, reranked):
    query = (EXAMPLES / "hybrid_duckdb.sql").read_text()
    found = []
    for embedding, indices, values in vectors(ask):
        parameters = {"passages": str(embedded), "embedding": embedding, "indices": indices, "values": values}
        found.append([text for _, text, _ in duckdb.execute(query, parameters).fetchall()])
    assert all(len(candidates) == 200 for candidates in found)
    reranked(found)


def test_pgvector(ask, embedded, reranked, tmp_path):
    rows = tmp_path / "passages.csv"
    duckdb.execute(copy_for_pgvector(rows), {"passages": str(embedded)})
    questions = [
        {"dense": json.dumps(embedding), "sparse": sparsevec(indices, values)} for embedding, indices, values in vectors(ask)
    ]
    job = {"rows": str(rows), "query": (EXAMPLES / "hybrid_pgvector.sql").read_text(), "questions": questions, "dimensions": 128, "tokens": 92000}
    (tmp_path / "job.json").write_text(json.dumps(job))
    node = ["node", ROOT / "tests/stores/pgvector.mjs", tmp_path / "job.json"]
    done = subprocess.run(node, capture_output=True, text=True, timeout=170, env={**os.environ})
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    print(answer["versions"], answer["milliseconds"])
    assert answer["rows"] == PASSAGES
    reranked(answer["candidates"])
