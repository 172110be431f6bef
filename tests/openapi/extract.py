"""Extracts what OpenAI's published API description says about embeddings and models, without prose, to openai.json. tests/it/openapi.rs
compares it with the server's own description. MIT license, Copyright (c) OpenAI.

    git clone https://github.com/openai/openai-openapi && git -C openai-openapi checkout COMMIT
    python extract.py openai-openapi > openai.json
"""

import json
import subprocess
import sys
from pathlib import Path

PATHS = ["/embeddings", "/models", "/models/{model}"]
SCHEMAS = [
    "CreateEmbeddingRequest",
    "CreateEmbeddingResponse",
    "Embedding",
    "Error",
    "ErrorResponse",
    "ListModelsResponse",
    "Model",
]
PROSE = {"description", "example", "examples", "summary", "title", "tags"}


def bare(value, names=False):
    """Returns the description without prose and vendor extensions. If `names`, the keys are names and all are kept."""
    if isinstance(value, list):
        return [bare(item) for item in value]
    if not isinstance(value, dict):
        return value
    keep = {k: v for k, v in value.items() if names or (k not in PROSE and not k.startswith("x-"))}
    return {k: bare(v, names=k == "properties" and not names) for k, v in keep.items()}


source = Path(sys.argv[1])
commit = subprocess.check_output(["git", "-C", source, "rev-parse", "HEAD"], text=True).strip()
api = json.loads(subprocess.check_output(["git", "-C", source, "show", f"{commit}:openapi.json"]))
operations = {
    path: {
        method: {k: v for k, v in bare(operation).items() if k in ("operationId", "requestBody")}
        | {"responses": bare({"200": operation["responses"]["200"]})}
        for method, operation in api["paths"][path].items()
        if method in ("get", "post")
    }
    for path in PATHS
}
json.dump(
    {
        "source": f"https://github.com/openai/openai-openapi at {commit}, MIT license, Copyright (c) OpenAI",
        "paths": operations,
        "components": {"schemas": {name: bare(api["components"]["schemas"][name]) for name in SCHEMAS}},
    },
    sys.stdout,
    indent=1,
    sort_keys=True,
)
print()
