#!/usr/bin/env python3
"""Compares the model types of docs/checkpoints.md with those of the installed transformers, and their vectors with the classes' own.

    tests/real/families.py list             names the model types that only one of the two has
    tests/real/families.py compare [TYPE]   also makes a tiny checkpoint of each type, and compares the program's vectors with transformers'

A unit test holds the tables of docs/checkpoints.md against the program, so a model type that is in none of them is one that the program does
not know: read its configuration class and its `forward` up to the first layer, and add it to crates/layer0/src/checkpoint/family/types.rs or, if it
holds another type's language model, to crates/layer0/src/checkpoint/family/config.rs. A type whose configuration has no vocabulary needs no entry.

The checkpoint of a type has the configuration of its own class, made small, and the names of tensors that the class saves. The reference
is the class's last hidden state without its layers. A type that holds a language model is tested with the nested configuration that its class
writes, the same without the inner type, and the flat one of older repositories, and with the names of both its modules and its repositories.

A type of which the class makes no small model is named and not compared. The exit code is 1 if a type is missing or a vector differs. EMBEDDING_SERVER_BIN names the program.
"""

import copy
import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("EMBEDDING_SERVER_BIN", ROOT / "target/release/embedding-server"))
DOCUMENT = ROOT / "docs/checkpoints.md"
ROWS, HIDDEN = 40, 32
TOLERANCE = 2e-5
LONGEST = 60  # seconds for one checkpoint


# What is documented ---------------------------------------------------------------------------------------------------


def table(heading):
    """The rows of the table with this heading, as lists of names and the rest of the cells."""
    lines = DOCUMENT.read_text().split(f"| {heading}", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    rows = []
    for line in lines:
        names, *rest = line.strip("| ").split(" | ")
        rows.append((re.findall(r"`([^`]+)`", names), rest))
    return rows


def documented():
    served = {name for names, _ in table("model type | final norm") for name in names}
    outer = {name: rest[0].strip("`") for names, rest in table("model type | language model,") for name in names}
    refused = {name: rest[0] for names, rest in table("model type | why it is refused: it is a model") for name in names}
    return served, outer, refused


# What transformers has ------------------------------------------------------------------------------------------------


def configuration_classes():
    """Model types and their configuration classes; None where one cannot be made without arguments."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return {name: CONFIG_MAPPING[name] for name in sorted(CONFIG_MAPPING_NAMES)}


def has_vocabulary(cls):
    try:
        config = cls()
        text = config.get_text_config()
    except Exception:
        return any("vocab_size" in base.__dict__ or "vocab_size" in getattr(base, "__annotations__", {}) for base in cls.__mro__)
    return getattr(text, "vocab_size", None) is not None


def compare_lists():
    served, outer, refused = documented()
    classes = configuration_classes()
    known = served | set(outer) | set(refused)
    missing = [name for name, cls in classes.items() if name not in known and has_vocabulary(cls)]
    import transformers

    without = sum(1 for name, cls in classes.items() if name not in known)
    print(f"transformers {transformers.__version__} has {len(classes)} model types: {len(served & set(classes))} served,")
    print(f"{len(set(outer) & set(classes))} that hold another, {len(set(refused) & set(classes))} refused, {without - len(missing)} without a vocabulary")
    print("in docs/checkpoints.md alone:", ", ".join(sorted(known - set(classes))))
    if missing:
        print("in none of the tables of docs/checkpoints.md:", ", ".join(missing))
    return not missing


# Tiny models ----------------------------------------------------------------------------------------------------------

SMALL = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "embedding_size", "embed_dim", "lru_width", "hidden_dim"], HIDDEN),
    **dict.fromkeys(["intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "d_ff", "ffn_dim"], 32),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads", "linear_num_key_heads"], 4),
    **dict.fromkeys(["linear_num_value_heads", "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["head_dim", "d_kv", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "linear_key_head_dim"], 8),
    **dict.fromkeys(["linear_value_head_dim", "mamba_n_heads", "mamba_d_head"], 8),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "qk_head_dim"], 16),
    **dict.fromkeys(["num_experts_per_tok", "moe_k"], 2),
    **dict.fromkeys(["n_group", "topk_group", "first_k_dense_replace", "num_dense_layers"], 1),
    "vocab_size": ROWS,
    "max_position_embeddings": 128,
}
LAYERS = ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"]
EPS = ["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps", "layernorm_epsilon"]

# What a class needs beside the sizes above: it compares them with each other when it is made.
SPECIAL = {
    "chameleon": {"vocabulary_map": {"<image>": 1, "IMGIMGBZ": 2}},
    "glm5_next_text": {"qk_rope_head_dim": 0},
    "ernie4_5_vl_moe_text": {"hidden_size": 128, "num_attention_heads": 1, "num_key_value_heads": 1},
}

# The prefix of the language model's tensors in repositories, where the class does not tell.
PREFIXES = {
    "dots3_note": "model.",
    **dict.fromkeys(["qwen2_5_omni", "qwen2_5_omni_thinker", "qwen3_omni_moe", "qwen3_omni_moe_thinker"], "thinker.model."),
}


def small(cls, known, layers=1):
    """The configuration of a small model; eps and token IDs are none of the usual ones."""
    size = {key: value for key, value in SMALL.items() if isinstance(known.get(key), (int, float))}
    size |= {key: layers for key in LAYERS if known.get(key) is not None}
    size |= {key: 3e-5 for key in EPS if isinstance(known.get(key), float)}
    for key, value in known.items():
        if key.endswith("token_id") and isinstance(value, int):
            size[key] = 0
        if isinstance(value, list) and ("layer_types" in key or key == "layers_block_type"):
            size[key] = value[:layers]
    return size


def bare(known):
    """The sizes of the class but for its vocabulary and its layers."""
    return {"vocab_size": ROWS, **{key: 0 for key in LAYERS if known.get(key) is not None}}


def configurations(name, cls):
    """Small configurations, one for each way that a class may take."""
    known = cls().to_dict()
    depth = known.get("num_hidden_layers") or 4
    for settings in (small(cls, known, 0), small(cls, known, 1), small(cls, known, depth), bare(known)):
        yield {**settings, **SPECIAL.get(name, {})}


def language_model_class(cls):
    """The class of the model that this configuration is for: AutoModel's, or the one of the file beside it that has a final norm."""
    from transformers import AutoModel, PreTrainedModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    if cls in MODEL_MAPPING.keys():
        found = MODEL_MAPPING[cls]
        return found[0] if isinstance(found, (tuple, list)) else found
    module = importlib.import_module(cls.__module__.replace(".configuration_", ".modeling_"))
    fitting = [
        model
        for _, model in inspect.getmembers(module, inspect.isclass)
        if issubclass(model, PreTrainedModel) and model.__module__ == module.__name__ and model.config_class is cls
    ]
    fitting = [model for model in fitting if not re.search("PreTrainedModel$|For[A-Z]", model.__name__)]
    return fitting[0]


def without_layers(model):
    """Takes the layers out, so that the last hidden state is the final norm of the embedding."""
    import torch

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.ModuleList) and re.fullmatch("layers|h|block|blocks", name):
                setattr(module, name, torch.nn.ModuleList())
    return model


