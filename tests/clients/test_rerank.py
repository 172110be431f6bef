"""Tests the classes of LangChain, LlamaIndex and Haystack for Cohere's reranking API, and Haystack's for Text Embeddings Inference, with nothing
changed but the address, the key and the model."""

import json
import urllib.request

import cohere
import pytest
from haystack import Document as HaystackDocument
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
from haystack_integrations.components.rankers.huggingface_api.ranker import TruncationDirection
from langchain_cohere import CohereRerank as LangChainRerank
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank as LlamaIndexRerank

TEXTS = ["a ship at sea", "hello world", "日本 😀", ""]
QUERY = "hello world"


def expected(served, top_n):
    body = json.dumps({"model": served.default, "query": QUERY, "documents": TEXTS, "top_n": top_n}).encode()
    request = urllib.request.Request(served.server.url + "/v2/rerank", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return [(result["index"], result["relevance_score"]) for result in json.load(response)["results"]]


def test_langchain_compresses_documents(served):
    compressor = LangChainRerank(base_url=served.server.url, cohere_api_key="any", model=served.default, top_n=2)
    documents = [Document(text, metadata={"number": number}) for number, text in enumerate(TEXTS)]
    found = compressor.compress_documents(documents, QUERY)
    assert [(d.metadata["number"], d.metadata["relevance_score"]) for d in found] == expected(served, 2)
    assert found[0].page_content == QUERY
    # `None` asks for all results.
    ranked = compressor.rerank(TEXTS, QUERY, top_n=None, max_tokens_per_doc=100)
    assert [(result["index"], result["relevance_score"]) for result in ranked] == expected(served, len(TEXTS))


def test_llama_index_postprocesses_nodes(served):
    postprocessor = LlamaIndexRerank(base_url=served.server.url, api_key="any", model=served.default, top_n=3)
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(number))) for number, text in enumerate(TEXTS)]
    found = postprocessor.postprocess_nodes(nodes, QueryBundle(QUERY))
    assert [(int(node.node.node_id), node.score) for node in found] == expected(served, 3)


def haystack_documents():
    return [HaystackDocument(content=text, id=str(number), meta={"number": number}) for number, text in enumerate(TEXTS)]


def test_haystack_ranks_by_coheres_api(served):
    ranker = CohereRanker(model=served.default, api_key=Secret.from_token("any"), api_base_url=served.server.url, top_k=3)
    found = ranker.run(query=QUERY, documents=haystack_documents())["documents"]
    assert [(d.meta["number"], d.score) for d in found] == expected(served, 3)
    assert found[0].content == QUERY
    assert len(ranker.run(query=QUERY, documents=haystack_documents(), top_k=1)["documents"]) == 1


def test_haystack_ranks_by_text_embeddings_inferences_api(served):
    ranker = HuggingFaceTEIRanker(url=served.server.url, top_k=3, token=Secret.from_token("any"), max_retries=1)
    found = ranker.run(query=QUERY, documents=haystack_documents())["documents"]
    assert [(d.meta["number"], d.score) for d in found] == expected(served, 3)
    # A limit on the length does not change the order of short texts.
    cut = ranker.run(query=QUERY, documents=haystack_documents(), truncation_direction=TruncationDirection.RIGHT)
    assert [d.meta["number"] for d in cut["documents"]] == [d.meta["number"] for d in found]


def test_errors(served):
    with pytest.raises(cohere.NotFoundError, match="no-such"):
        LangChainRerank(base_url=served.server.url, cohere_api_key="any", model="no-such").rerank(TEXTS, QUERY)
    with pytest.raises(cohere.NotFoundError, match="no-such"):
        postprocessor = LlamaIndexRerank(base_url=served.server.url, api_key="any", model="no-such", max_retries=1)
        postprocessor.postprocess_nodes([NodeWithScore(node=TextNode(text="a"))], QueryBundle(QUERY))
    with pytest.raises(cohere.NotFoundError, match="no-such"):
        ranker = CohereRanker(model="no-such", api_key=Secret.from_token("any"), api_base_url=served.server.url)
        ranker.run(query=QUERY, documents=haystack_documents())
