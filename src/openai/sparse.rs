//! The types of POST /v1/sparse-embeddings, and of POST /embed_sparse of text-embeddings-inference.

use serde::de::{Error, IgnoredAny, MapAccess};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::request::{List, MODEL, ParsedRequest, ReadObject, Scalar, Value, read_model, read_object};
use super::{Inputs, ListObject, SparseEmbeddingObject, Usage};

/// The body of POST /v1/sparse-embeddings. Unknown fields are ignored.
#[derive(Debug, PartialEq, ToSchema)]
#[schema(example = json!({"input": "a dog", "model": "text-embedding-3-small", "input_type": "query", "expand": 2}))]
pub struct CreateSparseEmbeddingRequest {
    pub input: Inputs,
    /// The ID or an alias of a model. If it is missing, the default model is used.
    pub model: Option<String>,
    /// Whether the inputs are queries or documents, which are weighted differently. Indexed texts are documents.
    #[schema(value_type = Option<InputType>, default = "document")]
    pub input_type: InputType,
    /// The number of most similar tokens by which each token of a query is expanded, so that documents in other words and languages are
    /// found. 0 keeps the query's own tokens alone. Documents are never expanded.
    #[schema(value_type = Option<u64>, minimum = 0, maximum = 64, default = 16)]
    pub expand: Option<u64>,
}

/// `search_query`, and `search_document` or `passage`, mean the same, as in other APIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum InputType {
    Query,
    #[default]
    Document,
}

impl InputType {
    /// Returns the type with this name, in this API or in another one.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "query" | "search_query" => Some(Self::Query),
            "document" | "search_document" | "passage" => Some(Self::Document),
            _ => None,
        }
    }
}

/// The response of POST /v1/sparse-embeddings.
// `server/response/write.rs` writes the bytes of this response without creating these types.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "object": "list",
    "data": [{
        "object": "sparse_embedding",
        "index": 0,
        "indices": [7, 59, 138, 7847, 18439, 71224],
        "values": [1.8507502, 0.27297816, 0.26015481, 12.981843, 4.9072795, 4.919307]
    }],
    "model": "text-embedding-3-small",
    "usage": {"prompt_tokens": 2, "total_tokens": 2}
}))]
pub struct CreateSparseEmbeddingResponse {
    #[schema(inline)]
    pub object: ListObject,
    pub data: Vec<SparseEmbedding>,
    /// The name of the model, as in the request.
    pub model: String,
    pub usage: Usage,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SparseEmbedding {
    #[schema(inline)]
    pub object: SparseEmbeddingObject,
    /// The position of the input in the request.
    pub index: usize,
    /// Token IDs in ascending order.
    pub indices: Vec<u32>,
    /// One positive number for each index.
    pub values: Vec<f32>,
}

/// The body of POST /embed_sparse, in the form of text-embeddings-inference. Unknown fields are ignored.
#[derive(Debug, PartialEq, ToSchema)]
#[schema(example = json!({"inputs": ["a dog"]}))]
pub struct EmbedSparseRequest {
    pub inputs: Inputs,
    /// The ID or an alias of a model. If it is missing, the default model is used.
    pub model: Option<String>,
    /// `query` for queries. Otherwise the inputs are documents.
    #[schema(value_type = Option<String>)]
    pub prompt_name: InputType,
    /// Ignored: inputs of any length are taken.
    #[schema(value_type = Option<serde_json::Value>)]
    pub truncate: IgnoredAny,
}

/// One number of a vector in the response of POST /embed_sparse, which is a list of vectors.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SparseValue {
    /// A token ID.
    pub index: u32,
    pub value: f32,
}

const INPUTS: &str = "inputs";
const PROMPT_NAME: &str = "prompt_name";

/// The fields that an error may name.
pub(super) const FIELDS: [&str; 2] = [INPUTS, PROMPT_NAME];

impl ParsedRequest for EmbedSparseRequest {
    fn read(body: &[u8], max_inputs: usize) -> serde_json::Result<Self> {
        read_object(body, Body { max_inputs })
    }

