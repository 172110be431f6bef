import json
import os
import pathlib
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = os.environ["EMBEDDING_SERVER_BIN"]
MODEL = os.environ.get("BULK_CHECKPOINT", str(ROOT / "tests/fixtures/checkpoints/llama"))


@pytest.fixture
def embed():
    def run(*args, **options):
        command = [BIN, "embed", "--model", MODEL, *map(str, args)]
        return subprocess.run(command, check=True, capture_output=True, timeout=300, **options)

    return run


@pytest.fixture
def corpus(tmp_path):
    """Writes three Parquet files of 5,000 rows each, in row groups of 700, and returns their directory."""
    inputs = tmp_path / "in"
    inputs.mkdir()
    for file in range(3):
        numbers = range(5000 * file, 5000 * (file + 1))
        table = pa.table({
            "id": pa.array(numbers, pa.int64()),
            "text": [f"the number {n}, 숫자 {n * 7} \"quoted\" \u2028 line" for n in numbers],
            "when": pa.array(numbers, pa.timestamp("us")),
            "labels": pa.array([["a", None] if n % 2 else None for n in numbers], pa.list_(pa.string())),
        })
        pq.write_table(table, inputs / f"{file}.parquet", row_group_size=700)
    return inputs


@pytest.fixture
def vectors_of(embed):
    """Returns a function from a table to a map of ID -> vector, computed by the command from plain text."""

    def vectors(table):
        lines = "".join(f"{text}\n" for text in table["text"].to_pylist())
        found = [json.loads(line)["embedding"] for line in embed(input=lines.encode()).stdout.split(b"\n") if line]
        return dict(zip(table["id"].to_pylist(), found, strict=True))

    return vectors


@pytest.fixture
def vectors(vectors_of, corpus):
    return vectors_of(pq.read_table(corpus))
