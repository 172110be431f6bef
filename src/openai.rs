//! The wire types, named as in OpenAI's API description. serde only: no limits of a model, no status codes.

use std::fmt;

use serde::de::{Deserializer, Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize};

use crate::embedder::Input;

/// The body of POST /v1/embeddings. `user` and unknown fields are ignored.
#[derive(Debug, PartialEq, Deserialize)]
pub struct CreateEmbeddingRequest {
    pub input: Inputs,
    #[serde(default, deserialize_with = "model")]
    pub model: Option<String>,
    #[serde(default, deserialize_with = "encoding_format")]
    pub encoding_format: EncodingFormat,
    #[serde(default, deserialize_with = "dimensions")]
    pub dimensions: Option<u64>,
}

/// A string, a list of strings, a list of token ids, or a list of lists of token ids; here always a list.
#[derive(Debug, PartialEq)]
pub struct Inputs(pub Vec<Input>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EncodingFormat {
    #[default]
    Float,
    /// Little-endian f32, standard alphabet, padded.
    Base64,
}

/// An entry of GET /v1/models, and GET /v1/models/{id}.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Model {
    pub id: String,
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    pub owned_by: &'static str,
}

impl Model {
    pub fn new(id: impl Into<String>, created: u64) -> Self {
        Self { id: id.into(), object: "model", created, owned_by: "embedding-server" }
    }
}

/// GET /v1/models.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ListModelsResponse {
    pub object: &'static str,
    pub data: Vec<Model>,
}

/// Every error on every path.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ErrorResponse<'a> {
    pub error: ErrorBody<'a>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ErrorBody<'a> {
    pub message: &'a str,
    #[serde(rename = "type")]
    pub kind: &'a str,
    pub param: Option<&'a str>,
    pub code: Option<&'a str>,
}

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputsVisitor)
    }
}

struct InputsVisitor;

impl<'de> Visitor<'de> for InputsVisitor {
    type Value = Inputs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("'input' to be a string, an array of strings, an array of token ids or an array of those")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Inputs, E> {
        Ok(Inputs(vec![Input::Text(text.to_owned())]))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Inputs, E> {
        Ok(Inputs(vec![Input::Text(text)]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Inputs, A::Error> {
        let mut inputs = Vec::new();
        match seq.next_element()? {
            None => return Err(Error::custom("'input' is an empty array; send at least one input")),
            Some(Element::TokenId(first)) => {
                let mut ids = vec![first];
                while let Some(TokenId(id)) = seq.next_element()? {
                    ids.push(id);
                }
                inputs.push(Input::TokenIds(ids));
            }
            Some(Element::Input(first)) => {
                inputs.push(first);
                while let Some(element) = seq.next_element()? {
                    match element {
                        // Mixed ones too: LangChain puts "" between arrays of ids for documents that are empty.
                        Element::Input(input) => inputs.push(input),
                        Element::TokenId(id) => {
                            return Err(Error::invalid_type(
                                Unexpected::Unsigned(id.into()),
                                &"'input' to hold texts or arrays of token ids, as its first element does",
                            ));
                        }
                    }
                }
            }
        }
        Ok(Inputs(inputs))
    }
}

/// One element of an `input` array.
enum Element {
    Input(Input),
    TokenId(u32),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("'input' to hold strings, token ids (whole numbers from 0) or arrays of token ids")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Input(Input::Text(text.to_owned())))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Element, E> {
        Ok(Element::Input(Input::Text(text)))
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<Element, E> {
        u32::try_from(id).map(Element::TokenId).map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
        let mut ids = Vec::new();
        while let Some(TokenId(id)) = seq.next_element()? {
            ids.push(id);
        }
        Ok(Element::Input(Input::TokenIds(ids)))
    }
}

struct TokenId(u32);

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdVisitor;
        impl Visitor<'_> for IdVisitor {
            type Value = TokenId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("'input' to hold token ids, whole numbers from 0")
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<TokenId, E> {
                u32::try_from(id).map(TokenId).map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))
            }
        }
        deserializer.deserialize_any(IdVisitor)
    }
}

