// Tests @langchain/openai. test_node.py runs this file.
import assert from "node:assert/strict";
import { test } from "node:test";
import { near, packages, served } from "./served.mjs";

const { OpenAIEmbeddings } = packages("@langchain/openai");
const { model, ownIds, plain, half, texts } = served;
const make = (fields) => new OpenAIEmbeddings({ model, maxRetries: 0, ...fields });

test("documents, more than a batch, in order", async () => {
  const documents = [...Array.from({ length: 1200 }, (_, i) => `text ${i}`), ...texts];
  const vectors = await make({}).embedDocuments(documents);
  assert.equal(vectors.length, documents.length);
  texts.forEach((_, i) => near(vectors[1200 + i], plain[i]));
});

test("a query, an id with a slash", async () => near(await make({ model: ownIds }).embedQuery(texts[0]), plain[0]));

test("dimensions", async () => near(await make({ dimensions: half[0].length }).embedQuery(texts[0]), half[0]));

test("errors", async () => {
  await assert.rejects(make({ model: "no-such" }).embedQuery("a"), (e) => e.status === 404 && /no-such/.test(e.message));
  await assert.rejects(make({ dimensions: 1e6 }).embedQuery("a"), (e) => e.status === 400 && e.param === "dimensions");
});
