//! The reference implementation: Hugging Face's `tokenizers` library.

use std::fmt;

use tokenizers::ModelWrapper;

use super::panics;
use super::pieces::{Pieces, Spelling};
use super::{AddedToken, EncodeError, Tokenize, Vocabulary};
use crate::TokenizerError;
use crate::yield_point::Steps;

/// The tokenizer of the `tokenizers` library.
pub struct HfTokenizer(tokenizers::Tokenizer);

/// Shows the size of the vocabulary.
impl fmt::Debug for HfTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HfTokenizer").field("tokens", &self.0.get_vocab_size(true)).finish_non_exhaustive()
    }
}

impl Tokenize for HfTokenizer {
    fn encode_in_steps(
        &self,
        text: &str,
        special: bool,
        ids: &mut Vec<u32>,
        _steps: &Steps<'_>,
    ) -> Result<(), EncodeError> {
        let encoding = self.0.encode_fast(text, special).map_err(|e| EncodeError::Failed(e.to_string()))?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    fn name(&self) -> &'static str {
        Self::NAME
    }
}

impl From<tokenizers::Tokenizer> for HfTokenizer {
    fn from(tokenizer: tokenizers::Tokenizer) -> Self {
        Self(tokenizer)
    }
}

impl HfTokenizer {
    /// The name of the implementation, for logs.
    pub const NAME: &str = "tokenizers";

    /// Creates the tokenizer from the content of a tokenizer.json.
    ///
    /// # Errors
    /// When `json` is not a tokenizer.json, or the tokenizer cannot be used.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|e| TokenizerError::Malformed(format!("is not a tokenizer: {e}")))?;
        // Training leaves truncation and padding in the file. Here they would cut texts short and pool padding tokens.
        tokenizer
            .with_truncation(None)
            .map_err(|e| TokenizerError::Unusable(format!("has a truncation that cannot be removed: {e}")))?;
        tokenizer.with_padding(None);
        let this = Self(tokenizer);
        // The library does not check the names in a template, and panics on an unknown one.
        panics::catch(|| this.encode("a", true, &mut Vec::new())).map_err(|_| TokenizerError::Panics)?.ok();
        Ok(this)
    }

    /// Returns the tokenizer as the content of a tokenizer.json.
    ///
    /// # Errors
    /// When the library cannot serialize the tokenizer.
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        self.0
            .to_string(false)
            .map_err(|e| TokenizerError::Unusable(format!("cannot be written as a tokenizer.json: {e}")))
    }

    /// Returns the log probability of each token of a Unigram model, as pairs `(id, ln p)`. Added tokens have no probability and
    /// are left out. Returns `None` for other models.
    pub fn unigram_scores(&self) -> Option<Vec<(u32, f64)>> {
        let ModelWrapper::Unigram(model) = self.0.get_model() else { return None };
        let added = self.0.get_added_tokens_decoder();
        let scores = (0..).zip(model.iter()).map(|(id, (_, score))| (id, *score));
        Some(scores.filter(|(id, _)| !added.contains_key(id)).collect())
    }

    fn unknown(&self) -> Option<u32> {
        let token = match self.0.get_model() {
            ModelWrapper::BPE(bpe) => bpe.get_unk_token().as_deref()?,
            ModelWrapper::WordPiece(model) => &model.unk_token,
            ModelWrapper::WordLevel(model) => &model.unk_token,
            // The library does not offer the scores, so they are read from the model's JSON.
            ModelWrapper::Unigram(model) => {
                return serde_json::to_value(model).ok()?.get("unk_id")?.as_u64()?.try_into().ok();
            }
        };
        self.0.token_to_id(token)
    }

    /// Returns the text that each token stands for.
    pub fn pieces(&self) -> Pieces {
        let written = |part: serde_json::Result<String>| part.unwrap_or_default();
        let parts = [
            written(serde_json::to_string(&self.0.get_normalizer())),
            written(serde_json::to_string(&self.0.get_pre_tokenizer())),
            written(serde_json::to_string(&self.0.get_decoder())),
        ];
        let has = |word: &str| parts.iter().any(|part| part.contains(word));
        let spelling = match () {
            () if has("\"ByteLevel\"") => Spelling::ByteLevel,
            () if has("\u{2581}") => Spelling::Metaspace,
            () => Spelling::Plain,
        };
        let added = self.0.get_added_tokens_decoder();
        let last = added.keys().copied().max().unwrap_or(0).max(self.0.get_vocab_size(false) as u32);
        Pieces::new((0..=last).map(|id| match added.get(&id) {
            Some(token) => Some((token.content.clone(), Spelling::Plain)),
            None => Some((self.0.id_to_token(id)?, spelling)),
        }))
    }

    /// Returns what the tokenizer.json states of its vocabulary.
    pub fn vocabulary(&self) -> Vocabulary {
        let mut added: Vec<AddedToken> = self
            .0
            .get_added_tokens_decoder()
            .into_iter()
            .map(|(id, token)| AddedToken { id, content: token.content, special: token.special })
            .collect();
        added.sort_by_key(|token| token.id);
        let base = self.0.get_vocab(false);
        Vocabulary {
            size: self.0.get_vocab_size(true),
            max_base_id: base.values().copied().max().unwrap_or(0),
            unknown: self.unknown(),
            added,
        }
    }
}
