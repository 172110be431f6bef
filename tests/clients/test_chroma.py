"""Tests the OpenAI embedding function of chromadb, with a collection in memory."""

import chromadb
import numpy as np
import openai
import pytest
from chromadb.utils.embedding_functions import OpenAIEmbeddingFunction
from conftest import near

TEXTS = ["hello world", "오늘은 날씨가 정말 좋네요.", "日本 😀", "def f(x): return x"]


def function(served, model, **fields):
    return OpenAIEmbeddingFunction(api_key="any", api_base=served.server.url + "/v1", model_name=model, **fields)


def test_a_collection(served):
    collection = chromadb.EphemeralClient().create_collection("texts", embedding_function=function(served, served.default))
    collection.add(ids=[str(i) for i in range(len(TEXTS))], documents=TEXTS)
    stored = collection.get(include=["embeddings"])["embeddings"]
    for text, vector in zip(TEXTS, stored, strict=True):
        assert near(vector, served.server.vector(text)), text
    for i, text in enumerate(TEXTS):
        assert collection.query(query_texts=[text], n_results=1)["ids"] == [[str(i)]]


def test_a_batch_is_one_request(served):
    texts = [f"text {i}" for i in range(2048)]
    vectors = function(served, served.own_ids)(texts)
    assert len(vectors) == 2048 and near(vectors[2047], served.server.vector(texts[2047]))


def test_more_than_2048_texts_are_refused(served):
    """The server refuses them, as OpenAI does, and names the setting to change."""
    with pytest.raises(openai.BadRequestError, match="max_inputs"):
        function(served, served.default)(["a"] * 2049)


def test_dimensions(served):
    half = served.checkpoint.hidden // 2
    (vector,) = function(served, served.default, dimensions=half)(["hello world"])
    assert near(vector, served.server.vector("hello world", dimensions=half))
    assert np.asarray(vector).dtype == np.float32


def test_errors(served):
    with pytest.raises(openai.NotFoundError) as e:
        function(served, "no-such")(["a"])
    assert e.value.code == "model_not_found"
