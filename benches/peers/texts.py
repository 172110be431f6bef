"""Extracts texts in many languages from a registry package: the translations that Django ships, which are real but technical
text in some 85 languages. A fixed version of Django and a fixed seed give the same files on every machine."""

import gettext
import random
import re
from pathlib import Path


def write(package, directory):
    """Writes `sentences.txt` and `documents.txt` (one text per line, no duplicates) and `words.txt` (one line per language) to `directory`."""
    random.seed(5)
    sentences, documents, words = [], [], []
    for locale in sorted(Path(package).glob("conf/locale/*/")):
        texts = language(package, locale.name)
        if len(texts) < 300:
            continue
        sentences += [t for t in texts if 35 <= len(t.encode()) <= 85]
        documents += joined(random.sample(texts, len(texts)))
        plain = {w for t in texts for w in t.split() if not re.search(r'["\\<>{}&%\x00-\x1f]', w)}
        words.append(" ".join(sorted(plain)))
    for name, lines in (("sentences", sentences), ("documents", documents), ("words", words)):
        lines = sorted(set(lines))
        random.shuffle(lines)
        (directory / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def language(package, locale):
    """Returns the translated texts of one locale, without markup and placeholders."""
    found = set()
    for file in sorted(Path(package).glob(f"**/locale/{locale}/LC_MESSAGES/*.mo")):
        with open(file, "rb") as f:
            catalog = gettext.GNUTranslations(f)._catalog
        for source, text in catalog.items():
            if source and text and text != source:
                text = re.sub(r"<[^>]*>|%\(\w+\)\w|%[sd]|\{\w*\}|&\w+;", " ", text)
                found.add(" ".join(text.split()))
    return sorted(found - {""})


def joined(texts, size=2000):
    """Joins `texts` into documents of `size` bytes or a little more."""
    parts, length = [], 0
    for text in texts:
        parts.append(text)
        length += len(text.encode()) + 1
        if length >= size:
            yield " ".join(parts)
            parts, length = [], 0
