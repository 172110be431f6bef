-- The candidates for a question in a Parquet file that `embedding-server embed --sparse` wrote, by DuckDB.
--
-- $passages is the file. $embedding is the question's vector of POST /v1/embeddings (with the file's dimensions); $indices and $values are its
-- sparse vector of POST /v1/sparse-embeddings with "input_type": "query". The 200 candidates are meant for POST /v1/rerank.
WITH query AS (
  SELECT unnest($indices::INTEGER[]) AS token, unnest($values::FLOAT[]) AS weight
),
tokens AS (
  SELECT id, unnest(sparse_embedding.indices) AS token, unnest(sparse_embedding.values) AS value FROM read_parquet($passages)
),
sparse AS (
  SELECT id, sum(weight * value) AS score FROM tokens JOIN query USING (token) GROUP BY id
),
dense AS (
  SELECT id, text, list_cosine_similarity(embedding, $embedding::FLOAT[]) AS score FROM read_parquet($passages)
)
SELECT dense.id, dense.text, 0.8 * coalesce(sparse.score, 0) + 0.2 * dense.score AS score
FROM dense LEFT JOIN sparse USING (id)
ORDER BY score DESC
LIMIT 200;
