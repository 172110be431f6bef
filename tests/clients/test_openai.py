"""Tests the openai package with its defaults. Versions 1, 2 and 3 share this interface."""

import asyncio
import base64

import numpy as np
import openai
import pytest
from conftest import near

TEXT = "The weather is nice today. 오늘은 날씨가 좋습니다. 🦀"


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(max_retries=0) as client:
        yield client


def create(client, served, **fields):
    return client.embeddings.create(**{"model": served.default, "input": TEXT, **fields})


def test_a_string(client, served):
    answer = create(client, served)
    assert answer.object == "list" and answer.model == served.default
    (item,) = answer.data
    assert item.object == "embedding" and item.index == 0
    assert near(item.embedding, served.checkpoint.vector(TEXT))
    tokens = len(served.checkpoint.ids(TEXT))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens


def test_a_list_is_answered_in_order(client, served):
    texts = ["one", "two", "three", "one"]
    answer = create(client, served, input=texts)
    assert [item.index for item in answer.data] == [0, 1, 2, 3]
    for text, item in zip(texts, answer.data):
        assert near(item.embedding, served.checkpoint.vector(text))


def test_dimensions(client, served):
    half = served.checkpoint.hidden // 2
    vector = np.array(create(client, served, dimensions=half).data[0].embedding)
    full = served.checkpoint.vector(TEXT)[:half]
    assert near(vector, full / np.linalg.norm(full))


def test_the_default_is_base64_and_equals_float(client, served):
    raw = client.embeddings.with_raw_response.create(model=served.default, input=TEXT)
    sent = raw.http_response.json()["data"][0]["embedding"]
    assert isinstance(sent, str), "the package asks for base64 unasked"
    decoded = np.frombuffer(base64.b64decode(sent), dtype="<f4")
    floats = create(client, served, encoding_format="float").data[0].embedding
    assert all(isinstance(x, float) for x in floats)
    assert np.array_equal(np.array(floats, dtype=np.float32), decoded)
    assert np.array_equal(np.array(create(client, served).data[0].embedding, dtype=np.float32), decoded)


def test_user_and_unknown_fields(client, served):
    plain = create(client, served).data[0].embedding
    assert create(client, served, user="somebody").data[0].embedding == plain
    assert create(client, served, extra_body={"input_type": "query", "truncate": "END"}).data[0].embedding == plain


def test_ids_of_the_model(client, served):
    ids = served.checkpoint.ids(TEXT)
    expected = served.checkpoint.vector(TEXT)
    assert near(create(client, served, model=served.own_ids, input=ids).data[0].embedding, expected)
    answer = create(client, served, model=served.own_ids, input=[ids, ids[:1]])
    assert near(answer.data[0].embedding, expected)
    assert near(answer.data[1].embedding, create(client, served, model=served.own_ids, input=ids[:1]).data[0].embedding)
    assert answer.usage.prompt_tokens == len(ids) + 1


def test_ids_of_cl100k(client, served):
    hello_world = [15339, 1917]
    expected = served.checkpoint.vector("hello world")
    assert near(create(client, served, input=hello_world).data[0].embedding, expected)
    answer = create(client, served, input=[hello_world, [9080, 22656, 91416]])
    assert near(answer.data[0].embedding, expected)
    assert near(answer.data[1].embedding, served.checkpoint.vector("日本 😀"))


def test_many_texts(client, served):
    texts = [f"text number {i}" for i in range(2048)]
    answer = create(client, served, input=texts)
    assert len(answer.data) == 2048
    assert near(answer.data[2047].embedding, served.checkpoint.vector(texts[2047]))


def test_an_empty_text_does_not_spoil_the_others(client, served):
    answer = create(client, served, input=["a", "", "b"])
    assert near(answer.data[0].embedding, served.checkpoint.vector("a"))
    assert near(answer.data[2].embedding, served.checkpoint.vector("b"))
    assert np.isfinite(answer.data[1].embedding).all()
    assert abs(np.linalg.norm(answer.data[1].embedding) - 1) < 1e-5


def test_models(client, served):
    listed = list(client.models.list())
    assert served.ids <= {model.id for model in listed}
    for model in listed:
        assert model.object == "model" and isinstance(model.created, int) and isinstance(model.owned_by, str)


@pytest.mark.parametrize("name", ["default", "own_ids"])
def test_a_model_is_found_also_with_a_slash(client, served, name):
    id = getattr(served, name)
    assert client.models.retrieve(id).id == id


def test_an_alias(client, served):
    assert near(create(client, served, model="alias").data[0].embedding, served.checkpoint.vector(TEXT))


@pytest.mark.parametrize("ask", ["embed", "retrieve"])
def test_an_unknown_model(client, served, ask):
    with pytest.raises(openai.NotFoundError) as e:
        create(client, served, model="no/such") if ask == "embed" else client.models.retrieve("no/such")
    assert e.value.code == "model_not_found"
    assert e.value.type == "invalid_request_error"
    assert "no/such" in e.value.message


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"input": []}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [100_300]}, "input"),  # cl100k_base has no such ID
        ({"input": [1, 2], "model": "text-only"}, "input"),
        ({"input": [2**31 - 1], "model": "org/own-ids"}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 1_000_000}, "dimensions"),
    ],
    ids=str,
)
def test_a_bad_request(client, served, fields, param):
    with pytest.raises(openai.BadRequestError) as e:
        create(client, served, **fields)
    assert e.value.type == "invalid_request_error"
    assert param in (e.value.param or "") and e.value.message


def test_async(served):
    async def all_at_once():
        async with openai.AsyncOpenAI(max_retries=0) as client:
            return await asyncio.gather(*(client.embeddings.create(model=served.default, input=f"text {i}") for i in range(32)))

    for i, answer in enumerate(asyncio.run(all_at_once())):
        assert near(answer.data[0].embedding, served.checkpoint.vector(f"text {i}"))
