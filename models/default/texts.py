"""Reads the text on which the default model is fitted, from registry packages (README.md lists them with their licenses).

    packages/     the trees of the Debian packages, one over another: for d in *.deb; do dpkg-deb -x $d packages; done
    npm/          cldr-annotations-full, -derived-full and cldr-localenames-full as `npm pack` writes them
    vendor/       crates.io's lingua-*-language-model: sentences of web pages and news
    evaluation/   what tests/real/eval-data writes: any text that it has, on any split, is left out

A text that says what an evaluation sentence says, letters and digits alone compared and case ignored, is dropped.
"""

import csv
import gettext
import glob
import gzip
import hashlib
import html
import json
import re
import tarfile
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

LINGUA = {"ar": "arabic", "cs": "czech", "de": "german", "el": "greek", "en": "english", "es": "spanish", "fr": "french",
          "hi": "hindi", "hu": "hungarian", "id": "indonesian", "it": "italian", "ja": "japanese", "ko": "korean",
          "nl": "dutch", "pl": "polish", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sv": "swedish",
          "th": "thai", "tr": "turkish", "vi": "vietnamese", "zh": "chinese"}
LANGUAGES = sorted(LINGUA)
OTHER_SCRIPTS = {"ru", "ar", "hi", "el", "th", "ja", "zh", "ko"}
FREEDICT = {"ara": "ar", "eng": "en", "tur": "tr", "hin": "hi", "deu": "de", "fra": "fr", "rus": "ru", "spa": "es", "ita": "it",
            "nld": "nl", "por": "pt", "pol": "pl", "jpn": "ja", "ell": "el", "swe": "sv", "fin": "fi", "ces": "cs", "hun": "hu"}
# The number of texts of each source in a slice. Short texts give words that sentences lack.
SHARES = {"lingua": 1400, "wesnoth": 650, "wordnet": 350, "fortunes": 400, "handbook": 200, "freeciv": 400, "stellarium": 150,
          "widelands": 150, "freecol": 150, "cldr": 400, "freedict": 350, "iso-codes": 50}
SHORT = {"freedict", "cldr", "iso-codes"}
SLICES = 40
MARKUP = re.compile(r"<[^<>]{0,300}>|\$\w+|\|\w*|%[\d$]*[a-zA-Z]|%\w+%|\{[^{}]*\}|&\w+;")


def language(code: str) -> str | None:
    code = code.split("@")[0].replace("-", "_")
    if code in ("zh_TW", "zh_HK", "zh_hant", "en_GB"):
        return None
    found = code.split("_")[0]
    return found if found in LINGUA else None


def clean(text: str) -> str:
    text = html.unescape(MARKUP.sub(" ", text)).replace("\\n", " ").replace("\\t", " ")
    return " ".join(re.sub(r"[*_#~`^@=\\<>]+", " ", text).split())


def split(text: str) -> Iterator[str]:
    for sentence in re.split(r"(?<=[.!?…])\s+(?=\S)|(?<=[。！？])|\n+", text):
        if sentence := sentence.strip(" -–—•\"'"):
            yield sentence


