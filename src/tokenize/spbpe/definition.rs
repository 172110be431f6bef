//! The parts of a tokenizer.json that [`super::SentencePieceBpe`] can stand for. Everything else is refused by name.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::tokenize::json::{self, Added, SPACE_MARK, Text, kind};

/// A tokenizer.json of such a model.
pub type Definition<'a> = json::Definition<Model<'a>>;

#[derive(serde::Deserialize)]
pub struct Model<'a> {
    #[serde(rename = "type")]
    kind: String,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(borrow, deserialize_with = "entries")]
    pub vocab: Vec<(Text<'a>, u32)>,
    #[serde(borrow)]
    pub merges: Vec<Merge<'a>>,
}

impl Definition<'_> {
    /// Whether a space mark is put before a text; refuses what is not reproduced here.
    ///
    /// # Errors
    /// Names the part that is not supported.
    pub fn prepends_space(&self) -> Result<bool, String> {
        let model = &self.model;
        let given = |affix: &Option<String>| affix.as_ref().is_some_and(|s| !s.is_empty());
        let unsupported = [
            (model.kind != "BPE", "the model is not BPE"),
            (!model.byte_fallback, "the model has no byte_fallback"),
            (model.ignore_merges, "the model ignores merges"),
            (model.dropout.is_some_and(|p| p != 0.0), "the model has dropout"),
            (given(&model.continuing_subword_prefix), "the model has a continuing_subword_prefix"),
            (given(&model.end_of_word_suffix), "the model has an end_of_word_suffix"),
        ];
        if let Some((_, reason)) = unsupported.iter().find(|(found, _)| *found) {
            return Err((*reason).to_owned());
        }
        self.added_tokens.iter().try_for_each(Added::check)?;
        // The normalizer leaves no space to split at.
        let split_at_spaces = |v: &Value| kind(v) == "Split" && v.pointer("/pattern/String").is_some_and(|s| s == " ");
        if self.pre_tokenizer.as_ref().is_some_and(|v| !split_at_spaces(v)) {
            return Err("the pre-tokenizer is not one that SentencePiece models have".to_owned());
        }
        self.normalizer_prepends().ok_or_else(|| "the normalizer is not one that SentencePiece models have".to_owned())
    }

    fn normalizer_prepends(&self) -> Option<bool> {
        let mark = SPACE_MARK.to_string();
        let replace = |v: &Value| {
            kind(v) == "Replace"
                && v.pointer("/pattern/String").is_some_and(|s| s == " ")
                && v.get("content").is_some_and(|s| *s == mark)
        };
        let prepend = |v: &Value| kind(v) == "Prepend" && v.get("prepend").is_some_and(|s| *s == mark);
        let normalizer = self.normalizer.as_ref()?;
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
}

fn entries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(Text<'de>, u32)>, D::Error> {
    struct V;
    impl<'de> Visitor<'de> for V {
        type Value = Vec<(Text<'de>, u32)>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a vocabulary")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = Vec::new();
            while let Some(entry) = map.next_entry()? {
                entries.push(entry);
            }
            Ok(entries)
        }
    }
    deserializer.deserialize_map(V)
}

/// Two tokens that merge: `"a b"` in older files, `["a", "b"]` in newer ones.
pub struct Merge<'a>(pub Cow<'a, str>, pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Merge<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pair of tokens")
            }
            fn visit_borrowed_str<E: de::Error>(self, s: &'de str) -> Result<Merge<'de>, E> {
                let (a, b) = halves(s)?;
                Ok(Merge(Cow::Borrowed(a), Cow::Borrowed(b)))
            }
            fn visit_str<E: de::Error>(self, s: &str) -> Result<Merge<'de>, E> {
                let (a, b) = halves(s)?;
                Ok(Merge(Cow::Owned(a.to_owned()), Cow::Owned(b.to_owned())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge<'de>, A::Error> {
                let missing = || de::Error::custom("a merge of fewer than two tokens");
                let a: Text<'de> = seq.next_element()?.ok_or_else(missing)?;
                let b: Text<'de> = seq.next_element()?.ok_or_else(missing)?;
                Ok(Merge(a.0, b.0))
            }
        }
        deserializer.deserialize_any(V)
    }
}

fn halves<E: de::Error>(merge: &str) -> Result<(&str, &str), E> {
    merge
        .split_once(' ')
        .filter(|(_, b)| !b.contains(' '))
        .ok_or_else(|| E::custom(format!("the merge {merge:?} is not two tokens")))
}
