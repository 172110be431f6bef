"""Haystack: `pip install "embedding-server[haystack]"`.

>>> from embedding_server.haystack import LocalTextEmbedder
>>> len(LocalTextEmbedder().run(text="a dog")["embedding"])
384
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict

from .embedder import Embedder


@component
class LocalTextEmbedder:
    """Embeds a query. The arguments are those of `Embedder`."""

    def __init__(self, model: str | None = None, settings: dict[str, Any] | None = None) -> None:
        self.model, self.settings = model, settings or {}
        self._embedder: Embedder | None = None

    def warm_up(self) -> None:
        """Opens the model, if it is not open yet."""
        if self._embedder is None:
            self._embedder = Embedder(self.model, **self.settings)

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Returns the vector of a text as `embedding`."""
        self.warm_up()
        assert self._embedder is not None
        return {"embedding": self._embedder.embed_query(text)}

    def to_dict(self) -> dict[str, Any]:
        """Returns the component as data."""
        return dict(default_to_dict(self, model=self.model, settings=self.settings))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LocalTextEmbedder:
        """Returns the component of such data."""
        return default_from_dict(cls, data)


@component
class LocalDocumentEmbedder:
    """Embeds documents. The arguments are those of `Embedder`."""

    def __init__(self, model: str | None = None, settings: dict[str, Any] | None = None, meta_fields_to_embed: list[str] | None = None) -> None:
        self.model, self.settings, self.meta_fields_to_embed = model, settings or {}, meta_fields_to_embed or []
        self._embedder: Embedder | None = None

    def warm_up(self) -> None:
        """Opens the model, if it is not open yet."""
        if self._embedder is None:
            self._embedder = Embedder(self.model, **self.settings)

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Returns the documents with their vectors."""
        self.warm_up()
        assert self._embedder is not None
        fields = [[str(d.meta[f]) for f in self.meta_fields_to_embed if d.meta.get(f) is not None] for d in documents]
        texts = ["\n".join([*before, d.content or ""]) for d, before in zip(documents, fields)]
        vectors = self._embedder.embed_documents(texts)
        return {"documents": [replace(document, embedding=vector) for document, vector in zip(documents, vectors)]}

    def to_dict(self) -> dict[str, Any]:
        """Returns the component as data."""
        return dict(default_to_dict(self, model=self.model, settings=self.settings, meta_fields_to_embed=self.meta_fields_to_embed))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LocalDocumentEmbedder:
        """Returns the component of such data."""
        return default_from_dict(cls, data)
