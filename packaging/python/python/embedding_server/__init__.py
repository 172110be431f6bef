"""Embeddings from an LLM's token table: a library, and an OpenAI-compatible server.

>>> from embedding_server import Embedder
>>> embedder = Embedder()
>>> embedder.encode(["a dog", "ein Hund"]).shape
(2, 384)

`Embedder` computes vectors in this process. `Server` starts the HTTP server, for tests and notebooks. The package also installs the command
`embedding-server`. The exceptions are in `embedding_server.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .embedder import Embedder, RankedDocument, SparseVector, Tokens
    from .errors import EmbeddingServerError, EmbedError, LoadError
    from .server import Server

__all__ = ["EmbedError", "Embedder", "EmbeddingServerError", "LoadError", "RankedDocument", "Server", "SparseVector", "Tokens"]

_MODULES = {
    "EmbedError": "errors",
    "Embedder": "embedder",
    "EmbeddingServerError": "errors",
    "LoadError": "errors",
    "RankedDocument": "embedder",
    "Server": "server",
    "SparseVector": "embedder",
    "Tokens": "embedder",
}


def __getattr__(name: str) -> object:
    # The command starts faster without numpy, so the modules are imported at their first use.
    if name == "__version__":
        from importlib.metadata import version

        return version("embedding-server")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__, "__version__"]
