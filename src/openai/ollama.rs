//! The types of Ollama's endpoints: POST /api/embed, /api/embeddings and /api/show, GET /api/tags and /api/version.

use serde::de::{Error, IgnoredAny, MapAccess};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Inputs;
use super::request::{DIMENSIONS, List, MODEL, ParsedRequest, ReadObject, once, read_model, read_object, read_whole};

/// The body of POST /api/embed. Unknown fields, such as `options` and `keep_alive`, are ignored.
#[derive(Debug, PartialEq, ToSchema)]
#[schema(example = json!({"model": "text-embedding-3-small", "input": ["hello", "안녕하세요"]}))]
pub struct OllamaEmbedRequest {
    /// The ID or an alias of a model. `:latest` at the end is ignored. If it is missing, the default model is used.
    pub model: Option<String>,
    pub input: Inputs,
    /// The number of dimensions of each vector.
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub dimensions: Option<u64>,
    /// Ignored: inputs of any length are taken.
    #[schema(value_type = Option<serde_json::Value>)]
    pub truncate: IgnoredAny,
}

/// The response of POST /api/embed.
// `server/response/form.rs` writes the bytes of this response and of the next one without creating these types.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "model": "text-embedding-3-small", "embeddings": [[0.6, -0.8]], "total_duration": 81250, "load_duration": 0, "prompt_eval_count": 2
}))]
pub struct OllamaEmbedResponse {
    /// The name of the model, as in the request.
    pub model: String,
    pub embeddings: Vec<Vec<f32>>,
    /// The time since the request was parsed, in nanoseconds.
    pub total_duration: u64,
    /// Always 0, because models are loaded before requests are answered.
    pub load_duration: u64,
    /// The number of tokens over which the vectors are the mean.
    pub prompt_eval_count: usize,
}

/// The body of POST /api/embeddings, the older endpoint for one text.
#[derive(Debug, PartialEq, ToSchema)]
#[schema(example = json!({"model": "text-embedding-3-small", "prompt": "hello"}))]
pub struct OllamaEmbeddingsRequest {
    /// The ID or an alias of a model. `:latest` at the end is ignored. If it is missing, the default model is used.
    pub model: Option<String>,
    /// The text.
    #[schema(value_type = String)]
    pub prompt: Inputs,
}

/// The response of POST /api/embeddings.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"embedding": [0.6, -0.8]}))]
pub struct OllamaEmbeddingsResponse {
    pub embedding: Vec<f32>,
}

/// The body of POST /api/show.
#[derive(Debug, PartialEq, ToSchema)]
#[schema(example = json!({"model": "text-embedding-3-small"}))]
pub struct OllamaShowRequest {
    /// The ID or an alias of a model. `:latest` at the end is ignored. If it is missing, the default model is used.
    pub model: Option<String>,
}

/// What Ollama's clients show of a model.
#[derive(Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct OllamaDetails {
    pub parent_model: &'static str,
    pub format: &'static str,
    pub family: &'static str,
    pub families: Vec<&'static str>,
    pub parameter_size: String,
    pub quantization_level: &'static str,
}

/// The response of POST /api/show.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct OllamaShowResponse {
    pub modified_at: String,
    pub details: OllamaDetails,
    #[schema(value_type = Object)]
    pub model_info: serde_json::Value,
    /// Always `embedding`.
    pub capabilities: [&'static str; 1],
}

/// One model in the response of GET /api/tags.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct OllamaModel {
    pub name: String,
    /// The same as `name`.
    pub model: String,
    pub modified_at: String,
    /// The size of the table in bytes.
    pub size: u64,
    /// The model's fingerprint. It is empty while the model is loading.
    pub digest: String,
    pub details: OllamaDetails,
}

/// The response of GET /api/tags.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct OllamaTagsResponse {
    pub models: Vec<OllamaModel>,
}

/// The response of GET /api/version.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct OllamaVersionResponse {
    /// The version of this server.
    pub version: &'static str,
}

const INPUT: &str = "input";
const PROMPT: &str = "prompt";

/// The fields that an error may name.
pub(super) const FIELDS: [&str; 1] = [PROMPT];

impl ParsedRequest for OllamaEmbedRequest {
    const ANY_CONTENT_TYPE: bool = true;

