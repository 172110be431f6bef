"""LlamaIndex: `pip install "embedding-server[llama-index]"`.

>>> from embedding_server.llama_index import LocalEmbedding
>>> len(LocalEmbedding().get_text_embedding("a dog"))
384
"""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from .embedder import Embedder


class LocalEmbedding(BaseEmbedding):
    """LlamaIndex's `BaseEmbedding` in this process. The arguments are those of `Embedder`, or an embedder."""

    _embedder: Embedder = PrivateAttr()

    def __init__(self, model: Any = None, *, embed_batch_size: int = 256, **settings: Any) -> None:
        embedder = model if isinstance(model, Embedder) else Embedder(model, **settings)
        super().__init__(model_name=embedder.path, embed_batch_size=embed_batch_size)
        self._embedder = embedder

    @classmethod
    def class_name(cls) -> str:
        """Returns the name of the class in saved indexes."""
        return "EmbeddingServerLocalEmbedding"

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embedder.embed_query(text)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.embed_documents(texts)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embedder.embed_query(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
