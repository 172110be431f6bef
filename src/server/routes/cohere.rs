//! POST /v2/embed and POST /v1/embed: embeddings in the form of Cohere's API.

use super::embeddings::{EmbeddingJob, respond};
use crate::openai::{CohereEmbedRequest, CohereEmbedResponse, CohereType};
use crate::server::error::ApiError;
use crate::server::request::context::RequestContext;
use crate::server::request::json::Json;
use crate::server::response::accounted::AccountedResponse;
use crate::server::response::form::{CohereForm, ResponseForm};

/// Create embeddings (clients of Cohere)
///
/// `embedding_types` selects the types of the vectors. Without it, they are floats.
#[utoipa::path(
    post,
    path = "/v2/embed",
    tag = "other systems",
    operation_id = "cohereEmbed",
    request_body = CohereEmbedRequest,
    responses((status = OK, description = "For each type, one embedding per text, in the order of the texts", body = CohereEmbedResponse), ApiError)
)]
pub async fn embed_v2(
    context: RequestContext,
    Json(request): Json<CohereEmbedRequest>,
) -> Result<AccountedResponse, ApiError> {
    let types = request.embedding_types.clone().unwrap_or_else(|| vec![CohereType::Float]);
    answer(&context, request, 2, Some(types)).await
}

/// Create embeddings (clients of version 1 of Cohere's API)
///
/// Without `embedding_types`, `embeddings` is a list of vectors.
#[utoipa::path(
    post,
    path = "/v1/embed",
    tag = "other systems",
    operation_id = "cohereEmbedV1",
    request_body = CohereEmbedRequest,
    responses((status = OK, description = "For each type, one embedding per text, in the order of the texts", body = CohereEmbedResponse), ApiError)
)]
pub async fn embed_v1(
    context: RequestContext,
    Json(request): Json<CohereEmbedRequest>,
) -> Result<AccountedResponse, ApiError> {
    let types = request.embedding_types.clone();
    answer(&context, request, 1, types).await
}

async fn answer(
    context: &RequestContext,
    request: CohereEmbedRequest,
    version: u8,
    types: Option<Vec<CohereType>>,
) -> Result<AccountedResponse, ApiError> {
    let CohereEmbedRequest { model, texts, output_dimension, .. } = request;
    let job = EmbeddingJob { field: "texts", inputs: texts.list, model, dimensions: output_dimension };
    let id = format!("embed-{:016x}", fastrand::u64(..));
    respond(context, job, |texts| ResponseForm::Cohere(CohereForm { id, version, texts, types })).await
}
