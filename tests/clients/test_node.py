"""The openai package of npm; openai.test.mjs has the tests."""

import json
import os
import subprocess
from pathlib import Path


def test_openai_node(served):
    environment = {
        **os.environ,
        "SERVED": json.dumps(
            {
                "model": served.default,
                "ownIds": served.own_ids,
                "ids": served.checkpoint.ids("hello world"),
                "vector": served.checkpoint.vector("hello world").tolist(),
            }
        ),
    }
    script = Path(__file__).with_name("openai.test.mjs")
    done = subprocess.run(["node", "--test", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
