//! Text to token ids: the seam behind which the fastest exact tokenizer stands.
//!
//! The reference is the `tokenizers` library; [`choose`] takes another implementation where it gives the same ids.

mod added;
mod bpe;
pub mod bytebpe;
pub mod choose;
#[cfg(feature = "fastokens")]
pub mod fastokens;
mod json;
mod per_thread;
pub mod pieces;
mod probe;
pub mod reference;
pub mod spbpe;
pub mod unigram;
mod words;

/// A model's own tokenizer.
pub trait Tokenize: Send + Sync {
    /// Appends the ids of `text`. `special` adds what the tokenizer's own template adds (BOS, EOS).
    /// Nothing is truncated or padded.
    ///
    /// # Errors
    /// When the tokenizer has no id for a part of the text and no unknown token either.
    fn encode(&self, text: &str, special: bool, ids: &mut Vec<u32>) -> Result<(), String>;

    /// Which implementation this is, for people.
    fn name(&self) -> &'static str;
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedToken {
    pub id: u32,
    pub content: String,
    pub special: bool,
}
