"""Runs the tests of the npm clients. Each *.test.mjs has the tests of one client."""

import json
import os
import subprocess
from pathlib import Path

import pytest

TEXTS = ["hello world", "오늘은 날씨가 정말 좋네요.", "日本 😀"]


@pytest.fixture(scope="module")
def environment(served):
    half = served.checkpoint.hidden // 2
    facts = {
        "base": served.server.url + "/v1",
        "model": served.default,
        "ownIds": served.own_ids,
        "ids": served.checkpoint.ids(TEXTS[0]),
        "texts": TEXTS,
        "plain": [served.server.vector(text).tolist() for text in TEXTS],
        "half": [served.server.vector(text, dimensions=half).tolist() for text in TEXTS],
    }
    return {**os.environ, "SERVED": json.dumps(facts)}


def run(script, environment):
    command = ["node", "--test", Path(__file__).with_name(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_openai_node(environment):
    run("openai.test.mjs", environment)


def test_openai_batches_node(environment):
    run("openai-batches.test.mjs", environment)


def test_langchain_js(environment):
    run("langchain.test.mjs", environment)


def test_chroma_js(environment):
    run("chroma.test.mjs", environment)


def test_ollama_js(environment):
    run("ollama.test.mjs", environment)


def test_ai_sdk(environment):
    run("ai-sdk.test.mjs", environment)
