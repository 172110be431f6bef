"""Retrieval for a question about this project, over its own documentation: pip install langchain-openai.

    examples/langchain_rag.py "How is a GGUF file served?"

The passages are kept in this process and found by their vectors; what is printed is the prompt for a chat model of your
choice. BASE_URL defaults to http://localhost:5000/v1.
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
    """The paragraphs of the Markdown files, each under its heading."""
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]:
        for section in re.split(r"^(?=#+ )", path.read_text(), flags=re.MULTILINE):
            heading, *paragraphs = section.strip().split("\n\n")
            for paragraph in paragraphs:
                yield Document(f"{heading}\n{paragraph}", metadata={"file": path.name})


question = " ".join(sys.argv[1:]) or "How is a GGUF file served?"
# Text is sent as it is; left to itself, LangChain sends OpenAI's token ids, which work as well.
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
