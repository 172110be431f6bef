#!/usr/bin/env python3
"""Writes golden.json: vectors of a few texts, computed with numpy and the tokenizers library from the files in this directory.

    venv/bin/python models/default/golden.py
"""

import json
import struct
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).parent
TEXTS = [
    "A man is playing the guitar.", "Ein Mann spielt Gitarre.", "한 남자가 기타를 치고 있다.", "男は、ギターを弾いている。",
    "Кошка сидит на подоконнике", "القطة تجلس على النافذة", "बिल्ली खिड़की पर बैठी है", "猫坐在窗台上。", "แมวนั่งอยู่ที่หน้าต่าง",
    "The cat saw the cat that the cat had seen, again and again and again.",
    "  two  spaces,\ttab\nline ", "ﬁne ½ Ｆｕｌｌ", "cafe\u0301 naïve Straße", "zero\u200bwidth", "🦀 crab", "don't — “quoted”",
]

if __name__ == "__main__":
    raw = (HERE / "model.safetensors").read_bytes()
    size, = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8:8 + size])

    def tensor(name: str, dtype: str) -> np.ndarray:
        start, end = header[name]["data_offsets"]
        return np.frombuffer(raw, dtype, offset=8 + size + start, count=(end - start) // np.dtype(dtype).itemsize
                             ).reshape(header[name]["shape"])

    packed, scales = tensor("embeddings", "u1"), tensor("scales", "<f4")
    exponent = json.loads((HERE / "config.json").read_text())["refined"].get("token_count_exponent", 1.0)
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    golden = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        rows = np.stack([packed[ids] & 15, packed[ids] >> 4], axis=-1).reshape(len(ids), -1).astype(np.float64) - 8
        # Each occurrence of a token that occurs n times counts n^exponent / n.
        shares = np.array([ids.count(token) ** (exponent - 1) for token in ids])
        vector = (rows * scales[ids, None] * shares[:, None]).sum(0)
        golden.append({"text": text, "ids": ids, "vector": [round(x, 7) for x in (vector / np.linalg.norm(vector)).tolist()]})
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in golden)
    (HERE / "golden.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
