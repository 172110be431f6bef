"""LangChain: `pip install "embedding-server[langchain]"`.

>>> from langchain_core.vectorstores import InMemoryVectorStore
>>> from embedding_server.langchain import LocalEmbeddings
>>> store = InMemoryVectorStore.from_texts(["a dog", "the stock market"], LocalEmbeddings())
>>> store.similarity_search("ein Hund", k=1)[0].page_content
'a dog'
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from pydantic import ConfigDict, Field

from .embedder import Embedder


class LocalEmbeddings(Embeddings):
    """LangChain's `Embeddings` in this process. The arguments are those of `Embedder`, or an embedder."""

    def __init__(self, model: Any = None, **settings: Any) -> None:
        self.embedder = model if isinstance(model, Embedder) else Embedder(model, **settings)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Returns the vectors of texts."""
        return self.embedder.embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        """Returns the vector of a query."""
        return self.embedder.embed_query(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`, on another thread."""
        return await asyncio.to_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`, on another thread."""
        return await asyncio.to_thread(self.embed_query, text)


class LocalReranker(BaseDocumentCompressor):
    """Orders documents by `Embedder.rerank`, and keeps the first `top_n`. Each gets its `relevance_score` as metadata."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    embedder: Embedder = Field(default_factory=Embedder)
    top_n: int = 3

    def compress_documents(self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None) -> Sequence[Document]:
        """Returns the documents that are most relevant to the query, the best first."""
        ranked = self.embedder.rerank(query, [document.page_content for document in documents], top_n=self.top_n)
        chosen = [(documents[found.index], found.score) for found in ranked]
        return [Document(page_content=d.page_content, metadata={**d.metadata, "relevance_score": score}, id=d.id) for d, score in chosen]
