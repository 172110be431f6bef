//! The parts of a tokenizer.json that [`super::SentencePieceBpe`] can stand for. Everything else is refused by name.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// U+2581, which stands for a space in SentencePiece vocabularies.
pub const SPACE_MARK: char = '▁';

/// A tokenizer.json; strings without escapes are borrowed from it.
#[derive(serde::Deserialize)]
pub struct Definition<'a> {
    #[serde(borrow)]
    pub model: Model<'a>,
    #[serde(default)]
    pub added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
}

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

/// An entry of `added_tokens`.
#[derive(serde::Deserialize)]
pub struct Added {
    pub id: u32,
    pub content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    /// Matched in the normalized text, not in the text as given.
    pub normalized: bool,
}

/// What stands around the ids of a text when special tokens are asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Template {
    pub before: Vec<u32>,
    pub after: Vec<u32>,
}

impl<'a> Definition<'a> {
    /// # Errors
    /// When it is no tokenizer.json of a BPE model.
    pub fn parse(json: &'a [u8]) -> Result<Self, String> {
        serde_json::from_slice(json).map_err(|e| format!("not a BPE tokenizer: {e}"))
    }

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
            (self.added_tokens.iter().any(|t| t.single_word), "an added token is single_word"),
            (self.added_tokens.iter().any(|t| t.lstrip || t.rstrip), "an added token strips spaces"),
            (self.added_tokens.iter().any(|t| t.content.is_empty()), "an added token is empty"),
        ];
        if let Some((_, reason)) = unsupported.iter().find(|(found, _)| *found) {
            return Err((*reason).to_owned());
        }
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

    /// # Errors
    /// When the post-processor is another than a template with one text in it.
    pub fn template(&self) -> Result<Template, String> {
        let Some(post) = &self.post_processor else { return Ok(Template::default()) };
        let template = || {
            let mut template = Template::default();
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
        Err("the post-processor is not a template of special tokens around one text".to_owned())
    }
}

fn kind(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// A string, borrowed where JSON wrote it without escapes.
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
