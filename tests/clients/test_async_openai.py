"""Runs the tests of the crate async-openai, which are in async-openai/src/lib.rs."""

import json
import os
import subprocess
from pathlib import Path


HERE = Path(__file__).resolve().parent


def test_async_openai(served):
    hidden = served.checkpoint.hidden
    facts = {
        "base": served.server.url + "/v1",
        "model": served.default,
        "vector": served.server.vector("hello world").tolist(),
        "half": served.server.vector("hello world", dimensions=hidden // 2).tolist(),
    }
    environment = {**os.environ, "SERVED": json.dumps(facts), "CARGO_TARGET_DIR": str(HERE.parents[1] / "target/async-openai")}
    command = ["cargo", "test", "--locked", "--quiet", "--manifest-path", HERE / "async-openai/Cargo.toml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
