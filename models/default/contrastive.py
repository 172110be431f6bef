"""Trains a table on pairs of texts and on a teacher's similarities, by gradient steps that touch only the rows of a batch.

One step adds up:

- the symmetric InfoNCE loss (van den Oord et al. 2018, https://arxiv.org/abs/1807.03748) of a batch of pairs of one source and pair of languages,
  whose negatives are the batch's other pairs,
- the Kullback-Leibler divergence of the softmax of the table's similarities between the texts of a batch from that of the teacher's, several times,
- the same divergence from the similarities of the table at the start, so that pairs of few kinds do not bend it.

The rate of a row is divided by a running root mean square of its gradient, one number per row, so that a rare row moves along its gradient.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bags import Bags

SCALE, DECAY, WARM_UP = 20.0, 0.99, 50
# The running mean of the table is updated once in so many steps, since that passes over all rows.
MEAN_EVERY = 10


@dataclass
class Settings:
    steps: int
    rate: float
    seed: int = 0
    pairs: int = 768
    teacher_batches: int = 3
    teacher_texts: int = 512
    teacher_weight: float = 6.0
    anchor_weight: float = 0.05
    anchor_texts: int = 384
    # How often a teacher batch has texts of one language other than English, English texts, texts of all languages, or translations of
    # English texts with the vectors of these. A batch of "across" has such translations and as many English texts.
    shares: dict[str, float] = field(default_factory=lambda: {"other": 0.4, "english": 0.3, "mixed": 0.1, "translations": 0.2})
    # How often a batch of one language consists of some texts and their nearest texts by the teacher.
    neighbours: float = 0.4
    source_weights: dict[str, float] = field(default_factory=dict)
    tokens_at_most: int = 60_000
    # Of the similarities of the teacher and of the table, before their softmax.
    temperature: float = 0.1
    # How the rate falls to 0: "linear" or "cosine".
    schedule: str = "linear"
    # How much of a running mean of the table each step keeps. 0 takes the table of the last step instead of the mean.
    mean_decay: float = 0.0


@dataclass
class Pairs:
    """The pairs of one source and pair of languages, as indices of bags."""
    source: str
    languages: tuple[str, str]
    left: np.ndarray
    right: np.ndarray


@dataclass
class Taught:
    """Texts of one language, as indices of bags, with the teacher's whitened unit vectors in f16, and their nearest texts by it if known."""
    language: str
    texts: np.ndarray
    vectors: np.ndarray
    neighbours: np.ndarray | None = None


def similarities(vectors: torch.Tensor, temperature: float) -> torch.Tensor:
    own = torch.eye(len(vectors), dtype=torch.bool)
    return (vectors @ vectors.T / temperature).masked_fill(own, -1e9).log_softmax(1)


