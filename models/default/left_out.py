"""Leaves the texts of evaluation sets out of training text, equal ones and near ones.

Two texts are equal if their letters and digits are, in NFKC and without case. They are near if the sets of 5-grams of these letters and
digits have a Jaccard similarity over .8. Near texts are found by prefix filtering (Chaudhuri et al. 2006,
https://doi.org/10.1109/ICDE.2006.9): two sets of such a similarity share a gram among the first fifth of both, whatever the order of grams.
The grams that are rarest in the evaluation sets come first.
"""

import csv
import json
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from texts import key, split

GRAM, NEAR = 5, 0.8


def evaluation(root: Path) -> dict[str, set[str]]:
    """Returns the keys of the texts of each set that tests/real/eval-data wrote to `root`."""
    keys = defaultdict(set)
    for kind in ["sts", "sts17"]:
        for file in root.glob(f"{kind}/**/*.csv"):
            with open(file, encoding="utf-8") as f:
                keys[kind].update(key(sentence) for row in csv.reader(f) for sentence in row[:2])
    for kind, pattern in [("sts", "corpus/*.txt"), ("tatoeba", "tatoeba/*.txt"), ("sib", "sib/*/*.txt")]:
        for file in root.glob(pattern):
            keys[kind].update(key(line) for line in file.read_text(encoding="utf-8").split("\n"))
    for file in root.glob("xquad/*/*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            text = json.loads(line)["text"]
            keys["xquad"].update([key(text), *(key(sentence) for sentence in split(text))])
    for file in root.glob("banking77/*.tsv"):
        keys["banking77"].update(key(line.partition("\t")[2]) for line in file.read_text(encoding="utf-8").split("\n"))
    for found in keys.values():
        found.discard("")
    return keys


def grams(name: str) -> set[int]:
    """Returns the hashes of the distinct 5-grams."""
    data = name.encode("utf-32-le")
    return {zlib.crc32(data[at:at + 4 * GRAM]) for at in range(0, max(len(data) - 4 * GRAM, 0) + 4, 4)}


class LeftOut:
    """Counts and recognizes the texts to leave out. `equal` and `near` count them by (source, evaluation set)."""

    def __init__(self, root: Path):
        self.keys, self.sets, self.index = {}, [], defaultdict(list)
        for kind, names in evaluation(root).items():
            for name in names:
                self.keys.setdefault(name, kind)
        self.sets = [(grams(name), kind) for name, kind in self.keys.items()]
        self.uses = Counter(gram for found, _ in self.sets for gram in found)
        for at, (found, _) in enumerate(self.sets):
            for gram in self._prefix(found):
                self.index[gram].append(at)
        self.equal, self.near, self.seen = Counter(), Counter(), {}

    def _prefix(self, found: set[int]) -> list[int]:
        return sorted(found, key=lambda gram: (self.uses.get(gram, 0), gram))[:len(found) - math.ceil(NEAR * len(found)) + 1]

    def match(self, text: str) -> tuple[str, bool] | None:
        """Returns the evaluation set in which the text is, and whether it is equal to the text there."""
        name = key(text)
        if name not in self.seen:
            self.seen[name] = (self.keys[name], True) if name in self.keys else self._near(name)
        return self.seen[name]

    def _near(self, name: str) -> tuple[str, bool] | None:
        found = grams(name)
        size = len(found)
        for at in dict.fromkeys(at for gram in self._prefix(found) for at in self.index.get(gram, ())):
            other, kind = self.sets[at]
            if NEAR * size <= len(other) <= size / NEAR:
                shared = len(found & other)
                if shared > NEAR * (size + len(other) - shared):
                    return kind, False
        return None

    def keeps(self, source: str, texts: Iterable[str]) -> bool:
        """Returns whether none of the texts is to be left out, and counts it otherwise."""
        for text in texts:
            if found := self.match(text):
                (self.equal if found[1] else self.near)[source, found[0]] += 1
                return False
        return True
