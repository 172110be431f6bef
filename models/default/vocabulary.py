"""Chooses the pieces of the vocabulary to keep, and writes their tokenizer."""

import json

import numpy as np
from tokenizers import Tokenizer

UNKNOWN = "<unk>"
# Characters that nmt_nfkc turns into spaces, besides Unicode's white space, and that NFKC does not change.
SPACES = "[\u200b-\u200f\ufeff\u2581\ufffd]"


def tokenizer_json(pieces: list[str], scores: list[float], unknown: int = 0) -> str:
    """Returns a minimal tokenizer.json of the tokenizers library, whose unknown token is `pieces[unknown]`."""
    vocabulary = ",".join(f"[{json.dumps(piece, ensure_ascii=False)},{score:.2f}]" for piece, score in zip(pieces, scores))
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    head = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"Regex": SPACES}, "content": " "}, {"type": "NFKC"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": None, "decoder": metaspace,
    }
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":"))
    return f'{text[:-1]},"model":{{"type":"Unigram","unk_id":{unknown},"byte_fallback":false,"vocab":[{vocabulary}]}}}}'


def shares(tokenizer: Tokenizer, texts: list[tuple[str, str, float]], size: int) -> dict[str, np.ndarray]:
    """Returns the share of each token in the text of each language, given (language, text, weight)."""
    encodings = tokenizer.encode_batch_fast([text for _, text, _ in texts], add_special_tokens=False)
    counts = {language: np.zeros(size) for language, _, _ in texts}
    for (language, _, weight), encoding in zip(texts, encodings):
        np.add.at(counts[language], encoding.ids, weight)
    return {language: count / count.sum() for language, count in counts.items()}


def largest(groups: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Returns the largest share of each token in any language. The share in a language is the mean over its groups of text."""
    languages = sorted({language for group in groups for language in group})
    return np.max([np.mean([group[of] for group in groups if of in group], axis=0) for of in languages], axis=0)


def without_letters(pieces: list[str]) -> np.ndarray:
    bare = [piece.removeprefix("▁") for piece in pieces]
    return np.array([i > 0 and bool(b) and not any(map(str.isalnum, b)) for i, b in enumerate(bare)])


def kept(pieces: list[str], scores: list[float], largest: np.ndarray, room: int) -> np.ndarray:
    """Returns `room` IDs: the unknown token, single characters that were seen, and then tokens by their share. If there is room left, tokens of
    the alphabets that were seen follow, by the tokenizer's own score."""
    # A few words in another script are not enough to count its alphabet as seen.
    alphabet = {c for piece, share in zip(pieces, largest) if share > 2e-5 for c in piece}
    rank = largest.copy()
    for i, piece in enumerate(pieces):
        bare = piece.removeprefix("▁")
        if len(bare) <= 1 and largest[i] > 0:
            rank[i] = 2.0
        elif largest[i] == 0:
            rank[i] = scores[i] - 100 if set(bare) <= alphabet else -1000.0
    rank[0] = 3.0
    return np.sort(np.argsort(-rank, kind="stable")[:room])
