"""Runs examples/spark/embed.py on a cluster of worker processes. One task fails in the middle of its output and is retried."""

import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pyspark

from conftest import BIN, MODEL, ROOT

# The first call of this program embeds a few rows and fails. All later calls succeed.
FLAKY = """#!/bin/sh
if mkdir "$0.failed" 2> /dev/null; then head -n 5 | "{bin}" "$@"; exit 1; fi
exec "{bin}" "$@"
"""


def test_a_failed_task_is_retried_without_loss_or_duplicates(corpus, vectors, tmp_path):
    flaky = tmp_path / "flaky"
    flaky.write_text(FLAKY.format(bin=BIN))
    flaky.chmod(0o755)
    out = tmp_path / "out.parquet"
    home = os.path.dirname(pyspark.__file__)
    command = [
        f"{home}/bin/spark-submit", "--master", "local-cluster[2,1,1024]", "--conf", "spark.ui.enabled=false",
        "--conf", f"spark.pyspark.python={sys.executable}", "--conf", "spark.driver.bindAddress=127.0.0.1",
        "--conf", "spark.driver.host=127.0.0.1",
        ROOT / "examples/spark/embed.py", corpus, out, "--partitions", "6", "--command", f"{flaky} embed", "--model", MODEL,
    ]
    environment = {**os.environ, "SPARK_HOME": home, "SPARK_LOCAL_IP": "127.0.0.1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-5000:]
    assert (tmp_path / "flaky.failed").exists()
    assert "Lost task" in done.stderr, "no task failed"

    files = [file for file in out.iterdir() if file.suffix == ".parquet"]
    assert len(files) > 1
    found = pq.read_table(files)
    rows = dict(zip(found["id"].to_pylist(), found["embedding"].to_pylist()))
    assert found.num_rows == 15000 and rows.keys() == vectors.keys()
    assert all(np.array_equal(np.float32(rows[n]), np.float32(vectors[n])) for n in rows)
    expected = pq.read_table(corpus).select(["text", "when", "labels"]).sort_by("text")
    assert found.select(["text", "when", "labels"]).sort_by("text").equals(expected)
