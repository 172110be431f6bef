"""Tests clients of text-embeddings-inference: huggingface_hub's InferenceClient, and the classes of Haystack and LlamaIndex."""

import pytest
from conftest import cosine, near
from haystack import Document
from haystack_integrations.components.embedders.huggingface_api import HuggingFaceAPIDocumentEmbedder, HuggingFaceAPITextEmbedder
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

TEXTS = ["hello world", "오늘은 날씨가 정말 좋네요.", "日本 😀", "a ship at sea"]


@pytest.mark.parametrize("path", ["", "/embed"])
def test_feature_extraction(served, path):
    client = InferenceClient(served.server.url + path, token="any")
    assert near(client.feature_extraction(TEXTS[0])[0], served.server.vector(TEXTS[0]))
    for text, vector in zip(TEXTS, client.feature_extraction(TEXTS, normalize=True, truncate=True), strict=True):
        assert near(vector, served.server.vector(text)), text


@pytest.mark.parametrize("path", ["", "/similarity"])
def test_sentence_similarity(served, path):
    client = InferenceClient(served.server.url + path, token="any")
    found = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS)
    expected = [cosine(served.server.vector(TEXTS[0]), served.server.vector(text)) for text in TEXTS]
    assert near(found, expected)


def test_haystack(served):
    settings = {"api_type": "text_embeddings_inference", "api_params": {"url": served.server.url}}
    vector = HuggingFaceAPITextEmbedder(**settings).run(text=TEXTS[1])["embedding"]
    assert near(vector, served.server.vector(TEXTS[1]))
    embedder = HuggingFaceAPIDocumentEmbedder(**settings, progress_bar=False)
    documents = embedder.run(documents=[Document(content=text) for text in TEXTS])["documents"]
    for text, document in zip(TEXTS, documents, strict=True):
        assert near(document.embedding, served.server.vector(text)), text


def test_llama_index(served):
    model = TextEmbeddingsInference(model_name=served.default, base_url=served.server.url)
    for text, vector in zip(TEXTS, model.get_text_embedding_batch(TEXTS), strict=True):
        assert near(vector, served.server.vector(text)), text


def test_errors(served):
    with pytest.raises(HfHubHTTPError, match="Must be|between|dimensions"):
        InferenceClient(served.server.url, token="any").feature_extraction(TEXTS[0], dimensions=100_000)
