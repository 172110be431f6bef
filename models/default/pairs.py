"""Gathers translations, dictionary entries, and questions with their passages, each as a pair of texts.

    clones/       bare clones of the repositories of clones.py
    packages/     the trees of the Debian packages of corpus/debian.txt and corpus/debian-pairs.txt
    npm/          the packages of corpus/npm.txt

A pair is (source, language, text, language, text). Pairs with a text of an evaluation set (left_out.py) are dropped. Of each source and pair of
languages at most `CAPS` are kept, chosen by SHA-256.
"""

import gettext
import gzip
import hashlib
import json
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from clones import Clone
from left_out import LeftOut
from texts import FREEDICT, LANGUAGES, clean, language, split, width

Pair = tuple[str, str, str, str]

TATOEBA = {"ara": "ar", "ces": "cs", "deu": "de", "ell": "el", "eng": "en", "fra": "fr", "hin": "hi", "hun": "hu", "ind": "id", "ita": "it",
           "jpn": "ja", "kor": "ko", "nld": "nl", "pol": "pl", "por": "pt", "ron": "ro", "rus": "ru", "spa": "es", "swe": "sv", "tha": "th",
           "tur": "tr", "vie": "vi", "cmn_Hans": "zh", "cmn_Hant": "zh", "zho": "zh"}
NTREX = {"arb": "ar", "ces": "cs", "deu": "de", "ell": "el", "fra": "fr", "hin": "hi", "hun": "hu", "ind": "id", "ita": "it", "jpn": "ja",
         "kor": "ko", "nld": "nl", "pol": "pl", "por": "pt", "ron": "ro", "rus": "ru", "spa": "es", "swe": "sv", "tha": "th", "tur": "tr",
         "vie": "vi", "zho-CN": "zh"}
MOZILLA = {"ar": "ar", "cs": "cs", "de": "de", "el": "el", "es-ES": "es", "fr": "fr", "hi-IN": "hi", "hu": "hu", "id": "id", "it": "it",
           "ja": "ja", "ko": "ko", "nl": "nl", "pl": "pl", "pt-PT": "pt", "ro": "ro", "ru": "ru", "sv-SE": "sv", "th": "th", "tr": "tr",
           "vi": "vi", "zh-CN": "zh"}
WORDNETS = {"arb": "ar", "ces": "cs", "deu": "de", "ell": "el", "fra": "fr", "hin": "hi", "hun": "hu", "ind": "id", "ita": "it", "jpn": "ja",
            "kor": "ko", "nld": "nl", "pol": "pl", "por": "pt", "ron": "ro", "rus": "ru", "spa": "es", "swe": "sv", "tha": "th", "tur": "tr",
            "vie": "vi", "cmn": "zh", "zsm": None}
# The most pairs of a source and a pair of languages with English. Between other languages it is a sixth of that.
CAPS = {"cataclysm": 5000, "wesnoth": 5000, "games": 5000, "libreoffice": 5000, "wordnets": 15_000, "freedict": 8000, "cldr": 8000,
        "paraphrases": 30_000}
ALL = 1_000_000
WORDS = {"wordnets", "freedict", "cldr"}


def tatoeba(clones: Path) -> Iterator[Pair]:
    """Yields the pairs of three releases of Tatoeba's test sets for translation, which have other sentences than the evaluation set."""
    clone = Clone(clones, "Helsinki-NLP/OPUS-MT-testsets")
    sides: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(dict)
    pattern = r"datasets/helsinki_nlp/tatoeba/testsets/(\w+)-(\w+)/tatoeba-test-v(2020-07-28|2021-03-30|2021-08-07)\.(\w+)"
    for match, text in clone.files(pattern):
        if match[1] in TATOEBA and match[2] in TATOEBA and match[4] in match.group(1, 2):
            sides[match[1], match[2], match[3]][match[4]] = text.split("\n")
    for (one, other, _), both in sides.items():
        if len(both) == 2 and TATOEBA[one] != TATOEBA[other] and len(both[one]) == len(both[other]):
            yield from ((TATOEBA[one], a.strip(), TATOEBA[other], b.strip()) for a, b in zip(both[one], both[other]))


def ntrex(clones: Path) -> dict[str, list[str]]:
    """Returns the news sentences of NTREX-128 of each language, in the same order."""
    clone = Clone(clones, "MicrosoftTranslator/NTREX")
    found = {"en": clone.text("NTREX-128/newstest2019-src.eng.txt").strip().split("\n")}
    for code, of in NTREX.items():
        lines = clone.text(f"NTREX-128/newstest2019-ref.{code}.txt").strip().split("\n")
        if len(lines) == len(found["en"]):
            found[of] = lines
    return found


