// Tests the Vercel AI SDK with @ai-sdk/openai and @ai-sdk/openai-compatible. test_node.py runs this file.
import assert from "node:assert/strict";
import { test } from "node:test";
import { near, packages, served } from "./served.mjs";

const { embed, embedMany } = packages("ai");
const { createOpenAI } = packages("@ai-sdk/openai");
const { createOpenAICompatible } = packages("@ai-sdk/openai-compatible");
const { base, model, ownIds, plain, half, texts } = served;

const settings = { baseURL: base, apiKey: "any" };
const compatible = createOpenAICompatible({ ...settings, name: "local" });
const providers = {
  openai: { of: createOpenAI(settings), options: (fields) => ({ openai: fields }) },
  "openai-compatible": { of: compatible, options: (fields) => ({ openaiCompatible: fields }) },
};

for (const [name, { of, options }] of Object.entries(providers)) {
  test(`${name}: texts, more than a call takes`, async () => {
    const values = [...Array.from({ length: 2100 }, (_, i) => `text ${i}`), ...texts];
    const { embeddings, usage } = await embedMany({ model: of.embeddingModel(model), values, maxRetries: 0 });
    assert.equal(embeddings.length, values.length);
    texts.forEach((_, i) => near(embeddings[2100 + i], plain[i]));
    assert.ok(usage.tokens > values.length);
  });

  test(`${name}: one text, an id with a slash`, async () => {
    near((await embed({ model: of.embeddingModel(ownIds), value: texts[1], maxRetries: 0 })).embedding, plain[1]);
  });

  test(`${name}: dimensions`, async () => {
    const providerOptions = options({ dimensions: half[0].length });
    near((await embed({ model: of.embeddingModel(model), value: texts[0], maxRetries: 0, providerOptions })).embedding, half[0]);
  });

  test(`${name}: errors`, async () => {
    const asked = embed({ model: of.embeddingModel("no-such"), value: "a", maxRetries: 0 });
    await assert.rejects(asked, (e) => e.statusCode === 404 && /no-such/.test(e.message));
  });
}
