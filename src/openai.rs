//! The request and response types of the HTTP API, named as in OpenAI's API description. They know neither the limits
//! of a model nor status codes.

/// Defines the type of an `object` field, which has a single possible value.
macro_rules! object {
    ($name:ident, $value:ident) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
        #[serde(rename_all = "lowercase")]
        pub enum $name {
            $value,
        }
    };
}

mod batch;
pub mod batch_line;
mod cohere;
mod ollama;
mod request;
mod rerank;
mod sparse;
mod tei;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{ArrayBuilder, OneOfBuilder};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

pub use batch::{
    Batch, BatchError, BatchErrors, BatchObjectKind, BatchRequestCounts, BatchStatus, BatchUsage, COMPLETION_WINDOW,
    CreateBatchRequest, CreateFileRequest, DeleteFileResponse, ExpiresAfterFields, FileObjectKind, FilePurpose,
    LIFETIME, ListBatchesQuery, ListBatchesResponse, ListFilesQuery, ListFilesResponse, ListOrder, OpenAiFile,
};
pub use cohere::{CohereEmbedRequest, CohereEmbedResponse, CohereType};
pub use ollama::{
    OllamaDetails, OllamaEmbedRequest, OllamaEmbedResponse, OllamaEmbeddingsRequest, OllamaEmbeddingsResponse,
    OllamaModel, OllamaShowRequest, OllamaShowResponse, OllamaTagsResponse, OllamaVersionResponse,
};
pub use request::{BodyError, ParsedRequest, parse};
pub use rerank::{
    BilledUnits, CreateRerankRequest, CreateRerankResponse, Documents, RerankMeta, RerankResult, ReturnedDocument,
    Span, TeiRank, TokenShare,
};
pub use sparse::{
    CreateSparseEmbeddingRequest, CreateSparseEmbeddingResponse, EmbedSparseRequest, InputType, SparseEmbedding,
    SparseValue,
};
pub use tei::{TeiInfo, TeiRequest, TeiRequestBody, TeiSentences};

use layer0::OutputDtype;
use layer0::embedder::Input;

/// The body of POST /v1/embeddings. Unknown fields are ignored.
#[derive(Debug, PartialEq, ToSchema)]
#[schema(example = json!({"input": "hello", "model": "text-embedding-3-small"}))]
pub struct CreateEmbeddingRequest {
    pub input: Inputs,
    /// The ID or an alias of a model. If it is missing, the default model is used.
    pub model: Option<String>,
    /// `base64` returns the same numbers as bytes (little-endian 32-bit floats, or what `output_dtype` says), in base64's standard
    /// alphabet with padding. `bytes` returns the bytes of all vectors as the body of the response, and so does the header `Accept:
    /// application/octet-stream` if this field is missing.
    #[schema(value_type = Option<EncodingFormat>, default = "float")]
    pub encoding_format: Option<EncodingFormat>,
    /// The type of the returned numbers. `int8` has the numbers of the vector, which is scaled to length 1, times 127; `uint8` those of
    /// int8 plus 128. `ubinary` has one bit for each number, which is 1 if the number is positive, packed into bytes from
    /// the most significant bit on; `binary` has these bytes minus 128.
    #[schema(value_type = Option<OutputDtypeName>, default = "float")]
    pub output_dtype: OutputDtype,
    /// The number of dimensions of each vector. Longer vectors are cut to their first numbers and scaled to length
    /// 1 again.
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
    /// The ID or an alias of a model. If it is missing, the default model is used.
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
    /// The texts to compare with the inputs. If they are missing, the inputs are compared with each other.
    pub queries: Option<Inputs>,
    /// The ID or an alias of a model. If it is missing, the default model is used.
    pub model: Option<String>,
    /// The number of dimensions that are compared, from the beginning of each vector.
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub dimensions: Option<u64>,
    /// Whether the texts were sent as `inputs`, as for text-embeddings-inference: the response is in its form, too.
    #[schema(ignore)]
    pub is_tei: bool,
}

