"""Runs every file of examples/, against a live server if the example needs one. quickstart.sh is not run here, because its parts,
tests/real/fetch and the server, have their own tests."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HERE
from harness import BINARY, Server

ROOT = HERE.parents[1]
EXAMPLES = ROOT / "examples"
# These examples are run by tests/bulk (spark, kubernetes), tests/stores (hybrid_*), by tests/soak and tests/overload (load), and by tests/deploy (proxy).
ELSEWHERE = {"quickstart.sh", "spark", "kubernetes", "load", "proxy", "hybrid_duckdb.sql", "hybrid_pgvector.sql", "hybrid_qdrant.py"}


@pytest.fixture(scope="module")
def base():
    """Yields the base URL of a server with the built-in model, so that the examples' results are meaningful."""
    with Server() as server:
        yield server.url + "/v1"


def run(*command, **environment):
    environment = {**os.environ, **environment}
    done = subprocess.run([str(part) for part in command], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cosines(printed):
    found = [re.match(r"\s*(-?\d\.\d+)  ?(.+)", line) for line in printed.splitlines()]
    return [(match[2], float(match[1])) for match in found if match]


def test_curl(base):
    lines = run("bash", EXAMPLES / "curl.sh", BASE_URL=base).splitlines()
    assert all(line.startswith('{"object":"list","data":[{') for line in lines) and len(lines) == 5


def test_openai_python(base):
    (_, same), (_, translated), (_, other) = cosines(run(sys.executable, EXAMPLES / "openai_python.py", BASE_URL=base))
    assert same == 1 and same > translated > other


def test_openai_node(base, tmp_path):
    # Node looks for node_modules beside the importing file.
    script = tmp_path / "openai_node.mjs"
    script.write_bytes((EXAMPLES / "openai_node.mjs").read_bytes())
    (tmp_path / "node_modules").symlink_to(Path(os.environ["NODE_PACKAGES"], "node_modules"))
    (_, same), (_, translated), (_, other) = cosines(run("node", script, BASE_URL=base))
    assert same == 1 and same > translated > other


def test_langchain_rag(base):
    printed = run(sys.executable, EXAMPLES / "langchain_rag.py", "Which metrics does Prometheus scrape?", BASE_URL=base)
    found = [title for title, _ in cosines(printed)][:3]
    assert any(title.startswith("operations.md") for title in found), found
    assert "Answer from these passages alone." in printed and "Question: Which metrics" in printed


def test_library():
    checkpoint = ROOT / "tests/fixtures/checkpoints/llama"
    printed = run("cargo", "run", "--quiet", "--no-default-features", "--example", "library", "--", checkpoint, "hello", "hello", "other")
    (_, same), (_, again), (_, other) = cosines(printed)
    assert same == again == 1 and other < 1


def test_mergekit_recipe(tmp_path):
    """`extract` runs the recipe, with its model replaced by a local one."""
    recipe, replaced = re.subn(r"meta-llama/\S+", str(ROOT / "tests/fixtures/checkpoints/llama"), (EXAMPLES / "mergekit-layer0.yml").read_text())
    assert replaced
    (tmp_path / "recipe.yml").write_text(recipe)
    run(BINARY, "extract", tmp_path / "recipe.yml", tmp_path / "out")
    with Server(models={"m": tmp_path / "out"}) as server:
        assert len(server.vector("hello")) == 16


def test_no_example_is_left_out():
    source = Path(__file__).read_text()
    for path in EXAMPLES.iterdir():
        assert path.name in ELSEWHERE or f'"{path.name}"' in source or f"example\", \"{path.stem}\"" in source, path