    fn lists(&self) -> impl Iterator<Item = (&'static str, usize)> {
        std::iter::once((INPUTS, self.inputs.count))
    }
}

/// The whole body.
struct Body {
    max_inputs: usize,
}

impl ReadObject for Body {
    const EXAMPLE: &'static str = r#"{"inputs": ["hello"]}"#;
    type Fields = EmbedSparseRequest;

    fn read<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<EmbedSparseRequest, A::Error> {
        let (mut inputs, mut model, mut prompt_name) = (None, None, InputType::Document);
        let mut seen = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            let Some(name) = [INPUTS, MODEL, PROMPT_NAME].into_iter().find(|known| *known == name) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            super::request::once(&mut seen, name)?;
            match name {
                INPUTS => inputs = map.next_value_seed(List { field: INPUTS, max: self.max_inputs })?,
                MODEL => model = read_model(&mut map)?,
                _ => {
                    const WRONG: &str = "'prompt_name' must be a string";
                    prompt_name = match map.next_value_seed(Scalar(WRONG))? {
                        Value::Null => InputType::Document,
                        Value::Text(name) => InputType::named(&name).unwrap_or_default(),
                        _ => return Err(Error::custom(WRONG)),
                    };
                }
            }
        }
        let missing = || Error::custom("'inputs' is missing: it must be a string or an array of strings");
        Ok(EmbedSparseRequest { inputs: inputs.ok_or_else(missing)?, model, prompt_name, truncate: IgnoredAny })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::{BodyError, parse};

    fn sparse(json: &str) -> Result<CreateSparseEmbeddingRequest, BodyError> {
        parse(json.as_bytes(), 3)
    }

    fn tei(json: &str) -> Result<EmbedSparseRequest, BodyError> {
        parse(json.as_bytes(), 3)
    }

    #[test]
    fn queries_and_documents_are_told_apart_by_the_names_of_several_apis() {
        for (name, expected) in [
            ("query", InputType::Query),
            ("search_query", InputType::Query),
            ("document", InputType::Document),
            ("search_document", InputType::Document),
            ("passage", InputType::Document),
        ] {
            let json = format!(r#"{{"input":"a","input_type":"{name}","expand":3.0}}"#);
            let request = sparse(&json).unwrap();
            assert_eq!((request.input_type, request.expand), (expected, Some(3)), "{name}");
        }
        let nulls = sparse(r#"{"input":["a","b"],"input_type":null,"expand":null,"dimensions":7}"#).unwrap();
        assert_eq!((nulls.input_type, nulls.expand, nulls.input.count), (InputType::Document, None, 2));
        let request = tei(r#"{"inputs":"a","truncate":true,"prompt_name":"query"}"#).unwrap();
        assert_eq!((request.inputs.count, request.prompt_name), (1, InputType::Query));
        assert_eq!(tei(r#"{"inputs":["a"],"prompt_name":"other"}"#).unwrap().prompt_name, InputType::Document);
    }

    #[test]
    fn a_wrong_field_is_named() {
        for (json, field) in [
            ("{}", "input"),
            (r#"{"input":"a","input_type":"both"}"#, "input_type"),
            (r#"{"input":"a","input_type":7}"#, "input_type"),
            (r#"{"input":"a","expand":65}"#, "expand"),
            (r#"{"input":"a","expand":-1}"#, "expand"),
            (r#"{"input":"a","expand":"2"}"#, "expand"),
            (r#"{"input":"a","expand":1,"expand":1}"#, "expand"),
        ] {
            let Err(BodyError::Field { field: found, message }) = sparse(json) else { panic!("{json}") };
            assert_eq!(found, Some(field), "{json}: {message}");
        }
        for (json, field) in [
            ("{}", "inputs"),
            (r#"{"inputs":[]}"#, "inputs"),
            (r#"{"inputs":"a","prompt_name":1}"#, "prompt_name"),
            (r#"{"inputs":"a","inputs":"b"}"#, "inputs"),
        ] {
            let Err(BodyError::Field { field: found, message }) = tei(json) else { panic!("{json}") };
            assert_eq!(found, Some(field), "{json}: {message}");
        }
    }
}