fn model<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::deserialize(deserializer).map_err(|_| Error::custom("'model' must be a string"))
}

fn encoding_format<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EncodingFormat, D::Error> {
    let wrong = || Error::custom("'encoding_format' must be \"float\" or \"base64\"");
    match Option::<String>::deserialize(deserializer).map_err(|_| wrong())?.as_deref() {
        None | Some("float") => Ok(EncodingFormat::Float),
        Some("base64") => Ok(EncodingFormat::Base64),
        Some(_) => Err(wrong()),
    }
}

fn dimensions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Option::deserialize(deserializer).map_err(|_| Error::custom("'dimensions' must be a whole number of at least 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(json: &str) -> Result<Vec<Input>, String> {
        serde_json::from_str::<Inputs>(json).map(|i| i.0).map_err(|e| e.to_string())
    }

    fn text(s: &str) -> Input {
        Input::Text(s.to_owned())
    }

    #[test]
    fn the_four_shapes_of_input() {
        assert_eq!(inputs(r#""hello""#), Ok(vec![text("hello")]));
        assert_eq!(inputs(r#"["a","é\n"]"#), Ok(vec![text("a"), text("é\n")]));
        assert_eq!(inputs("[1,2,4294967295]"), Ok(vec![Input::TokenIds(vec![1, 2, u32::MAX])]));
        assert_eq!(
            inputs("[[1],[],[2,3]]"),
            Ok(vec![vec![1], vec![], vec![2, 3]].into_iter().map(Input::TokenIds).collect())
        );
    }

    #[test]
    fn an_empty_text_may_stand_among_token_ids() {
        assert_eq!(inputs(r#"[[1],""]"#), Ok(vec![Input::TokenIds(vec![1]), text("")]));
        assert_eq!(inputs(r#"["",[1]]"#), Ok(vec![text(""), Input::TokenIds(vec![1])]));
    }

    #[test]
    fn everything_else_is_an_error_that_names_input() {
        for json in [
            "[]",
            "1",
            "null",
            "true",
            "{}",
            "[1.5]",
            "[-1]",
            "[4294967296]",
            "[[1,\"a\"]]",
            "[[-1]]",
            "[null]",
            "[\"a\",1]",
            "[1,\"a\"]",
            "[1,[2]]",
            "[[[1]]]",
            "[{}]",
        ] {
            let error = inputs(json).expect_err(json);
            assert!(error.contains("'input'"), "{json}: {error}");
        }
    }

    #[test]
    fn other_fields_are_optional_and_nullable() {
        let full = r#"{"input":"a","model":"m","encoding_format":"base64","dimensions":3,"user":7,"other":[{}]}"#;
        let request: CreateEmbeddingRequest = serde_json::from_str(full).unwrap();
        assert_eq!(request.model.as_deref(), Some("m"));
        assert_eq!((request.encoding_format, request.dimensions), (EncodingFormat::Base64, Some(3)));
        let nulls = r#"{"input":"a","model":null,"encoding_format":null,"dimensions":null,"user":null}"#;
        let short: CreateEmbeddingRequest = serde_json::from_str(r#"{"input":"a"}"#).unwrap();
        assert_eq!(serde_json::from_str::<CreateEmbeddingRequest>(nulls).unwrap(), short);
        for (json, field) in [
            (r#"{"input":"a","dimensions":"3"}"#, "'dimensions'"),
            (r#"{"input":"a","dimensions":-3}"#, "'dimensions'"),
            (r#"{"input":"a","dimensions":1.5}"#, "'dimensions'"),
            (r#"{"input":"a","encoding_format":"int8"}"#, "'encoding_format'"),
            (r#"{"input":"a","model":3}"#, "'model'"),
        ] {
            let error = serde_json::from_str::<CreateEmbeddingRequest>(json).unwrap_err().to_string();
            assert!(error.contains(field), "{json}: {error}");
        }
    }
}
