"""The exceptions of this package.

`LoadError` and its subclasses say why a model cannot be opened, `EmbedError` and its subclasses why an input has no vector. Those that a caller
may expect by a built-in name also have it as a base: a missing model is a `FileNotFoundError`, a text that is too long is a `ValueError`.
"""

from __future__ import annotations

from pathlib import Path


class EmbeddingServerError(Exception):
    """The base of all exceptions of this package."""

    def __init__(self, message: str = "", /, **attributes: object) -> None:
        super().__init__(message)
        self.__dict__.update(attributes)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class LoadError(EmbeddingServerError):
    """A model cannot be opened. The message names the file, what was found, what was expected, and what to do."""

    kind: str = "other"
    """The kind of the error in lower case, for example `"missing"` or `"lfs_pointer"`."""
    path: Path | None = None
    """The file or the directory that the error is about, if it is about one."""


class ModelNotFoundError(LoadError, FileNotFoundError):
    """The model, or a file, a tensor or a value that it must have, does not exist."""


class ModelFileError(LoadError, OSError):
    """A file of the model cannot be read."""


class MalformedModelError(LoadError, ValueError):
    """A file does not have the form that its format prescribes."""


class UnsupportedModelError(LoadError):
    """The file is valid, but its type of model, of numbers or of tokenizer is not supported."""


class MismatchedModelError(LoadError):
    """Two parts of the model do not belong together, such as the tokenizer and the table."""


class SettingError(LoadError, ValueError):
    """A setting does not apply to this model or to this build."""


class DamagedModelError(LoadError):
    """The table holds numbers that are not finite, or its file was changed while it was read."""


class DeviceError(LoadError):
    """The device cannot be used."""


class HubError(LoadError):
    """The model cannot be taken from the Hugging Face Hub. `kind` is for example `"not_found"`, `"unauthorized"` or `"offline"`."""


class ServerError(EmbeddingServerError):
    """`Server` could not start the server. The message ends with the last lines of the server's log."""


class EmbedError(EmbeddingServerError):
    """An input has no vector."""


class InputError(EmbedError, ValueError):
    """An input is not valid for this model."""

    input: int = 0
    """The index of the input among the inputs of the call."""


class TokenIdOutOfRangeError(InputError):
    """A token ID of the model's own vocabulary has no row."""

    position: int = 0
    id: int = 0


class NotCl100kError(InputError):
    """A token ID is not one of cl100k_base."""

    position: int = 0
    id: int = 0


class TokenIdsRejectedError(InputError):
    """The input is a list of token IDs, and the model was opened with `token_input="reject"`."""


class EmptyInputError(InputError):
    """The input has no tokens, and the model was opened with `empty_input="reject"`."""


class TooManyTokensError(InputError):
    """The input has more tokens than `max_input_tokens`. Inputs are never truncated."""

    tokens: int | None = None
    """The number of tokens, or `None` if not all of them were counted."""
    max: int = 0


class DimensionsError(EmbedError, ValueError):
    """`dimensions` is 0, or more than the table has."""

    requested: int = 0
    max: int = 0


class TokenizerError(InputError):
    """The tokenizer could not encode the text."""


class TableChangedError(EmbedError):
    """The table's file was changed while it was in use. No correct vector can be computed until the model is opened again."""

    path: Path | None = None


class VectorTooLargeError(InputError):
    """A number of the vector is too large for a 32-bit float."""


class VectorNotFiniteError(InputError):
    """A number of the vector is not finite."""


class StoppedError(EmbedError):
    """The work was stopped before it was finished."""


class DeviceFailedError(EmbedError):
    """The accelerator failed."""
