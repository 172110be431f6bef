"""Tests litellm with the provider for OpenAI, which uses OpenAI's SDK, and with providers that have their own client."""

import asyncio

import litellm
import pytest
from conftest import near

TEXTS = ["hello world", "오늘은 날씨가 정말 좋네요.", "日本 😀"]
PROVIDERS = ["openai", "hosted_vllm", "lm_studio"]


@pytest.fixture
def settings(served):
    return {"api_base": served.server.url + "/v1", "api_key": "any", "max_retries": 0, "num_retries": 0}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_texts(served, settings, provider):
    answer = litellm.embedding(model=f"{provider}/{served.default}", input=TEXTS, **settings)
    for text, item in zip(TEXTS, answer.data, strict=True):
        assert near(item["embedding"], served.server.vector(text)), text
    assert answer.usage.prompt_tokens == sum(len(served.checkpoint.ids(text)) for text in TEXTS)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_async(served, settings, provider):
    answer = asyncio.run(litellm.aembedding(model=f"{provider}/{served.default}", input=TEXTS[:1], **settings))
    assert near(answer.data[0]["embedding"], served.server.vector(TEXTS[0]))


def test_a_large_batch(served, settings):
    texts = [f"text {i}" for i in range(1000)]
    answer = litellm.embedding(model=f"openai/{served.default}", input=texts, **settings)
    assert len(answer.data) == 1000
    assert near(answer.data[999]["embedding"], served.server.vector(texts[999]))


def test_dimensions(served, settings):
    """litellm itself refuses `dimensions` for names that do not begin with text-embedding-3."""
    half = served.checkpoint.hidden // 2
    answer = litellm.embedding(model=f"openai/{served.default}", input=TEXTS, dimensions=half, **settings)
    assert near(answer.data[0]["embedding"], served.server.vector(TEXTS[0], dimensions=half))
    with pytest.raises(litellm.UnsupportedParamsError):
        litellm.embedding(model=f"openai/{served.own_ids}", input=TEXTS, dimensions=half, **settings)
    allowed = {**settings, "allowed_openai_params": ["dimensions"]}
    answer = litellm.embedding(model=f"openai/{served.own_ids}", input=TEXTS, dimensions=half, **allowed)
    assert near(answer.data[0]["embedding"], served.server.vector(TEXTS[0], dimensions=half))


def test_errors(served, settings):
    with pytest.raises(litellm.NotFoundError, match="no-such"):
        litellm.embedding(model="openai/no-such", input=TEXTS, **settings)
    with pytest.raises(litellm.BadRequestError, match="dimensions"):
        litellm.embedding(model=f"openai/{served.default}", input=TEXTS, dimensions=1_000_000, **settings)


@pytest.mark.parametrize(("provider", "path"), [("cohere", "/v2/rerank"), ("hosted_vllm", ""), ("jina_ai", "/v1/rerank"), ("infinity", "/v1")])
def test_rerank(served, provider, path):
    documents = ["a ship at sea", "hello world", {"text": "日本 😀"}]
    # Infinity's own responses have a string as the document, where those of Cohere and Jina have an object.
    with_documents = provider != "infinity"
    answer = litellm.rerank(
        model=f"{provider}/{served.default}", query="hello world", documents=documents, top_n=2, return_documents=with_documents,
        api_base=served.server.url + path, api_key="any",
    )
    assert [result["index"] for result in answer.results][0] == 1
    assert len(answer.results) == 2
    scores = [result["relevance_score"] for result in answer.results]
    assert 1 >= scores[0] >= scores[1] >= 0
    if with_documents:
        assert answer.results[0]["document"]["text"] == "hello world"