    fn read(body: &[u8], max_inputs: usize) -> serde_json::Result<Self> {
        let Fields { model, inputs, dimensions } = read_object(body, Body { field: Some(INPUT), max_inputs })?;
        let missing = || Error::custom("'input' is missing: it must be a string or an array of strings");
        Ok(Self { model, input: inputs.ok_or_else(missing)?, dimensions, truncate: IgnoredAny })
    }

    fn lists(&self) -> impl Iterator<Item = (&'static str, usize)> {
        std::iter::once((INPUT, self.input.count))
    }
}

impl ParsedRequest for OllamaEmbeddingsRequest {
    const ANY_CONTENT_TYPE: bool = true;

    fn read(body: &[u8], max_inputs: usize) -> serde_json::Result<Self> {
        let Fields { model, inputs, .. } = read_object(body, Body { field: Some(PROMPT), max_inputs })?;
        let missing = "'prompt' is missing: it must be a string, as in Ollama's API; clients of OpenAI's API need a base_url that ends in \
                       /v1";
        match inputs {
            Some(prompt) if prompt.count == 1 => Ok(Self { model, prompt }),
            Some(_) => Err(Error::custom("'prompt' must be one string; POST /api/embed takes several texts")),
            None => Err(Error::custom(missing)),
        }
    }

    fn lists(&self) -> impl Iterator<Item = (&'static str, usize)> {
        std::iter::once((PROMPT, self.prompt.count))
    }
}

impl ParsedRequest for OllamaShowRequest {
    const ANY_CONTENT_TYPE: bool = true;

    fn read(body: &[u8], max_inputs: usize) -> serde_json::Result<Self> {
        let Fields { model, .. } = read_object(body, Body { field: None, max_inputs })?;
        Ok(Self { model })
    }

    fn lists(&self) -> impl Iterator<Item = (&'static str, usize)> {
        std::iter::empty()
    }
}

#[derive(Default)]
struct Fields {
    model: Option<String>,
    inputs: Option<Inputs>,
    dimensions: Option<u64>,
}

/// The whole body.
struct Body {
    /// The field that holds the inputs.
    field: Option<&'static str>,
    max_inputs: usize,
}

impl ReadObject for Body {
    const EXAMPLE: &'static str = r#"{"model": "text-embedding-3-small"}"#;
    type Fields = Fields;

    fn read<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields::default();
        let mut seen = Vec::new();
        // Older clients of POST /api/show call the model `name`.
        while let Some(name) = map.next_key::<String>()? {
            let known = [MODEL, DIMENSIONS].into_iter().chain(self.field).find(|known| *known == name);
            match known {
                Some(field) => once(&mut seen, field)?,
                None if name == "name" && self.field.is_none() => fields.model = read_model(&mut map)?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
            match known {
                Some(MODEL) => fields.model = read_model(&mut map)?,
                Some(DIMENSIONS) => {
                    fields.dimensions = read_whole(&mut map, "'dimensions' must be a whole number of at least 1")?;
                }
                Some(field) => fields.inputs = map.next_value_seed(List { field, max: self.max_inputs })?,
                None => {}
            }
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use layer0::embedder::Input;

    use super::*;
    use crate::openai::{BodyError, parse};

    fn message<T: std::fmt::Debug>(result: Result<T, BodyError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn the_fields_of_ollama_are_read_and_its_options_are_ignored() {
        let json = br#"{"model":"m:latest","input":["a","b"],"truncate":true,"options":{"num_ctx":1},"keep_alive":"5m","dimensions":3}"#;
        let request = parse::<OllamaEmbedRequest>(json, 9).unwrap();
        assert_eq!((request.model.as_deref(), request.input.count, request.dimensions), (Some("m:latest"), 2, Some(3)));
        let request = parse::<OllamaEmbeddingsRequest>(br#"{"model":"m","prompt":"a"}"#, 9).unwrap();
        assert_eq!(request.prompt.list, [Input::Text("a".to_owned())]);
        assert_eq!(parse::<OllamaShowRequest>(br#"{"name":"m"}"#, 9).unwrap().model.as_deref(), Some("m"));
    }

    #[test]
    fn a_missing_text_is_named() {
        assert!(message(parse::<OllamaEmbedRequest>(b"{}", 9)).contains("'input'"));
        assert!(message(parse::<OllamaEmbeddingsRequest>(br#"{"input":"a"}"#, 9)).contains("ends in /v1"));
        assert!(message(parse::<OllamaEmbeddingsRequest>(br#"{"prompt":["a","b"]}"#, 9)).contains("/api/embed"));
    }
}
