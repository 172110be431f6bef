"""Tests files and batches with the openai package: each call as its documentation shows it, with nothing changed but base_url."""

import asyncio
import io
import json
import time

import openai
import pytest
from conftest import near

TEXTS = [f"text number {n}" for n in range(50)]


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(max_retries=0) as client:
        yield client


def lines(served, **fields):
    requests = (
        {"custom_id": f"request-{n}", "method": "POST", "url": "/v1/embeddings", "body": {"model": served.default, "input": text, **fields}}
        for n, text in enumerate(TEXTS)
    )
    return "\n".join(json.dumps(request) for request in requests)


def ended(client, batch):
    end = time.monotonic() + 120
    while batch.status not in ("completed", "failed", "cancelled", "expired"):
        assert time.monotonic() < end, batch
        time.sleep(0.01)
        batch = client.batches.retrieve(batch.id)
    return batch


def create(client, file, **fields):
    return client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h", **fields)


def test_a_batch_from_a_file_on_disk(client, served, tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text(lines(served) + "\n")
    with path.open("rb") as content:
        file = client.files.create(file=content, purpose="batch")
    assert (file.object, file.purpose, file.filename, file.bytes) == ("file", "batch", "requests.jsonl", path.stat().st_size)
    assert client.files.retrieve(file.id) == file and client.files.content(file.id).text == path.read_text()

    batch = ended(client, create(client, file, metadata={"purpose": "test"}))
    assert batch.status == "completed" and batch.metadata == {"purpose": "test"} and batch.errors is None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (50, 50, 0)
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    vectors = {answer["custom_id"]: answer["response"]["body"]["data"][0]["embedding"] for answer in answers}
    assert len(answers) == len(vectors) == len(TEXTS)
    for n, text in enumerate(TEXTS):
        assert near(vectors[f"request-{n}"], served.checkpoint.vector(text))
    assert batch.error_file_id is None
    # Version 1 of the package does not know the field.
    assert batch.model_dump()["usage"]["input_tokens"] == sum(len(served.checkpoint.ids(text)) for text in TEXTS)

    content = client.files.content(batch.output_file_id)
    content.write_to_file(tmp_path / "answers.jsonl")
    assert (tmp_path / "answers.jsonl").read_bytes() == content.content


def test_requests_that_fail_and_files_that_are_not_valid(client, served):
    content = lines(served, dimensions=100_000).encode()
    file = client.files.create(file=("requests.jsonl", io.BytesIO(content)), purpose="batch")
    batch = ended(client, create(client, file))
    assert (batch.status, batch.request_counts.failed, batch.output_file_id) == ("completed", 50, None)
    answer = json.loads(client.files.content(batch.error_file_id).text.splitlines()[0])
    assert answer["response"]["status_code"] == 400 and answer["response"]["body"]["error"]["param"] == "dimensions"

    file = client.files.create(file=("bad.jsonl", b'{"custom_id": "a"}\n{'), purpose="batch")
    batch = ended(client, create(client, file))
    assert batch.status == "failed"
    assert [(error.code, error.line) for error in batch.errors.data] == [("invalid_json_line", 1), ("invalid_json_line", 2)]


def test_lists_are_followed_to_their_end(client, served):
    files = [client.files.create(file=(f"{n}.jsonl", lines(served).encode()), purpose="batch") for n in range(3)]
    batches = [ended(client, create(client, file)) for file in files]
    listed = [batch.id for batch in client.batches.list(limit=2)]
    assert listed[:3] == [batch.id for batch in reversed(batches)] and len(listed) == len(set(listed))
    listed = [file.id for file in client.files.list(purpose="batch")]
    assert listed[:3] == [file.id for file in reversed(files)]
    deleted = client.files.delete(files[0].id)
    assert deleted.deleted and deleted.id == files[0].id
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(files[0].id)


def test_errors(client, served):
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")
    with pytest.raises(openai.NotFoundError) as error:
        client.batches.create(input_file_id="file-none", endpoint="/v1/embeddings", completion_window="24h")
    assert error.value.param == "input_file_id"
    with pytest.raises(openai.BadRequestError) as error:
        client.batches.create(input_file_id="file-none", endpoint="/v1/chat/completions", completion_window="24h")
    assert error.value.param == "endpoint"
    with pytest.raises(openai.BadRequestError) as error:
        client.files.create(file=("a.jsonl", b"a"), purpose="fine-tune")
    assert error.value.param == "purpose"
    file = client.files.create(file=("a.jsonl", lines(served).encode()), purpose="batch")
    batch = ended(client, create(client, file))
    with pytest.raises(openai.BadRequestError) as error:
        client.batches.cancel(batch.id)
    assert "completed" in str(error.value)


def test_async(served):
    async def run():
        async with openai.AsyncOpenAI(max_retries=0) as client:
            file = await client.files.create(file=("a.jsonl", lines(served).encode()), purpose="batch")
            batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
            end = time.monotonic() + 120
            while batch.status != "completed":
                assert time.monotonic() < end, batch
                await asyncio.sleep(0.01)
                batch = await client.batches.retrieve(batch.id)
            return (await client.files.content(batch.output_file_id)).text

    assert len(asyncio.run(run()).splitlines()) == len(TEXTS)
