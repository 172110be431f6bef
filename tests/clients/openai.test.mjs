// Tests the openai package. test_node.py runs this file and starts the server.
import assert from "node:assert/strict";
import { test } from "node:test";
import { near, packages, served } from "./served.mjs";

const { default: OpenAI } = packages("openai");
const { model, ownIds, ids, plain: [vector] } = served;
const client = new OpenAI({ maxRetries: 0 });
const create = (fields) => client.embeddings.create({ model, input: "hello world", ...fields });

test("a string, base64 by default", async () => {
  const answer = await create({});
  assert.equal(answer.object, "list");
  assert.equal(answer.model, model);
  assert.equal(answer.usage.prompt_tokens, ids.length);
  near(answer.data[0].embedding, vector);
});

test("float equals base64", async () => {
  const floats = (await create({ encoding_format: "float" })).data[0].embedding;
  assert.deepEqual(Array.from(floats, Math.fround), Array.from((await create({})).data[0].embedding, Math.fround));
});

test("a list, in order", async () => {
  const { data } = await create({ input: ["one", "hello world", "three"] });
  assert.deepEqual(data.map((item) => item.index), [0, 1, 2]);
  near(data[1].embedding, vector);
});

test("dimensions and user", async () => {
  const half = vector.length / 2;
  const { data } = await create({ dimensions: half, user: "somebody" });
  const length = Math.hypot(...vector.slice(0, half));
  near(data[0].embedding, vector.slice(0, half).map((x) => x / length));
});

test("token ids", async () => {
  near((await create({ input: [15339, 1917] })).data[0].embedding, vector);
  near((await create({ input: [[15339, 1917]] })).data[0].embedding, vector);
  near((await create({ model: ownIds, input: ids })).data[0].embedding, vector);
});

test("an empty text", async () => {
  const { data } = await create({ input: ["hello world", ""] });
  near(data[0].embedding, vector);
  assert.ok(data[1].embedding.every(Number.isFinite));
});

test("models", async () => {
  const listed = [];
  for await (const m of client.models.list()) listed.push(m.id);
  assert.ok(listed.includes(model) && listed.includes(ownIds));
  assert.equal((await client.models.retrieve(ownIds)).id, ownIds);
});

test("errors", async () => {
  await assert.rejects(create({ model: "no/such" }), (e) => e instanceof OpenAI.NotFoundError && e.code === "model_not_found");
  await assert.rejects(client.models.retrieve("no/such"), OpenAI.NotFoundError);
  await assert.rejects(create({ input: [] }), OpenAI.BadRequestError);
  await assert.rejects(create({ dimensions: 0 }), (e) => e instanceof OpenAI.BadRequestError && e.param === "dimensions");
});
