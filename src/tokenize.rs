//! Text to token ids: the seam behind which a faster tokenizer can stand.

use std::path::Path;

use crate::error::LoadError;

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

/// The reference: the `tokenizers` crate.
pub struct HfTokenizer(tokenizers::Tokenizer);

impl Tokenize for HfTokenizer {
    fn encode(&self, text: &str, special: bool, ids: &mut Vec<u32>) -> Result<(), String> {
        let encoding = self.0.encode_fast(text, special).map_err(|e| e.to_string())?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    fn name(&self) -> &'static str {
        "tokenizers"
    }
}

/// What a tokenizer.json says of its vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// Entries, added tokens included.
    pub size: usize,
    /// The highest id without added tokens.
    pub max_base_id: u32,
    /// Ids of added tokens, with their content and whether they are special; in order of the ids.
    pub added: Vec<AddedToken>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedToken {
    pub id: u32,
    pub content: String,
    pub special: bool,
}

impl HfTokenizer {
    /// Reads a tokenizer.json.
    ///
    /// # Errors
    /// When it is missing or no tokenizer.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let json = std::fs::read(path).map_err(|e| LoadError::io(path, &e))?;
        Self::from_json(&json, path)
    }

    /// As [`HfTokenizer::open`], from the file's content; `path` is for errors.
    ///
    /// # Errors
    /// When it is no tokenizer.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self, LoadError> {
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(json).map_err(|e| {
            LoadError::new(path, format!("is not a tokenizer: {e}"))
                .expected("a tokenizer.json of the tokenizers library")
        })?;
        // Training leaves these in the file; here they would cut texts short and pool padding.
        tokenizer
            .with_truncation(None)
            .map_err(|e| LoadError::new(path, format!("has a truncation that cannot be removed: {e}")))?;
        tokenizer.with_padding(None);
        Ok(Self(tokenizer))
    }

    /// A Unigram model's `(id, ln p)`, without added tokens, which carry no probability; `None` for other models.
    pub fn unigram_scores(&self) -> Option<Vec<(u32, f64)>> {
        let tokenizers::ModelWrapper::Unigram(model) = self.0.get_model() else { return None };
        let added = self.0.get_added_tokens_decoder();
        let scores = (0..).zip(model.iter()).map(|(id, (_, score))| (id, *score));
        Some(scores.filter(|(id, _)| !added.contains_key(id)).collect())
    }

    pub fn vocabulary(&self) -> Vocabulary {
        let mut added: Vec<AddedToken> = self
            .0
            .get_added_tokens_decoder()
            .into_iter()
            .map(|(id, token)| AddedToken { id, content: token.content, special: token.special })
            .collect();
        added.sort_by_key(|token| token.id);
        let base = self.0.get_vocab(false);
        Vocabulary { size: self.0.get_vocab_size(true), max_base_id: base.values().copied().max().unwrap_or(0), added }
    }
}
