// Tests @chroma-core/openai, the embedding function for the JavaScript client of Chroma. test_node.py runs this file.
import assert from "node:assert/strict";
import { test } from "node:test";
import { near, packages, served } from "./served.mjs";

const { OpenAIEmbeddingFunction } = packages("@chroma-core/openai");
const { base, model, plain, half, texts } = served;
const make = (fields) => new OpenAIEmbeddingFunction({ modelName: model, apiKey: "any", apiBase: base, ...fields });

test("texts, in order", async () => {
  const vectors = await make({}).generate(texts);
  assert.equal(vectors.length, texts.length);
  texts.forEach((_, i) => near(vectors[i], plain[i]));
});

test("dimensions", async () => near((await make({ dimensions: half[0].length }).generate(texts))[0], half[0]));

test("errors", async () => {
  await assert.rejects(make({ modelName: "no-such" }).generate(["a"]), (e) => /no-such/.test(e.message));
});
