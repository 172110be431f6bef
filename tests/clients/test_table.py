"""Checks docs/compatibility.md: each row has a test, the test of each client has a row, and the versions are those that are tested."""

import ast
import json
import re
from pathlib import Path

import pytest
from conftest import HERE

TABLE = HERE.parents[1] / "docs/compatibility.md"
NOT_CLIENTS = {"test_table.py", "test_examples.py"}


def rows():
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("|")]
    header, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert header == ["client", "version", "what is tested", "remarks", "test"]
    return body


def pins():
    """Returns a map of package -> versions, for PyPI, npm and crates.io."""
    found = {}
    for path in HERE.glob("requirements*.txt"):
        for package, version in re.findall(r"^([\w-]+)==(\S+)$", path.read_text(), re.MULTILINE):
            found.setdefault(f"PyPI {package}", set()).add(version)
    for package, version in json.loads((HERE / "package.json").read_text())["dependencies"].items():
        found[f"npm {package}"] = {version}
    cargo = (HERE / "async-openai/Cargo.toml").read_text()
    found["crates.io async-openai"] = {re.search(r'async-openai = \{ version = "=([\d.]+)"', cargo)[1]}
    return found


def proofs():
    """Returns the tests of all clients as `file` or `file::function`, and the recordings as `replay/file`."""
    found = set()
    for path in HERE.glob("test_*.py"):
        functions = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        if path.name == "test_replay.py":
            found |= {f"replay/{recording.name}" for recording in HERE.glob("replay/*.json")}
        elif path.name == "test_node.py":
            found |= {f"{path.name}::{name}" for name in functions if name.startswith("test_")}
        elif path.name not in NOT_CLIENTS:
            found.add(path.name)
    return found


def test_rows_and_tests_are_the_same():
    named = [test for row in rows() for test in re.findall(r"`([^`]+)`", row[4])]
    assert set(named) == proofs()


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_is_whole(row):
    client, versions, tested, _, test = row
    assert client and versions and tested and re.findall(r"`[^`]+`", test)


def test_the_versions_are_those_installed():
    stated = {}
    for client, versions, *_ in rows():
        for registry, package in re.findall(r"(PyPI|npm|crates\.io) `([^`]+)`", client):
            stated.setdefault(f"{registry} {package}", set()).update(re.findall(r"\d+\.\d+\.\d+", versions))
    helpers = {f"PyPI {name}" for name in ("httpx2", "langchain-core", "numpy", "pytest", "tiktoken", "tokenizers")}
    helpers |= {"npm @langchain/core", "npm ai"}
    for package, versions in pins().items():
        assert package in helpers or stated.get(package, set()) >= versions, package
    # A row with several packages states the versions of all of them.
    known = {version for versions in pins().values() for version in versions}
    packaged = [row for row in rows() if re.search(r"PyPI|npm|crates", row[0])]
    assert all(version in known for row in packaged for version in re.findall(r"\d+\.\d+\.\d+", row[1]))
