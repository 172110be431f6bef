//! The endpoints of text-embeddings-inference that have no path of their own in this server's API: POST /embed (also as POST /) and GET /info.
//! POST /similarity, /rerank and /embed_sparse are beside the endpoints that they resemble.

use axum::Json as JsonBody;
use serde_json::json;

use super::embeddings::{EmbeddingJob, respond};
use super::similarity;
use crate::openai::{CreateSimilarityRequest, TeiInfo, TeiRequest, TeiRequestBody};
use crate::server::error::ApiError;
use crate::server::request::context::RequestContext;
use crate::server::request::inputs::RequestedModel;
use crate::server::request::json::Json;
use crate::server::response::accounted::AccountedResponse;
use crate::server::response::form::ResponseForm;

/// What a model without a limit on tokens reports as its limit.
const NO_LIMIT: usize = 1_000_000_000;

/// The path of POST /embed. A POST request to `/` has the same meaning.
pub const EMBED: &str = "/embed";

/// Create embeddings, or compare sentences (clients of text-embeddings-inference)
///
/// With `source_sentence` and `sentences` in `inputs`, the response has the similarity of each sentence. Clients that know only the address
/// of a server, such as Hugging Face's InferenceClient, send the same requests to `/`.
#[utoipa::path(
    post,
    path = "/embed",
    tag = "other systems",
    operation_id = "teiEmbed",
    request_body = TeiRequestBody,
    responses(
        (status = OK, description = "One embedding per input, in the order of the inputs", body = Vec<serde_json::Value>),
        ApiError,
    )
)]
pub async fn embed(context: RequestContext, Json(request): Json<TeiRequest>) -> Result<AccountedResponse, ApiError> {
    match request {
        TeiRequest::Embed { inputs, model, dimensions } => {
            let job = EmbeddingJob { field: "inputs", inputs: inputs.list, model, dimensions };
            respond(&context, job, |_| ResponseForm::Tei).await
        }
        TeiRequest::Similarity { inputs, model, dimensions } => {
            let (input, queries) = (inputs.sentences, Some(inputs.source_sentence));
            let request = CreateSimilarityRequest { input, queries, model, dimensions, is_tei: true };
            similarity::answer(&context, request).await
        }
    }
}

/// Describe the server (clients of text-embeddings-inference)
#[utoipa::path(
    get,
    path = "/info",
    tag = "other systems",
    operation_id = "teiInfo",
    responses((status = OK, description = "The default model and the limits", body = TeiInfo), ApiError)
)]
pub async fn info(context: RequestContext) -> Result<JsonBody<TeiInfo>, ApiError> {
    let state = &context.state;
    let RequestedModel { entry, embedder, .. } = RequestedModel::resolve(state, None)?;
    Ok(JsonBody(TeiInfo {
        model_id: entry.id().to_owned(),
        model_sha: Some(embedder.fingerprint().to_string()),
        model_dtype: "float32",
        model_type: json!({"embedding": {"pooling": "mean"}}),
        max_input_length: embedder.max_input_tokens().unwrap_or(NO_LIMIT),
        max_client_batch_size: state.config.server.max_inputs,
        auto_truncate: false,
        version: env!("CARGO_PKG_VERSION"),
    }))
}
