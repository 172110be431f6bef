//! Text to token ids: the seam behind which the fastest exact tokenizer stands.
//!
//! The reference is the `tokenizers` library; [`choose`] takes another implementation where it gives the same ids.

mod added;
pub mod bounds;
mod bpe;
pub mod bytebpe;
pub mod choose;
#[cfg(feature = "fastokens")]
pub mod fastokens;
mod json;
mod long;
mod per_thread;
pub mod pieces;
mod probe;
pub mod reference;
pub mod spbpe;
pub mod unigram;
mod words;

use crate::yield_point::{Steps, Stopped};

/// A model's own tokenizer.
pub trait Tokenize: Send + Sync {
    /// Appends the ids of `text`. `special` adds what the tokenizer's own template adds (BOS, EOS).
    /// Nothing is truncated or padded.
    ///
    /// # Errors
    /// When the tokenizer has no id for a part of the text and no unknown token either.
    fn encode(&self, text: &str, special: bool, ids: &mut Vec<u32>) -> Result<(), String>;

    /// The same, where a text may take seconds: `steps` lets others have their turns.
    ///
    /// # Errors
    /// As [`Tokenize::encode`], and when `steps` ends the work.
    fn encode_in_steps(
        &self,
        text: &str,
        special: bool,
        ids: &mut Vec<u32>,
        _steps: &Steps<'_>,
    ) -> Result<(), EncodeError> {
        self.encode(text, special, ids).map_err(EncodeError::Failed)
    }

    /// Whether [`Tokenize::encode_in_steps`] takes steps.
    fn takes_steps(&self) -> bool {
        false
    }

    /// Which implementation this is, for people.
    fn name(&self) -> &'static str;
}

/// Why a text has no ids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// What a tokenizer.json says of its vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// Entries, added tokens included.
    pub size: usize,
    /// The highest id without added tokens.
    pub max_base_id: u32,
    /// The token that stands for what the vocabulary does not have.
    pub unknown: Option<u32>,
    /// Ids of added tokens, with their content and whether they are special; in order of the ids.
    pub added: Vec<AddedToken>,
}

impl Vocabulary {
    /// The highest id.
    pub fn max_id(&self) -> u64 {
        let last = self.added.last().map_or(0, |token| token.id);
        u64::from(last.max(self.max_base_id))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedToken {
    pub id: u32,
    pub content: String,
    pub special: bool,
}