def ntrex_pairs(clones: Path) -> Iterator[Pair]:
    found = ntrex(clones)
    for of, lines in found.items():
        if of != "en":
            yield from ((of, b, "en", a) for a, b in zip(found["en"], lines))


def inverse_cloze(clones: Path) -> Iterator[Pair]:
    """Yields a sentence of NTREX and the sentences around it without it, of the same or of another language."""
    found = ntrex(clones)
    documents = Clone(clones, "MicrosoftTranslator/NTREX").text("DOCUMENT_IDS.tsv").strip().split("\n")
    languages = sorted(found)
    for at, document in enumerate(documents):
        around = [i for i in range(max(0, at - 3), min(len(documents), at + 4)) if i != at and documents[i] == document]
        if len(around) >= 3:
            for k, of in enumerate(languages):
                for to in (of, languages[(k + 1 + at) % len(languages)]):
                    yield of, found[of][at], to, (" " if to not in ("zh", "ja", "th") else "").join(found[to][i] for i in around)


def tico(clones: Path) -> Iterator[Pair]:
    clone = Clone(clones, "Helsinki-NLP/OPUS-MT-testsets")
    names = {"ar": "ar", "fr": "fr", "hi": "hi", "id": "id", "ru": "ru", "zh": "zh", "es_LA": "es", "pt_BR": "pt"}
    for name, of in names.items():
        files = [f"datasets/tico19/testsets/en-{name}/tico19-test.{side}" for side in ("en", name)]
        if all(file in clone.blobs for file in files):
            a, b = (clone.text(file).strip().split("\n") for file in files)
            if len(a) == len(b):
                yield from ((of, y, "en", x) for x, y in zip(a, b))


def catalogues(files: list[Path]) -> Iterator[Pair]:
    """Yields the messages of compiled gettext catalogs with their originals, without the context that precedes a `^`."""
    for file in files:
        of = language(file.parts[file.parts.index("LC_MESSAGES") - 1])
        if not of or of == "en":
            continue
        try:
            with file.open("rb") as f:
                messages = gettext.GNUTranslations(f)._catalog
        except (OSError, ValueError, IndexError):
            continue
        for original, translation in messages.items():
            original = original[0] if isinstance(original, tuple) else original
            if original and translation and translation != original:
                a, b = (clean(re.sub(r"^[^^\n]{1,60}\^", "", text)) for text in (original.split("\4")[-1], translation))
                yield of, b, "en", a


def games(packages: Path) -> Iterator[Pair]:
    share = packages / "usr/share"
    named = ("freeciv", "tuxpaint", "gcompris", "colobot", "minetest", "tuxmath", "openttd", "supertux")
    files = [file for file in sorted(packages.rglob("*.mo")) if any(name in str(file) for name in named)]
    yield from catalogues(files + sorted((share / "games/widelands").rglob("*.mo")))


def libreoffice(packages: Path) -> Iterator[Pair]:
    """Yields the paragraphs of LibreOffice's help, which have the same id in all languages."""
    root = packages / "usr/share/libreoffice/help"

    def paragraphs(directory: Path) -> dict[tuple[str, str], str]:
        found = {}
        for file in sorted(directory.rglob("*.html")):
            text = file.read_text(errors="ignore")
            for name, inner in re.findall(r'(?s)<(?:p|h\d) id="([^"]+)"[^>]*>(.*?)</(?:p|h\d)>', text):
                found[str(file.relative_to(directory)), name] = clean(re.sub(r"<[^>]*>", "", inner).replace("\n", " "))
        return found

    english = paragraphs(root / "en-US")
    for directory in sorted(root.iterdir()):
        of = language(directory.name)
        if of and of != "en":
            for name, text in paragraphs(directory).items():
                if (original := english.get(name)) and original != text:
                    yield of, text, "en", original


def fluent(clones: Path) -> Iterator[Pair]:
    """Yields the messages of mozilla.org."""
    clone = Clone(clones, "mozilla-l10n/www-l10n")
    message = re.compile(r"^([a-z][\w-]*) = (.+)$", re.MULTILINE)
    found: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
    for match, text in clone.files(r"(en|" + "|".join(MOZILLA) + r")/(.*)\.ftl"):
        for name, value in message.findall(text):
            value = re.sub(r"\{ -brand-name-([\w-]+) \}", lambda m: m[1].replace("-", " ").title(), value)
            if "{" not in value:
                found[match[1]][match[2], name] = clean(value)
    for name, of in MOZILLA.items():
        for at, text in found[name].items():
            if (original := found["en"].get(at)) and original != text:
                yield of, text, "en", original


