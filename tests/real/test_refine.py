"""Compares a refined float table in Model2Vec's own library and in sentence-transformers with this server's vectors.

    pip install model2vec==0.10.0 [sentence-transformers==6.2.0]
    EMBEDDING_SERVER_BIN=target/release/embedding-server pytest tests/real/test_refine.py
    REFINE_CHECKPOINT=DIR   also compares a real checkpoint
"""

import json
import os
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
BINARY = os.environ.get("EMBEDDING_SERVER_BIN", str(ROOT / "target/release/embedding-server"))
FIXTURE = ROOT / "tests/fixtures/refined/table"
CHECKPOINTS = [FIXTURE, *map(Path, filter(None, [os.environ.get("REFINE_CHECKPOINT")]))]
# Model2Vec leaves out unknown tokens, so the texts for the fixture have only words of its tiny vocabulary.
TEXTS = {
    FIXTURE.name: ["the sea shines", "a small bird sings of the moon", "night", "the the the stone"],
    None: ["A girl is styling her hair.", "Ein Hund läuft über die Wiese.", "猫が窓辺で眠っている。", "hello", "12 % < 20 €"],
}


def served(path: Path, texts: list[str]) -> np.ndarray:
    server = subprocess.Popen([BINARY, "serve", "--port", "0", "--model", f"m={path}"], stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.DEVNULL)
    try:
        address = server.stdout.readline().removeprefix("listening on ").strip()
        body = json.dumps({"model": "m", "input": texts}).encode()
        request = urllib.request.Request(f"{address}/v1/embeddings", body, {"content-type": "application/json"})
        while True:
            try:
                answer = json.load(urllib.request.urlopen(request, timeout=60))
                return np.array([entry["embedding"] for entry in answer["data"]], dtype=np.float32)
            except urllib.error.HTTPError as error:  # 503 while it loads
                assert error.code == 503 and server.poll() is None, error.read()
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda path: path.name)
def test_model2vec_loads_it_and_agrees(checkpoint, dtype, tmp_path, note):
    model2vec = pytest.importorskip("model2vec")
    out = tmp_path / "refined"
    subprocess.run([BINARY, "refine", checkpoint, out, "--dtype", dtype], check=True)
    texts = TEXTS.get(checkpoint.name, TEXTS[None])
    ours = served(out, texts)
    model = model2vec.StaticModel.from_pretrained(str(out))
    assert model.normalize and model.dim == ours.shape[1]
    theirs = model.encode(texts)
    off = np.abs(theirs - ours).max()
    note(f"largest difference to Model2Vec {off:.1e}")
    assert off < (1e-6 if dtype == "f32" else 1e-3)
    assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


def test_sentence_transformers_loads_it_and_agrees(tmp_path, note):
    library = pytest.importorskip("sentence_transformers")
    out = tmp_path / "refined"
    subprocess.run([BINARY, "refine", FIXTURE, out, "--dtype", "f32"], check=True)
    texts = TEXTS[FIXTURE.name]
    off = np.abs(library.SentenceTransformer(str(out), device="cpu").encode(texts) - served(out, texts)).max()
    note(f"largest difference to sentence-transformers {off:.1e}")
    assert off < 1e-6
