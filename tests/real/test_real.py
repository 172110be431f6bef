"""Tests the release binary on real tables and on tables of real size, against a reference that is easy to read.

The reference is the formula in numpy. If transformers is installed, its AutoModel is a second reference.
EMBEDDING_SERVER_BIN names the program to test (default: target/release/embedding-server), and REAL_DIR the output of `fetch` (default:
target/real).
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harness import REAL_DIR, Checkpoint, Server, read_through, unit

TOLERANCE = 1e-5
TEXTS = {
    "english": "hello",
    "korean": "안녕하세요, 오늘 날씨가 정말 좋네요.",
    "japanese": "吾輩は猫である。名前はまだ無い。",
    "chinese": "床前明月光,疑是地上霜。",
    "arabic": "اللغة العربية جميلة",
    "hindi": "नमस्ते दुनिया",
    "russian": "Съешь же ещё этих мягких французских булок",
    "thai": "สวัสดีชาวโลก",
    "emoji": "👩‍👩‍👧‍👦 🇰🇷 👍🏽 🙂",
    "decomposed": "cafe\u0301 o\u0308 한",
    "code": "fn main() {\n\tlet x = 42;  // answer\n}\n",
    "spaces": "  a   b\u00a0\u3000c\t\r\n ",
    "numbers": "3.14159 1234567890 ½ ² Ⅷ",
    "special": "<s> </s> <bos> <|begin_of_text|> <|endoftext|>",
    "letter": "a",
    "long": "The quick brown fox jumps over the lazy dog. 빠른 갈색 여우가 게으른 개를 뛰어넘는다. " * 60,
}
FULL_SIZE = ["llama2-7b-shape", "llama3-8b-shape", "gemma-7b-shape", "mistral-7b-shape", "qwen3-0.6b-shape"]
REAL = ["gemma-3-270m-layer0", "smollm2-135m-layer0"]


class Served:
    def __init__(self, name):
        self.name = name
        self.checkpoint = Checkpoint(REAL_DIR / name)
        self.server = Server({name: self.checkpoint.path})


@pytest.fixture(scope="module", params=REAL + [pytest.param(n, marks=pytest.mark.full_size) for n in FULL_SIZE])
def served(request):
    served = Served(request.param)
    with served.server:
        yield served


# Vectors


def test_vectors_follow_the_formula(served, note):
    checkpoint, worst = served.checkpoint, 0
    for name, text in TEXTS.items():
        vector = served.server.vector(text)
        assert vector.shape == (checkpoint.hidden,), name
        assert abs(np.linalg.norm(vector) - 1) < 1e-5, name
        error = np.abs(vector - checkpoint.vector(text)).max()
        assert error <= TOLERANCE, f"{name}: off by {error}"
        worst = max(worst, error)
    note(f"judge: formula in f32 numpy, {len(TEXTS)} texts, max abs error {worst:.1e}")


def test_a_batch_is_its_texts(served):
    texts = list(TEXTS.values())
    answer = served.server.embed(texts, model=served.name)
    assert answer["object"] == "list" and answer["model"] == served.name
    assert [item["index"] for item in answer["data"]] == list(range(len(texts)))
    for text, item in zip(texts, answer["data"]):
        assert np.abs(served.checkpoint.vector(text) - item["embedding"]).max() <= TOLERANCE, text


def test_usage_counts_the_pooled_ids(served):
    counts = {text: len(served.checkpoint.ids(text)) for text in TEXTS.values()}
    for text, count in counts.items():
        assert served.server.embed(text)["usage"] == {"prompt_tokens": count, "total_tokens": count}, text
    total = sum(counts.values())
    assert served.server.embed(list(counts))["usage"] == {"prompt_tokens": total, "total_tokens": total}


def test_fewer_dimensions_are_a_prefix_of_length_1(served):
    vector = served.server.vector(TEXTS["korean"], dimensions=100)
    assert np.abs(vector - unit(served.checkpoint.vector(TEXTS["korean"])[:100])).max() <= TOLERANCE


def test_base64_and_floats_are_the_same_numbers(served):
    import base64

    floats = np.array(served.server.embed(TEXTS["korean"], encoding_format="float")["data"][0]["embedding"], dtype=np.float32)
    raw = served.server.embed(TEXTS["korean"], encoding_format="base64")["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(raw), dtype="<f4"), floats)


def test_no_text_is_a_finite_vector(served):
    for text in ("", " ", "\n", "\u200b"):
        vector = served.server.vector(text)
        assert np.isfinite(vector).all() and abs(np.linalg.norm(vector) - 1) < 1e-5, repr(text)


def test_transformers_agree(served, note):
    torch, transformers = judge("torch", "transformers")
    model = transformers.AutoModel.from_pretrained(served.checkpoint.path, dtype=torch.float32).eval()
    assert model.config.num_hidden_layers == 0
    worst = compare_with_automodel(torch, model, served.checkpoint.ids, served.server, TEXTS.values())
    note(f"judge: transformers {transformers.__version__} AutoModel f32, {len(TEXTS)} texts, max abs error {worst:.1e}")


def test_gemma3_has_an_id_without_a_row():
    """The tokenizer has one ID more than the table has rows. A text with this token must not crash the server."""
    checkpoint = Checkpoint(REAL_DIR / "gemma-3-270m-layer0")
    text = "look: <image_soft_token> there"
    beyond = [i for i in checkpoint.ids(text) if i >= checkpoint.rows]
    assert beyond, "the tokenizer changed"
    kept = [i for i in checkpoint.ids(text) if i < checkpoint.rows]
    with Server({"gemma": checkpoint.path}) as server:
        answer = server.embed(text)
        assert answer["usage"]["prompt_tokens"] == len(kept)
        expected = unit(checkpoint.hidden_states(kept).mean(axis=0))
        assert np.abs(expected - answer["data"][0]["embedding"]).max() <= TOLERANCE
        assert abs(np.linalg.norm(server.vector("<image_soft_token>")) - 1) < 1e-5


# Acceptance: a 1 GB table


@pytest.mark.full_size
def test_llama3_is_ready_fast_and_stays_small(note):
    checkpoint = Checkpoint(REAL_DIR / "llama3-8b-shape")
    table_mb = checkpoint.weights.stat().st_size / 1e6
    read_through(checkpoint.weights)
    seconds, resident = [], []
    for _ in range(3):
        with Server({"llama3": checkpoint.path}) as server:
            for text in TEXTS.values():
                server.embed(text)
            seconds.append(server.ready_after)
            resident.append(server.memory())
    most = max(resident, key=lambda m: m["VmRSS"])
    note(
        f"table {table_mb:.0f} MB; ready after {' '.join(f'{s:.2f}' for s in sorted(seconds))} s; "
        f"VmRSS {most['VmRSS']:.0f} MB (anonymous {most.get('RssAnon', 0):.0f}, files {most.get('RssFile', 0):.0f})"
    )
    assert min(seconds) < 2
    assert most["VmRSS"] < 500


# The output of mergekit, unchanged


def test_mergekit_output_is_served_unchanged(tmp_path, note):
    torch, transformers, _ = judge("torch", "transformers", "mergekit")
    mergekit = Path(sys.executable).with_name("mergekit-yaml")
    if not mergekit.exists():
        skip(f"{mergekit} is missing")
    source, out = tmp_path / "source", tmp_path / "layer0"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    torch.nn.init.uniform_(model.model.norm.weight, 0.5, 1.5)
    model.save_pretrained(source)
    for file in (REAL_DIR / "tokenizers/mistral").iterdir():
        shutil.copy(file, source)
    (tmp_path / "layer0.yaml").write_text(
        f"slices:\n  - sources:\n      - model: {source}\n        layer_range: [0, 0]\nmerge_method: passthrough\n"
    )
    done = subprocess.run([mergekit, tmp_path / "layer0.yaml", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = json.loads((out / "config.json").read_text())
    assert config["num_hidden_layers"] == 0 and config["architectures"] == ["LlamaForCausalLM"]

    checkpoint = Checkpoint(out)
    judged = transformers.AutoModel.from_pretrained(out, dtype=torch.float32).eval()
    with Server({"merged": out}) as server:
        worst = compare_with_automodel(torch, judged, checkpoint.ids, server, TEXTS.values())
    note(f"judge: AutoModel f32 on mergekit's output, max abs error {worst:.1e}")


def compare_with_automodel(torch, model, ids, server, texts):
    worst = 0
    for text in texts:
        input_ids = torch.tensor([ids(text)])
        with torch.no_grad():
            states = model(input_ids=input_ids).last_hidden_state[0]
        expected = torch.nn.functional.normalize(states.mean(dim=0), dim=0).numpy()
        error = np.abs(server.vector(text) - expected).max()
        assert error <= TOLERANCE, f"{text!r}: off by {error}"
        worst = max(worst, error)
    return worst


def judge(*modules):
    """Imports and returns the modules, or skips the test and names the missing one (`tests/real/run --judge` installs it)."""
    import importlib

    try:
        return [importlib.import_module(m) for m in modules]
    except ImportError as e:
        skip(f"{e}: run `tests/real/run --judge`")


def skip(reason):
    print(f"SKIPPED: {reason}", file=sys.stderr)
    pytest.skip(reason)
