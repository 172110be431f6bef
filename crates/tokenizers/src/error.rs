//! The errors of loading a tokenizer.

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
