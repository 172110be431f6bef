"""Tests the Azure client of the openai package: deployments in the path, and the key in the header `api-key`."""

import asyncio

import openai
import pytest
from conftest import near

TEXT = "The weather is nice today. 오늘은 날씨가 좋습니다. 🦀"
VERSION = "2024-10-21"


@pytest.fixture
def settings(served, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL")
    return {"azure_endpoint": served.server.url, "api_key": "any", "api_version": VERSION, "max_retries": 0}


def test_a_deployment(served, settings):
    with openai.AzureOpenAI(**settings) as client:
        answer = client.embeddings.create(model=served.default, input=[TEXT, "b"])
        assert near(answer.data[0].embedding, served.server.vector(TEXT))
        with pytest.raises(openai.NotFoundError) as e:
            client.embeddings.create(model="no-such", input=TEXT)
        assert e.value.code == "model_not_found"


def test_async(served, settings):
    async def ask():
        async with openai.AsyncAzureOpenAI(**settings) as client:
            return await client.embeddings.create(model=served.default, input=TEXT)

    assert near(asyncio.run(ask()).data[0].embedding, served.server.vector(TEXT))
