"""Times one Python library in a process of its own.

    python python_peers.py PEER MODEL THREADS TEXTS...

All programs that are compared follow the same protocol. Each file of TEXTS holds one text per line. The first 256 texts warm up the process,
and the others are timed in batches of 256. For each file the program prints a line with the seconds per text, first by the wall clock and then of
CPU time. With VECTORS=PATH in the environment nothing is timed: the vectors of the texts are written to PATH as little-endian f32.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np

BATCH = 256


def embedding_server(model, threads):
    from embedding_server import Embedder

    # The other libraries pool no special tokens either, and also copy their tables into memory.
    return Embedder(model, special_tokens=False, memory="copy", threads=threads).encode


def model2vec(model, threads):
    from model2vec import StaticModel

    m = StaticModel.from_pretrained(model)
    return lambda texts: m.encode(texts, max_length=None, batch_size=BATCH, use_multiprocessing=False)


def sentence_transformers(model, threads):
    import torch
    from safetensors.numpy import load_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer

    torch.set_num_threads(threads)
    weights = load_file(f"{model}/model.safetensors")["embeddings"]
    m = SentenceTransformer(modules=[StaticEmbedding(Tokenizer.from_file(f"{model}/tokenizer.json"), embedding_weights=weights)], device="cpu")
    return lambda texts: m.encode(texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)


def embedding_bag(model, threads):
    import torch
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    torch.set_num_threads(threads)
    bag = torch.nn.EmbeddingBag.from_pretrained(load_file(f"{model}/model.safetensors")["embeddings"], mode="mean")
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def encode(texts):
        ids = [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        offsets = np.cumsum([0] + [len(i) for i in ids[:-1]])
        with torch.inference_mode():
            flat = torch.from_numpy(np.concatenate([np.asarray(i, dtype=np.int64) for i in ids]))
            return torch.nn.functional.normalize(bag(flat, torch.from_numpy(offsets))).numpy()

    return encode


def wordllama_(model, threads):
    import wordllama
    from wordllama import WordLlama

    # The package contains its tokenizer in the folder `tokenizers`, but looks for it in `tokenizer`.
    m = WordLlama.load(dim=256, cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    return lambda texts: m.embed(texts, norm=True, batch_size=BATCH)


PEERS = {
    "embedding-server": embedding_server,
    "model2vec": model2vec,
    "sentence-transformers": sentence_transformers,
    "embedding-bag": embedding_bag,
    "wordllama": wordllama_,
}


def main(peer, model, threads, *files):
    encode = PEERS[peer](model, int(threads))
    for path in files:
        texts = Path(path).read_text().splitlines()
        if "VECTORS" in os.environ:
            np.asarray(encode(texts), dtype="<f4").tofile(os.environ["VECTORS"])
            continue
        encode(texts[:BATCH])
        timed = texts[BATCH:]
        start, cpu = time.perf_counter(), time.process_time()
        for i in range(0, len(timed), BATCH):
            encode(timed[i : i + BATCH])
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(wall / len(timed), cpu / len(timed))


if __name__ == "__main__":
    main(*sys.argv[1:])
