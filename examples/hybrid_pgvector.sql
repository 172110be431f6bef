-- The candidates for a question by PostgreSQL with pgvector 0.7 or later, dense and sparse in one query.
--
-- $1 is the question's vector of POST /v1/embeddings, such as '[0.1,0.2]'. $2 is its sparse vector of POST /v1/sparse-embeddings with
-- "input_type": "query", such as '{8:0.006,7848:0.043}/92000'. pgvector counts indices from 1, so each is the token ID plus 1, and the number
-- after the slash is that of the model's tokens. The candidates, up to 200, are meant for POST
-- /v1/rerank, which improves their order most across languages.
WITH candidates AS (
  (SELECT id FROM passages ORDER BY embedding <=> $1::vector LIMIT 100)
  UNION
  (SELECT id FROM passages ORDER BY sparse <#> $2::sparsevec LIMIT 100)
),
scored AS (
  -- <#> is the negative inner product, and <=> is 1 minus the cosine.
  SELECT id, text, -(sparse <#> $2::sparsevec) AS sparse, 1 - (embedding <=> $1::vector) AS dense
  FROM passages JOIN candidates USING (id)
)
SELECT id, text, 0.8 * sparse + 0.2 * dense AS score
FROM scored
ORDER BY score DESC
LIMIT 200;
