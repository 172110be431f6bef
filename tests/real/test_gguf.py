"""Tests GGUF files and a real static table with the real server.

Gemma 3 270M and SmolLM2 135M are compared with their own layer-0 directories and with the rows that the `gguf` package decodes. Every
tokenizer that is rebuilt from metadata is compared with the tokenizer.json from which the metadata were made.
"""

import json
import random

import gguf
import numpy as np
import pytest

from harness import REAL_DIR, Checkpoint, Server, unit
from test_real import TEXTS

PAIRS = [("gemma-3-270m.gguf", "gemma-3-270m-layer0", True), ("smollm2-135m.gguf", "smollm2-135m-layer0", False)]
# tokenizers/NAME -> (architecture, tokenizer.ggml.model, tokenizer.ggml.pre), as llama.cpp's converter names them
TOKENIZERS = {
    "llama2": ("llama", "llama", "default"),
    "mistral": ("llama", "llama", "default"),
    "gemma": ("gemma", "llama", "default"),
    "gemma2": ("gemma2", "llama", "default"),
    "gemma3": ("gemma3", "llama", "default"),
    "llama3": ("llama", "gpt2", "llama-bpe"),
    "qwen3": ("qwen3", "gpt2", "qwen2"),
}
PARTS = [
    *("<s>", "</s>", "<bos>", "<eos>", "<unk>", "<pad>", "<mask>", "<|begin_of_text|>", "<|endoftext|>", "<|im_start|>"),
    *("<0x0A>", "<unused7>", "[multimodal]", "<start_of_turn>", "</code>", "▁", "▁▁", " ", "  ", "       ", "\n", "\n\n\n"),
    *("\t", "\r\n", "\u00a0", "\u3000", "\0", "\u200b", "\ufeff", "e\u0301", "한", "각", "👩‍👩‍👧", "🇰🇷", "½", "Ⅷ"),
    *("1234567", "\U0010ffff", "a", "The", "hello", "'s", "'LL", "ſ", "İ", "....", "-----", "/*", "=="),
]


def hostile(count):
    """Yields texts in which special tokens, spaces and letters of all scripts follow each other at random."""
    chosen = random.Random(7)

    def letter():
        low, high = chosen.choice([(1, 0x2FF), (0x300, 0xD7FF), (0xE000, 0x1FFFF)])
        return chr(chosen.randint(low, high))

    for i in range(count):
        if i % 3 == 0:
            yield "".join(letter() for _ in range(chosen.randint(1, 40)))
        else:
            yield "".join(chosen.choice(PARTS) for _ in range(chosen.randint(1, 25)))


@pytest.fixture(scope="module", params=PAIRS, ids=[name for name, _, _ in PAIRS])
def pair(request):
    file, directory, gemma = request.param
    checkpoint = Checkpoint(REAL_DIR / directory)
    with Server({"gguf": REAL_DIR / file, "directory": checkpoint.path}) as server:
        yield REAL_DIR / file, checkpoint, gemma, server


def compared(server, texts, expected):
    """Returns the largest difference and the smallest cosine between the vectors of the GGUF file and the expected ones."""
    worst, cosine = 0, 1
    for text in texts:
        vector, other = server.vector(text, model="gguf"), expected(text)
        worst = max(worst, np.abs(vector - other).max())
        cosine = min(cosine, vector @ other / np.linalg.norm(vector) / np.linalg.norm(other))
    return worst, cosine


def test_a_gguf_serves_its_directorys_vectors(pair, note):
    _, _, _, server = pair
    texts = [*TEXTS.values(), *hostile(200), *json_texts()]
    for text in texts:
        usage = [server.embed(text, model=name)["usage"]["prompt_tokens"] for name in ("gguf", "directory")]
        assert usage[0] == usage[1], repr(text)
    worst, cosine = compared(server, texts, lambda text: server.vector(text, model="directory"))
    note(f"against the bf16 directory, {len(texts)} texts: max abs difference {worst:.1e}, smallest cosine {cosine:.7f}")
    assert worst < 1e-3 and cosine > 0.9999


def test_f16_holds_what_the_blocks_say(pair, note):
    """The f16 rows must be closer to the rows that the gguf package decodes in f32 than bf16 rows are."""
    path, checkpoint, gemma, server = pair
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    rows = tensors["token_embd.weight"]
    norm = np.asarray(tensors["output_norm.weight"].data, dtype=np.float32)  # holds 1 + w

    def vector(text, narrow=lambda x: x):
        ids = [i for i in checkpoint.ids(text) if i < checkpoint.rows] or [0]
        x = narrow(gguf.dequantize(rows.data[ids], rows.tensor_type).astype(np.float32))
        x = x * np.float32(np.sqrt(checkpoint.hidden)) if gemma else x
        x = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(checkpoint.config["rms_norm_eps"])) * norm
        return unit(x.mean(0))

    def bf16(x):
        bits = x.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)

    texts = [t for t in TEXTS.values() if t]
    worst, cosine = compared(server, texts, vector)
    other = max(np.abs(vector(t) - vector(t, bf16)).max() for t in texts)
    note(f"against the blocks in f32: max abs difference {worst:.1e}, cosine {cosine:.9f}; bf16 would differ by {other:.1e}")
    assert worst < 1e-4


