// Tests the ollama package. test_node.py runs this file and starts the server.
import assert from "node:assert/strict";
import { test } from "node:test";
import { near, packages, served } from "./served.mjs";

const { Ollama } = packages("ollama");
const { base, model, texts, plain, half } = served;
const client = new Ollama({ host: base.replace(/\/v1$/, "") });

test("embed", async () => {
  const answer = await client.embed({ model, input: texts });
  answer.embeddings.forEach((vector, i) => near(vector, plain[i]));
  const shorter = await client.embed({ model: `${model}:latest`, input: texts[1], dimensions: half[1].length });
  near(shorter.embeddings[0], half[1]);
});

test("the older endpoint", async () => {
  near((await client.embeddings({ model, prompt: texts[2] })).embedding, plain[2]);
});

test("models and version", async () => {
  assert.ok((await client.list()).models.some((listed) => listed.name === model));
  assert.deepEqual((await client.show({ model })).capabilities, ["embedding"]);
  assert.match((await client.version()).version, /^\d+\.\d+\.\d+/);
});

test("errors", async () => {
  await assert.rejects(client.embed({ model: "no-such", input: "a" }), (e) => e.status_code === 404 && e.message.includes("no-such"));
});
