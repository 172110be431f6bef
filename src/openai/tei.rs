//! The types of the endpoints of text-embeddings-inference: POST /embed and GET /info, and its form of POST /similarity.

use std::fmt;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserializer, Serialize};
use utoipa::openapi::schema::OneOfBuilder;
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::Inputs;
use super::request::{
    DIMENSIONS, List, MODEL, ParsedRequest, ReadObject, once, read_model, read_object, read_whole, refuse,
};

/// The body of POST /embed. Unknown fields are ignored.
#[derive(Debug, PartialEq)]
pub enum TeiRequest {
    /// Texts to embed.
    Embed { inputs: Inputs, model: Option<String>, dimensions: Option<u64> },
    /// A sentence to compare with others.
    Similarity { inputs: TeiSentences, model: Option<String>, dimensions: Option<u64> },
}

/// A sentence, and the sentences that it is compared with.
#[derive(Debug, PartialEq)]
pub struct TeiSentences {
    pub source_sentence: Inputs,
    pub sentences: Inputs,
}

/// The response of GET /info.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct TeiInfo {
    /// The ID of the default model.
    pub model_id: String,
    /// The fingerprint of the default model.
    #[schema(required = true)]
    pub model_sha: Option<String>,
    pub model_dtype: &'static str,
    #[schema(value_type = Object)]
    pub model_type: serde_json::Value,
    /// The largest number of tokens of an input.
    pub max_input_length: usize,
    /// The largest number of inputs of a request.
    pub max_client_batch_size: usize,
    /// Always false: nothing is truncated.
    pub auto_truncate: bool,
    pub version: &'static str,
}

const INPUTS: &str = "inputs";
const SOURCE: &str = "source_sentence";
const SENTENCES: &str = "sentences";

/// The fields that an error may name, besides `inputs`.
pub(super) const FIELDS: [&str; 2] = [SOURCE, SENTENCES];

impl ParsedRequest for TeiRequest {
    fn read(body: &[u8], max_inputs: usize) -> serde_json::Result<Self> {
        let Fields { inputs, model, dimensions } = read_object(body, Body { max_inputs })?;
        match inputs {
            Some(TeiInputs::Texts(inputs)) => Ok(Self::Embed { inputs, model, dimensions }),
            Some(TeiInputs::Sentences(inputs)) => Ok(Self::Similarity { inputs, model, dimensions }),
            None => Err(Error::custom("'inputs' is missing: it must be a string or an array of strings")),
        }
    }

    fn lists(&self) -> impl Iterator<Item = (&'static str, usize)> {
        let lists = match self {
            Self::Embed { inputs, .. } => [Some((INPUTS, inputs.count)), None],
            Self::Similarity { inputs, .. } => {
                [Some((SOURCE, inputs.source_sentence.count)), Some((SENTENCES, inputs.sentences.count))]
            }
        };
        lists.into_iter().flatten()
    }
}

#[derive(Default)]
struct Fields {
    inputs: Option<TeiInputs>,
    model: Option<String>,
    dimensions: Option<u64>,
}

/// The whole body.
struct Body {
    max_inputs: usize,
}

impl ReadObject for Body {
    const EXAMPLE: &'static str = r#"{"inputs": ["hello"]}"#;
    type Fields = Fields;

    fn read<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields::default();
        let mut seen = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            let Some(name) = [INPUTS, MODEL, DIMENSIONS].into_iter().find(|known| *known == name) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            once(&mut seen, name)?;
            match name {
                INPUTS => fields.inputs = map.next_value_seed(TextsOrSentences { max: self.max_inputs })?,
                MODEL => fields.model = read_model(&mut map)?,
                _ => fields.dimensions = read_whole(&mut map, "'dimensions' must be a whole number of at least 1")?,
            }
        }
        Ok(fields)
    }
}

/// The value of `inputs`.
enum TeiInputs {
    Texts(Inputs),
    Sentences(TeiSentences),
}

/// Deserializes the value of `inputs`: texts, or an object with a sentence and the sentences to compare it with.
struct TextsOrSentences {
    max: usize,
}

impl TextsOrSentences {
    fn list(&self) -> List {
        List { field: INPUTS, max: self.max }
    }
}

