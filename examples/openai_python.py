"""Uses the official SDK with nothing changed but the address, and prints the cosine similarity of each text with the first one.

Install the SDK with `pip install openai`. BASE_URL defaults to http://localhost:5000/v1.
"""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("BASE_URL", "http://localhost:5000/v1"), api_key="unused")
texts = ["The cat sleeps on the sofa.", "Le chat dort sur le canapé.", "Interest rates rose again."]
vectors = [item.embedding for item in client.embeddings.create(model="text-embedding-3-small", input=texts).data]
for text, vector in zip(texts, vectors):
    cosine = sum(a * b for a, b in zip(vectors[0], vector))
    print(f"{cosine:6.3f}  {text}")
