"""Answers a question about this project by retrieval from its own documentation. Needs
`pip install langchain-openai langchain-cohere`.

    python examples/langchain_rag.py "How is a GGUF file served?"

The program keeps the passages in memory, finds candidates by their vectors, ranks them by POST /v2/rerank, and prints the prompt for a chat
model of your choice. BASE_URL defaults to http://localhost:5000/v1.
"""

import os
import re
import sys
from pathlib import Path

from langchain_cohere import CohereRerank
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import OpenAIEmbeddings

BASE_URL = os.environ.get("BASE_URL", "http://localhost:5000/v1")
ROOT = Path(__file__).resolve().parent.parent
PROMPT = ChatPromptTemplate.from_template("Answer from these passages alone.\n\n{passages}\n\nQuestion: {question}")


def passages():
    """Yields the paragraphs of the Markdown files, each with the heading of its section."""
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]:
        for section in re.split(r"^(?=#+ )", path.read_text(), flags=re.MULTILINE):
            heading, *paragraphs = section.strip().split("\n\n")
            for paragraph in paragraphs:
                yield Document(f"{heading}\n{paragraph}", metadata={"file": path.name})


question = " ".join(sys.argv[1:]) or "How is a GGUF file served?"
# With this setting LangChain sends text. By default it sends token IDs of OpenAI's vocabulary, which work as well.
embeddings = OpenAIEmbeddings(
    model="text-embedding-3-small",
    base_url=BASE_URL,
    api_key="unused",
    check_embedding_ctx_length=False,
)
store = InMemoryVectorStore.from_documents(list(passages()), embeddings)
# Cohere's client adds the path, with its version.
reranker = CohereRerank(
    base_url=BASE_URL.removesuffix("/v1"), cohere_api_key="unused", model="text-embedding-3-small", top_n=3
)
found = reranker.compress_documents(store.similarity_search(question, k=50), question)
for document in found:
    score = document.metadata["relevance_score"]
    print(f"{score:6.3f}  {document.metadata['file']}: {document.page_content.splitlines()[0]}")
joined = "\n\n".join(document.page_content for document in found)
print("\n" + PROMPT.invoke({"passages": joined, "question": question}).to_string())
