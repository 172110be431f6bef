// Loads passages into PGlite (PostgreSQL and pgvector, compiled to WebAssembly) and asks the questions of a job, which is a JSON file. Prints the
// candidates of each question as JSON.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const require = createRequire(join(process.env.NODE_PACKAGES, 'package.json'));
const load = async (name) => import(pathToFileURL(require.resolve(name)).href);
const { PGlite } = await load('@electric-sql/pglite');
const { vector } = await load('@electric-sql/pglite-pgvector');

const job = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const db = await PGlite.create({ extensions: { vector } });
await db.exec(`
  CREATE EXTENSION vector;
  CREATE TABLE passages (id bigint PRIMARY KEY, text text NOT NULL, embedding vector(${job.dimensions}) NOT NULL, sparse sparsevec(${job.tokens}) NOT NULL);
`);
await db.query("COPY passages FROM '/dev/blob' WITH (FORMAT csv, HEADER)", [], { blob: new Blob([readFileSync(job.rows)]) });
// On a server, both columns get an HNSW index. Here a part of the passages shows that the operator classes fit; building an index of all takes long in
// WebAssembly.
await db.exec(`
  CREATE TABLE few AS SELECT * FROM passages WHERE id < 500;
  CREATE INDEX ON few USING hnsw (embedding vector_cosine_ops);
  CREATE INDEX ON few USING hnsw (sparse sparsevec_ip_ops);
`);
const candidates = [];
const milliseconds = [];
for (const { dense, sparse } of job.questions) {
  const start = performance.now();
  const found = await db.query(job.query, [dense, sparse]);
  milliseconds.push(Math.round(performance.now() - start));
  candidates.push(found.rows.map((row) => row.text));
}
const [{ count }] = (await db.query('SELECT count(*)::int AS count FROM passages')).rows;
const versions = (await db.query("SELECT version() AS postgresql, extversion AS pgvector FROM pg_extension WHERE extname = 'vector'")).rows[0];
console.log(JSON.stringify({ rows: count, versions, milliseconds, candidates }));
