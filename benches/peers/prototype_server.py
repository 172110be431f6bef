"""The Flask server from which this project began, rewritten from its description: transformers, one text per request.

    python prototype_server.py CHECKPOINT PORT

It uses AutoTokenizer with special tokens and AutoModel without layers. A response holds the mean of last_hidden_state as floats, not
scaled to length 1.
"""

import sys

import torch
from flask import Flask, jsonify, request
from transformers import AutoModel, AutoTokenizer

app = Flask(__name__)
models = {}


@app.route("/v1/embeddings", methods=["POST"])
def embedding():
    data = request.get_json()
    text = data.get("input", "")
    if not text:
        return jsonify({"error": "No input text provided"}), 400
    name = data.get("model", "text-embedding-3-small")
    tokenizer, model = models[name]
    tokens = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        vector = model(**tokens).last_hidden_state.mean(dim=1).squeeze().tolist()
    count = tokens["input_ids"].shape[1]
    return jsonify(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": vector}],
            "model": name,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }
    )


if __name__ == "__main__":
    path, port = sys.argv[1:]
    models["text-embedding-3-small"] = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path)
    app.run(host="127.0.0.1", port=int(port))
