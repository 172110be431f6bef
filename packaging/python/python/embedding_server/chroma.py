"""Chroma: `pip install "embedding-server[chroma]"`.

>>> import chromadb
>>> from embedding_server.chroma import LocalEmbeddingFunction
>>> collection = chromadb.EphemeralClient().create_collection("texts", embedding_function=LocalEmbeddingFunction())
>>> collection.add(ids=["1", "2"], documents=["a dog", "the stock market"])
>>> collection.query(query_texts=["ein Hund"], n_results=1)["ids"]
[['1']]
"""

from __future__ import annotations

from typing import Any

from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
from chromadb.utils.embedding_functions import register_embedding_function

from .embedder import Embedder


@register_embedding_function
class LocalEmbeddingFunction(EmbeddingFunction[Documents]):
    """Chroma's `EmbeddingFunction` in this process. The arguments are those of `Embedder`.

    Chroma stores the name and the arguments with a collection. Import this module before such a collection is opened again.
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        self._model, self._settings = model, settings
        self._embedder = Embedder(model, **settings)

    def __call__(self, input: Documents) -> Embeddings:
        """Returns one vector for each document."""
        return list(self._embedder.encode(input))

    @staticmethod
    def name() -> str:
        """Returns the name under which Chroma stores this function."""
        return "embedding_server"

    def default_space(self) -> Space:
        """Returns the distance that fits the vectors."""
        return "cosine"

    def supported_spaces(self) -> list[Space]:
        """Returns the distances that Chroma may use."""
        return ["cosine", "l2", "ip"]

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments for `build_from_config`."""
        return {"model": self._model, "settings": self._settings}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> LocalEmbeddingFunction:
        """Returns the function with the arguments of `get_config`."""
        return LocalEmbeddingFunction(config.get("model"), **config.get("settings", {}))
