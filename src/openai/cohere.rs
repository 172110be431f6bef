//! The types of POST /v2/embed and POST /v1/embed, as in Cohere's API.

use serde::de::{Error, IgnoredAny, MapAccess};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Inputs;
use super::request::{List, MODEL, ParsedRequest, ReadObject, once, read_model, read_object, read_whole};
use layer0::OutputDtype;

/// The body of POST /v2/embed and of POST /v1/embed. Unknown fields are ignored.
#[derive(Debug, PartialEq, ToSchema)]
#[schema(example = json!({
    "model": "text-embedding-3-small", "texts": ["hello"], "input_type": "search_document", "embedding_types": ["float", "ubinary"]
}))]
pub struct CohereEmbedRequest {
    /// The ID or an alias of a model. If it is missing, the default model is used.
    pub model: Option<String>,
    /// The texts. Images are not supported.
    pub texts: Inputs,
    /// The types of the vectors to return. Missing: `float`; in version 1 of the API, a plain list of floats.
    #[schema(value_type = Option<Vec<CohereType>>)]
    pub embedding_types: Option<Vec<CohereType>>,
    /// The number of dimensions of each vector.
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub output_dimension: Option<u64>,
    /// Ignored: queries and documents have the same vectors.
    #[schema(value_type = Option<serde_json::Value>)]
    pub input_type: IgnoredAny,
    /// Ignored: texts of any length are taken.
    #[schema(value_type = Option<serde_json::Value>)]
    pub truncate: IgnoredAny,
}

/// A type of vectors in Cohere's API: a type of numbers, or `base64` for floats in base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CohereType {
    Float,
    Int8,
    Uint8,
    Binary,
    Ubinary,
    Base64,
}

impl CohereType {
    const ALL: [Self; 6] = [Self::Float, Self::Int8, Self::Uint8, Self::Binary, Self::Ubinary, Self::Base64];

    /// Returns the name of the type in requests and responses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Base64 => "base64",
            _ => self.dtype().name(),
        }
    }

    /// Returns the type of the numbers.
    pub const fn dtype(self) -> OutputDtype {
        match self {
            Self::Float | Self::Base64 => OutputDtype::Float,
            Self::Int8 => OutputDtype::Int8,
            Self::Uint8 => OutputDtype::Uint8,
            Self::Binary => OutputDtype::Binary,
            Self::Ubinary => OutputDtype::Ubinary,
        }
    }
}

/// The response of POST /v2/embed.
// `server/response/form.rs` writes the bytes of this response without creating these types.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": "embed-5f0c2a9d7b3e4816",
    "response_type": "embeddings_by_type",
    "texts": ["hello"],
    "embeddings": {"float": [[0.6, -0.8]], "ubinary": [[128]]},
    "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 2}}
}))]
pub struct CohereEmbedResponse {
    pub id: String,
    pub response_type: String,
    /// The texts of the request.
    pub texts: Vec<String>,
    /// The vectors of each type: `{"float": [[...], ...], ...}`. In version 1 without `embedding_types`, a list of vectors of floats.
    pub embeddings: serde_json::Value,
    #[schema(value_type = Object)]
    pub meta: serde_json::Value,
}

const TEXTS: &str = "texts";
const TYPES: &str = "embedding_types";
const DIMENSION: &str = "output_dimension";

/// The fields that an error may name.
pub(super) const FIELDS: [&str; 3] = [TEXTS, TYPES, DIMENSION];

impl ParsedRequest for CohereEmbedRequest {
    fn read(body: &[u8], max_inputs: usize) -> serde_json::Result<Self> {
        read_object(body, Body { max_inputs })
    }

    fn lists(&self) -> impl Iterator<Item = (&'static str, usize)> {
        std::iter::once((TEXTS, self.texts.count))
    }
}

/// The whole body.
struct Body {
    max_inputs: usize,
}

