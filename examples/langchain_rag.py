"""Answers a question about this project by retrieval from its own documentation. Needs `pip install langchain-openai`.

    python examples/langchain_rag.py "How is a GGUF file served?"

The program keeps the passages in memory, finds the best ones by their vectors, and prints the prompt for a chat model of your
choice. BASE_URL defaults to http://localhost:5000/v1. For better retrieval, combine the vectors with BM25: see "For RAG" in README.md.
"""

import os
import re
import sys
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import OpenAIEmbeddings

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
    base_url=os.environ.get("BASE_URL", "http://localhost:5000/v1"),
    api_key="unused",
    check_embedding_ctx_length=False,
)
store = InMemoryVectorStore.from_documents(list(passages()), embeddings)
found = store.similarity_search_with_score(question, k=3)
for document, score in found:
    print(f"{score:6.3f}  {document.metadata['file']}: {document.page_content.splitlines()[0]}")
joined = "\n\n".join(document.page_content for document, _ in found)
print("\n" + PROMPT.invoke({"passages": joined, "question": question}).to_string())