def wordnet(packages: Path) -> dict[str, list[str]]:
    """Returns the English lemmas of each synset."""
    found = {}
    for kind, file in [("n", "noun"), ("v", "verb"), ("a", "adj"), ("r", "adv")]:
        for line in (packages / f"usr/share/wordnet/data.{file}").read_text().split("\n"):
            if line and line[0] != " ":
                fields = line.split(" ")
                count = int(fields[3], 16)
                found[f"{fields[0]}-{kind}"] = [re.sub(r"\(\w+\)$", "", fields[4 + 2 * i]).replace("_", " ") for i in range(count)]
    return found


def wordnets(clones: Path, packages: Path) -> Iterator[Pair]:
    """Yields lemmas of the Open Multilingual Wordnet with English lemmas of the same synset."""
    english = wordnet(packages)
    clone = Clone(clones, "omwn/omw-data")
    for match, text in clone.files(r"wns/(?:[^/]+/)?(?:wn-data|wn-wikt)-([a-z]{3})\.tab"):
        if of := WORDNETS.get(match[1]):
            for line in text.split("\n"):
                fields = line.split("\t")
                if len(fields) >= 3 and fields[1].split(":")[-1] == "lemma" and (lemmas := english.get(fields[0].replace("-s", "-a"))):
                    yield of, fields[2].replace("_", " ").replace("+", " ").strip(), "en", lemmas[0]


def freedict(packages: Path) -> Iterator[Pair]:
    codes = FREEDICT | {"ron": "ro", "rom": None, "ind": "id"}
    for file in sorted(packages.rglob("freedict-*.dict.dz")):
        _, of, to = file.name.split(".")[0].split("-")
        if not (codes.get(of) in LANGUAGES and codes.get(to) in LANGUAGES):
            continue
        with gzip.open(file, "rt", errors="ignore") as f:
            # The first lines describe the dictionary itself.
            lines = f.read().split("\n")[80:]
        word = None
        for line in lines:
            if head := re.match(r"^([^\s/][^/<>\[\]{}()]{1,60}?) /[^/]*/", line):
                word = head[1].split(",")[0].strip()
            elif word and "/" not in line and ":" not in line:
                meaning = " ".join(re.sub(r"\([^)]*\)|\[[^\]]*\]|\{[^}]*\}", " ", re.sub(r"^\s*\d+\.\s*", "", line)).split())
                if meaning and '"' not in meaning:
                    yield codes[of], word, codes[to], re.split(r"[,;，、]", meaning)[0].strip()
                word = None


def cldr(npm: Path) -> Iterator[Pair]:
    names: dict[str, dict[str, str]] = defaultdict(dict)
    for package in sorted(npm.glob("cldr-*.tgz")):
        with tarfile.open(package) as tar:
            for member in tar:
                emoji = re.search(r"annotations(?:Derived)?/([a-z]+)/annotations.json$", member.name)
                place = re.search(r"main/([a-z]+)/(territories|languages).json$", member.name)
                of = (emoji or place or [None, None])[1]
                if of in LANGUAGES:
                    content = json.load(tar.extractfile(member))
                    if emoji:
                        body = content["annotationsDerived" if "annotationsDerived" in content else "annotations"]["annotations"]
                        for symbol, about in body.items():
                            if about.get("tts") and not any(0x1f3fb <= ord(c) <= 0x1f3ff for c in symbol):
                                names[symbol][of] = about["tts"][0]
                            if about.get("default") and "annotations" in content:
                                names[f"{symbol} keywords"][of] = ", ".join(about["default"][:6])
                    else:
                        for code, name in content["main"][of]["localeDisplayNames"][place[2]].items():
                            names[f"{place[2]} {code}"][of] = name
    for found in names.values():
        if "en" in found:
            yield from ((of, name, "en", found["en"]) for of, name in found.items() if of != "en")


def questions(clones: Path) -> Iterator[Pair]:
    """Yields questions with the passages that answer them, in the same language."""
    def squad(data: list) -> Iterator[tuple[str, str]]:
        for article in data:
            for paragraph in article["paragraphs"]:
                yield from ((question["question"], paragraph["context"]) for question in paragraph["qas"])

    sets = [("ja", "SkelterLabsInc/JaQuAD", r"data/(?:train|dev)/jaquad.*\.json"), ("ar", "husseinmozannar/SOQAL", r"data/arcd\.json"),
            ("pl", "ipipan/poquad", r"data\.json"), ("zh", "ymcui/cmrc2018", r"squad-style-data/cmrc2018_(?:dev|trial)\.json"),
            ("ja", "yahoojapan/JGLUE", r"datasets/jsquad-v1\.3/valid.*\.json")]
    for of, name, pattern in sets:
        for _, text in Clone(clones, name).files(pattern):
            for question, context in squad(json.loads(text)["data"]):
                if isinstance(question, str):
                    # JGLUE puts the article's title before its passage.
                    yield of, question.strip(), of, context.split("[SEP]")[-1].strip()
    for _, text in Clone(clones, "iapp-technology/iapp-wiki-qa-dataset").files(r"squad_format/data/(?:train|test)\.jsonl"):
        for line in text.split("\n"):
            if line:
                about = json.loads(line)
                yield "th", about["question"].strip(), "th", about["context"].strip()


