//! The errors of loading a tokenizer, and of loading one implementation of it.

/// Why a tokenizer.json cannot be used. The message continues a sentence whose subject is the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file is not a tokenizer.json of the `tokenizers` library.
    #[error("{0}")]
    Malformed(String),
    /// The tokenizer could ask for more memory or work than the length of a text explains.
    #[error("{0}")]
    Excessive(String),
    /// The tokenizer panics on every text, because its template names special tokens that it does not define.
    #[error("has a tokenizer that panics on every text")]
    Panics,
    /// The `tokenizers` library could not change or write the tokenizer.
    #[error("{0}")]
    Unusable(String),
}

/// Why an implementation of this crate does not read a tokenizer.json, which another implementation may still read.
#[doc(hidden)]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DefinitionError {
    kind: DefinitionErrorKind,
    message: String,
}

/// The kinds of [`DefinitionError`].
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DefinitionErrorKind {
    /// The file does not have the form of a tokenizer.json with this type of model, or contradicts itself.
    Malformed,
    /// The file is valid, but the implementation does not reproduce a part of it.
    Unsupported,
    /// A number in the file exceeds a limit of the implementation, or there is no memory for its tables.
    TooLarge,
}

impl DefinitionError {
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self { kind: DefinitionErrorKind::Malformed, message: message.into() }
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self { kind: DefinitionErrorKind::Unsupported, message: message.into() }
    }

    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self { kind: DefinitionErrorKind::TooLarge, message: message.into() }
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> DefinitionErrorKind {
        self.kind
    }
}