def divergence(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns how much the student's unit vectors [texts, dimensions] differ in their neighbors from the teacher's. A text is not its own."""
    return F.kl_div(similarities(student, temperature), similarities(teacher, temperature), log_target=True, reduction="batchmean")


def contrast(left: torch.Tensor, right: torch.Tensor, names_left: np.ndarray, names_right: np.ndarray) -> torch.Tensor:
    """Returns the symmetric InfoNCE loss. Pairs that share a text are not each other's negatives."""
    logits = SCALE * left @ right.T
    same = (names_left[:, None] == names_left[None]) | (names_right[:, None] == names_right[None])
    np.fill_diagonal(same, False)
    logits = logits.masked_fill(torch.from_numpy(same), -1e9)
    own = torch.arange(len(left))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class Training:
    def __init__(self, table: np.ndarray, bags: Bags, pairs: list[Pairs], taught: list[Taught], translations: list[Taught],
                 settings: Settings):
        """`translations` has texts with the teacher's vectors of their English translations."""
        self.start = torch.from_numpy(table.astype(np.float32) / np.sqrt((table ** 2).mean()))
        self.table, self.bags, self.settings = self.start.clone(), bags, settings
        self.mean = self.start.clone() if settings.mean_decay else None
        self.squares, self.used = torch.zeros(len(table)), torch.zeros(len(table))
        self.pairs = [group for group in pairs if len(group.left) >= 300 and settings.source_weights.get(group.source, 1.0) > 0]
        weights = np.array([settings.source_weights.get(g.source, 1.0) * min(len(g.left), 30_000) ** 0.5
                            * (1.0 if "en" in g.languages or g.languages[0] == g.languages[1] else 0.25) for g in self.pairs])
        self.pair_weights = weights / weights.sum()
        self.kinds = {"english": [t for t in taught if t.language == "en"], "other": [t for t in taught if t.language != "en"],
                      "mixed": taught, "translations": translations, "across": translations}
        self.step = 0
        self.random = np.random.default_rng(settings.seed)

    def pick(self, taught: list[Taught]) -> Taught:
        weights = np.array([len(t.texts) for t in taught], float) ** 0.5
        return taught[self.random.choice(len(taught), p=weights / weights.sum())]

    def teacher_batch(self) -> tuple[np.ndarray, np.ndarray]:
        s = self.settings
        kinds = [kind for kind in s.shares if self.kinds[kind]]
        weights = np.array([s.shares[kind] for kind in kinds])
        kind = kinds[self.random.choice(len(kinds), p=weights / weights.sum())]
        if kind == "mixed":
            some = [self.pick(self.kinds[kind]) for _ in range(8)]
            picked = [(t, self.random.integers(len(t.texts), size=s.teacher_texts // 8)) for t in some]
            return np.concatenate([t.texts[at] for t, at in picked]), np.concatenate([t.vectors[at] for t, at in picked])
        if kind == "across":
            # The teacher's centered vectors of two languages are compared, as a table's vectors are.
            some = [self.pick(self.kinds[kind]), self.kinds["english"][0]]
            picked = [(t, self.random.choice(len(t.texts), size=min(s.teacher_texts // 2, len(t.texts)), replace=False)) for t in some]
            return np.concatenate([t.texts[at] for t, at in picked]), np.concatenate([t.vectors[at] for t, at in picked])
        t = self.pick(self.kinds[kind])
        at = self.random.choice(len(t.texts), size=min(s.teacher_texts, len(t.texts)), replace=False)
        if t.neighbours is not None and self.random.random() < s.neighbours:
            seeds = at[:max(1, len(at) // (1 + t.neighbours.shape[1]))]
            at = np.unique(np.concatenate([seeds, t.neighbours[seeds].ravel()]))
        return t.texts[at], t.vectors[at]

    def pair_batch(self) -> tuple[np.ndarray, np.ndarray]:
        group = self.pairs[self.random.choice(len(self.pairs), p=self.pair_weights)]
        at = self.random.choice(len(group.left), size=min(self.settings.pairs, len(group.left)), replace=False)
        left, right = group.left[at], group.right[at]
        total = np.cumsum(self.bags.lengths(left) + self.bags.lengths(right))
        fits = max(2, int(np.searchsorted(total, self.settings.tokens_at_most)))
        return left[:fits], right[:fits]

    def one_step(self) -> dict[str, float]:
        s = self.settings
        left, right = self.pair_batch()
        taught = [self.teacher_batch() for _ in range(s.teacher_batches)]
        every = np.concatenate([left, right, *(texts for texts, _ in taught)])
        ids, weights, ends = self.bags.rows(every)
        rows, local = np.unique(ids, return_inverse=True)
        rows = torch.from_numpy(rows.astype(np.int64))
        part = self.table[rows].requires_grad_()
        local, weights, offsets = torch.from_numpy(local), torch.from_numpy(weights), torch.from_numpy(ends[:-1])

        def vectors(of: torch.Tensor) -> torch.Tensor:
            return F.normalize(F.embedding_bag(local, of, offsets, mode="sum", per_sample_weights=weights))

        units = vectors(part)
        n = len(left)
        pair_loss = contrast(units[:n], units[n:2 * n], self.bags.names[left], self.bags.names[right])
        loss, at, teacher_loss, anchor_loss = pair_loss, 2 * n, 0.0, 0.0
        for texts, z in taught:
            d = divergence(torch.from_numpy(z.astype(np.float32)), units[at:at + len(texts)], s.temperature)
            loss, at, teacher_loss = loss + s.teacher_weight * d, at + len(texts), teacher_loss + d.item() / len(taught)
        if s.anchor_weight and self.step % 2 == 0:
            few = slice(0, 2 * n, max(1, 2 * n // s.anchor_texts))
            with torch.no_grad():
                first = vectors(self.start[rows])[few]
            d = divergence(first, units[few], s.temperature)
            loss, anchor_loss = loss + 2 * s.anchor_weight * d, d.item()
        loss.backward()
        with torch.no_grad():
            self.squares[rows] = DECAY * self.squares[rows] + (1 - DECAY) * part.grad.square().mean(1)
            self.used[rows] += 1
            mean = (self.squares[rows] / (1 - DECAY ** self.used[rows])).sqrt() + 1e-12
            falling = (1 + math.cos(math.pi * self.step / s.steps)) / 2 if s.schedule == "cosine" else 1 - self.step / s.steps
            rate = s.rate * min(1.0, (self.step + 1) / WARM_UP) * falling
            self.table[rows] -= rate * part.grad / mean[:, None]
            self.step += 1
            if self.mean is not None and self.step % MEAN_EVERY == 0:
                # At first the mean is that of few steps, so that it does not keep the table at the start.
                kept = min(s.mean_decay ** MEAN_EVERY, self.step / (self.step + 10 * MEAN_EVERY))
                self.mean.lerp_(self.table, 1 - kept)
        return {"pairs": pair_loss.item(), "teacher": teacher_loss, "anchor": anchor_loss}

    def save(self, file: Path) -> None:
        partial = file.with_suffix(".part.npz")
        np.savez(partial, table=self.table.numpy(), squares=self.squares.numpy(), used=self.used.numpy(), step=self.step,
                 mean=np.empty(0) if self.mean is None else self.mean.numpy(),
                 random=json.dumps(self.random.bit_generator.state), settings=json.dumps(asdict(self.settings)))
        partial.rename(file)

    def load(self, file: Path) -> None:
        saved = np.load(file)
        if json.loads(str(saved["settings"])) != asdict(self.settings):
            raise ValueError(f"{file} is of a run with other settings; remove it to start anew")
        self.table, self.squares, self.used = (torch.from_numpy(saved[name]) for name in ("table", "squares", "used"))
        self.mean = torch.from_numpy(saved["mean"]) if self.settings.mean_decay else None
        self.step = int(saved["step"])
        self.random.bit_generator.state = json.loads(str(saved["random"]))

    def result(self) -> np.ndarray:
        return (self.table if self.mean is None else self.mean).numpy()

    def run(self, file: Path | None = None, measure: Callable[[np.ndarray], dict] | None = None, every: int = 250,
            report: Callable[[dict], None] = print) -> np.ndarray:
        """Trains to the end, from `file` if it is there, and returns the table. Every so many steps it measures, reports and saves."""
        if file and file.exists():
            self.load(file)
        sums: dict[str, float] = {}
        while self.step < self.settings.steps:
            for name, value in self.one_step().items():
                sums[name] = sums.get(name, 0.0) + value / every
            if self.step % every == 0 or self.step == self.settings.steps:
                report({"step": self.step, "loss": sums, **({"development": measure(self.result())} if measure else {})})
                sums = {}
                if file:
                    self.save(file)
        return self.result()
