"""Tests the classes of LangChain and LlamaIndex for Cohere's reranking API, with nothing changed but `base_url`, the key and the model."""

import json
import urllib.request

import cohere
import pytest
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


def test_errors(served):
    with pytest.raises(cohere.NotFoundError, match="no-such"):
        LangChainRerank(base_url=served.server.url, cohere_api_key="any", model="no-such").rerank(TEXTS, QUERY)
    with pytest.raises(cohere.NotFoundError, match="no-such"):
        postprocessor = LlamaIndexRerank(base_url=served.server.url, api_key="any", model="no-such", max_retries=1)
        postprocessor.postprocess_nodes([NodeWithScore(node=TextNode(text="a"))], QueryBundle(QUERY))