impl ReadObject for Body {
    const EXAMPLE: &'static str = r#"{"texts": ["hello"]}"#;
    type Fields = CohereEmbedRequest;

    fn read<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<CohereEmbedRequest, A::Error> {
        let (mut texts, mut model, mut embedding_types, mut output_dimension) = (None, None, None, None);
        let (mut seen, mut foreign) = (Vec::new(), None);
        while let Some(name) = map.next_key::<String>()? {
            let Some(name) = [TEXTS, MODEL, TYPES, DIMENSION].into_iter().find(|known| *known == name) else {
                map.next_value::<IgnoredAny>()?;
                if name == "images" || name == "inputs" {
                    foreign = Some(name);
                }
                continue;
            };
            once(&mut seen, name)?;
            match name {
                TEXTS => texts = map.next_value_seed(List { field: TEXTS, max: self.max_inputs })?,
                MODEL => model = read_model(&mut map)?,
                TYPES => embedding_types = read_types(&mut map)?,
                _ => {
                    const WRONG: &str = "'output_dimension' must be a whole number of at least 1";
                    output_dimension = read_whole(&mut map, WRONG)?;
                }
            }
        }
        let texts = texts.ok_or_else(|| {
            let sent =
                foreign.map(|name| format!("; this server embeds texts only, and not '{name}'")).unwrap_or_default();
            Error::custom(format!("'texts' is missing: it must be an array of strings{sent}"))
        })?;
        Ok(CohereEmbedRequest {
            model,
            texts,
            embedding_types,
            output_dimension,
            input_type: IgnoredAny,
            truncate: IgnoredAny,
        })
    }
}

/// Reads a list of types, in which a type that is repeated counts once. An empty list counts as missing.
fn read_types<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<Vec<CohereType>>, A::Error> {
    let wrong = || {
        let names = CohereType::ALL.map(|kind| format!("{:?}", kind.name())).join(", ");
        Error::custom(format!("'embedding_types' must be an array of {names}"))
    };
    let Some(names) = map.next_value::<Option<serde_json::Value>>()? else { return Ok(None) };
    let mut types = Vec::new();
    for name in names.as_array().ok_or_else(wrong)? {
        let kind = CohereType::ALL.into_iter().find(|kind| *name == kind.name()).ok_or_else(wrong)?;
        if !types.contains(&kind) {
            types.push(kind);
        }
    }
    Ok(Some(types).filter(|types| !types.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::{BodyError, parse};

    fn read(json: &str) -> Result<CohereEmbedRequest, BodyError> {
        parse(json.as_bytes(), 9)
    }

    #[test]
    fn types_are_read_once_each_and_in_order() {
        let json = r#"{"model":"m","texts":["a","b"],"input_type":"search_query","embedding_types":["ubinary","float","ubinary"],"output_dimension":8}"#;
        let request = read(json).unwrap();
        assert_eq!(request.embedding_types, Some(vec![CohereType::Ubinary, CohereType::Float]));
        assert_eq!((request.texts.count, request.output_dimension), (2, Some(8)));
        for none in [
            r#"{"texts":["a"]}"#,
            r#"{"texts":["a"],"embedding_types":[]}"#,
            r#"{"texts":["a"],"embedding_types":null}"#,
        ] {
            assert_eq!(read(none).unwrap().embedding_types, None, "{none}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (json, name) in [
            ("{}", "'texts'"),
            (r#"{"images":["data:"]}"#, "'images'"),
            (r#"{"texts":[]}"#, "'texts'"),
            (r#"{"texts":["a"],"embedding_types":"float"}"#, "'embedding_types'"),
            (r#"{"texts":["a"],"embedding_types":["int4"]}"#, "'embedding_types'"),
            (r#"{"texts":["a"],"output_dimension":"x"}"#, "'output_dimension'"),
        ] {
            let message = read(json).unwrap_err().to_string();
            assert!(message.contains(name), "{json}: {message}");
        }
    }
}
