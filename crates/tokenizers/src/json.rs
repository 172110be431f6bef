//! The parts of a tokenizer.json that all models have: added tokens and templates.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, Visitor};
use serde_json::Value;

use super::EncodeError;
use crate::DefinitionError;
use crate::yield_point::Stopped;

pub const NO_MEMORY: &str = "there is no memory for the vocabulary's words and merges";

/// The character U+2581, which stands for a space in SentencePiece vocabularies.
pub const SPACE_MARK: char = '▁';

/// A tokenizer.json with a model `M`. Strings without escapes are borrowed from the file's content.
#[derive(serde::Deserialize)]
pub struct Definition<M> {
    pub model: M,
    #[serde(default)]
    pub added_tokens: Vec<Added>,
    pub normalizer: Option<Value>,
    pub pre_tokenizer: Option<Value>,
    pub post_processor: Option<Value>,
}

/// The parts of a tokenizer.json that are not its model.
pub type Parts = Definition<IgnoredAny>;

impl<'a, M: Deserialize<'a>> Definition<M> {
    /// # Errors
    /// When `json` is not a tokenizer.json with a model of this kind.
    pub fn parse(json: &'a [u8], kind: &str) -> Result<Self, DefinitionError> {
        serde_json::from_slice(json).map_err(|e| DefinitionError::malformed(format!("not a {kind} tokenizer: {e}")))
    }
}

/// An entry of `added_tokens`.
#[derive(serde::Deserialize)]
pub struct Added {
    pub id: u32,
    pub content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    /// Whether the token is matched in the normalized text. Otherwise it is matched in the text as given.
    pub normalized: bool,
    #[serde(default)]
    pub special: bool,
}

impl Added {
    /// # Errors
    /// When the token is matched by a rule that is not reproduced here.
    pub fn check(&self) -> Result<(), DefinitionError> {
        let unsupported = [
            (self.single_word, "is single_word"),
            (self.lstrip || self.rstrip, "strips spaces"),
            (self.content.is_empty(), "is empty"),
        ];
        match unsupported.iter().find(|(found, _)| *found) {
            Some((_, reason)) => Err(DefinitionError::unsupported(format!("an added token {reason}"))),
            None => Ok(()),
        }
    }
}

/// # Errors
/// When a token is matched by a rule that is not reproduced here, or two tokens have the same content.
pub fn check_distinct(tokens: &[Added]) -> Result<(), DefinitionError> {
    let mut contents = HashSet::new();
    tokens.iter().try_for_each(|token| {
        token.check()?;
        match contents.insert(&token.content) {
            true => Ok(()),
            false => Err(DefinitionError::malformed(format!("the added token {:?} is listed twice", token.content))),
        }
    })
}

/// The special tokens before and after the tokens of a text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Template {
    pub before: Vec<u32>,
    pub after: Vec<u32>,
}

impl Template {
    /// Reads a `post_processor`.
    ///
    /// # Errors
    /// When the post-processor is not a template with one text in it.
    pub fn parse(post: Option<&Value>) -> Result<Self, DefinitionError> {
        let Some(mut post) = post else { return Ok(Self::default()) };
        // The post-processor ByteLevel changes offsets, not IDs.
        let is_byte_level = |post: &Value| kind(post) == "ByteLevel";
        if is_byte_level(post) {
            return Ok(Self::default());
        }
        if kind(post) == "Sequence"
            && let Some([first, second]) = post.get("processors").and_then(Value::as_array).map(Vec::as_slice)
            && is_byte_level(first)
        {
            post = second;
        }
        let template = || {
            let mut template = Self::default();
            let mut text_seen = false;
            for piece in post.get("single")?.as_array()? {
                if let Some(name) = piece.pointer("/SpecialToken/id").and_then(Value::as_str) {
                    let ids = post.get("special_tokens")?.get(name)?.get("ids")?.as_array()?;
                    let side = if text_seen { &mut template.after } else { &mut template.before };
                    for id in ids {
                        side.push(u32::try_from(id.as_u64()?).ok()?);
                    }
                } else {
                    let text = piece.pointer("/Sequence/id")? == "A" && !text_seen;
                    text_seen = text.then_some(true)?;
                }
            }
            text_seen.then_some(template)
        };
        if kind(post) == "TemplateProcessing"
            && let Some(template) = template()
        {
            return Ok(template);
        }
        Err(DefinitionError::unsupported("the post-processor is not a template of special tokens around one text"))
    }

    /// Appends the IDs that `encode` appends for `text`; with `special`, surrounded by the special tokens of the template.
    ///
    /// # Errors
    /// When the text is 4 GiB long or longer, so that positions in it do not fit 32 bits, or when `encode` was stopped.
    pub fn surround(
        &self,
        text: &str,
        special: bool,
        ids: &mut Vec<u32>,
        encode: impl FnOnce(&mut Vec<u32>) -> Result<(), Stopped>,
    ) -> Result<(), EncodeError> {
        if u32::try_from(text.len()).is_err() {
            return Err(EncodeError::Failed("a text of 4 GiB or more".to_owned()));
        }
        if special {
            ids.extend_from_slice(&self.before);
        }
        encode(ids)?;
        if special {
            ids.extend_from_slice(&self.after);
        }
        Ok(())
    }
}

/// Returns the `type` of a part of a tokenizer.json.
pub fn kind(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// A string that is borrowed from the JSON if it is written there without escapes.
#[derive(Debug)]
pub struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, s: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(s)))
            }
            fn visit_str<E>(self, s: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(s.to_owned())))
            }
        }
        deserializer.deserialize_str(V)
    }
}
