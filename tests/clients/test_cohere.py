"""Tests the package cohere against POST /v1/embed and POST /v2/embed."""

import base64

import cohere
import numpy as np
import pytest
from conftest import near
from langchain_cohere import CohereEmbeddings

TEXTS = ["hello world", "오늘은 날씨가 정말 좋네요.", "日本 😀"]
TYPES = ["float", "int8", "uint8", "binary", "ubinary", "base64"]


def vectors(served, texts=TEXTS, **fields):
    return np.stack([served.server.vector(text, **fields) for text in texts])


def check_types(served, found):
    expected = vectors(served)
    assert near(found.float_, expected)
    # The integers are made of the floats, which near() compares up to rounding.
    assert np.abs(np.array(found.int8) - 127 * expected).max() < 0.51
    assert (np.array(found.uint8) == np.array(found.int8) + 128).all()
    bits = np.packbits(expected > 0, axis=1)
    assert (np.array(found.ubinary) == bits).all()
    assert (np.array(found.binary) == bits.astype(int) - 128).all()
    assert near([np.frombuffer(base64.b64decode(text), "<f4") for text in found.base64], expected)


def test_version_2(served):
    client = cohere.ClientV2("any", base_url=served.server.url)
    fields = {"model": served.default, "texts": TEXTS, "input_type": "search_document"}
    answer = client.embed(**fields, embedding_types=TYPES)
    check_types(served, answer.embeddings)
    assert answer.texts == TEXTS
    assert answer.meta.billed_units.input_tokens == sum(len(served.checkpoint.ids(text)) for text in TEXTS)
    half = served.checkpoint.hidden // 2
    answer = client.embed(**fields, output_dimension=half)
    assert near(answer.embeddings.float_, vectors(served, dimensions=half))


def test_version_1_in_batches(served):
    client = cohere.Client("any", base_url=served.server.url)
    fields = {"model": served.default, "input_type": "search_query"}
    # The client sends 96 texts in each request, and joins the answers.
    texts = [f"text {number}" for number in range(200)]
    answer = client.embed(**fields, texts=texts)
    assert near(answer.embeddings, vectors(served, texts))
    assert answer.texts == texts
    check_types(served, client.embed(**fields, texts=TEXTS, embedding_types=TYPES).embeddings)


def test_langchain(served):
    model = CohereEmbeddings(base_url=served.server.url, cohere_api_key="any", model=served.default)
    assert near(model.embed_documents(TEXTS), vectors(served))
    assert near(model.embed_query(TEXTS[0]), served.server.vector(TEXTS[0]))


def test_errors(served):
    client = cohere.ClientV2("any", base_url=served.server.url)
    with pytest.raises(cohere.NotFoundError) as e:
        client.embed(model="no-such", texts=["a"], input_type="search_query", embedding_types=["float"])
    assert e.value.body["message"].startswith("The model `no-such` does not exist")
    with pytest.raises(cohere.BadRequestError) as e:
        client.embed(model=served.default, texts=["a"], input_type="search_query", output_dimension=100_000)
    assert "dimensions" in e.value.body["message"]
