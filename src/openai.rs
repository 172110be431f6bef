//! The wire types, named as in OpenAI's API description. No limits of a model, no status codes.

mod request;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{ArrayBuilder, OneOfBuilder};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

pub use request::{BodyError, Request, parse};

use crate::embedder::Input;

/// The body of POST /v1/embeddings. Unknown fields are ignored.
#[derive(Debug, PartialEq, ToSchema)]
#[schema(example = json!({"input": "hello", "model": "text-embedding-3-small"}))]
pub struct CreateEmbeddingRequest {
    pub input: Inputs,
    /// The id or alias of a model. If it is missing, the default model answers.
    pub model: Option<String>,
    /// `base64` gives the same numbers as little-endian f32, in base64's standard alphabet with padding.
    #[schema(value_type = Option<EncodingFormat>, default = "float")]
    pub encoding_format: EncodingFormat,
    /// How many numbers each vector has. The vector is cut to its first numbers and scaled to length 1 again.
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub dimensions: Option<u64>,
    /// Ignored.
    #[schema(value_type = Option<serde_json::Value>)]
    pub user: IgnoredAny,
}

/// The body of POST /v1/tokenize.
#[derive(Debug, PartialEq, ToSchema)]
#[schema(example = json!({"input": "hello", "model": "text-embedding-3-small"}))]
pub struct CreateTokensRequest {
    pub input: Inputs,
    /// The id or alias of a model. If it is missing, the default model answers.
    pub model: Option<String>,
}

/// The body of POST /v1/similarity.
#[derive(Debug, PartialEq, ToSchema)]
#[schema(example = json!({
    "input": ["The cat sleeps.", "A pet is resting.", "The bank raises interest rates."],
    "queries": ["a sleeping animal"],
    "model": "text-embedding-3-small"
}))]
pub struct CreateSimilarityRequest {
    pub input: Inputs,
    /// Texts to compare with the inputs. If they are missing, the inputs are compared with each other.
    pub queries: Option<Inputs>,
    /// The id or alias of a model. If it is missing, the default model answers.
    pub model: Option<String>,
    /// How many numbers of each vector are compared.
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub dimensions: Option<u64>,
}

/// A string, a list of strings, a list of token ids, or a list of lists of token ids; here always a list.
#[derive(Debug, PartialEq, Default)]
pub struct Inputs {
    /// No more than were asked for.
    pub list: Vec<Input>,
    /// How many the request has.
    pub count: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    #[default]
    Float,
    /// Little-endian f32, standard alphabet, padded.
    Base64,
}

/// Values of `object`, each the only one where it stands.
macro_rules! object {
    ($name:ident, $value:ident) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "lowercase")]
        pub enum $name {
            $value,
        }
    };
}
object!(ListObject, List);
object!(ModelObject, Model);
object!(EmbeddingObject, Embedding);
object!(TokensObject, Tokens);
object!(SimilarityObject, Similarity);

/// The answer of POST /v1/embeddings.
// `server/write.rs` writes it, and the next two, without making one of these.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [-0.134277940, -0.42490086, -0.40635535, 0.79768670]}],
    "model": "text-embedding-3-small",
    "usage": {"prompt_tokens": 2, "total_tokens": 2}
}))]
pub struct CreateEmbeddingResponse {
    #[schema(inline)]
    pub object: ListObject,
    pub data: Vec<Embedding>,
    /// The model as the request named it.
    pub model: String,
    pub usage: Usage,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Embedding {
    #[schema(inline)]
    pub object: EmbeddingObject,
    /// The position of the input in the request.
    pub index: usize,
    #[schema(inline)]
    pub embedding: Vector,
}

/// A list of numbers or a base64 string, as `encoding_format` asks.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// How many tokens the vectors are the mean of.
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}

/// The answer of POST /v1/tokenize.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "object": "list",
    "data": [{"object": "tokens", "index": 0, "ids": [21969, 28], "pieces": [" hell", "o"], "count": 2}],
    "model": "text-embedding-3-small",
    "usage": {"prompt_tokens": 2, "total_tokens": 2}
}))]
pub struct CreateTokensResponse {
    #[schema(inline)]
    pub object: ListObject,
    pub data: Vec<Tokens>,
    /// The model as the request named it.
    pub model: String,
    pub usage: Usage,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Tokens {
    #[schema(inline)]
    pub object: TokensObject,
    /// The position of the input in the request.
    pub index: usize,
    /// Ids of the model's own vocabulary. They include special tokens if the model's mean includes them.
    pub ids: Vec<u32>,
    /// The text of each token; a byte that is not a character by itself is written as `<0xEC>`.
    pub pieces: Vec<String>,
    pub count: usize,
}

/// The answer of POST /v1/similarity.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "object": "list",
    "data": [{"object": "similarity", "index": 0, "similarity": [0.71952015, 0.45512652, -0.0101754200]}],
    "model": "text-embedding-3-small",
    "usage": {"prompt_tokens": 22, "total_tokens": 22}
}))]
pub struct CreateSimilarityResponse {
    #[schema(inline)]
    pub object: ListObject,
    pub data: Vec<Similarity>,
    /// The model as the request named it.
    pub model: String,
    pub usage: Usage,
}

/// One row of the matrix.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Similarity {
    #[schema(inline)]
    pub object: SimilarityObject,
    /// The position of the row's query in `queries` (in `input` if there are no queries).
    pub index: usize,
    /// The cosine similarity with each input.
    pub similarity: Vec<f32>,
}

/// An entry of GET /v1/models, and GET /v1/models/{id}.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "text-embedding-3-small", "object": "model", "created": 1795830711, "owned_by": "embedding-server"
}))]
pub struct Model {
    pub id: String,
    #[schema(inline)]
    pub object: ModelObject,
    /// Unix seconds.
    pub created: u64,
    pub owned_by: &'static str,
}

impl Model {
    pub fn new(id: impl Into<String>, created: u64) -> Self {
        Self { id: id.into(), object: ModelObject::Model, created, owned_by: "embedding-server" }
    }
}

/// GET /v1/models.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({
    "object": "list",
    "data": [{"id": "text-embedding-3-small", "object": "model", "created": 1795830711, "owned_by": "embedding-server"}]
}))]
pub struct ListModelsResponse {
    #[schema(inline)]
    pub object: ListObject,
    pub data: Vec<Model>,
}

/// Every error on every path.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"error": {
    "message": "What happened, and what to do about it.", "type": "invalid_request_error", "param": "input", "code": null
}}))]
pub struct ErrorResponse<'a> {
    pub error: ErrorBody<'a>,
}

#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Error)]
pub struct ErrorBody<'a> {
    pub message: &'a str,
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// The field of the request that is wrong.
    #[schema(required = true)]
    pub param: Option<&'a str>,
    #[schema(required = true)]
    pub code: Option<&'a str>,
}

impl PartialSchema for Inputs {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let id = || ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(u32::MAX));
        let ids = || ArrayBuilder::new().items(id());
        let one_of = OneOfBuilder::new()
            .item(text().description(Some("A text.")))
            .item(ArrayBuilder::new().items(text()).min_items(Some(1)).description(Some("Texts.")))
            .item(ids().min_items(Some(1)).description(Some("One input as token ids.")))
            .item(ArrayBuilder::new().items(ids()).min_items(Some(1)).description(Some("Inputs as token ids.")));
        one_of.description(Some("Token ids are cl100k_base's, unless the model's `token_input` says otherwise.")).into()
    }
}

impl ToSchema for Inputs {}