def json_texts():
    """Returns sequences of pieces of the tokenizers' vocabularies, and so text in all languages of the vocabularies."""
    chosen = random.Random(3)
    vocabulary = json.loads((REAL_DIR / "tokenizers/gemma3/tokenizer.json").read_text())["model"]["vocab"]
    pieces = [piece.replace("▁", " ") for piece in vocabulary]
    return ["".join(chosen.choices(pieces, k=30)) for _ in range(300)]


def runs():
    """Returns runs of 1 to 100 of the strings that vocabularies have runs of, alone and between letters."""
    parts = [" ", "\n", "\t", "a", "=", "-", "_", ".", "*", "#", "ab", "the ", "\n\t", "▁"]
    return [text for part in parts for n in range(1, 101) for text in (part * n, f"x{part * n}y")]


def vocabulary(path, gemma):
    """Returns tokens, types and scores as llama.cpp's converter lists them."""
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    model, added = tokenizer["model"], {a["id"]: a for a in tokenizer["added_tokens"]}
    names = {i: token for token, i in model["vocab"].items()} | {i: a["content"] for i, a in added.items()}
    tokens, types, scores = [], [], []
    for i in range(max(names) + 1):
        token = names.get(i, f"[PAD{i}]")
        is_byte = len(token) == 6 and token.startswith("<0x")
        types.append((3 if added[i]["special"] else 4) if i in added else 5 if i not in names else 6 if is_byte else 1)
        # In SentencePiece the score of a BPE piece is the order in which it was found. Pieces of spaces were added last.
        # Gemma's runs of spaces are user-defined in SentencePiece. The converter marks them as such, with the score -1000.
        spaces = len(token) > 1 and set(token) == {"▁"}
        run = gemma and token and len(set(token)) == 1 and token[0] in "\n\t▁" and (len(token) > 1 or token != "▁")
        if run:
            types[-1] = 4
        scores.append(-1000.0 if run else -1e9 if spaces else -float(i))
        tokens.append(token)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return tokens, types, scores, merges


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_rebuilt_tokenizer_is_the_models_own(name, tmp_path, note):
    """The table has random rows, so two texts have the same vector and count only if the same tokens were pooled."""
    from tokenizers import Tokenizer

    architecture, kind, pre = TOKENIZERS[name]
    source = REAL_DIR / "tokenizers" / name
    tokens, types, scores, merges = vocabulary(source, name.startswith("gemma"))
    path = tmp_path / "model.gguf"
    table = np.random.default_rng(0).standard_normal((len(tokens), 32)).astype(np.float32)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    # Gemma's vocabulary has "<s>", too, as an HTML tag.
    bos = [t for t in ("<bos>", "<s>", "<|begin_of_text|>") if t in tokens]
    if bos:
        writer.add_bos_token_id(tokens.index(bos[0]))
    writer.add_add_bos_token(kind == "llama")
    if kind == "llama":
        writer.add_token_scores(scores)
        writer.add_unk_token_id(tokens.index("<unk>"))
        writer.add_add_space_prefix(not name.startswith("gemma"))
    else:
        writer.add_token_merges(merges)
    writer.add_tensor("token_embd.weight", table)
    writer.add_tensor("output_norm.weight", np.ones(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = [text for text in [*TEXTS.values(), *hostile(1000), *json_texts(), *runs()] if text]
    normed = table / np.sqrt(np.mean(table * table, -1, keepdims=True) + np.float32(1e-6))
    with Server({"gguf": path}) as server:
        for text in texts:
            ids, answer = tokenizer.encode(text).ids, server.embed(text)
            assert answer["usage"]["prompt_tokens"] == len(ids), repr(text)
            if ids:
                difference = np.abs(unit(normed[ids].mean(0, dtype=np.float64)) - answer["data"][0]["embedding"]).max()
                assert difference < 1e-5, f"{text!r}: other tokens, off by {difference}"
    note(f"{len(texts)} texts, the same tokens")


def test_wordllama_is_the_mean_of_its_rows(note):
    """The vectors equal those of WordLlama's `embed(norm=True)`, without special tokens and without truncation."""
    from tokenizers import Tokenizer

    path = REAL_DIR / "wordllama-l2-256"
    raw = (path / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    tensor = json.loads(raw[8:start])["embedding.weight"]
    assert tensor["dtype"] == "F16"
    table = np.frombuffer(raw[start:], dtype=np.float16).reshape(tensor["shape"]).astype(np.float32)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    worst = 0
    with Server({"wordllama": path}) as server:
        for text in [text for text in [*TEXTS.values(), *hostile(100)] if text]:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            worst = max(worst, np.abs(unit(table[ids].mean(0)) - server.vector(text)).max())
    note(f"judge: numpy, max abs error {worst:.1e}")
    assert worst < 1e-5
