//! The errors of this crate.

use std::path::PathBuf;

pub use layer0_files::LoadError;
use layer0_tokenizers::yield_point::Stopped;

/// What happened to a table's file while it was mapped. The text continues a sentence that begins with the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The file is shorter than it was, or can no longer be read.
    #[error("was cut short while it was in use")]
    CutShort,
    /// The size or the modification time of the file has changed.
    #[error("was changed in place while it was in use")]
    Changed,
    /// A sum of rows is not finite, although every row was finite when the table was loaded.
    #[error("holds numbers that are not finite, which it did not when it was loaded")]
    NotFinite,
}

/// Why an input has no vector. `input` is its index among the inputs of one call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// The input contains a token ID of the model's own vocabulary that has no row.
    #[error("token ID {id} at position {position} of input {input} is not in this model's vocabulary of {rows} tokens")]
    TokenIdOutOfRange { input: usize, position: usize, id: u32, rows: usize },
    /// The input contains a token ID that cl100k_base does not have.
    #[error(
        "token ID {id} at position {position} of input {input} is not a cl100k_base token; \
         send text, or set token_input = \"model\" for this model if these are IDs of its own vocabulary"
    )]
    NotCl100k { input: usize, position: usize, id: u32 },
    /// The input is an array of token IDs, and the model is configured to accept only text.
    #[error(
        "input {input} is an array of token IDs, and this model accepts only text (token_input = \"reject\"); \
         with LangChain, set check_embedding_ctx_length=False"
    )]
    TokenIdsRejected { input: usize },
    /// The input has no tokens, and the model is configured to refuse empty inputs.
    #[error(
        "input {input} is empty or has no tokens; send a text with at least one token \
         (the setting empty_input = \"reject\" of this model refuses empty inputs)"
    )]
    Empty { input: usize },
    /// The input has more tokens than `max_input_tokens`. Inputs are never truncated.
    #[error(
        "this model's maximum input length is {max} tokens, and input {input} has {}; \
         please shorten it (the limit is the setting max_input_tokens of this model)",
        .tokens.map_or_else(|| "more".to_owned(), |tokens| tokens.to_string())
    )]
    TooManyTokens {
        input: usize,
        /// The number of tokens, or `None` if not all of them were counted.
        tokens: Option<usize>,
        max: usize,
    },
    /// `dimensions` is zero, or more than the table has.
    #[error("invalid value for 'dimensions' = {requested}: must be between 1 and {max}, the dimensions of this model")]
    Dimensions { requested: u64, max: usize },
    /// The tokenizer could not encode the text.
    #[error("input {input} could not be tokenized: {message}")]
    Tokenizer { input: usize, message: String },
    /// The table's file has changed since the model was loaded.
    #[error("the table of this model is damaged: {} {damage}", .path.display())]
    Damaged { path: PathBuf, damage: Damage },
    /// A number of the mean is too large for a 32-bit float, and the model does not scale its vectors to length 1.
    #[error("the vector of input {input} holds a number that is too large for a 32-bit float")]
    TooLarge { input: usize },
    /// A number of the mean is not finite, and the table is not a mapped file whose damage would explain it.
    #[error("the vector of input {input} holds a number that is not finite")]
    NotFinite { input: usize },
    /// The work was stopped before it was finished.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The accelerator failed.
    #[error("the device failed: {message}")]
    Device { message: String },
}
