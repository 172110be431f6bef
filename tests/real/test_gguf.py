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


def units(tokens):
    """Returns the strings that the vocabulary has runs of: the shortest string that a token repeats, for each such token."""
    found = {" ", "\n", "\t", "\r\n", "\u00a0", "a", "ab", "the ", "\n\t", " \n", "\t ", "▁", "▁ "}
    for token in tokens:
        for length in range(1, len(token) // 2 + 1):
            if len(token) % length == 0 and token == token[:length] * (len(token) // length):
                found.add(token[:length])
                break
    return sorted(found)


def runs(tokenizer):
    """Yields runs of 1 to 100 of each string that the vocabulary has runs of: alone, between letters, and beside other runs."""
    chosen = random.Random(5)
    vocabulary = tokenizer.get_vocab()
    spellings = {}
    for token, i in vocabulary.items():
        # A token that is a part of a character has no text of its own.
        text = tokenizer.decode([i], skip_special_tokens=False)
        if "\ufffd" not in text:
            spellings[token] = text
    parts = units([*spellings.values(), *(token.replace("▁", " ") for token in vocabulary), *vocabulary])
    for part in parts:
        for count in range(1, 101):
            yield part * count
            yield f"x{part * count}y"
    for _ in range(5000):
        yield "".join(chosen.choice(parts) * chosen.randint(1, 40) for _ in range(chosen.randint(2, 4)))


def sentence_piece(path, gemma):
    """Returns tokens, types and scores as llama.cpp's converter lists them for a SentencePiece model (`_create_vocab_sentencepiece`)."""
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    names = {i: token for token, i in vocab.items()}
    config = path / "tokenizer_config.json"
    decoder = json.loads(config.read_text()).get("added_tokens_decoder", {}) if config.exists() else {}
    added = {int(i): (token["content"], token["special"]) for i, token in decoder.items()}
    added = added or {a["id"]: (a["content"], a["special"]) for a in tokenizer["added_tokens"]}
    # transformers spells the byte 9 as "\t" if SentencePiece has no other tab.
    bytes_first = next(i for i, token in names.items() if token == "<0x00>")
    names[bytes_first + 9] = "<0x09>"
    size = len(vocab)
    tokens, types, scores = [], [], []
    for i in range(size):
        token = names.get(i, f"[PAD{i}]")
        run = len(token) > 1 and len(set(token)) == 1
        # In SentencePiece, user-defined pieces have the score 0. The score of a learned piece is the order in which it was
        # found, negated. Llama 2's and Mistral's pieces of spaces were added last.
        defined = gemma and (i < bytes_first or run and token[0] in "\n\t▁" or token == "\t")
        kind = 5 if i not in names else 6 if bytes_first <= i < bytes_first + 256 else 1
        score = 0.0 if defined or kind == 6 else -1e9 if run and token[0] == "▁" else -float(i)
        if i in added:
            token, special = added[i]
            special = special or token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or token.startswith("<unused")
            kind, score = (3 if special else 4), -1000.0
            token = token if special else token.replace("▁", " ")
        tokens.append(token)
        types.append(kind)
        scores.append(score)
    if not gemma:
        types[tokens.index("<unk>")] = 2
    return tokens, types, scores


def byte_level(path):
    """Returns tokens, types and merges as llama.cpp's converter lists them for a byte-level vocabulary (`get_vocab_base`)."""
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    model, added = tokenizer["model"], {a["id"]: a for a in tokenizer["added_tokens"]}
    names = {i: token for token, i in model["vocab"].items()} | {i: a["content"] for i, a in added.items()}
    tokens = [names.get(i, f"[PAD{i}]") for i in range(max(names) + 1)]

    def kind(i):
        if i not in names:
            return 5
        if i not in added:
            return 1
        return 3 if added[i]["special"] or tokens[i].startswith("<|") and tokens[i].endswith("|>") else 4

    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return tokens, [kind(i) for i in range(len(tokens))], merges


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_rebuilt_tokenizer_is_the_models_own(name, tmp_path, note):
    from tokenizers import Tokenizer

    architecture, kind, pre = TOKENIZERS[name]
    source = REAL_DIR / "tokenizers" / name
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    if kind == "llama":
        tokens, types, scores = sentence_piece(source, name.startswith("gemma"))
        writer.add_token_scores(scores)
        writer.add_unk_token_id(tokens.index("<unk>"))
        writer.add_add_space_prefix(not name.startswith("gemma"))
    else:
        tokens, types, merges = byte_level(source)
        writer.add_token_merges(merges)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    # Gemma's vocabulary has "<s>", too, as an HTML tag.
    bos = [t for t in ("<bos>", "<s>", "<|begin_of_text|>") if t in tokens]
    if bos:
        writer.add_bos_token_id(tokens.index(bos[0]))
    writer.add_add_bos_token(kind == "llama")
    writer.add_tensor("token_embd.weight", np.ones((len(tokens), 4), dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = [text for text in [*TEXTS.values(), *json_texts(), *runs(tokenizer)] if text]
    texts.extend(text for text in hostile(max(1000, 100_000 - len(texts))) if text)
    with Server({"gguf": path}) as server:
        for start in range(0, len(texts), 1000):
            batch = texts[start : start + 1000]
            status, body = server.request("POST", "/v1/tokenize", {"input": batch})
            assert status == 200, body
            for text, expected, found in zip(batch, tokenizer.encode_batch(batch), body["data"], strict=True):
                # A token past the table (Gemma 3's <image_soft_token>) has no row.
                assert found["ids"] == [i for i in expected.ids if i < len(tokens)], repr(text)
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
