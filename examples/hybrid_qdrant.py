"""Finds passages by dense and sparse vectors in Qdrant, and ranks them by POST /v1/rerank. Needs `pip install qdrant-client`.

    python examples/hybrid_qdrant.py "How do plants make their food?"

Qdrant runs inside the program (`:memory:`); QdrantClient(url=...) connects to a server instead. BASE_URL defaults to
http://localhost:5000/v1.
"""

import json
import os
import sys
import urllib.request

from qdrant_client import QdrantClient, models

BASE_URL = os.environ.get("BASE_URL", "http://localhost:5000/v1")
PASSAGES = [
    "Photosynthesis is the process by which green plants turn light, water and air into sugar.",
    "Der alte Hund des Nachbarn schläft jeden Nachmittag im Garten unter dem Apfelbaum.",
    "Price list: the repair of model XR-7741-B costs 84 euros, spare parts included.",
    "The council discussed the budget of the harbor, and the union closed the contract.",
]


def ask(path, **body):
    request = urllib.request.Request(BASE_URL + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def dense(texts):
    return [entry["embedding"] for entry in ask("/embeddings", input=texts)["data"]]


def sparse(texts, input_type):
    entries = ask("/sparse-embeddings", input=texts, input_type=input_type)["data"]
    return [models.SparseVector(indices=entry["indices"], values=entry["values"]) for entry in entries]


def fill(client, texts):
    """Creates the collection. Vectors have the number of dimensions of the model."""
    vectors = dense(texts)
    client.create_collection(
        "passages",
        vectors_config={"dense": models.VectorParams(size=len(vectors[0]), distance=models.Distance.COSINE)},
        # The modifier `idf` suits collections with a vocabulary of their own: sparse_vectors_config={"sparse": ...(modifier=models.Modifier.IDF)}
        sparse_vectors_config={"sparse": models.SparseVectorParams()},
    )
    points = zip(vectors, sparse(texts, "document"), texts)
    client.upsert("passages", [
        models.PointStruct(id=number, vector={"dense": vector, "sparse": tokens}, payload={"text": text})
        for number, (vector, tokens, text) in enumerate(points)
    ])


def candidates(client, question, limit=50):
    """The best passages by either vector. Their order does not matter, because they are reranked."""
    found = client.query_points(
        "passages",
        prefetch=[
            models.Prefetch(query=dense([question])[0], using="dense", limit=limit),
            models.Prefetch(query=sparse([question], "query")[0], using="sparse", limit=limit),
        ],
        query=models.FusionQuery(fusion=models.Fusion.RRF),
        limit=2 * limit,
    )
    return [point.payload["text"] for point in found.points]


def rerank(question, texts, top_n=3):
    results = ask("/rerank", query=question, documents=texts, top_n=top_n)["results"]
    return [(result["relevance_score"], texts[result["index"]]) for result in results]


if __name__ == "__main__":
    client = QdrantClient(":memory:")
    fill(client, PASSAGES)
    question = " ".join(sys.argv[1:]) or "How do plants make their food?"
    for score, text in rerank(question, candidates(client, question)):
        print(f"{score:6.3f}  {text}")
