//! The parts of a tokenizer.json that [`super::SentencePieceBpe`] reproduces. Any other part is refused by name.

use serde_json::Value;

use crate::DefinitionError;
use crate::bpe::model::Model;
use crate::json::{self, SPACE_MARK, kind};

/// A tokenizer.json with a SentencePiece-style BPE model.
pub type Definition<'a> = json::Definition<Model<'a>>;

impl Definition<'_> {
    /// Refuses every model that is not reproduced here.
    ///
    /// # Errors
    /// Names the property that is not supported.
    pub fn check(&self) -> Result<(), DefinitionError> {
        let model = &self.model;
        model.check()?;
        if !model.byte_fallback {
            return Err(DefinitionError::unsupported("the model has no byte_fallback"));
        }
        if model.ignore_merges {
            return Err(DefinitionError::unsupported("the model ignores merges"));
        }
        Ok(())
    }
}

/// Returns whether the normalizer puts U+2581 before a text. Refuses every part that is not reproduced here.
///
/// # Errors
/// Names the part that is not supported.
pub fn prepends_space<M>(definition: &json::Definition<M>) -> Result<bool, DefinitionError> {
    json::check_distinct(&definition.added_tokens)?;
    // The normalizer leaves no spaces in a text, so this step never splits.
    let split_at_spaces = |v: &Value| kind(v) == "Split" && v.pointer("/pattern/String").is_some_and(|s| s == " ");
    if definition.pre_tokenizer.as_ref().is_some_and(|v| !split_at_spaces(v)) {
        return Err(DefinitionError::unsupported("the pre-tokenizer is not one that SentencePiece models have"));
    }
    normalizer_prepends(definition.normalizer.as_ref())
        .ok_or_else(|| DefinitionError::unsupported("the normalizer is not one that SentencePiece models have"))
}

fn normalizer_prepends(normalizer: Option<&Value>) -> Option<bool> {
    let mark = SPACE_MARK.to_string();
    let replace = |v: &Value| {
        kind(v) == "Replace"
            && v.pointer("/pattern/String").is_some_and(|s| s == " ")
            && v.get("content").is_some_and(|s| *s == mark)
    };
    let prepend = |v: &Value| kind(v) == "Prepend" && v.get("prepend").is_some_and(|s| *s == mark);
    let normalizer = normalizer?;
    let steps = match normalizer.get("normalizers").and_then(Value::as_array) {
        Some(steps) if kind(normalizer) == "Sequence" => steps.as_slice(),
        _ => std::slice::from_ref(normalizer),
    };
    match steps {
        [only] if replace(only) => Some(false),
        [first, second] if prepend(first) && replace(second) => Some(true),
        _ => None,
    }
}
