"""The text that the default model is fitted on, and the words by which pieces are kept.

* Sentences: crates.io's `lingua-*-language-model` (Apache-2.0) carry, as test data, up to 1000 sentences a language of web
  pages and news.
* Words: PyPI's `wordfreq` lists (CC BY-SA 4.0), in the order of their frequency.

Nothing of it is evaluation data: no sentence of STS-B, Tatoeba, XQuAD or SIB-200.
"""

from pathlib import Path

LANGUAGES = {"ar": "arabic", "bg": "bulgarian", "ca": "catalan", "cs": "czech", "da": "danish", "de": "german",
             "el": "greek", "en": "english", "es": "spanish", "fa": "persian", "fi": "finnish", "fr": "french",
             "he": "hebrew", "hi": "hindi", "hu": "hungarian", "id": "indonesian", "it": "italian", "ja": "japanese",
             "ko": "korean", "nb": "bokmal", "nl": "dutch", "pl": "polish", "pt": "portuguese", "ro": "romanian",
             "ru": "russian", "sv": "swedish", "th": "thai", "tr": "turkish", "uk": "ukrainian", "vi": "vietnamese",
             "zh": "chinese"}
WORDS = 6000


def sentences(vendor: Path) -> list[tuple[str, str]]:
    """(language, sentence), each once, in the order of the files."""
    found = {}
    for language, name in LANGUAGES.items():
        directory, = vendor.glob(f"lingua-{name}-language-model*")
        for line in (directory / "testdata/sentences.txt").read_text(encoding="utf-8").splitlines():
            text = line.strip()
            if 2 <= len(text) <= 600 and any(c.isalpha() for c in text):
                found.setdefault(text, language)
    return [(language, text) for text, language in found.items()]


def words() -> list[tuple[str, str, float]]:
    """(language, word, weight): the most frequent first, weighted by Zipf's law."""
    import wordfreq
    listed = wordfreq.available_languages("small")
    return [(language, word, 1 / (rank + 1)) for language in LANGUAGES if language in listed
            for rank, word in enumerate(wordfreq.top_n_list(language, WORDS, "small"))]