def captions(clones: Path) -> Iterator[Pair]:
    """Yields two captions of one photograph: of MS COCO in English, and those of JSTS in Japanese that people found to say the same."""
    images = defaultdict(list)
    for _, text in Clone(clones, "ruizewang/evaluate").files(r"annotations/captions_val2017\.json"):
        for about in json.loads(text)["annotations"]:
            images[about["image_id"]].append(about["caption"].strip())
    for some in images.values():
        yield from (("en", a, "en", b) for a, b in zip(some, some[1:] + some[:1]))
    for _, text in Clone(clones, "yahoojapan/JGLUE").files(r"datasets/jsts-v1\.3/(?:train|valid)-v1\.3\.json"):
        for about in map(json.loads, text.strip().split("\n")):
            if about["label"] >= 4:
                yield "ja", about["sentence1"].strip(), "ja", about["sentence2"].strip()


def paraphrases(pairs: list[tuple]) -> Iterator[Pair]:
    """Yields two texts of one language that have the same translation in Tatoeba."""
    translations: dict[tuple[str, str, str], dict[str, None]] = defaultdict(dict)
    for source, one, a, other, b in pairs:
        if source == "tatoeba":
            translations[other, b, one][a] = None
            translations[one, a, other][b] = None
    for (_, _, of), some in translations.items():
        few = list(some)[:6]
        yield from ((of, a, of, b) for a, b in zip(few, few[1:]))


def good(text: str, of: str, source: str) -> bool:
    low, high = (2, 60) if source in WORDS else (3, 1500) if source in ("questions", "inverse-cloze") else (6, 400)
    letters = sum(c.isalpha() or c.isspace() or c in "ािीुूेैोौंँ्ัิีึืุู็่้๊๋์ำ" for c in text)
    return low <= width(text, of) <= high and letters >= .6 * len(text)


def gather(clones: Path, packages: Path, npm: Path, left_out: LeftOut, report=print) -> tuple[list[tuple], dict]:
    """Returns the pairs, and for each source the numbers of pairs found, dropped, and kept by language pair, with a digest."""
    sources = [("tatoeba", tatoeba(clones)), ("ntrex", ntrex_pairs(clones)), ("inverse-cloze", inverse_cloze(clones)), ("tico", tico(clones)),
               ("cataclysm", catalogues(sorted((packages / "usr/share").rglob("cataclysm-dda.mo")))),
               ("wesnoth", catalogues(sorted((packages / "usr/share/games/wesnoth").rglob("*.mo")))), ("games", games(packages)),
               ("libreoffice", libreoffice(packages)), ("mozilla", fluent(clones)), ("wordnets", wordnets(clones, packages)),
               ("freedict", freedict(packages)), ("cldr", cldr(npm)), ("questions", questions(clones)), ("captions", captions(clones))]
    result, about = [], {}
    # Paraphrases come last, since they are made of the pairs that were kept.
    sources.append(("paraphrases", paraphrases(result)))
    for source, found in sources:
        groups: dict[tuple[str, str], dict[bytes, tuple]] = defaultdict(dict)
        count = 0
        for one, a, other, b in found:
            count += 1
            a, b = " ".join(a.split()), " ".join(b.split())
            if one in LANGUAGES and other in LANGUAGES and a != b and good(a, one, source) and good(b, other, source):
                if (one, other) > (other, one) and source not in ("questions", "inverse-cloze"):
                    one, a, other, b = other, b, one, a
                groups[one, other][hashlib.sha256(f"{a}\t{b}".encode()).digest()] = (source, one, a, other, b)
        kept, digest, dropped = Counter(), hashlib.sha256(), 0
        for (one, other), some in sorted(groups.items()):
            cap = CAPS.get(source, ALL) // (1 if "en" in (one, other) or one == other else 6)
            for _, pair in sorted(some.items()):
                if kept[one, other] == cap:
                    break
                if left_out.keeps(source, [pair[2], pair[4]]):
                    result.append(pair)
                    digest.update(("\t".join(pair) + "\n").encode())
                    kept[one, other] += 1
                else:
                    dropped += 1
        about[source] = {"found": count, "distinct": sum(map(len, groups.values())), "left_out": dropped, "kept": sum(kept.values()),
                         "languages": {f"{a}-{b}": n for (a, b), n in sorted(kept.items())}, "sha256": digest.hexdigest()}
        report(f"{source}: {count} found, {dropped} left out, {sum(kept.values())} kept", flush=True)
    return result, about
