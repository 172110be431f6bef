"""Computes the teacher's vectors of many texts, in slices that are kept and not computed again.

A vector is the encoder's mean of last states for "query: " and the text, which is tokenized with the full vocabulary and the encoder's own
normalization.
"""

import hashlib
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

import e5
import vocabulary

SLICE = 4096


class Teacher:
    def __init__(self, weights: Path, work: Path):
        self.checkpoint, self.work = e5.read(weights), work
        self.tokenizer = Tokenizer.from_str(vocabulary.tokenizer_json(self.checkpoint.pieces, self.checkpoint.scores.tolist(),
                                                                      self.checkpoint.specials["<unk>"]))
        self.own = str.maketrans(self.checkpoint.characters)
        self.encoder = e5.Encoder(self.checkpoint)
        work.mkdir(parents=True, exist_ok=True)

    def file(self, texts: list[str]) -> Path:
        return self.work / (hashlib.sha256("\n".join(texts).encode()).hexdigest()[:24] + ".npy")

    def embed(self, texts: list[str], prefix: str = "query: ", longest: int = 62) -> np.ndarray:
        encodings = self.tokenizer.encode_batch_fast([f"{prefix}{text}".translate(self.own) for text in texts], add_special_tokens=False)
        return self.encoder.embed([encoding.ids for encoding in encodings], longest=longest)

    def slices(self, texts: list[str]) -> list[list[str]]:
        return [texts[at:at + SLICE] for at in range(0, len(texts), SLICE)]

    def fill(self, lists: list[list[str]], until: float = float("inf"), report=print) -> None:
        """Computes what is missing, one slice of each list in turn, until the time `until`."""
        rounds = [self.slices(texts) for texts in lists]
        wanted = [some[at] for at in range(max(map(len, rounds), default=0)) for some in rounds if at < len(some)]
        for at, part in enumerate(wanted):
            file = self.file(part)
            if not file.exists():
                if time.time() > until:
                    return
                partial = file.with_suffix(".part.npy")
                np.save(partial, self.embed(part).astype(np.float16))
                partial.rename(file)
                report(f"teacher: {at + 1} of {len(wanted)} slices", flush=True)

    def vectors(self, texts: list[str]) -> tuple[list[str], np.ndarray]:
        """Returns the texts whose vectors are there, and unit vectors [texts, hidden]."""
        have, parts = [], []
        for part in self.slices(texts):
            if self.file(part).exists():
                have += part
                parts.append(np.load(self.file(part)).astype(np.float32))
        vectors = np.concatenate(parts) if parts else np.empty((0, self.checkpoint.hidden), np.float32)
        return have, vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
