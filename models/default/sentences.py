"""Gathers the texts whose vectors the teacher gives: sentences of 23 languages, without those of evaluation sets.

Beside the folders of pairs.py it reads `vendor`, which has the crates of corpus/Cargo.toml (texts.py).
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from clones import Clone
from left_out import LeftOut
from texts import LANGUAGES, good, key, lingua, split, wordnet

VOICE = {"ar": "ar", "cs": "cs", "de": "de", "el": "el", "en": "en", "es": "es", "fr": "fr", "hi": "hi", "hu": "hu", "id": "id", "it": "it",
         "ja": "ja", "ko": "ko", "nl": "nl", "pl": "pl", "pt": "pt", "ro": "ro", "ru": "ru", "sv-SE": "sv", "th": "th", "tr": "tr", "vi": "vi",
         "zh-CN": "zh"}
# The most texts of a source and language.
CAPS = {"voice": 15_000, "voice en": 60_000, "pairs": 60_000, "wordnet": 60_000, "passages": 15_000}


def voice(clones: Path) -> Iterator[tuple[str, str]]:
    """Yields the sentences that Common Voice asks people to read."""
    for match, text in Clone(clones, "mozilla/voice-web").files(r"server/data/(" + "|".join(VOICE) + r")/[^/]+\.txt"):
        if "LICENSE" not in match[0] and "singleword" not in match[0]:
            yield from ((VOICE[match[1]], line.strip().strip('"')) for line in text.split("\n"))


def captions(clones: Path) -> Iterator[tuple[str, str]]:
    """Yields captions of photographs: MS COCO's in English, and those of JSTS in Japanese."""
    for _, text in Clone(clones, "ruizewang/evaluate").files(r"annotations/captions_val2017\.json"):
        yield from (("en", about["caption"].strip()) for about in json.loads(text)["annotations"])
    for _, text in Clone(clones, "yahoojapan/JGLUE").files(r"datasets/jsts-v1\.3/(?:train|valid)-v1\.3\.json"):
        for line in text.strip().split("\n"):
            about = json.loads(line)
            yield from (("ja", about[name].strip()) for name in ("sentence1", "sentence2"))


def of_pairs(pairs: Iterable[tuple], sources: set[str]) -> Iterator[tuple[str, str]]:
    """Yields the English texts of pairs."""
    for source, one, a, other, b in pairs:
        if source in sources:
            yield from ((of, text) for of, text in ((one, a), (other, b)) if of == "en")


def of_passages(pairs: Iterable[tuple]) -> Iterator[tuple[str, str]]:
    """Yields the questions, and the sentences of their passages."""
    for source, one, a, other, b in pairs:
        if source == "questions":
            yield one, a
            yield from ((other, sentence) for part in re.split(r"\n+", b) for sentence in split(part))


def gather(clones: Path, packages: Path, vendor: Path, pairs: list[tuple], left_out: LeftOut, report=print
           ) -> tuple[dict[tuple[str, str], list[str]], dict]:
    """Returns a map of (source, language) -> its texts in the order of their SHA-256, and what it has of each source."""
    running = {"tatoeba", "ntrex", "tico", "cataclysm", "wesnoth", "games", "libreoffice", "mozilla"}
    sources = [("captions", captions(clones)), ("voice", voice(clones)), ("lingua", lingua(vendor)),
               *((f"pairs of {source}", of_pairs(pairs, {source})) for source in sorted(running)),
               ("wordnet", wordnet(packages)), ("passages", of_passages(pairs))]
    result, about, seen = {}, {}, set()
    for source, found in sources:
        groups: dict[str, dict[bytes, str]] = defaultdict(dict)
        for of, text in found:
            text = " ".join(text.split())
            if of in LANGUAGES and good(text, of, 8, 300):
                groups[of][hashlib.sha256(text.encode()).digest()] = text
        digest, counts = hashlib.sha256(), {}
        for of, some in sorted(groups.items()):
            cap = CAPS.get(f"{source} {of}", CAPS.get(source.split(" ")[0], 1_000_000))
            kept = []
            for _, text in sorted(some.items()):
                if len(kept) == cap:
                    break
                name = key(text)
                if name not in seen and left_out.keeps(source, [text]):
                    seen.add(name)
                    kept.append(text)
                    digest.update(f"{of}\t{text}\n".encode())
            result[source, of], counts[of] = kept, len(kept)
        about[source] = {"kept": sum(counts.values()), "languages": counts, "sha256": digest.hexdigest()}
        report(f"{source}: {sum(counts.values())} texts", flush=True)
    return result, about
