"""Compares `extract` with transformers and mergekit, tests it over TLS and on a table of 1 GB, and its cache with huggingface_hub.

The models with layers are made here, in the way in which tests/fixtures/make.py makes models without layers.
"""

import hashlib
import http.server
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from harness import BINARY, REAL_DIR, Server
from test_real import judge, skip

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures/checkpoints"
TEXTS = ["hello world", "안녕하세요, 세계!", "  two spaces\n\tand a tab", "The quick brown fox. " * 20]
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
# Model type -> (the fixture whose tokenizer is used, further settings)
FAMILIES = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {}),
    "gemma3_text": ("gemma3-text", {}),
    "phi3": ("phi3", {"pad_token_id": 0}),
    "cohere": ("cohere", {}),
    "cohere2": ("cohere2", {}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 1, 0], "pad_token_id": 0}),
    "gpt_oss": ("gpt-oss", {"num_local_experts": 2, "num_experts_per_tok": 1}),
    "granite": ("granite", {"embedding_multiplier": 12.0}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention", "conv"], "pad_token_id": 0}),
    "gpt_neox": ("gpt-neox", {}),
    "bloom": ("bloom", {}),
    "phi": ("phi", {}),
    "exaone4": ("exaone4", {}),
}
# For these model types mergekit fails, because it leaves layer_types in a form that transformers refuses.
MERGEKIT_FAILS = ["qwen2", "qwen3", "gemma2", "gemma3_text", "cohere2"]


def run(*arguments, cwd=None, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "EMBEDDING_SERVER_"))}
    command = [str(BINARY), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True)


def extracted(source, out, *arguments, cwd=None):
    done = run("extract", source, out, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return Path(cwd or ".") / out


def settings(transformers, model_type, rows, **others):
    """Returns a tiny configuration with three layers."""
    known = transformers.CONFIG_MAPPING[model_type]().to_dict()
    small = {k: v for k, v in {**SMALL, "n_head": 4}.items() if k in known or k == "hidden_size"}
    ids = {k: None for k in ("pad_token_id", "bos_token_id", "eos_token_id") if known.get(k) is not None}
    layers = {"layer_types": ["full_attention"] * 3} if known.get("layer_types") else {}
    chosen = {"vocab_size": rows, "num_hidden_layers": 3, **small, **ids, **layers, **others}
    return transformers.CONFIG_MAPPING[model_type](**chosen)


def randomize(torch, model):
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            one = tensor.dim() == 1 and not name.endswith("bias")
            tensor.copy_(torch.rand(tensor.shape) * 2 + 0.2 if one else torch.randn(tensor.shape) * 0.1)


def copy_tokenizer(fixture, folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FIXTURES / fixture / name, folder)


def rows_of(fixture):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(FIXTURES / fixture / "tokenizer.json")).get_vocab_size()


def make_model(torch, transformers, model_type, folder, **save):
    fixture, others = FAMILIES[model_type]
    torch.manual_seed(7)
    config = settings(transformers, model_type, rows_of(fixture), **others)
    model = transformers.AutoModelForCausalLM.from_config(config)
    randomize(torch, model)
    model.to(torch.bfloat16).save_pretrained(folder, **save)
    copy_tokenizer(fixture, folder)


def compare(torch, transformers, out):
    """Loads the extracted checkpoint with AutoModel, which must miss no tensor, and compares its vectors with the server's."""
    from tokenizers import Tokenizer

    model, info = transformers.AutoModel.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    worst = 0
    with Server({"made": out}) as server:
        for text in TEXTS:
            with torch.no_grad():
                states = model.eval()(input_ids=torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0]
            expected = torch.nn.functional.normalize(states.mean(dim=0), dim=0).numpy()
            worst = max(worst, np.abs(server.vector(text) - expected).max())
    assert worst < 1e-5, worst
    return worst


def tensors(folder):
    from safetensors.torch import load_file

    return {k: v for file in sorted(Path(folder).glob("*.safetensors")) for k, v in load_file(file).items()}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_extracted_models_load_in_transformers(model_type, tmp_path, note):
    torch, transformers = judge("torch", "transformers")
    make_model(torch, transformers, model_type, tmp_path / "source")
    out = extracted(tmp_path / "source", tmp_path / "out")
    made, source = tensors(out), tensors(tmp_path / "source")
    assert 1 <= len(made) <= 5
    assert all(torch.equal(made[name], source[name]) for name in made)
    note(f"judge: AutoModel f32, {len(made)} tensors, max abs error {compare(torch, transformers, out):.1e}")


def test_a_sharded_source_and_f32(tmp_path, note):
    torch, transformers = judge("torch", "transformers")
    make_model(torch, transformers, "qwen3", tmp_path / "source", max_shard_size="60KB")
    assert (tmp_path / "source/model.safetensors.index.json").exists()
    out = extracted(tmp_path / "source", tmp_path / "out", "--dtype", "f32")
    made, source = tensors(out), tensors(tmp_path / "source")
    assert all(torch.equal(made[name], source[name].float()) for name in made)
    half = tensors(extracted(tmp_path / "source", tmp_path / "half", "--dtype", "f16"))
    assert all(torch.equal(half[name], source[name].to(torch.float16)) for name in half)
    back = tensors(extracted(tmp_path / "out", tmp_path / "back", "--dtype", "bf16"))
    assert all(torch.equal(back[name], source[name]) for name in back)
    note(f"f32: max abs error {compare(torch, transformers, out):.1e}")


VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}


@pytest.mark.parametrize(
    "model_type, text_type, fixture, vision, others",
    [
        ("gemma3", "gemma3_text", "gemma3", {"model_type": "siglip_vision_model"}, {"mm_tokens_per_image": 4}),
        ("mistral3", "mistral", "mistral3", {"model_type": "pixtral", "head_dim": 4}, {}),
        ("llava", "llama", "llava", {"model_type": "clip_vision_model", "projection_dim": 8}, {}),
    ],
)
def test_the_language_model_of_a_multimodal_one(model_type, text_type, fixture, vision, others, tmp_path, note):
    torch, transformers = judge("torch", "transformers")
    rows = rows_of(fixture)
    torch.manual_seed(7)
    text = settings(transformers, text_type, rows).to_dict()
    config = transformers.CONFIG_MAPPING[model_type](
        text_config=text, vision_config={**VISION, **vision}, image_token_id=rows - 1, **others
    )
    model = transformers.AutoModelForImageTextToText.from_config(config)
    randomize(torch, model)
    source = tmp_path / "source"
    model.to(torch.bfloat16).save_pretrained(source)
    copy_tokenizer(fixture, source)
    out = extracted(source, tmp_path / "out")
    assert sorted(tensors(out)) == ["model.embed_tokens.weight", "model.norm.weight"]
    assert json.loads((out / "config.json").read_text())["model_type"] == text_type
    note(f"judge: AutoModel f32, max abs error {compare(torch, transformers, out):.1e}")


def mergekit_yaml():
    judge("mergekit")
    mergekit = Path(sys.executable).with_name("mergekit-yaml")
    if not mergekit.exists():
        skip(f"{mergekit} is missing")
    return mergekit


RECIPE = "slices:\n  - sources:\n      - model: ./source\n        layer_range: [0, 0]\nmerge_method: passthrough\n"


@pytest.mark.parametrize("dtype", ["", "dtype: float32\n", "dtype: float16\n"])
def test_the_same_recipe_makes_mergekits_tensors(dtype, tmp_path):
    torch, transformers = judge("torch", "transformers")
    mergekit = mergekit_yaml()
    make_model(torch, transformers, "llama", tmp_path / "source")
    (tmp_path / "example.yaml").write_text(RECIPE + dtype)
    done = subprocess.run([mergekit, "./example.yaml", "./judge"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = extracted("./example.yaml", "./test", cwd=tmp_path)
    ours, theirs = tensors(out), tensors(tmp_path / "judge")
    # mergekit keeps the head of an untied model, although nothing reads it.
    theirs.pop("lm_head.weight", None)
    assert ours.keys() == theirs.keys() == {"model.embed_tokens.weight", "model.norm.weight"}
    assert all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours)
    config, judged = (json.loads((folder / "config.json").read_text()) for folder in (out, tmp_path / "judge"))
    differing = {k for k in config.keys() | judged.keys() if config.get(k) != judged.get(k)}
    assert differing <= {"torch_dtype", "transformers_version"}, {k: (config.get(k), judged.get(k)) for k in differing}
    assert (out / "tokenizer.json").read_bytes() == (tmp_path / "judge/tokenizer.json").read_bytes()


@pytest.mark.parametrize("model_type", MERGEKIT_FAILS)
def test_where_mergekit_fails_the_recipe_is_followed(model_type, tmp_path, note):
    torch, transformers = judge("torch", "transformers")
    mergekit = mergekit_yaml()
    make_model(torch, transformers, model_type, tmp_path / "source")
    (tmp_path / "example.yaml").write_text(RECIPE)
    done = subprocess.run([mergekit, "./example.yaml", "./judge"], cwd=tmp_path, capture_output=True, text=True)
    note(f"mergekit's exit status {done.returncode}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ''}")
    compare(torch, transformers, extracted("./example.yaml", "./test", cwd=tmp_path))


@pytest.mark.full_size
def test_memory_stays_small(tmp_path, note):
    source = REAL_DIR / "llama3-8b-shape"
    if not source.is_dir():
        skip(f"{source} is missing: run `tests/real/fetch`")
    size = (source / "model.safetensors").stat().st_size / 1e6
    # The measurement runs in a separate process, because RUSAGE_CHILDREN counts all child processes.
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    peak = subprocess.check_output([sys.executable, "-c", code, str(BINARY), "extract", str(source), str(tmp_path / "out")])
    note(f"{size:.0f} MB extracted, at most {int(peak) / 1e3:.0f} MB resident")
    assert int(peak) < 300_000


# A Hub behind TLS, with a certificate that only SSL_CERT_FILE knows ----------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    COMMIT = "89" * 20
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, with_body):
        files = self.server.files
        self.server.asked.append(self.path)
        name = self.path.rsplit("/", 1)[1]
        status, headers = 200, {}
        if self.path.startswith("/api/models/"):
            body = json.dumps({"sha": self.COMMIT, "siblings": [{"rfilename": n} for n in files]}).encode()
        elif name in files:
            body = files[name]
            headers["ETag"] = '"' + hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest() + '"'
            if "Range" in self.headers:
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
                status, body = 206, body[int(first) : int(last) + 1]
        else:
            status, body = 404, b""
        self.send_response(status)
        for key, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def tls_hub(tmp_path):
    if not shutil.which("openssl"):
        skip("openssl is missing")
    names = ["ca.key", "ca.pem", "key.pem", "request.pem", "certificate.pem", "names"]
    ca_key, ca, key, request, certificate, names = (tmp_path / name for name in names)
    names.write_text("subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n")

    def openssl(arguments, *files):
        subprocess.run(["openssl", *arguments.split(), *files], check=True, capture_output=True)

    openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority", "-keyout", ca_key, "-out", ca)
    openssl("req -newkey rsa:2048 -nodes -subj /CN=localhost", "-keyout", key, "-out", request)
    signed = ["-in", request, "-CA", ca, "-CAkey", ca_key, "-extfile", names, "-out", certificate]
    openssl("x509 -req -days 2 -CAcreateserial", *signed)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.files = {f.name: f.read_bytes() for f in (FIXTURES / "llama-full").iterdir()}
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, ca, f"https://localhost:{server.server_port}"
    server.shutdown()


