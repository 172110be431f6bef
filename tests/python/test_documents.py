"""Every Python example in the documents and in the docstrings runs."""

import doctest
import importlib
import importlib.util

import pytest
from conftest import ROOT

MODULES = {
    "": None,
    ".embedder": None,
    ".server": None,
    ".langchain": "langchain_core",
    ".llama_index": "llama_index",
    ".haystack": "haystack",
    ".chroma": "chromadb",
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    library = MODULES[name]
    if library and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed on this Python")
    failed, tried = doctest.testmod(importlib.import_module("embedding_server" + name))
    assert failed == 0 and tried > 0


def examples(path):
    """Returns the blocks of Python in a document, each with its number."""
    blocks = path.read_text(encoding="utf-8").split("```python\n")[1:]
    return [block.split("```")[0] for block in blocks]


@pytest.mark.parametrize("document", ["docs/python.md", "packaging/python/README.md"])
def test_examples_in_documents(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = examples(ROOT / document)
    assert blocks
    for block in blocks:
        needed = [module for module in ("langchain_core", "llama_index", "haystack", "chromadb", "openai") if module in block]
        if any(importlib.util.find_spec(module) is None for module in needed):
            continue
        exec(compile(block, document, "exec"), names)  # noqa: S102


def test_public_names_have_docstrings():
    import inspect

    import embedding_server
    from embedding_server import errors

    for module in (embedding_server, errors):
        names = embedding_server.__all__ if module is embedding_server else [n for n, v in vars(errors).items() if inspect.isclass(v)]
        for name in names:
            value = getattr(module, name)
            assert value.__doc__, name
            for method, function in vars(value).items():
                if inspect.isfunction(function) and not method.startswith("_"):
                    assert function.__doc__, f"{name}.{method}"
