"""The class `Embedder`: texts to vectors, in this process."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Union, overload

import numpy as np
import numpy.typing as npt

from . import _native

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_native.before_fork, after_in_parent=_native.after_fork, after_in_child=_native.after_fork)

Input = Union[str, Sequence[int]]
"""A text, or a list of token IDs with the meaning that `token_input` gives them."""

Floats = npt.NDArray[np.float32]
Method = Literal["combined", "soft", "lexical", "cosine"]


class Tokens(NamedTuple):
    """The tokens of a text over which the model takes the mean."""

    ids: list[int]
    """The IDs, in the order of the text."""
    pieces: list[str]
    """The text that each token stands for."""


@dataclass(frozen=True)
class RankedDocument:
    """A document with its relevance to a query."""

    index: int
    """The position of the document among the documents of the call."""
    score: float
    """The relevance, between 0 and 1. Scores of different calls cannot be compared."""
    text: str
    """The document."""
    span: tuple[int, int] | None
    """The start and the end of the part that matches best, as positions in `text`, if spans were asked for."""


class SparseVector(NamedTuple):
    """A sparse vector. The indices are token IDs in ascending order."""

    indices: npt.NDArray[np.uint32]
    """The token IDs, `[n]`."""
    values: Floats
    """The number of each token, `[n]`. No number is 0."""


class Embedder:
    """A loaded model that turns texts into vectors.

    The vectors are those that the server returns for the same model and settings, bit for bit. All methods release the global interpreter lock
    and use all cores. An embedder can be shared by threads, survives a fork, and is pickled as its path and its settings.

    >>> embedder = Embedder()
    >>> embedder
    Embedder('builtin:default', dimensions=384)
    >>> embedder.encode("a dog").shape
    (384,)
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        dimensions: int | None = None,
        normalize: bool | None = None,
        special_tokens: bool | None = None,
        token_input: Literal["cl100k_base", "model", "reject"] | None = None,
        empty_input: Literal["unit_vector", "reject"] | None = None,
        max_input_tokens: int | None = None,
        expect_fingerprint: str | None = None,
        device: str | None = None,
        device_min_tokens: int | None = None,
        memory: Literal["map", "copy"] | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | None = None,
        norm: Literal["rms", "rms_plus_one", "layer", "layer_plus_one", "none"] | None = None,
        norm_eps: float | None = None,
        embedding_scale: float | None = None,
        token_count_exponent: float | None = None,
        lexical_dimensions: int | None = None,
        lexical_weight: float | None = None,
        embedding_tensor: str | None = None,
        norm_tensor: str | None = None,
        threads: int | None = None,
        load_threads: int | None = None,
    ) -> None:
        """Opens a model.

        Args:
            path: A directory, a GGUF file, or the ID of a model on the Hugging Face Hub ("org/name" or "org/name@revision"). A path that exists is
                never read as an ID. The default is the built-in model.
            dimensions: The length of vectors: a prefix of the mean, scaled to length 1 again. The default is all dimensions of the table.
            normalize: Whether vectors are scaled to length 1. The default follows the model, which is `True` for LLMs.
            special_tokens: Whether the special tokens that the tokenizer adds, such as BOS, take part in the mean. The default follows the model,
                which is `True` for LLMs.
            token_input: The meaning of lists of token IDs: IDs of cl100k_base (the default), of the model's own vocabulary, or an error.
            empty_input: The vector of a text without tokens: the first unit vector (the default), or an error.
            max_input_tokens: The largest number of tokens of an input. A longer input is an error. There is no limit by default.
            expect_fingerprint: The fingerprint that the model must have. A model with another one, whose vectors cannot be compared with those of
                your index, is a `MismatchedModelError`.
            device: "cpu" (the default), "auto", or in builds with that feature "cuda", "cuda:N" or "metal".
            device_min_tokens: The number of tokens from which a batch runs on the device. By default it is measured.
            memory: "map" (the default) reads the table from its file, which must not be changed in place. "copy" reads it into memory.
            tokenizer: A tokenizer.json that replaces the model's own.
            config: A config.json that replaces the model's own.
            norm: The kind of the final norm, for an unknown type of model.
            norm_eps: The epsilon of the final norm.
            embedding_scale: The factor of the embeddings before the norm.
            token_count_exponent: The exponent of token counts, from 0 to 1: a token that occurs n times in a text weighs n to this power in the mean.
                The default follows the model, which is 1 for LLMs.
            lexical_dimensions: The number of columns of the lexical tail, in which texts are similar only if they have tokens in common.
            lexical_weight: The length of a token's lexical tail, as a multiple of the length of the token's vector, from 0 to 10.
            embedding_tensor: The name of the tensor that holds the embedding table.
            norm_tensor: The name of the tensor that holds the weight of the final norm.
            threads: The largest number of threads of a call. The default is the number of cores. Use 1 in processes that run side by side.
            load_threads: The number of threads that read the table while the model is opened. The default is the number of cores.

        Raises:
            LoadError: The model cannot be opened. `embedding_server.errors` has a subclass for each kind of reason.
            ValueError: A setting does not have one of its values.
        """
        settings: dict[str, object] = {key: value for key, value in locals().items() if key not in ("self", "path") and value is not None}
        self._open(None if path is None else os.fspath(path), settings)

    def _open(self, path: str | None, settings: dict[str, Any]) -> None:
        self._path, self._settings = path, settings
        self._native = _native.NativeEmbedder(path, settings)
        for warning in self._native.warnings:
            warnings.warn(warning, stacklevel=3)

    @property
    def path(self) -> str:
        """The path or the ID from which the model was opened, or `"builtin:default"`."""
        return "builtin:default" if self._path is None else self._path

    @property
    def dimensions(self) -> int:
        """The length of vectors, if a call does not ask for another one."""
        return self._native.dimensions

    @property
    def max_dimensions(self) -> int:
        """The number of dimensions of the table, which is the largest number that a call can ask for."""
        return self._native.max_dimensions

    @property
    def vocabulary_size(self) -> int:
        """The number of rows of the table, which is the length of sparse vectors if they are written out."""
        return self._native.vocabulary_size

    @property
    def fingerprint(self) -> str:
        """The name of the space in which the vectors lie: 32 hexadecimal digits, as the server and the command `inspect` print them.

        Vectors of the same length can be compared if their models have the same fingerprint. Keep it beside an index.
        """
        return self._native.fingerprint

    @property
    def device(self) -> str:
        """The name of the device that computes the means."""
        return self._native.device

    def encode(self, texts: str | Iterable[Input], *, dimensions: int | None = None) -> Floats:
        """Returns the vectors of texts.

        Args:
            texts: A text, or texts and lists of token IDs.
            dimensions: The length of the vectors. The default is `self.dimensions`.

        Returns:
            An array of float32 with the shape `[texts, dimensions]`, or `[dimensions]` if `texts` is a single `str`.

        Raises:
            InputError: A text is not valid for this model. `input` is its index.
            DimensionsError: `dimensions` is 0 or more than `self.max_dimensions`.
            TypeError: An item is neither a `str` nor a list of token IDs.
        """
        if isinstance(texts, str):
            vector: Floats = self._matrix(self._native.encode((texts,), dimensions), 1)[0]
            return vector
        inputs = _inputs(texts)
        return self._matrix(self._native.encode(inputs, dimensions), len(inputs), dimensions or self.dimensions)

    def similarity(self, queries: str | Iterable[Input], texts: str | Iterable[Input] | None = None, *, dimensions: int | None = None) -> Floats:
        """Returns the cosine similarity of each query with each text, or of all queries with each other.

        Returns:
            An array of float32 with the shape `[queries, texts]`. A single `str` counts as a list of one.

        Raises:
            InputError: A text is not valid for this model.
            DimensionsError: `dimensions` is 0 or more than `self.max_dimensions`.
        """
        left = _inputs(queries)
        right = left if texts is None else _inputs(texts)
        return self._matrix(self._native.similarity(left, right, dimensions), len(left), len(right))

    @overload
    def tokenize(self, texts: str) -> Tokens: ...  # type: ignore[overload-overlap]
    @overload
    def tokenize(self, texts: Iterable[Input]) -> list[Tokens]: ...
    def tokenize(self, texts: str | Iterable[Input]) -> Tokens | list[Tokens]:
        """Returns the tokens over which the model takes the mean. They include its special tokens, and leave out tokens without a row.

        Returns:
            `Tokens` for a single `str`, or else a list with one entry for each text.

        Raises:
            InputError: A text is not valid for this model.
        """
        found = [Tokens(ids, pieces) for ids, pieces in self._native.tokenize(_inputs(texts))]
        return found[0] if isinstance(texts, str) else found

    def rerank(
        self, query: str, documents: Iterable[str], *, top_n: int | None = None, method: Method = "combined", spans: bool = False
    ) -> list[RankedDocument]:
        """Orders documents by their relevance to a query, like the server's `/v1/rerank`.

        Args:
            query: The question or the keywords.
            documents: The candidates, for example 50 or more results of a search by vectors.
            top_n: The number of documents to return. The default is all.
            method: "combined" compares tokens, words and vectors, "soft" tokens and vectors, "lexical" words, and "cosine" vectors.
            spans: Whether to find the part of each document that matches best.

        Returns:
            The documents, the most relevant first.

        Raises:
            InputError: A text is not valid for this model. The query has the index 0, and the first document the index 1.
            ValueError: The method is unknown.
        """
        texts = list(documents)
        found = self._native.rerank(query, texts, top_n, method, spans)
        return [RankedDocument(index, score, texts[index], span) for index, score, span in found]

    @overload
    def sparse(self, texts: str, *, kind: Literal["document", "query"] = ..., expand: int | None = ...) -> SparseVector: ...  # type: ignore[overload-overlap]
    @overload
    def sparse(self, texts: Iterable[Input], *, kind: Literal["document", "query"] = ..., expand: int | None = ...) -> list[SparseVector]: ...
    def sparse(
        self, texts: str | Iterable[Input], *, kind: Literal["document", "query"] = "document", expand: int | None = None
    ) -> SparseVector | list[SparseVector]:
        """Returns sparse vectors for stores with inverted indexes, like the server's `/v1/sparse-embeddings`.

        The dot product of a query's vector with a document's ranks documents by exact and similar tokens.

        Args:
            texts: A text, or texts and lists of token IDs.
            kind: Whether the texts are documents or queries.
            expand: For queries, the number of similar tokens that are added for each token, at most 64. The default is 16.

        Returns:
            A `SparseVector` for a single `str`, or else a list with one entry for each text.

        Raises:
            InputError: A text is not valid for this model.
            ValueError: `kind` is unknown, or `expand` is too large.
        """
        if kind not in ("document", "query"):
            raise ValueError(f'kind = {kind!r} is unknown: expected "document" or "query"')
        found = [
            SparseVector(np.frombuffer(indices, dtype=np.uint32), np.frombuffer(values, dtype=np.float32))
            for indices, values in self._native.sparse(_inputs(texts), kind == "query", expand)
        ]
        return found[0] if isinstance(texts, str) else found

    def embed_documents(self, texts: Iterable[str]) -> list[list[float]]:
        """Returns the vectors of texts as lists, as LangChain asks for them."""
        vectors: list[list[float]] = self.encode(list(texts)).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Returns the vector of a text as a list, as LangChain asks for it."""
        vector: list[float] = self.encode(text).tolist()
        return vector

    async def aembed_documents(self, texts: Iterable[str]) -> list[list[float]]:
        """As `embed_documents`, on another thread."""
        import asyncio

        return await asyncio.to_thread(self.embed_documents, list(texts))

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`, on another thread."""
        import asyncio

        return await asyncio.to_thread(self.embed_query, text)

    def _matrix(self, numbers: bytearray, rows: int, columns: int = -1) -> Floats:
        return np.frombuffer(numbers, dtype=np.float32).reshape(rows, columns)

    def __repr__(self) -> str:
        settings = {"dimensions": self.dimensions, **self._settings}
        return f"Embedder({self.path!r}, {', '.join(f'{key}={value!r}' for key, value in settings.items())})"

    def __getstate__(self) -> tuple[str | None, dict[str, object]]:
        # The process that unpickles may have another working directory. An ID on the Hub is no path that exists.
        def absolute(value: object) -> object:
            return os.path.abspath(value) if isinstance(value, (str, os.PathLike)) and os.path.exists(value) else value

        files = {key: absolute(value) if key in ("tokenizer", "config") else value for key, value in self._settings.items()}
        path = absolute(self._path)
        return (path if isinstance(path, str) else None), files

    def __setstate__(self, state: tuple[str | None, dict[str, object]]) -> None:
        self._open(*state)

    def __copy__(self) -> Embedder:
        return self

    def __deepcopy__(self, memo: object) -> Embedder:
        # An embedder does not change, and its table may be large.
        return self


def _inputs(texts: str | Iterable[Input]) -> Sequence[Input]:
    """Returns a list or a tuple of the texts. A single text is a list of one."""
    if isinstance(texts, str):
        return (texts,)
    return texts if isinstance(texts, (list, tuple)) else list(texts)
