#!/usr/bin/env python3
"""Writes sample.txt: natural text in many languages, from which `refine` learns how common tokens are.

    python3 -m venv venv && venv/bin/pip install wordfreq==3.1.1
    apt-get download gnome-user-docs=43.0-2
    venv/bin/python crates/tuning/assets/make_sample.py gnome-user-docs_43.0-2_all.deb crates/tuning/assets/sample.txt

Sentences alone are too narrow (help pages), word lists alone lack the punctuation and the word order; half and half is
better than either. Both are spread evenly over their source, without a random number, so that the file is the same
each time. English carries no more weight than another language.
"""

import argparse
import re
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import wordfreq

MALLARD = "{http://projectmallard.org/1.0/}"
# The languages of wordfreq, and those into which most of GNOME's help is translated.
WORDS = sorted(wordfreq.available_languages("small"))
HELP = {"en": "C", "pt": "pt_BR", "zh": "zh_CN"} | {
    language: language
    for language in ["ca", "cs", "da", "de", "el", "es", "fi", "fr", "gl", "hi", "hr", "hu", "id", "it", "ja", "ko",
                     "lt", "lv", "nl", "pa", "pl", "ro", "ru", "sl", "sr", "sv", "ta", "te", "tr", "uk", "vi"]}
NO_SPACES = {"ja", "zh"}
WORDS_A_LINE = 16


def paragraphs(directory: Path) -> list[str]:
    found = []
    for page in sorted(directory.glob("*/*.page")):
        root = ET.parse(page).getroot()
        for element in root.iter():
            if element.tag in (f"{MALLARD}p", f"{MALLARD}desc"):
                found.append(" ".join("".join(element.itertext()).split()))
    return found


def sentences(language: str, root: Path, english: set[str]) -> list[str]:
    """Returns the translated sentences in the order of the pages, without duplicates and fragments."""
    split = [s.strip() for p in paragraphs(root / HELP[language]) for s in re.split(r"(?<=[.!?])\s+|(?<=[。！？।])", p)]
    kept = dict.fromkeys(s for s in split if 20 <= len(s.encode()) <= 400)
    return [s for s in kept if language == "en" or s not in english]


def spread(items: list[str], budget: int) -> list[str]:
    """Returns about `budget` characters of items, chosen at even distances."""
    total = sum(map(len, items))
    chosen, seen, taken = [], 0, 0
    for item in items:
        seen += len(item)
        if taken < budget * seen / total:
            chosen.append(item)
            taken += len(item)
    return chosen


def words(language: str, count: int) -> list[str]:
    """Returns lines with `count` words in total. Each word occurs as often as in natural text, far from its repetitions."""
    frequencies = wordfreq.get_frequency_dict(language, "small")
    total = sum(frequencies.values())
    placed, before = [], 0.0
    for word, frequency in sorted(frequencies.items(), key=lambda item: (-item[1], item[0])):
        # Low-discrepancy rounding: a word gets as many occurrences as its share of the count crosses whole numbers.
        after = before + count * frequency / total
        times = int(after) - int(before)
        # Repetition i of n is at (i + 1/2) / n of the text. Words at the same place are ordered by the golden ratio.
        offset = len(placed) * 0.6180339887 % 1
        placed += [((i + offset) / times % 1, word) for i in range(times)]
        before = after
    ordered = [word for _, word in sorted(placed)]
    joint = "" if language in NO_SPACES else " "
    return [joint.join(ordered[i:i + WORDS_A_LINE]) for i in range(0, len(ordered), WORDS_A_LINE)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("help", type=Path, help="the package gnome-user-docs")
    parser.add_argument("out", type=Path)
    parser.add_argument("--characters", type=int, default=5000, help="characters of sentences per language (default: %(default)s)")
    parser.add_argument("--words", type=int, default=1000, help="words per language (default: %(default)s)")
    args = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["dpkg-deb", "-x", args.help, directory], check=True)
        root = Path(directory) / "usr/share/help"
        english = set(sentences("en", root, set()))
        for language in sorted(HELP):
            lines += spread(sentences(language, root, english), args.characters) if args.characters else []
    for language in WORDS:
        lines += words(language, args.words) if args.words else []
    args.out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{len(lines)} lines of {len(HELP)} and {len(WORDS)} languages ({len(set(HELP) | set(WORDS))} in all)")
