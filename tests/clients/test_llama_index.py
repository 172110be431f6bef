"""Tests llama-index: the class for OpenAI, with the name in `model_name`, and the class for compatible servers."""

import asyncio
import os

import openai
import pytest
from conftest import near
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

TEXTS = ["hello world", "오늘은 날씨가 정말 좋네요.", "日本 😀", "def f(x): return x", ""]


def of_openai(served, model, **fields):
    return OpenAIEmbedding(model_name=model, max_retries=0, **fields)


def like(served, model, **fields):
    return OpenAILikeEmbedding(model_name=model, api_base=served.server.url + "/v1", api_key="any", max_retries=0, **fields)


@pytest.fixture(params=[of_openai, like], ids=["openai", "openai-like"])
def make(request, monkeypatch):
    # This package reads the base URL from OPENAI_API_BASE, the SDK from OPENAI_BASE_URL.
    monkeypatch.setenv("OPENAI_API_BASE", os.environ["OPENAI_BASE_URL"])
    return request.param


def test_texts_in_batches(served, make):
    texts = TEXTS + [f"text {i}" for i in range(250)]
    for text, vector in zip(texts, make(served, served.default).get_text_embedding_batch(texts), strict=True):
        assert near(vector, served.server.vector(text)), text


def test_a_query_with_line_breaks(served, make):
    """The client sends line breaks as spaces."""
    assert near(make(served, served.default).get_query_embedding("a\nb"), served.server.vector("a b"))


def test_dimensions_and_an_id_with_a_slash(served, make):
    half = served.checkpoint.hidden // 2
    vector = make(served, served.own_ids, dimensions=half).get_text_embedding("hello world")
    assert near(vector, served.server.vector("hello world", dimensions=half))


def test_errors(served, make):
    with pytest.raises(openai.NotFoundError) as e:
        make(served, "no/such").get_text_embedding("a")
    assert e.value.code == "model_not_found"


def test_async(served, make):
    for text, vector in zip(TEXTS, asyncio.run(make(served, served.default).aget_text_embedding_batch(TEXTS)), strict=True):
        assert near(vector, served.server.vector(text)), text