def without_positions(model):
    """Takes out what computes positions for layers, which compares sizes that only matter there."""
    import torch

    class Nothing(torch.nn.Module):
        def forward(self, *_, **__):
            return None, None

    for module in list(model.modules()):
        for name, _ in list(module.named_children()):
            if "rotary" in name:
                setattr(module, name, Nothing())


def randomize(model):
    import torch

    torch.manual_seed(5)
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor is embedding:
                tensor.copy_(torch.randn(tensor.shape) * 0.01)
            elif tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape) * 2 - 0.5)


# Their states pass streams that are joined again, or their class asks for images: the reference is the final norm of the embedding.
STREAMS = {"deepseek_v4", "idefics", "glm5_next_text", "hy_v4", "hy_v4_vl_text", "gemma3n_text", "inkling2_text", "inkling2_loop_text"}


class NotMade(Exception):
    """transformers made no small model of this type: nothing is known against the program."""


class Reference:
    """A model of transformers without its layers: the tensors of layer 0 by the names of its modules, and the states of each token."""

    def __init__(self, name, cls):
        error = None
        for settings in configurations(name, cls):
            try:
                self.make(name, cls, settings)
                return
            except TimeoutError as e:
                raise NotMade(str(e)) from e
            except Exception as e:
                error = error or e
        raise NotMade(f"{type(error).__name__}: {error}")

    def make(self, name, cls, settings):
        import torch

        self.config = cls(**settings)
        self.model = language_model_class(cls)(self.config).float().eval()
        randomize(self.model)
        without_layers(self.model)
        last = self.model.get_encoder() if self.config.is_encoder_decoder else getattr(self.model, "model", self.model)
        ids = torch.arange(ROWS)[None]
        with torch.no_grad():
            if name in STREAMS:
                self.states = self.model.norm(self.model.get_input_embeddings()(ids))[0]
                return
            try:
                self.states = last(input_ids=ids, use_cache=False).last_hidden_state[0]
            except Exception:
                without_positions(self.model)
                self.states = last(input_ids=ids, use_cache=False).last_hidden_state[0]

    def tensors(self):
        """All that is small enough to be layer 0."""
        return {name: tensor for name, tensor in self.model.state_dict().items() if tensor.dim() <= 2 and tensor.numel() < 1_000_000}


# The program ----------------------------------------------------------------------------------------------------------


def write_tokenizer(folder):
    vocabulary = {f"w{i}": i for i in range(ROWS)}
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": {"type": "WhitespaceSplit"},
                "post_processor": None,
                "decoder": None,
                "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
            }
        )
    )


def vectors(folder):
    """The program's vectors of each token."""
    texts = folder / "texts.txt"
    texts.write_text("".join(f"w{i}\n" for i in range(ROWS)))
    run = subprocess.run([BINARY, "embed", "--model", folder, texts], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr.strip())
    return [json.loads(line)["embedding"] for line in run.stdout.splitlines()]


