"""Texts as bags of tokens, and their vectors from a table.

A text's vector is the sum over its distinct tokens of n^p times the token's row, scaled to length 1. n is how often the token occurs in the text.
"""

import os
import pickle
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from tokenizers import Tokenizer

from texts import key


class Bags:
    """The tokens of many texts, without the unknown token. `names[i]` is the same for texts of the same letters and digits."""

    def __init__(self, tokenizer: Tokenizer, exponent: float, tokens_at_most: int = 400):
        self.tokenizer, self.exponent, self.tokens_at_most = tokenizer, exponent, tokens_at_most
        self.index: dict[str, int] = {}
        self.texts: list[str] = []
        self.ids = np.empty(0, np.int32)
        self.weights = np.empty(0, np.float32)
        self.starts = np.zeros(1, np.int64)
        self.names = np.empty(0, np.int64)
        self._named: dict[str, int] | None = {}

    def add(self, texts: list[str]) -> np.ndarray:
        """Returns the indices of the texts, and tokenizes those that are new."""
        new = [text for text in dict.fromkeys(texts) if text not in self.index]
        if not new:
            return np.array([self.index[text] for text in texts], np.int64)
        if self._named is None:
            self._named = {key(text) or text: name for text, name in zip(self.texts, self.names.tolist())}
        ids, weights, lengths, names = [self.ids], [self.weights], [], []
        for start in range(0, len(new), 20_000):
            part = new[start:start + 20_000]
            for text, encoding in zip(part, self.tokenizer.encode_batch_fast(part, add_special_tokens=False)):
                tokens, counts = np.unique(np.array(encoding.ids[:self.tokens_at_most], np.int32), return_counts=True)
                counts, tokens = counts[tokens != 0], tokens[tokens != 0]
                ids.append(tokens)
                weights.append(counts.astype(np.float32) ** self.exponent)
                lengths.append(len(tokens))
                names.append(self._named.setdefault(key(text) or text, len(self._named)))
        for text in new:
            self.index[text] = len(self.texts)
            self.texts.append(text)
        self.ids, self.weights = np.concatenate(ids), np.concatenate(weights)
        self.starts = np.concatenate([self.starts, self.starts[-1] + np.cumsum(lengths, dtype=np.int64)])
        self.names = np.concatenate([self.names, np.array(names, np.int64)])
        return np.array([self.index[text] for text in texts], np.int64)

    def save(self, file: Path) -> None:
        partial = file.with_suffix(f".{os.getpid()}.part")
        with open(partial, "wb") as f:
            pickle.dump((self.exponent, self.texts, self.ids, self.weights, self.starts, self.names), f, protocol=5)
        partial.rename(file)

    def load(self, file: Path) -> None:
        """Takes over the texts that `save` wrote, with the weights of this exponent."""
        with open(file, "rb") as f:
            exponent, self.texts, self.ids, weights, self.starts, self.names = pickle.load(f)
        self.weights = np.rint(weights ** np.float32(1 / exponent)) ** np.float32(self.exponent)
        self.index, self._named = {text: at for at, text in enumerate(self.texts)}, None

    def lengths(self, texts: np.ndarray) -> np.ndarray:
        return self.starts[texts + 1] - self.starts[texts]

    def rows(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the tokens of the texts one after another, their weights, and where each text starts, with the end."""
        lengths = self.lengths(texts)
        ends = np.cumsum(lengths)
        at = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.starts[texts] - (ends - lengths), lengths)
        return self.ids[at], self.weights[at], np.concatenate([[0], ends])

    def vectors(self, table: np.ndarray, texts: np.ndarray) -> np.ndarray:
        ids, weights, ends = self.rows(texts)
        sums = sp.csr_matrix((weights, ids, ends), shape=(len(texts), len(table))) @ table
        return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
