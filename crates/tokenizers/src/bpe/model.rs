//! The `model` part of a BPE tokenizer.json.

use std::borrow::Cow;
use std::fmt;

use foldhash::{HashMap, HashMapExt};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::DefinitionError;
use crate::json::Text;

#[derive(serde::Deserialize)]
pub struct Model<'a> {
    #[serde(rename = "type")]
    kind: String,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    pub unk_token: Option<String>,
    #[serde(default)]
    pub byte_fallback: bool,
    /// Whether a word that is in the vocabulary becomes that token, whatever its merges say.
    #[serde(default)]
    pub ignore_merges: bool,
    #[serde(borrow, deserialize_with = "entries")]
    vocab: Vec<(Text<'a>, u32)>,
    #[serde(borrow)]
    merges: Vec<Pair<'a>>,
}

/// Two tokens that merge, with the IDs.
pub struct Merge<'m> {
    pub left: &'m str,
    pub right: &'m str,
    /// The IDs of the left token, of the right token, and of the token that they make.
    pub ids: (u32, u32, u32),
}

impl Model<'_> {
    /// # Errors
    /// Names the first property of the model that no implementation in this crate reproduces.
    pub fn check(&self) -> Result<(), DefinitionError> {
        let given = |affix: &Option<String>| affix.as_ref().is_some_and(|s| !s.is_empty());
        let unsupported = [
            (self.kind != "BPE", "is not BPE"),
            (self.dropout.is_some_and(|p| p != 0.0), "has dropout"),
            (given(&self.continuing_subword_prefix), "has a continuing_subword_prefix"),
            (given(&self.end_of_word_suffix), "has an end_of_word_suffix"),
        ];
        match unsupported.iter().find(|(found, _)| *found) {
            Some((_, reason)) => Err(DefinitionError::unsupported(format!("the model {reason}"))),
            None => Ok(()),
        }
    }

    /// Returns the IDs by the texts of the tokens, as the file spells them.
    ///
    /// # Errors
    /// When a text or an ID occurs twice.
    pub fn vocabulary(&self) -> Result<HashMap<&str, u32>, DefinitionError> {
        let mut vocabulary = HashMap::with_capacity(self.vocab.len());
        let mut ids: Vec<u32> = Vec::with_capacity(self.vocab.len());
        for (text, id) in &self.vocab {
            if vocabulary.insert(text.0.as_ref(), *id).is_some() {
                return Err(DefinitionError::malformed(format!("the vocabulary has {:?} twice", text.0)));
            }
            ids.push(*id);
        }
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err(DefinitionError::malformed("two tokens of the vocabulary have the same id"));
        }
        Ok(vocabulary)
    }

    /// Returns the merges in the order of their ranks.
    ///
    /// # Errors
    /// When the vocabulary lacks a token that a merge takes or makes.
    pub fn merges<'m>(
        &'m self,
        vocabulary: &HashMap<&str, u32>,
    ) -> impl Iterator<Item = Result<Merge<'m>, DefinitionError>> {
        let mut whole = String::new();
        self.merges.iter().map(move |merge| {
            let (left, right) = (merge.0.as_ref(), merge.1.as_ref());
            whole.clear();
            whole.extend([left, right]);
            let id = |text: &str| {
                vocabulary.get(text).copied().ok_or_else(|| {
                    DefinitionError::malformed(format!("the merge of {left:?} and {right:?} has no token"))
                })
            };
            Ok(Merge { left, right, ids: (id(left)?, id(right)?, id(&whole)?) })
        })
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

/// Two tokens that merge: written as `"a b"` in older files, and as `["a", "b"]` in newer ones.
struct Pair<'a>(Cow<'a, str>, Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Pair<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Pair<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pair of tokens")
            }
            fn visit_borrowed_str<E: de::Error>(self, s: &'de str) -> Result<Pair<'de>, E> {
                let (a, b) = halves(s)?;
                Ok(Pair(Cow::Borrowed(a), Cow::Borrowed(b)))
            }
            fn visit_str<E: de::Error>(self, s: &str) -> Result<Pair<'de>, E> {
                let (a, b) = halves(s)?;
                Ok(Pair(Cow::Owned(a.to_owned()), Cow::Owned(b.to_owned())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Pair<'de>, A::Error> {
                let missing = || de::Error::custom("a merge of fewer than two tokens");
                let a: Text<'de> = seq.next_element()?.ok_or_else(missing)?;
                let b: Text<'de> = seq.next_element()?.ok_or_else(missing)?;
                Ok(Pair(a.0, b.0))
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