/// The inputs of a request: a string, a list of strings, a list of token IDs, or a list of lists of token IDs. After
/// parsing it is always a list.
#[derive(Debug, PartialEq, Default)]
pub struct Inputs {
    /// The inputs, at most as many as the parser was told to keep.
    pub list: Vec<Input>,
    /// The number of inputs in the request.
    pub count: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    #[default]
    Float,
    /// The bytes of each vector in base64's standard alphabet, with padding.
    Base64,
    /// The bytes of all vectors, one vector after another, as the body of the response.
    Bytes,
}

/// The names of [`OutputDtype`], for the description of the API.
#[derive(ToSchema)]
#[schema(as = OutputDtype, rename_all = "lowercase")]
#[allow(dead_code, reason = "the type only describes the API")]
pub enum OutputDtypeName {
    Float,
    Int8,
    Uint8,
    Binary,
    Ubinary,
}

object!(ListObject, List);
object!(ModelObject, Model);
object!(EmbeddingObject, Embedding);
object!(TokensObject, Tokens);
object!(SimilarityObject, Similarity);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SparseEmbeddingObject {
    SparseEmbedding,
}

/// The response of POST /v1/embeddings.
// `server/response/write.rs` writes the bytes of this response and of the next two without creating these types.
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
    /// The name of the model, as in the request.
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

/// An array of numbers or a base64 string, depending on `encoding_format`. `output_dtype` decides which numbers they are.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// The number of tokens over which the vectors are the mean.
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}

/// The response of POST /v1/tokenize.
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
    /// The name of the model, as in the request.
    pub model: String,
    pub usage: Usage,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Tokens {
    #[schema(inline)]
    pub object: TokensObject,
    /// The position of the input in the request.
    pub index: usize,
    /// IDs in the model's own vocabulary. They include special tokens if the model's mean includes them.
    pub ids: Vec<u32>,
    /// The text of each token. A byte that is not a whole character is written as `<0xEC>`.
    pub pieces: Vec<String>,
    pub count: usize,
}

/// The response of POST /v1/similarity.
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
    /// The name of the model, as in the request.
    pub model: String,
    pub usage: Usage,
}

/// One row of the similarity matrix.
#[derive(Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Similarity {
    #[schema(inline)]
    pub object: SimilarityObject,
    /// The position of the row's query in `queries`, or in `input` if there are no queries.
    pub index: usize,
    /// The cosine similarity with each input.
    pub similarity: Vec<f32>,
}

/// One model: an entry of GET /v1/models, and the response of GET /v1/models/{id}.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "text-embedding-3-small", "object": "model", "created": 1795830711, "owned_by": "embedding-server",
    "fingerprint": "00000000000000000000000000000000"
}))]
#[schema(as = Model)]
pub struct ModelDescription {
    pub id: String,
    #[schema(inline)]
    pub object: ModelObject,
    /// When the model's files were last changed, in Unix seconds.
    pub created: u64,
    pub owned_by: &'static str,
    /// The name of the model's vector space. Vectors can be compared if their models have the same fingerprint and the vectors have the same
    /// length. It is absent while the model is loading.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub fingerprint: Option<String>,
}

impl ModelDescription {
    pub fn new(id: impl Into<String>, created: u64, fingerprint: Option<String>) -> Self {
        Self { id: id.into(), object: ModelObject::Model, created, owned_by: "embedding-server", fingerprint }
    }
}

/// The response of GET /v1/models.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({
    "object": "list",
    "data": [{
        "id": "text-embedding-3-small", "object": "model", "created": 1795830711, "owned_by": "embedding-server",
        "fingerprint": "00000000000000000000000000000000"
    }]
}))]
pub struct ListModelsResponse {
    #[schema(inline)]
    pub object: ListObject,
    pub data: Vec<ModelDescription>,
}

/// An error response. Errors have this form on every path.
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
            .item(ids().min_items(Some(1)).description(Some("One input as token IDs.")))
            .item(ArrayBuilder::new().items(ids()).min_items(Some(1)).description(Some("Inputs as token IDs.")));
        one_of.description(Some("Token IDs are those of the encoding cl100k_base, unless the model's setting `token_input` says otherwise.")).into()
    }
}

impl ToSchema for Inputs {}
