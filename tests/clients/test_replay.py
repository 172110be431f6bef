"""Sends recorded requests of clients that are not packages of PyPI or npm, or that are too large to install (replay/*.json).

The requests were written down from the client's source, which each file names. They are sent byte for byte, with Host and Content-Length
added. The test reads the response as that source does.
"""

import base64
import json
import socket
import struct
from pathlib import Path

import pytest
from conftest import near

REPLAY = Path(__file__).with_name("replay")


def send(served, name):
    """Sends the recorded bytes, and returns the recording, and the status, headers and body of the response."""
    recorded = json.loads((REPLAY / f"{name}.json").read_text())
    body = recorded["body"].encode()
    head = [f"POST {recorded['path']} HTTP/1.1", f"Host: {served.server.host}", *recorded["head"], f"Content-Length: {len(body)}"]
    host, port = served.server.host.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
        raw = connection.makefile("rb")
        status = int(raw.readline().split()[1])
        headers = dict(line.decode().strip().lower().split(": ", 1) for line in iter(raw.readline, b"\r\n"))
        return recorded, status, headers, raw.read(int(headers["content-length"]))


def floats(answer):
    """Reads a response as clients on the package `requests` do: `data[].embedding` in the order of the list."""
    return [item["embedding"] for item in answer["data"]]


def base64_of_sdk(answer):
    """Reads a response as AnythingLLM does: npm's openai decodes a string as little-endian f32, and every item must have `embedding`."""
    assert all("embedding" in item for item in answer["data"])
    return [struct.unpack(f"<{len(raw) // 4}f", raw) for raw in (base64.b64decode(item["embedding"]) for item in answer["data"])]


def sorted_by_index(answer):
    return [item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])]


def typed(answer):
    """Reads a response as the Go, Java and .NET clients do: every field has its type, and Java also checks the constants."""
    assert answer["object"] == "list" and isinstance(answer["model"], str)
    assert all(type(answer["usage"][key]) is int for key in ("prompt_tokens", "total_tokens"))
    assert all(item["object"] == "embedding" and type(item["index"]) is int for item in answer["data"])
    return base64_of_sdk(answer) if isinstance(answer["data"][0]["embedding"], str) else floats(answer)


READERS = {
    "open-webui": floats,
    "dify-validate": lambda answer: floats(answer) if "model" in answer else None,
    "dify-invoke": lambda answer: floats(answer) if answer["usage"]["total_tokens"] > 0 else None,
    "anything-llm": base64_of_sdk,
    "continue": floats,
    "mem0": sorted_by_index,
    "agno": floats,
    "go-openai": typed,
    "openai-java": typed,
    "openai-dotnet": typed,
}


@pytest.mark.parametrize("name", READERS)
def test_a_recorded_request(served, name):
    recorded, status, headers, body = send(served, name)
    assert (status, headers["content-type"]) == (200, "application/json"), body
    vectors = READERS[name](json.loads(body))
    dimensions = json.loads(recorded["body"]).get("dimensions")
    fields = {"dimensions": dimensions} if dimensions else {}
    for text, vector in zip(recorded["texts"], vectors, strict=True):
        assert near(vector, served.server.vector(text, **fields)), text
    if name == "openai-dotnet":
        # This client decodes the bytes between the quotes as they are, without undoing JSON's escapes.
        assert b"\\" not in body


def test_agno_without_dimensions(served):
    """agno then asks for 1536 dimensions, and logs the error of a model with fewer."""
    _, status, _, body = send(served, "agno-default")
    error = json.loads(body)["error"]
    assert status == 400 and error["param"] == "dimensions" and "1536" in error["message"]


def test_open_webui_rerank(served):
    """The client sorts the results by index, and takes one score for each document."""
    recorded, status, _, body = send(served, "open-webui-rerank")
    assert status == 200, body
    scores = [result["relevance_score"] for result in sorted(json.loads(body)["results"], key=lambda result: result["index"])]
    assert len(scores) == len(recorded["texts"])
    assert max(scores) == scores[1]


def test_dify_rerank(served):
    """The client skips results whose index is not one of its documents, and sorts the rest by their scores."""
    recorded, status, _, body = send(served, "dify-rerank")
    assert status == 200, body
    found = [(result["index"], result["relevance_score"]) for result in json.loads(body)["results"]]
    assert len(found) == 2 and all(index < len(recorded["texts"]) for index, _ in found)
    assert sorted(found, key=lambda pair: -pair[1]) == found and found[0][0] == 1


def test_every_recording_is_sent():
    assert {path.stem for path in REPLAY.glob("*.json")} == {*READERS, "agno-default", "open-webui-rerank", "dify-rerank"}