def check(states, tensors, config):
    """Writes the checkpoint and returns by how much the program's vectors of length 1 differ from the reference's."""
    import torch
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_tokenizer(folder)
        (folder / "config.json").write_text(json.dumps(config))
        save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
        got = torch.tensor(vectors(folder))
    expected = torch.nn.functional.normalize(states, dim=-1)
    return (got - expected).abs().max().item()


def saved(model, state_dict, prefixes):
    """The tensors by the names that the model is saved with, and with the prefixes of its repositories."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import revert_weight_conversion

    model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False) if prefixes else None
    return revert_weight_conversion(model, state_dict)


class Outer:
    """A model that holds a language model, on no device: only its configuration and the names of its tensors are of interest."""

    def __init__(self, cls, reference):
        import torch

        self.reference = reference
        self.config = cls()
        self.path = self.find(self.config, reference.config.model_type)
        holder = self.config
        for key in self.path[:-1]:
            holder = getattr(holder, key)
        setattr(holder, self.path[-1], copy.deepcopy(reference.config))
        if self.config.model_type in PREFIXES:
            return
        with torch.device("meta"):
            self.model = generating_class(cls)(self.config)
        modules = [name for name, module in self.model.named_modules() if type(module) is type(reference.model)]
        self.prefix = modules[0] + "."

    def find(self, config, model_type):
        """The keys that lead to the language model's configuration."""
        for key in config.sub_configs:
            nested = getattr(config, key, None)
            if nested is None:
                continue
            if nested.model_type == model_type:
                return [key]
            if path := self.find(nested, model_type):
                return [key, *path]
        return []

    def tensors(self, prefixes):
        tensors = self.reference.tensors()
        if self.config.model_type in PREFIXES:
            return {PREFIXES[self.config.model_type] + name: tensor for name, tensor in tensors.items()}
        return saved(self.model, {self.prefix + name: tensor for name, tensor in tensors.items()}, prefixes)

    def configurations(self):
        """As the class writes it; without the inner type; and flat."""
        nested = self.config.to_dict()
        yield nested
        untyped = copy.deepcopy(nested)
        inner = untyped
        for key in self.path:
            inner = inner[key]
        del inner["model_type"]
        yield untyped
        yield {**inner, "model_type": nested["model_type"]}


def generating_class(cls):
    """The class of the whole model, as repositories hold it."""
    from transformers.models.auto import modeling_auto

    for kind in ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ"):
        mapping = getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING", None)
        if mapping and cls in mapping.keys():
            found = mapping[cls]
            return found[0] if isinstance(found, (tuple, list)) else found
    return language_model_class(cls)


def main():
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in ("list", "compare"):
        sys.exit(__doc__)
    good = compare_lists() if len(arguments) < 2 else True
    if arguments[0] == "compare":
        good = compare_vectors(arguments[1:]) and good
    return 0 if good else 1


def compare_vectors(only):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    served, outer, _ = documented()
    classes = configuration_classes()
    references, failures, unmade, passed = {}, [], [], 0

    def reference(name):
        if name not in references:
            references[name] = Reference(name, classes[name])
        return references[name]

    def expired(*_):
        raise TimeoutError(f"not done after {LONGEST} s")

    signal.signal(signal.SIGALRM, expired)

    def attempt(name, what, run):
        nonlocal passed
        start = time.monotonic()
        # A class that ignores a size would make a model as large as the original.
        signal.alarm(LONGEST)
        try:
            off = run()
            if off > TOLERANCE:
                raise AssertionError(f"off by {off:.2g}")
            passed += 1
        except NotMade as error:
            unmade.append(name)
            print(f"not compared: {name}{what}: {' '.join(str(error).split())[:200]}", flush=True)
        except Exception as error:
            lines = (str(error) or repr(error)).splitlines()
            failures.append(f"{name}{what}: {type(error).__name__}: {' '.join(lines)[:300]}")
            print("FAILED", failures[-1], flush=True)
        signal.alarm(0)
        if time.monotonic() - start > 5:
            print(f"{name}{what}: {time.monotonic() - start:.0f} s", flush=True)

    for name in sorted(served & set(classes)):
        if only and name not in only:
            continue

        def plain():
            r = reference(name)
            return check(r.states, saved(r.model, r.tensors(), True), r.config.to_dict())

        attempt(name, "", plain)

    for name, inner in sorted(outer.items()):
        if (only and name not in only) or name not in classes or inner not in served:
            continue
        made = {}

        def nested(number):
            if not made:
                try:
                    made["outer"] = Outer(classes[name], reference(inner))
                except NotMade:
                    raise
                except Exception as error:
                    raise NotMade(f"{type(error).__name__}: {error}") from error
            found = made["outer"]
            tensors = found.tensors(prefixes=number > 0)
            return check(found.reference.states, tensors, list(found.configurations())[number])

        for number, what in enumerate((" as saved", " without the inner type", " flat")):
            attempt(name, what, lambda: nested(number))

    print(f"{passed} checkpoints have the vectors of transformers, {len(failures)} do not, and {len(unmade)} could not be made")
    return not failures


if __name__ == "__main__":
    sys.exit(main())
