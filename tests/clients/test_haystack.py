"""Tests haystack-ai's embedders for a text and for documents. If a batch were refused, haystack would silently leave its documents
without vectors."""

import asyncio

import openai
import pytest
from conftest import near
from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret

TEXTS = ["hello world", "오늘은 날씨가 정말 좋네요.", "", "日本 😀"] + [f"text {i}" for i in range(60)]


@pytest.fixture
def settings(served):
    return {"model": served.default, "api_base_url": served.server.url + "/v1", "api_key": Secret.from_token("any"), "max_retries": 0}


def check(served, answer):
    for text, document in zip(TEXTS, answer["documents"], strict=True):
        assert near(document.embedding, served.server.vector(text)), text
    assert answer["meta"]["usage"]["prompt_tokens"] == sum(len(served.checkpoint.ids(text)) for text in TEXTS)


def test_documents_in_batches(served, settings):
    embedder = OpenAIDocumentEmbedder(**settings, progress_bar=False)
    check(served, embedder.run(documents=[Document(content=text) for text in TEXTS]))


def test_a_text_with_dimensions(served, settings):
    half = served.checkpoint.hidden // 2
    answer = OpenAITextEmbedder(**settings, dimensions=half).run(text=TEXTS[1])
    assert near(answer["embedding"], served.server.vector(TEXTS[1], dimensions=half))


def test_errors(served, settings):
    with pytest.raises(openai.NotFoundError) as e:
        OpenAITextEmbedder(**{**settings, "model": "no-such"}).run(text="a")
    assert e.value.code == "model_not_found"


def test_async(served, settings):
    embedder = OpenAIDocumentEmbedder(**settings, progress_bar=False)
    check(served, asyncio.run(embedder.run_async(documents=[Document(content=text) for text in TEXTS])))