def key(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def width(text: str, of: str) -> float:
    return len(text) * (2.2 if of in ("zh", "ja", "ko") else 1)


def good(text: str, of: str, low: int, high: int) -> bool:
    letters = sum(c.isalpha() or unicodedata.category(c) in ("Mn", "Mc") for c in text)
    own = of not in OTHER_SCRIPTS or sum(c.isalpha() and ord(c) > 0x24f for c in text) >= .6 * sum(map(str.isalpha, text))
    return low <= width(text, of) <= high and letters >= .6 * len(text) and own


def catalogues(files: list[Path]) -> Iterator[tuple[str, str]]:
    """Yields both sides of compiled gettext catalogs, without the context that precedes a `^`."""
    originals = {}
    for file in files:
        if not (of := language(file.parts[file.parts.index("LC_MESSAGES") - 1])):
            continue
        try:
            with file.open("rb") as f:
                messages = gettext.GNUTranslations(f)._catalog
        except (OSError, ValueError, IndexError):
            continue
        for original, translation in messages.items():
            original = original[0] if isinstance(original, tuple) else original
            if original and translation and translation != original:
                originals[re.sub(r"^[^^\n]{1,60}\^", "", original.split("\4")[-1])] = None
                yield from ((of, s) for s in split(clean(re.sub(r"^[^^\n]{1,60}\^", "", translation))))
    for original in originals:
        yield from (("en", s) for s in split(clean(original)))


def stellarium(root: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(root.rglob("description.*.utf8")):
        if of := language(file.name.split(".")[1]):
            for paragraph in re.sub(r"<[^>]*>", "\n", file.read_text(errors="ignore")).split("\n"):
                yield from ((of, s) for s in split(clean(paragraph)))


def freecol(root: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(root.rglob("FreeColMessages*.properties")):
        if of := language(file.stem.removeprefix("FreeColMessages").removeprefix("_") or "en"):
            for line in file.read_text(errors="ignore").split("\n"):
                if "=" in line and not line.startswith("#"):
                    value = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), line.split("=", 1)[1])
                    yield from ((of, s) for s in split(clean(value)))


def handbook(root: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(root.glob("usr/share/doc/debian-handbook/html/*/*.html")):
        if of := language(file.parent.name):
            text = re.sub(r"(?s)<(pre|script|style|head)\b.*?</\1>", " ", file.read_text(errors="ignore"))
            for part in re.findall(r"(?s)<(?:p|div class=\"para\"|h\d)[^>]*>(.*?)</(?:p|div|h\d)>", text):
                yield from ((of, s) for s in split(clean(re.sub(r"<[^>]*>", " ", part.replace("\n", " ")))))


def fortunes(root: Path) -> Iterator[tuple[str, str]]:
    chinese = {"chinese": "zh", "tang300": "zh", "song100": "zh"}
    for file in sorted((root / "usr/share/games/fortunes").rglob("*")):
        of = chinese.get(file.name) or (file.parent.name if file.parent.name in LINGUA else None)
        if of and file.is_file() and file.suffix not in (".u8", ".dat"):
            try:
                cookies = file.read_bytes().decode().split("\n%")
            except UnicodeDecodeError:
                continue
            for cookie in cookies:
                yield from ((of, s) for s in split(clean(cookie)))


def wordnet(root: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(root.glob("usr/share/wordnet/data.*")):
        for line in file.read_text(errors="ignore").split("\n"):
            if "|" in line and line[0] != " ":
                yield from (("en", part.strip(' "')) for part in line.split("|", 1)[1].split(";"))


def dictionaries(root: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(root.rglob("freedict-*.dict.dz")):
        _, of, to = file.name.split(".")[0].split("-")
        with gzip.open(file, "rt", errors="ignore") as f:
            # The first lines describe the dictionary itself.
            lines = f.read().split("\n")[80:]
        for line in lines:
            if head := re.match(r"^([^\s/][^/<>\[\]{}()]{1,60}?) /[^/]*/", line):
                yield FREEDICT[of], head[1].split(",")[0].strip()
            elif "/" not in line and ":" not in line:
                meaning = " ".join(re.sub(r"\([^)]*\)|\[[^\]]*\]|\{[^}]*\}", " ", re.sub(r"^\s*\d+\.\s*", "", line)).split())
                if meaning and '"' not in meaning:
                    yield FREEDICT[to], meaning


def cldr(npm: Path) -> Iterator[tuple[str, str]]:
    for package in sorted(npm.glob("cldr-annotations-*.tgz"), reverse=True):
        with tarfile.open(package) as tar:
            for member in tar:
                of = re.search(r"annotations(?:Derived)?/([a-z]+)/annotations.json$", member.name)
                if of and of[1] in LINGUA:
                    found = json.load(tar.extractfile(member))
                    derived = "annotationsDerived" in found
                    for emoji, names in found["annotationsDerived" if derived else "annotations"]["annotations"].items():
                        if not any(0x1f3fb <= ord(c) <= 0x1f3ff for c in emoji):
                            yield from ((of[1], name) for name in names.get("tts", []))
                            if names.get("default") and not derived:
                                yield of[1], ", ".join(names["default"][:6])
    for package in npm.glob("cldr-localenames-full*.tgz"):
        with tarfile.open(package) as tar:
            for member in tar:
                of = re.search(r"main/([a-z]+)/(territories|languages).json$", member.name)
                if of and of[1] in LINGUA:
                    names = json.load(tar.extractfile(member))["main"][of[1]]["localeDisplayNames"][of[2]]
                    yield from ((of[1], name) for name in names.values())


def lingua(vendor: Path) -> Iterator[tuple[str, str]]:
    for of, name in LINGUA.items():
        directory, = vendor.glob(f"lingua-{name}-language-model*")
        yield from ((of, line.strip()) for line in (directory / "testdata/sentences.txt").read_text(encoding="utf-8").splitlines())


def sources(packages: Path, npm: Path) -> Iterator[tuple[str, str, str]]:
    share = packages / "usr/share"
    games = sorted((share / "games/wesnoth").rglob("*.mo")) + sorted((share / "locale").rglob("tuxpaint.mo"))
    nations = sorted((share / "locale").rglob("freeciv-*.mo"))
    for source, pairs in [
        ("wesnoth", catalogues(games)), ("freeciv", catalogues(nations)),
        ("widelands", catalogues(sorted((share / "games/widelands").rglob("*.mo")))),
        ("stellarium", stellarium(packages)), ("freecol", freecol(packages)), ("handbook", handbook(packages)),
        ("fortunes", fortunes(packages)), ("wordnet", wordnet(packages)), ("freedict", dictionaries(packages)),
        ("cldr", cldr(npm)), ("iso-codes", catalogues(sorted((share / "locale").rglob("iso_*.mo")))),
    ]:
        yield from ((source, of, " ".join(text.split())) for of, text in pairs if of in LINGUA)


def evaluation(root: Path) -> set[str]:
    keys = set()
    for file in glob.glob(f"{root}/sts/*/*.csv"):
        with open(file, encoding="utf-8") as f:
            keys.update(key(sentence) for row in csv.reader(f) for sentence in row[:2])
    for file in glob.glob(f"{root}/tatoeba/*.txt") + glob.glob(f"{root}/corpus/*.txt"):
        keys.update(key(line) for line in Path(file).read_text(encoding="utf-8").split("\n"))
    for file in glob.glob(f"{root}/xquad/*/*.jsonl"):
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            text = json.loads(line)["text"]
            keys.update([key(text), *(key(sentence) for sentence in split(text))])
    return keys


def pool(packages: Path, npm: Path, vendor: Path, left_out: set[str]) -> dict[tuple[str, str], list[str]]:
    """Returns a map of (source, language) -> its texts, without duplicates."""
    seen = {}
    for source, of, text in sources(packages, npm):
        if good(text, of, *((2, 60) if source in SHORT else (14, 300))) and (name := key(text)) not in left_out:
            seen.setdefault(name, (source, of, text))
    found = defaultdict(list)
    for source, of, text in seen.values():
        found[source, of].append(text)
    for of, text in dict.fromkeys(lingua(vendor)):
        if 2 <= len(text) <= 600 and any(map(str.isalpha, text)) and key(text) not in left_out:
            found["lingua", of].append(text)
    return found


def chosen(found: dict[tuple[str, str], list[str]]) -> list[tuple[str, str, str]]:
    """Returns the texts to fit on. Each source contributes its share, the same for each language and twice that for English. Texts are
    chosen by SHA-256, and sentences of medium length, which cost the teacher least, come first."""
    order = {}
    for (source, of), texts in found.items():
        texts = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
        if source not in SHORT:
            middle = [t for t in texts if 20 <= width(t, of) <= 130]
            texts = middle + [t for t in texts if 130 < width(t, of) <= 220]
        order[source, of] = texts
    result, at = [], defaultdict(int)
    for _ in range(SLICES):
        for source, share in SHARES.items():
            weights = {of: 2 if of == "en" and source != "wordnet" else 1 for of in LANGUAGES if order.get((source, of))}
            for of, weight in weights.items():
                start, count = at[source, of], round(share * weight / sum(weights.values()))
                result += [(source, of, text) for text in order[source, of][start:start + count]]
                at[source, of] = start + count
    return result


def sample(found: dict[tuple[str, str], list[str]], count: int) -> list[tuple[str, str, float]]:
    """Returns (language, text, 1) from the sources with running text, `count` for each language, chosen by SHA-256."""
    result = []
    for of in LANGUAGES:
        texts = [t for (source, l), some in found.items() if l == of and source not in ("lingua", "freedict", "iso-codes") for t in some]
        texts.sort(key=lambda text: hashlib.sha256(text.encode()).digest())
        result += [(of, text, 1.0) for text in texts[:count]]
    return result


def words(count: int) -> Iterator[tuple[str, str, float]]:
    """Yields (language, word, weight) from PyPI's wordfreq, with the most frequent word first and weights by Zipf's law."""
    import wordfreq
    listed = wordfreq.available_languages()
    return ((of, word, 1 / (rank + 10)) for of in LANGUAGES if of in listed
            for rank, word in enumerate(wordfreq.top_n_list(of, count)))
