"""Tests the openai package before 1.0: module-level calls, its own errors, and `engine=` for `/v1/engines/{id}/embeddings`."""

import asyncio

import numpy as np
import openai
import pytest
from conftest import near

TEXT = "The weather is nice today. 오늘은 날씨가 좋습니다. 🦀"


@pytest.fixture(autouse=True)
def address(served, monkeypatch):
    monkeypatch.setattr(openai, "api_base", served.server.url + "/v1")
    monkeypatch.setattr(openai, "api_key", "sk-any")


def test_a_string(served):
    answer = openai.Embedding.create(model=served.default, input=TEXT)
    assert near(answer["data"][0]["embedding"], served.server.vector(TEXT))
    assert answer["usage"]["total_tokens"] == len(served.checkpoint.ids(TEXT))


def test_a_list_in_order_and_floats(served):
    texts = [f"text {i}" for i in range(100)]
    for fields in ({}, {"encoding_format": "float"}):
        answer = openai.Embedding.create(model=served.default, input=texts, **fields)
        for text, item in zip(texts, answer["data"], strict=True):
            assert near(item["embedding"], served.checkpoint.vector(text))


def test_dimensions_and_ids(served):
    half = served.checkpoint.hidden // 2
    answer = openai.Embedding.create(model=served.default, input=[15339, 1917], dimensions=half)
    assert near(answer["data"][0]["embedding"], served.server.vector("hello world", dimensions=half))


def test_engine(served):
    answer = openai.Embedding.create(engine=served.default, input=TEXT)
    assert near(answer["data"][0]["embedding"], served.server.vector(TEXT))


def test_errors(served):
    with pytest.raises(openai.error.InvalidRequestError, match="no/such") as e:
        openai.Embedding.create(model="no/such", input=TEXT)
    assert e.value.code == "model_not_found" and e.value.http_status == 404
    with pytest.raises(openai.error.InvalidRequestError) as e:
        openai.Embedding.create(model=served.default, input=TEXT, dimensions=0)
    assert e.value.param == "dimensions" and e.value.http_status == 400


def test_models(served):
    assert served.ids <= {model["id"] for model in openai.Model.list()["data"]}
    assert openai.Model.retrieve(served.own_ids)["id"] == served.own_ids


def test_async(served):
    async def both():
        return await asyncio.gather(*(openai.Embedding.acreate(model=served.default, input=t) for t in (TEXT, "b")))

    for text, answer in zip((TEXT, "b"), asyncio.run(both()), strict=True):
        assert near(answer["data"][0]["embedding"], served.checkpoint.vector(text))
    assert np.isfinite(answer["data"][0]["embedding"]).all()
