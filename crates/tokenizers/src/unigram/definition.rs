//! The parts of a tokenizer.json that [`super::Unigram`] reproduces. Any other part is refused by name.

use serde_json::Value;

use super::normalize::Normalizer;
use super::trie::MAX_PIECES;
use crate::DefinitionError;
use crate::json::{self, Added, SPACE_MARK, Text, kind};

/// A tokenizer.json with a Unigram model.
pub type Definition<'a> = json::Definition<Model<'a>>;

#[derive(serde::Deserialize)]
pub struct Model<'a> {
    #[serde(rename = "type")]
    kind: String,
    pub unk_id: Option<u32>,
    #[serde(default)]
    pub byte_fallback: bool,
    /// The pieces with their log probabilities, in the order of their IDs.
    #[serde(borrow)]
    pub vocab: Vec<(Text<'a>, f64)>,
}

impl Definition<'_> {
    /// Returns the unknown token. Refuses everything that is not reproduced here.
    ///
    /// # Errors
    /// Names the part that is not supported.
    pub fn unknown(&self) -> Result<u32, DefinitionError> {
        if self.model.kind != "Unigram" {
            return Err(DefinitionError::unsupported("the model is not Unigram"));
        }
        if self.model.vocab.len() >= MAX_PIECES {
            return Err(DefinitionError::too_large("the vocabulary is too large"));
        }
        if !self.pre_tokenizer.as_ref().is_some_and(splits_words) {
            return Err(DefinitionError::unsupported("the pre-tokenizer is not WhitespaceSplit and Metaspace"));
        }
        self.added_tokens.iter().try_for_each(Added::check)?;
        if self.added_tokens.iter().any(|token| token.normalized) {
            return Err(DefinitionError::unsupported("an added token is matched in the normalized text"));
        }
        let unknown = self.model.unk_id.filter(|&id| (id as usize) < self.model.vocab.len());
        unknown.ok_or_else(|| DefinitionError::malformed("the model has no unknown token"))
    }

    /// # Errors
    /// Names the step that is not supported.
    pub fn normalizer(&self) -> Result<Normalizer, DefinitionError> {
        Normalizer::new(self.normalizer.as_ref())
    }
}

/// Checks that the text is split at white space and before each space mark, and that a word without a mark gets one.
fn splits_words(pre_tokenizer: &Value) -> bool {
    let metaspace = |v: &Value| {
        kind(v) == "Metaspace"
            && v.get("replacement").and_then(Value::as_str) == Some(SPACE_MARK.to_string().as_str())
            && v.get("prepend_scheme").is_none_or(|scheme| scheme == "always")
            && v.get("add_prefix_space").is_none_or(|add| *add != Value::Bool(false))
            && v.get("split").is_none_or(|split| *split != Value::Bool(false))
    };
    match pre_tokenizer.get("pretokenizers").and_then(Value::as_array).map(Vec::as_slice) {
        Some([first, second]) => {
            kind(pre_tokenizer) == "Sequence" && kind(first) == "WhitespaceSplit" && metaspace(second)
        }
        _ => false,
    }
}
