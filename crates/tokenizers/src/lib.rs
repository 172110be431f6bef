//! Tokenizers of language models that return exactly the token IDs of Hugging Face's `tokenizers` library, many times as
//! fast.
//!
//! [`choose`] loads a tokenizer.json. It replaces the library's own implementation ([`mod@reference`]) by a faster one of this
//! crate if that returns the same IDs on texts that are hard for tokenizers: SentencePiece's byte-pair encoding
//! (`spbpe`), byte-level byte-pair encoding (`bytebpe`) or Unigram (`unigram`).

// These macros panic if their stream is closed or full.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![deny(missing_docs, missing_debug_implementations)]

/// Runs the examples of the README as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;

mod added;
#[doc(hidden)]
pub mod bounds;
mod bpe;
#[doc(hidden)]
pub mod bytebpe;
pub mod choose;
#[doc(hidden)]
pub mod compiled;
mod error;
mod json;
#[doc(hidden)]
pub mod large_pages;
mod long;
mod panics;
mod per_thread;
#[doc(hidden)]
pub mod pieces;
#[doc(hidden)]
pub mod prefetch;
mod probe;
pub mod reference;
#[doc(hidden)]
pub mod spbpe;
#[doc(hidden)]
pub mod unigram;
mod words;
pub mod yield_point;

use std::fmt;

pub use error::{DefinitionError, DefinitionErrorKind, TokenizerError};
use yield_point::{Steps, Stopped};

/// A model's own tokenizer.
pub trait Tokenize: Send + Sync {
    /// Appends the token IDs of `text`. With `special`, the special tokens of the tokenizer's template (BOS, EOS) are added.
    /// Nothing is truncated or padded.
    ///
    /// # Errors
    /// When the tokenizer has neither a token for a part of the text nor an unknown token.
    fn encode(&self, text: &str, special: bool, ids: &mut Vec<u32>) -> Result<(), EncodeError> {
        self.encode_in_steps(text, special, ids, &Steps::unlimited())
    }

    /// Like [`Tokenize::encode`], for texts that may take seconds: `steps` is called regularly, so that other work can run in
    /// between or the work can be stopped.
    ///
    /// # Errors
    /// As for [`Tokenize::encode`], and when `steps` stops the work.
    fn encode_in_steps(
        &self,
        text: &str,
        special: bool,
        ids: &mut Vec<u32>,
        steps: &Steps<'_>,
    ) -> Result<(), EncodeError>;

    /// Returns whether [`Tokenize::encode_in_steps`] calls `steps` while it works, and not only at the end.
    fn takes_steps(&self) -> bool {
        false
    }

    /// Writes the tables of the implementation, so that it can be opened again without building them. Returns false if it cannot be
    /// compiled.
    #[doc(hidden)]
    fn write_tables(&self, _to: &mut compiled::Writer) -> bool {
        false
    }

    /// Returns the name of the implementation, for logs and `inspect`.
    fn name(&self) -> &'static str;
}

/// Shows the name of the implementation.
impl fmt::Debug for dyn Tokenize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The reason why a text could not be tokenized.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The tokenizer has neither a token for a part of the text nor an unknown token.
    #[error("{0}")]
    Failed(String),
    /// The work was stopped.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// The facts about the vocabulary that a tokenizer.json states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// The number of entries, including added tokens.
    pub size: usize,
    /// The highest ID among the entries that are not added tokens.
    pub max_base_id: u32,
    /// The ID of the unknown token, if there is one.
    pub unknown: Option<u32>,
    /// The added tokens, in the order of their IDs.
    pub added: Vec<AddedToken>,
}

impl Vocabulary {
    /// Returns the highest token ID.
    pub fn max_id(&self) -> u64 {
        let last = self.added.last().map_or(0, |token| token.id);
        u64::from(last.max(self.max_base_id))
    }
}

/// A token that is matched in the text as it is, before the text is split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedToken {
    /// The token's ID.
    pub id: u32,
    /// The text of the token.
    pub content: String,
    /// Whether the token is a control token such as BOS, and not text.
    pub special: bool,
}