def test_a_private_certificate_authority_is_trusted_by_ssl_cert_file_alone(tls_hub, tmp_path):
    server, certificate, endpoint = tls_hub
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
    refused = run("extract", "org/name", tmp_path / "out", **environment)
    assert refused.returncode == 1 and "SSL_CERT_FILE" in refused.stderr, refused.stderr
    assert not server.asked
    # In an image without certificates, nothing may fail before the Hub is contacted.
    none = {"SSL_CERT_FILE": "/nowhere", "SSL_CERT_DIR": "/nowhere"}
    local = run("extract", FIXTURES / "llama-full", tmp_path / "local", **environment, **none)
    assert local.returncode == 0, local.stderr
    refused = run("extract", "org/name", tmp_path / "out", **environment, **none)
    assert refused.returncode == 1 and "ca-certificates" in refused.stderr, refused.stderr
    done = run("extract", "org/name", tmp_path / "out", **environment, SSL_CERT_FILE=str(certificate))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/model.safetensors").exists()


def test_a_proxy_from_the_environment_is_used(tls_hub, tmp_path):
    """A proxy that does not answer causes an error that names the variable. NO_PROXY avoids the proxy."""
    _, certificate, endpoint = tls_hub
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "SSL_CERT_FILE": str(certificate)}
    proxied = run("fetch", "org/name", **environment, HTTPS_PROXY="http://127.0.0.1:1")
    assert proxied.returncode == 1 and "HTTPS_PROXY" in proxied.stderr, proxied.stderr
    around = run("fetch", "org/name", **environment, HTTPS_PROXY="http://127.0.0.1:1", NO_PROXY="localhost")
    assert around.returncode == 0, around.stderr


def test_pythons_huggingface_hub_reads_the_cache(tls_hub, tmp_path):
    (huggingface_hub,) = judge("huggingface_hub")
    server, certificate, endpoint = tls_hub
    home = tmp_path / "home"
    done = run("fetch", "org/name", HF_ENDPOINT=endpoint, HF_HOME=str(home), SSL_CERT_FILE=str(certificate))
    assert done.returncode == 0, done.stderr
    cache = home / "hub"
    for name in ("config.json", "tokenizer.json"):
        found = huggingface_hub.try_to_load_from_cache("org/name", name, cache_dir=cache)
        assert Path(found).read_bytes() == server.files[name], found
    scanned = huggingface_hub.scan_cache_dir(cache)
    assert not scanned.warnings and [repo.repo_id for repo in scanned.repos] == ["org/name"], scanned
    # In the other direction, a model that Python has downloaded needs no layer-0 directory and no request.
    code = "import sys, huggingface_hub; huggingface_hub.hf_hub_download('org/whole', sys.argv[1], cache_dir=sys.argv[2], endpoint=sys.argv[3])"
    fake = http.server.ThreadingHTTPServer(("127.0.0.1", 0), PythonHub)
    fake.files, fake.asked = server.files, []
    threading.Thread(target=fake.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{fake.server_port}"
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        got = subprocess.run([sys.executable, "-c", code, name, str(cache), address], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"})
        assert got.returncode == 0, got.stderr
    asked = len(fake.asked)
    served = run("inspect", "org/whole", HF_ENDPOINT=address, HF_HOME=str(home))
    assert served.returncode == 0 and "/snapshots/" in served.stdout, served.stderr + served.stdout
    assert len(fake.asked) == asked
    fake.shutdown()


class PythonHub(Hub):
    """Adds the header that Python's client requires."""

    def end_headers(self):
        self.send_header("X-Repo-Commit", self.COMMIT)
        super().end_headers()