impl<'de> DeserializeSeed<'de> for TextsOrSentences {
    type Value = Option<TeiInputs>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TextsOrSentences {
    type Value = Option<TeiInputs>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, an array of strings, or an object")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.list().visit_str(text)?.map(TeiInputs::Texts))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        Ok(self.list().visit_seq(seq)?.map(TeiInputs::Texts))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut source, mut sentences) = (None, None);
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                SOURCE => source = map.next_value_seed(List { field: SOURCE, max: self.max })?,
                SENTENCES => sentences = map.next_value_seed(List { field: SENTENCES, max: self.max })?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        match (source, sentences) {
            (Some(source_sentence), Some(sentences)) if source_sentence.count == 1 => {
                Ok(Some(TeiInputs::Sentences(TeiSentences { source_sentence, sentences })))
            }
            (Some(_), Some(_)) => Err(Error::custom("'source_sentence' must be one string")),
            (None, _) => Err(Error::custom("'source_sentence' is missing: it must be a string")),
            (_, None) => Err(Error::custom("'sentences' is missing: it must be an array of strings")),
        }
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Err(self.wrong("true or false"))
    }

    refuse!(number);
}

impl TextsOrSentences {
    fn wrong<E: Error>(&self, found: &str) -> E {
        E::custom(format!("'inputs' is {found}, but must be a string or an array of strings"))
    }
}

/// Deserializes the sentences of POST /similarity for [`super::CreateSimilarityRequest`].
pub(super) fn read_sentences<'de, A: MapAccess<'de>>(
    map: &mut A,
    max: usize,
) -> Result<Option<TeiSentences>, A::Error> {
    match map.next_value_seed(TextsOrSentences { max })? {
        Some(TeiInputs::Sentences(sentences)) => Ok(Some(sentences)),
        Some(TeiInputs::Texts(_)) => {
            Err(Error::custom("'inputs' must be an object with source_sentence and sentences; or send 'input'"))
        }
        None => Ok(None),
    }
}

/// The body of POST /embed, for the description of the API. Unknown fields are ignored.
#[derive(ToSchema)]
#[schema(as = TeiRequest, example = json!({"inputs": ["hello", "안녕하세요"]}))]
#[allow(dead_code, reason = "the type only describes the API")]
pub struct TeiRequestBody {
    #[schema(value_type = TeiInputsSchema)]
    inputs: Inputs,
    /// The ID or an alias of a model. If it is missing, the default model is used.
    model: Option<String>,
    /// The number of dimensions of each vector.
    #[schema(minimum = 1)]
    dimensions: Option<u64>,
    /// Ignored: the model's setting decides whether vectors have length 1.
    normalize: Option<serde_json::Value>,
    /// Ignored: inputs of any length are taken.
    truncate: Option<serde_json::Value>,
}

/// The description of `inputs`: what POST /v1/embeddings takes, or sentences to compare.
pub struct TeiInputsSchema;

impl PartialSchema for TeiInputsSchema {
    fn schema() -> RefOr<Schema> {
        OneOfBuilder::new().item(Ref::from_schema_name("Inputs")).item(TeiSentencesBody::schema()).into()
    }
}

impl ToSchema for TeiInputsSchema {}

/// A sentence, and the sentences that it is compared with.
#[derive(ToSchema)]
#[schema(as = TeiSentences)]
#[allow(dead_code, reason = "the type only describes the API")]
struct TeiSentencesBody {
    source_sentence: String,
    sentences: Inputs,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::{BodyError, parse};

    fn read(json: &str) -> Result<TeiRequest, BodyError> {
        parse(json.as_bytes(), 9)
    }

    #[test]
    fn texts_are_embedded_and_an_object_is_compared() {
        for (json, count) in
            [(r#"{"inputs":"a","normalize":false,"truncate":true}"#, 1), (r#"{"inputs":["a","b"]}"#, 2)]
        {
            let Ok(TeiRequest::Embed { inputs, .. }) = read(json) else { panic!("{json}") };
            assert_eq!(inputs.count, count);
        }
        let json = r#"{"inputs":{"source_sentence":"a","sentences":["b","c"]},"model":"m"}"#;
        let Ok(TeiRequest::Similarity { inputs, model, .. }) = read(json) else { panic!("{json}") };
        assert_eq!((inputs.sentences.count, model.as_deref()), (2, Some("m")));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (json, name) in [
            ("{}", "'inputs'"),
            (r#"{"inputs":3}"#, "'inputs'"),
            (r#"{"inputs":{"sentences":["a"]}}"#, "'source_sentence'"),
            (r#"{"inputs":{"source_sentence":["a","b"],"sentences":["a"]}}"#, "'source_sentence'"),
            (r#"{"inputs":{"source_sentence":"a"}}"#, "'sentences'"),
            (r#"{"inputs":[1,"a"]}"#, "inputs[1]"),
        ] {
            let message = read(json).unwrap_err().to_string();
            assert!(message.contains(name), "{json}: {message}");
        }
    }
}
