#!/usr/bin/env bash
# Calls the API of a running server with curl. BASE_URL defaults to http://localhost:5000/v1.
set -euo pipefail
base=${BASE_URL:-http://localhost:5000/v1}
post() { curl -fsS -X POST -H "Content-Type: application/json" -d "$1" "$base/embeddings" | cut -c 1-160; }

post '{"input": "hello", "model": "text-embedding-3-small"}'
post '{"input": ["hello", "안녕하세요", "bonjour"], "dimensions": 8}'
post '{"input": "hello", "encoding_format": "base64"}'
post '{"input": [[15339, 1917]]}'
curl -fsS "$base/models"; echo
