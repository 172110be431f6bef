"""Measures a table on development data, by which the settings of the training are chosen.

STS-B dev in 11 languages (Spearman), the same with the first sentence in English and the second in another language, XQuAD's articles 0 to 23
in 12 languages (nDCG@10 of a question's paragraph among all 240), SIB-200's train and dev sentences as bitext of 22 languages with English, and
pairs of Tatoeba that are in no evaluation set and in no training text. All are multiplied by 100; bitext is the mean of both directions.
"""

import csv
import json
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from bags import Bags

LATIN = ["de", "es", "fr", "it", "nl", "pl", "pt", "tr"]
OTHER = ["ar", "hi", "ja", "ko", "ru", "zh"]


def bitext(a: np.ndarray, b: np.ndarray) -> float:
    similar, own = a @ b.T, np.arange(len(a))
    return 50 * float((similar.argmax(1) == own).mean() + (similar.argmax(0) == own).mean())


class Development:
    def __init__(self, root: Path, bags: Bags, tatoeba: dict[str, list[tuple[str, str]]], part: str = "dev"):
        """`tatoeba` maps a language to its pairs with English."""
        self.bags, self.sts, self.retrieval, self.sib = bags, {}, {}, {}
        for file in sorted(root.glob(f"sts/{part}/*.csv")):
            with open(file, encoding="utf-8") as f:
                rows = list(csv.reader(f))
            self.sts[file.stem] = (bags.add([row[0] for row in rows]), bags.add([row[1] for row in rows]), [float(row[2]) for row in rows])
        for directory in sorted(root.glob(f"xquad-{part}/*")):
            documents, questions = ([json.loads(line) for line in (directory / f"{name}.jsonl").read_text().splitlines()]
                                    for name in ("corpus", "queries"))
            at = {document["_id"]: i for i, document in enumerate(documents)}
            relevant = dict(line.split("\t")[:2] for line in (directory / "qrels/test.tsv").read_text().splitlines()[1:])
            self.retrieval[directory.name] = (bags.add([q["text"] for q in questions]), bags.add([d["text"] for d in documents]),
                                              np.array([at[relevant[q["_id"]]] for q in questions]))
        lines = {file.stem: file.read_text(encoding="utf-8").splitlines() for file in sorted(root.glob(f"sib/{part}/*.txt"))}
        self.sib = {of: bags.add(some) for of, some in lines.items()}
        self.tatoeba = {of: (bags.add([a for a, _ in some]), bags.add([b for _, b in some])) for of, some in tatoeba.items()}

    def measure(self, table: np.ndarray) -> dict:
        def vectors(texts):
            return self.bags.vectors(table, texts)

        sts = {of: 100 * float(spearmanr((vectors(a) * vectors(b)).sum(1), scores).statistic) for of, (a, b, scores) in self.sts.items()}
        # The first sentence of a pair in English, and the second in another language.
        across = {of: 100 * float(spearmanr((vectors(self.sts["en"][0]) * vectors(b)).sum(1), scores).statistic)
                  for of, (_, b, scores) in self.sts.items() if of != "en"}
        retrieval = {}
        for of, (questions, documents, relevant) in self.retrieval.items():
            similar = vectors(questions) @ vectors(documents).T
            ranks = (similar > similar[np.arange(len(relevant)), relevant][:, None]).sum(1)
            retrieval[of] = 100 * float(np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean())
        english = vectors(self.sib["en"])
        sib = {of: bitext(vectors(texts), english) for of, texts in self.sib.items() if of != "en"}
        tatoeba = {of: bitext(vectors(a), vectors(b)) for of, (a, b) in self.tatoeba.items()}

        def mean(values: dict, of=None) -> float:
            chosen = [value for name, value in values.items() if of is None or name in of]
            return round(float(np.mean(chosen)), 2) if chosen else float("nan")

        return {"sts": mean(sts), "sts en": mean(sts, ["en"]), "sts across": mean(across), "xquad": mean(retrieval), "xquad en": mean(retrieval, ["en"]), "sib": mean(sib),
                "tatoeba": mean(tatoeba, LATIN), "tatoeba, other scripts": mean(tatoeba, OTHER),
                "languages": {"sts": sts, "sts across": across, "xquad": retrieval, "sib": sib, "tatoeba": tatoeba}}
