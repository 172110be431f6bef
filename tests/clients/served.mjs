// Exports the facts that test_node.py passes about the server, and a `require` for the packages in NODE_PACKAGES.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

export const packages = createRequire(process.env.NODE_PACKAGES + "/");
export const served = JSON.parse(process.env.SERVED);
export const near = (a, b) => {
  assert.equal(a.length, b.length);
  assert.ok(Array.from(a).every((x, i) => Math.abs(x - b[i]) < 1e-6));
};
