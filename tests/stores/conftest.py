"""A server with the built-in model, and a hundred thousand passages in which a few are worth finding."""

import json
import os
import random
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/real"))

from harness import BINARY, Server  # noqa: E402

PASSAGES = 100_000
# What a question should find: a passage in its own language, in other words or in another language, and one with an exact name.
WANTED = [
    ("How do plants make their food?", "Photosynthesis is the process by which green plants turn light, water and air into sugar."),
    ("Which dog sleeps in the garden?", "Der alte Hund des Nachbarn schläft jeden Nachmittag im Garten unter dem Apfelbaum."),
    ("Quand la tour a-t-elle été construite ?", "The iron tower was built between 1887 and 1889 for the world exhibition in Paris."),
    ("Was kostet eine Reparatur des Modells XR-7741-B?", "Price list: the repair of model XR-7741-B costs 84 euros, spare parts included."),
    ("北京的人口有多少？", "Beijing is the capital of China and has a population of about 22 million people."),
    ("error code E5521 when the pump starts", "E5521: the pump cannot start, because the water filter is blocked."),
]


def passages():
    """Returns the texts: WANTED's passages, spread among sentences of business and travel that are all different."""
    rng = random.Random(7)
    who = "the board, a visitor, our supplier, the minister, one engineer, the museum, every passenger, the union, a farmer, the bank".split(", ")
    did = "approved, visited, measured, sold, described, repaired, inspected, painted, discussed, closed".split(", ")
    what = "the bridge, a contract, the northern line, three ships, a factory, the old archive, the hotel, a vineyard, the budget, a road".split(", ")
    when = "in spring, last year, on Monday, before the storm, after the meeting, in 1974, at noon, during the strike, in Vienna, at the border".split(", ")
    texts = [
        f"{rng.choice(who)} {rng.choice(did)} {rng.choice(what)} {rng.choice(when)}, and {rng.choice(who)} {rng.choice(did)} {rng.choice(what)} number {n}.".capitalize()
        for n in range(PASSAGES - len(WANTED))
    ]
    for _, text in WANTED:
        texts.insert(rng.randrange(len(texts)), text)
    return texts


@pytest.fixture(scope="session")
def texts():
    return passages()


@pytest.fixture(scope="session")
def server():
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def embedded(tmp_path_factory, texts):
    """Writes the passages with `embed --sparse`, and returns the Parquet file. 128 dimensions keep the test short."""
    directory = tmp_path_factory.mktemp("embedded")
    lines = (json.dumps({"id": number, "text": text}) for number, text in enumerate(texts))
    (directory / "passages.jsonl").write_text("\n".join(lines) + "\n")
    out = directory / "passages.parquet"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EMBEDDING_SERVER_")}
    command = [BINARY, "embed", directory / "passages.jsonl", "--sparse", "--dimensions", "128", "-o", out]
    subprocess.run(command, check=True, capture_output=True, timeout=300, env=environment)
    return out


@pytest.fixture(scope="session")
def ask(server):
    """Returns a function that sends a request to the server."""

    def ask(path, **body):
        request = urllib.request.Request(server.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    return ask


@pytest.fixture(scope="session")
def reranked(ask, texts):
    """Returns a function that checks that reranking the candidates of each question puts the wanted passage first."""

    def reranked(candidates):
        for (question, wanted), found in zip(WANTED, candidates, strict=True):
            assert wanted in found, f"{question}: not among the {len(found)} candidates"
            ranked = ask("/v1/rerank", query=question, documents=found, top_n=3)["results"]
            assert found[ranked[0]["index"]] == wanted, f"{question}: {[found[result['index']] for result in ranked]}"

    return reranked
