"""The adapters, with the real LangChain, LlamaIndex, Haystack and Chroma."""

import asyncio

import pytest

from embedding_server import Embedder

DOCUMENTS = ["The market fell on Monday.", "A dog sleeps in the garden.", "Photosynthesis turns light into sugar."]
QUERY = "ein Hund schläft"


def test_langchain_takes_an_embedder_as_it_is(embedder):
    from langchain_core.vectorstores import InMemoryVectorStore

    store = InMemoryVectorStore.from_texts(DOCUMENTS, embedder)
    assert store.similarity_search(QUERY, k=1)[0].page_content == DOCUMENTS[1]
    assert asyncio.run(store.asimilarity_search(QUERY, k=1))[0].page_content == DOCUMENTS[1]


def test_langchain(embedder):
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings

    from embedding_server.langchain import LocalEmbeddings, LocalReranker

    embeddings = LocalEmbeddings(embedder)
    assert isinstance(embeddings, Embeddings) and embeddings.embed_query(QUERY) == embedder.embed_query(QUERY)
    assert asyncio.run(embeddings.aembed_documents(DOCUMENTS)) == embedder.embed_documents(DOCUMENTS)
    assert len(LocalEmbeddings(dimensions=8).embed_query("a")) == 8
    documents = [Document(page_content=text, metadata={"n": n}) for n, text in enumerate(DOCUMENTS)]
    first, *_ = LocalReranker(embedder=embedder, top_n=2).compress_documents(documents, "photosynthesis of sugar")
    assert first.metadata["n"] == 2 and 0 < first.metadata["relevance_score"] <= 1


def test_llama_index(embedder):
    from llama_index.core import Document, VectorStoreIndex

    from embedding_server.llama_index import LocalEmbedding

    model = LocalEmbedding(embedder)
    index = VectorStoreIndex.from_documents([Document(text=text) for text in DOCUMENTS], embed_model=model)
    found = index.as_retriever(similarity_top_k=1).retrieve(QUERY)
    assert found[0].text == DOCUMENTS[1]
    assert model.get_text_embedding("a") == embedder.embed_query("a")
    assert asyncio.run(model.aget_text_embedding("a")) == embedder.embed_query("a")


def test_haystack(embedder):
    from haystack import Document, Pipeline
    from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    from embedding_server.haystack import LocalDocumentEmbedder, LocalTextEmbedder

    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    plain = [Document(content=text, meta={"title": "t"}) for text in DOCUMENTS]
    embedded = LocalDocumentEmbedder().run(documents=plain)["documents"]
    assert embedded[0].embedding == embedder.embed_query(DOCUMENTS[0]) and plain[0].embedding is None
    store.write_documents(embedded)
    pipeline = Pipeline()
    pipeline.add_component("text", LocalTextEmbedder(settings={}))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    pipeline.connect("text.embedding", "retriever.query_embedding")
    # A pipeline is stored as text, and opened again.
    assert "LocalTextEmbedder" in pipeline.dumps()
    found = pipeline.run({"text": {"text": QUERY}})["retriever"]["documents"]
    assert found[0].content == DOCUMENTS[1]
    with_title = LocalDocumentEmbedder(meta_fields_to_embed=["title"])
    again = LocalDocumentEmbedder.from_dict(with_title.to_dict())
    assert again.run(documents=plain)["documents"][0].embedding == embedder.embed_query("t\n" + DOCUMENTS[0])


def test_chroma(tmp_path, embedder):
    import chromadb

    from embedding_server.chroma import LocalEmbeddingFunction

    client = chromadb.PersistentClient(path=str(tmp_path))
    collection = client.create_collection("texts", embedding_function=LocalEmbeddingFunction(dimensions=64))
    collection.add(ids=["0", "1", "2"], documents=DOCUMENTS)
    # The function is stored with the collection, and made again of its arguments.
    collection = client.get_collection("texts")
    assert collection.query(query_texts=[QUERY], n_results=1)["ids"] == [["1"]]
    stored = collection.get(ids=["1"], include=["embeddings"])["embeddings"][0]
    assert stored.tolist() == pytest.approx(Embedder(dimensions=64).embed_query(DOCUMENTS[1]))
