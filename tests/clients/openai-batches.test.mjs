// Tests files and batches with the openai package. test_node.py runs this file and starts the server.
import assert from "node:assert/strict";
import { createReadStream, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { near, packages, served } from "./served.mjs";

const { default: OpenAI, toFile } = packages("openai");
const { model, texts, plain } = served;
const client = new OpenAI({ maxRetries: 0 });

const lines = (fields) =>
  texts
    .map((input, n) => ({ custom_id: `request-${n}`, method: "POST", url: "/v1/embeddings", body: { model, input, ...fields } }))
    .map((line) => JSON.stringify(line))
    .join("\n");

const create = (file) =>
  client.batches.create({ input_file_id: file.id, endpoint: "/v1/embeddings", completion_window: "24h" });

async function ended(batch) {
  const end = Date.now() + 120_000;
  while (!["completed", "failed", "cancelled", "expired"].includes(batch.status)) {
    assert.ok(Date.now() < end, JSON.stringify(batch));
    await new Promise((resolve) => setTimeout(resolve, 10));
    batch = await client.batches.retrieve(batch.id);
  }
  return batch;
}

test("a batch from a file on disk", async () => {
  const path = join(mkdtempSync(join(tmpdir(), "batches-")), "requests.jsonl");
  writeFileSync(path, lines({}));
  const file = await client.files.create({ file: createReadStream(path), purpose: "batch" });
  assert.equal(file.filename, "requests.jsonl");
  assert.equal(await (await client.files.content(file.id)).text(), lines({}));
  const batch = await ended(await create(file));
  assert.deepEqual(batch.request_counts, { total: texts.length, completed: texts.length, failed: 0 });
  const content = await (await client.files.content(batch.output_file_id)).text();
  const answers = new Map(content.trimEnd().split("\n").map((line) => JSON.parse(line)).map((line) => [line.custom_id, line]));
  assert.equal(answers.size, texts.length);
  texts.forEach((_, n) => near(answers.get(`request-${n}`).response.body.data[0].embedding, plain[n]));
});

test("requests that fail, files that are not valid, and expiration", async () => {
  const content = Buffer.from(lines({ dimensions: 100_000 }));
  const expires_after = { anchor: "created_at", seconds: 3600 };
  const file = await client.files.create({ file: await toFile(content, "a.jsonl"), purpose: "batch", expires_after });
  assert.equal(file.expires_at - file.created_at, 3600);
  const batch = await ended(await create(file));
  assert.equal(batch.request_counts.failed, texts.length);
  const [line] = (await (await client.files.content(batch.error_file_id)).text()).split("\n");
  assert.equal(JSON.parse(line).response.status_code, 400);
  const bad = await client.files.create({ file: await toFile(Buffer.from("{"), "a.jsonl"), purpose: "batch" });
  const failed = await ended(await create(bad));
  assert.equal(failed.status, "failed");
  assert.deepEqual(failed.errors.data.map((error) => [error.code, error.line]), [["invalid_json_line", 1]]);
});

test("lists, deletion and errors", async () => {
  const file = await client.files.create({ file: await toFile(Buffer.from(lines({})), "a.jsonl"), purpose: "batch" });
  const batch = await ended(await create(file));
  const batches = [];
  for await (const listed of client.batches.list({ limit: 1 })) batches.push(listed.id);
  assert.equal(batches[0], batch.id);
  assert.ok(batches.length >= 2 && new Set(batches).size === batches.length);
  const files = [];
  for await (const listed of client.files.list({ purpose: "batch" })) files.push(listed.id);
  assert.equal(files[0], file.id);
  assert.equal((await client.files.delete(file.id)).deleted, true);
  await assert.rejects(client.files.retrieve(file.id), OpenAI.NotFoundError);
  await assert.rejects(client.batches.retrieve("batch_none"), OpenAI.NotFoundError);
  await assert.rejects(client.batches.cancel(batch.id), OpenAI.BadRequestError);
});
