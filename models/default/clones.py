"""Reads files of public Git repositories at pinned commits, from bare clones.

A folder has one bare clone for each repository, either `OWNER+NAME/repo`, `OWNER+NAME` or `NAME.git`. `clone` makes those that are missing.
Some clones lack their largest files. Such a file is skipped, so a list of sources names only files that it needs to be complete without them.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

# The commits from which the text of the second edition was read.
COMMITS = {
    "Helsinki-NLP/OPUS-MT-testsets": "ac0f19c0be3cb4e0d9450fcb2d7a9847c4bdd180",
    "MicrosoftTranslator/NTREX": "8561f6a622db9edad1217683e5c83daefd8bb2bf",
    "SkelterLabsInc/JaQuAD": "23f5d72cc273c49b35e2d9efe0f51757aa1770bd",
    "ipipan/poquad": "1cf5a6e9e4be76735b33cb5c2047972a4a0efb0f",
    "husseinmozannar/SOQAL": "1229d34aa2b7a0b9a2e4858c9268e68f45d7e3c4",
    "iapp-technology/iapp-wiki-qa-dataset": "644a29c59bac62d5b15b9e9b06c55bba00708eca",
    "ymcui/cmrc2018": "c0eb1b6ba219847457e6af3180da722bbeb656af",
    "yahoojapan/JGLUE": "6f071c09316baae89c3d083a90985b4b1cb9968c",
    "mozilla/voice-web": "e0bfbc4be9eb6a97f7dd92eb938200f09f04ba96",
    "mozilla-l10n/www-l10n": "442e139499cbf67e31cf7155ea4bdd4a69cfd87e",
    "omwn/omw-data": "f75be19ec590da12a7a5665e361690b5badb7a25",
    "ruizewang/evaluate": "1152656d3b8c66c48fc6a4357e159f5e21bd2d2d",
    "PhilipMay/stsb-multi-mt": "30de0dec4ee199b7f42351d3f1a0b19592955385",
    "facebookresearch/LASER": "74bc6ae7ffb7cba670fe0f428d0ede9f666fb821",
    "google-deepmind/xquad": "7d30520c717524000f0d9d2f9c10a069acd9d285",
    "dadelani/sib-200": "593cea88519930f776c1a4a1980b6a35b39dca57",
    "eduardofv/sts_eval": "b4cd273eb2c6cc0de34ebeffebd12ebf155ecff6",
    "PolyAI-LDN/task-specific-datasets": "57ec275d8078af65b7731c2a98be812d844a6d6b",
}


class Clone:
    """One repository at its pinned commit."""

    def __init__(self, folder: Path, name: str):
        plain = name.replace("/", "+")
        candidates = [folder / plain / "repo/.git", folder / plain / "repo", folder / plain, folder / (name.split("/")[1] + ".git")]
        self.directory = next((path for path in candidates if (path / "objects").is_dir()), candidates[-1])
        if not self.directory.exists():
            subprocess.run(["git", "clone", "--bare", f"https://github.com/{name}", self.directory], check=True)
        self.name, self.commit = name, COMMITS[name]
        listed = self._git("ls-tree", "-r", "-z", self.commit).split(b"\0")
        self.blobs = {path.decode(): about.split()[2] for about, _, path in (line.partition(b"\t") for line in listed) if path}

    def _git(self, *arguments: str, given: bytes | None = None) -> bytes:
        return subprocess.run(["git", f"--git-dir={self.directory}", *arguments], input=given, check=True, capture_output=True).stdout

    def bytes(self, path: str) -> bytes:
        return self._git("cat-file", "blob", self.blobs[path].decode())

    def text(self, path: str) -> str:
        return self.bytes(path).decode("utf-8", "replace")

    def files(self, pattern: str) -> Iterator[tuple[re.Match, str]]:
        """Yields the match and the text of each file whose whole path matches, in the order of their paths."""
        found = [(match, blob) for path, blob in sorted(self.blobs.items()) if (match := re.fullmatch(pattern, path))]
        out = self._git("cat-file", "--batch", given=b"".join(blob + b"\n" for _, blob in found))
        at = 0
        for match, _ in found:
            end = out.index(b"\n", at)
            head = out[at:end].split()
            if head[1] == b"missing":
                at = end + 1
                continue
            size = int(head[2])
            yield match, out[end + 1:end + 1 + size].decode("utf-8", "replace")
            at = end + 2 + size
