"""Checks that examples/kubernetes/embed-job.yaml is valid, and that its shards, run as processes, write every row once."""

import itertools
import subprocess

import kubernetes_validate
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from conftest import BIN, MODEL, ROOT

MANIFEST = yaml.safe_load((ROOT / "examples/kubernetes/embed-job.yaml").read_text())


@pytest.mark.parametrize("version", ["1.29", "1.33"])
def test_the_manifest_is_valid(version):
    kubernetes_validate.validate(MANIFEST, version, strict=True)


def arguments(index, corpus, out):
    container, = MANIFEST["spec"]["template"]["spec"]["containers"]
    variable, = container["env"]
    assert variable["valueFrom"]["fieldRef"]["fieldPath"].endswith("['batch.kubernetes.io/job-completion-index']")
    filled = [arg.replace(f"$({variable['name']})", str(index)) for arg in container["args"]]
    places = [arg.replace("/in/", f"{corpus}/").replace("/out/", f"{out}/") for arg in filled]
    assert not any("$" in arg for arg in places)
    return [BIN, *places, "--model", MODEL]


def test_shards_make_every_row_once_though_one_is_killed_and_one_runs_twice(corpus, vectors_of, tmp_path):
    # There are more files than shards. One file takes long enough that its process can be killed.
    completions = MANIFEST["spec"]["completions"]
    table = pq.read_table(corpus)
    for file in corpus.iterdir():
        file.unlink()
    cuts = np.linspace(0, table.num_rows, completions + 4).astype(int)
    texts = table["text"].to_pylist()
    texts[cuts[1]:cuts[2]] = [500 * text for text in texts[cuts[1]:cuts[2]]]
    table = table.set_column(1, "text", [texts])
    vectors = vectors_of(table)
    for file, (start, end) in enumerate(itertools.pairwise(cuts)):
        pq.write_table(table.slice(start, end - start), corpus / f"{file:02}.parquet", row_group_size=100)
    out = tmp_path / "out"
    out.mkdir()
    for index in range(completions):
        command = arguments(index, corpus, out)
        if index == 1:
            killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            parts = out / f".part-{index}.parquet.parts"
            while not parts.exists() and killed.poll() is None:
                pass
            killed.kill()
            killed.wait()
            assert not (out / f"part-{index}.parquet").exists(), "it was over before it was killed"
        subprocess.run(command, check=True, stderr=subprocess.PIPE, timeout=300)
    again = subprocess.run(arguments(2, corpus, out), check=True, capture_output=True, text=True, timeout=300)
    assert "exists already" in again.stderr
    found = pq.read_table(sorted(out.glob("part-*.parquet")))
    assert sorted(found["id"].to_pylist()) == sorted(vectors)
    assert all(
        np.array_equal(np.float32(vector), np.float32(vectors[n]))
        for n, vector in zip(found["id"].to_pylist(), found["embedding"].to_pylist())
    )
    assert sorted(path.name for path in out.iterdir()) == [f"part-{n}.parquet" for n in range(completions)]
