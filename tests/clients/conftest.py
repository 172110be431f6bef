"""Starts one server for all clients. CLIENT_CHECKPOINT names the checkpoint that it serves, which may be any layer-0 directory."""

import os
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "real"))

from harness import Checkpoint, Server  # noqa: E402

CONFIG = """
default_model = "text-embedding-3-small"

[server]
batch_directory = '{batches}'

[[models]]
id = "text-embedding-3-small"
path = '{path}'
aliases = ["alias", "text-embedding-ada-002"]

[[models]]
id = "org/own-ids"
path = '{path}'
token_input = "model"

[[models]]
id = "text-only"
path = '{path}'
token_input = "reject"
"""


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    path = Path(os.environ.get("CLIENT_CHECKPOINT", HERE.parent / "fixtures/checkpoints/llama")).resolve()
    config = tmp_path_factory.mktemp("config") / "config.toml"
    config.write_text(CONFIG.format(path=path, batches=config.with_name("batches")))
    with Server(config=config) as server:
        # Clients read these variables, as in real use.
        os.environ["OPENAI_BASE_URL"] = server.url + "/v1"
        os.environ["OPENAI_API_KEY"] = "sk-any"
        yield SimpleNamespace(
            server=server,
            default="text-embedding-3-small",
            own_ids="org/own-ids",
            text_only="text-only",
            ids={"text-embedding-3-small", "org/own-ids", "text-only"},
            checkpoint=Checkpoint(path),
        )


def near(a, b):
    import numpy as np

    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return a.shape == b.shape and np.abs(a - b).max() < 1e-6


def cosine(a, b):
    import numpy as np

    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def pytest_report_header():
    # The runner runs pytest once for each version of openai. The tests would pass with the wrong version, too, so it is checked here.
    assert version("openai").startswith(os.environ.get("OPENAI_MAJOR", ""))
    return f"clients: openai {version('openai')}"
