"""Tests the package ollama against Ollama's endpoints."""

import asyncio

import ollama
import pytest
from conftest import near

TEXTS = ["hello world", "오늘은 날씨가 정말 좋네요.", "日本 😀", ""]


@pytest.fixture
def client(served):
    return ollama.Client(host=served.server.url)


@pytest.mark.parametrize("tag", ["", ":latest"])
def test_embed(served, client, tag):
    answer = client.embed(served.default + tag, TEXTS, options={"num_ctx": 512}, keep_alive="5m")
    for text, vector in zip(TEXTS, answer.embeddings, strict=True):
        assert near(vector, served.server.vector(text)), text
    assert answer.prompt_eval_count == sum(len(served.checkpoint.ids(text)) for text in TEXTS)
    assert answer.total_duration > 0
    (vector,) = client.embed(served.default + tag, TEXTS[1]).embeddings
    assert near(vector, served.server.vector(TEXTS[1]))


def test_dimensions(served, client):
    half = served.checkpoint.hidden // 2
    (vector,) = client.embed(served.default, TEXTS[0], dimensions=half).embeddings
    assert near(vector, served.server.vector(TEXTS[0], dimensions=half))


def test_the_older_endpoint(served, client):
    assert near(client.embeddings(served.default, TEXTS[2]).embedding, served.server.vector(TEXTS[2]))


def test_models(served, client):
    listed = {model.model: model for model in client.list().models}
    assert served.ids <= listed.keys()
    assert listed[served.default].size > 0
    shown = client.show(served.default)
    assert shown.capabilities == ["embedding"]
    assert shown.modelinfo["layer0.embedding_length"] == served.checkpoint.hidden
    assert shown.modelinfo["layer0.fingerprint"] == listed[served.default].digest


def test_errors(client, served):
    for call in [client.embed, client.embeddings]:
        with pytest.raises(ollama.ResponseError) as e:
            call("no-such", "a")
        assert e.value.status_code == 404
        assert e.value.error.startswith("The model `no-such` does not exist"), e.value.error
    with pytest.raises(ollama.ResponseError) as e:
        client.embed(served.default, "a", dimensions=100_000)
    assert e.value.status_code == 400 and "dimensions" in e.value.error


def test_async(served):
    async def embed():
        return await ollama.AsyncClient(host=served.server.url).embed(served.default, TEXTS)

    for text, vector in zip(TEXTS, asyncio.run(embed()).embeddings, strict=True):
        assert near(vector, served.server.vector(text))
