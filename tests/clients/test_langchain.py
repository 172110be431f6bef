"""Tests langchain-openai with its defaults: it sends token IDs of cl100k_base, and the text "" for an empty document.

tiktoken reads the vocabulary from TIKTOKEN_CACHE_DIR, which the runner fills, so no network is needed.
"""

import asyncio
import json

import numpy as np
import pytest
from conftest import cosine
from langchain_openai import OpenAIEmbeddings

TEXTS = [
    "hello world",
    "오늘은 날씨가 정말 좋네요.",
    "日本 😀 👩‍👩‍👧‍👦",
    "def f(x):\n    return x  # <|endoftext|>",
    "  spaces\t and\n\nlines  ",
]


@pytest.fixture
def bodies(monkeypatch):
    """Returns the list of inputs that the client sends."""
    import openai

    seen = []
    original = openai.resources.embeddings.Embeddings.create

    def create(self, **fields):
        seen.append(fields["input"])
        return original(self, **fields)

    monkeypatch.setattr(openai.resources.embeddings.Embeddings, "create", create)
    return seen


def test_documents_sent_as_ids_equal_the_same_text(served, bodies):
    vectors = OpenAIEmbeddings(model=served.default).embed_documents(TEXTS)
    (ids,) = bodies
    assert all(isinstance(i, int) for text in ids for i in text), json.dumps(ids)[:200]
    assert ids[0] == [15339, 1917]
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert cosine(vector, served.server.vector(text)) > 0.9999, text


def test_a_query(served):
    vector = OpenAIEmbeddings(model=served.default).embed_query(TEXTS[1])
    assert cosine(vector, served.server.vector(TEXTS[1])) > 0.9999


def test_a_text_of_several_chunks(served):
    """The text is longer than the 8191 IDs that LangChain sends at once. LangChain averages the vectors of the chunks itself."""
    text = "hello world, " * 5000
    vector = OpenAIEmbeddings(model=served.default).embed_query(text)
    assert cosine(vector, served.server.vector("hello world, " * 100)) > 0.99
    assert abs(np.linalg.norm(vector) - 1) < 1e-4


def test_an_empty_document(served):
    vectors = OpenAIEmbeddings(model=served.default).embed_documents(["hello", "", "world"])
    assert [len(v) for v in vectors] == [served.checkpoint.hidden] * 3
    assert np.isfinite(vectors).all()
    for text, vector in (("hello", vectors[0]), ("world", vectors[2])):
        assert cosine(vector, served.server.vector(text)) > 0.9999


def test_only_empty_documents(served):
    vectors = OpenAIEmbeddings(model=served.default).embed_documents(["", ""])
    assert [len(v) for v in vectors] == [served.checkpoint.hidden] * 2 and np.isfinite(vectors).all()


def test_text_mode(served):
    vectors = OpenAIEmbeddings(model=served.own_ids, check_embedding_ctx_length=False).embed_documents(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert cosine(vector, served.server.vector(text)) > 0.9999, text


def test_dimensions(served):
    half = served.checkpoint.hidden // 2
    vector = OpenAIEmbeddings(model=served.default, dimensions=half).embed_query(TEXTS[0])
    assert cosine(vector, served.server.vector(TEXTS[0], dimensions=half)) > 0.9999


def test_async(served):
    vectors = asyncio.run(OpenAIEmbeddings(model=served.default).aembed_documents(TEXTS))
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert cosine(vector, served.server.vector(text)) > 0.9999, text
