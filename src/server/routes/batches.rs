//! The batches of OpenAI's API: POST and GET /v1/batches, GET /v1/batches/{batch_id}, and POST /v1/batches/{batch_id}/cancel.

use std::sync::Arc;

use axum::Json as JsonBody;

use super::files::{blocking, limits, page_limit, store};
use crate::batches::{BatchRecord, NewBatch, Page};
use crate::openai::{Batch, CreateBatchRequest, ErrorResponse, ListBatchesQuery, ListBatchesResponse, ListObject};
use crate::server::error::ApiError;
use crate::server::request::context::RequestContext;
use crate::server::request::json::Json;
use crate::server::request::model_id::ModelId;
use crate::server::request::query::Query;

/// The limits of a list of batches.
const LISTED: u64 = 20;
const MAX_LISTED: u64 = 100;

/// Create a batch
///
/// Answers the requests of an uploaded file in the background. Each line of the file is a request to `/v1/embeddings`.
#[utoipa::path(
    post,
    path = "/v1/batches",
    tag = "batches",
    operation_id = "createBatch",
    request_body = CreateBatchRequest,
    responses((status = OK, description = "The batch", body = Batch), ApiError)
)]
pub async fn create(
    context: RequestContext,
    Json(request): Json<CreateBatchRequest>,
) -> Result<JsonBody<Batch>, ApiError> {
    let (store, limits, owner) = (Arc::clone(store(&context)?), limits(&context), context.owner());
    let default_lifetime = context.state.config.server.file_lifetime();
    let batch = NewBatch {
        input_file_id: request.input_file_id,
        metadata: request.metadata,
        output_lifetime: request.output_expires_after.unwrap_or(default_lifetime),
    };
    let batch = blocking(move || store.create_batch(&owner, batch, limits)).await;
    Ok(JsonBody(batch.map_err(|error| error.for_file("input_file_id"))?.describe()))
}

/// List the batches
///
/// With an API key, only the batches of this key are listed.
#[utoipa::path(
    get,
    path = "/v1/batches",
    tag = "batches",
    operation_id = "listBatches",
    params(ListBatchesQuery),
    responses(
        (status = OK, description = "The batches, the newest first", body = ListBatchesResponse),
        (status = BAD_REQUEST, description = "The query is not valid", body = ErrorResponse<'_>),
        (status = NOT_FOUND, description = "Files and batches are switched off", body = ErrorResponse<'_>),
    )
)]
pub async fn list(
    context: RequestContext,
    Query(query): Query<ListBatchesQuery>,
) -> Result<JsonBody<ListBatchesResponse>, ApiError> {
    let store = store(&context)?;
    let limit = page_limit(query.limit, LISTED, MAX_LISTED)?;
    let (batches, has_more) = store.batches(&context.owner(), &Page { limit, after: query.after, ascending: false });
    let [first_id, last_id] = [batches.first(), batches.last()].map(|batch| batch.map(|batch| batch.id.clone()));
    let data = batches.iter().map(BatchRecord::describe).collect();
    Ok(JsonBody(ListBatchesResponse { object: ListObject::List, data, first_id, last_id, has_more }))
}

/// Get one batch
#[utoipa::path(
    get,
    path = "/v1/batches/{batch_id}",
    tag = "batches",
    operation_id = "retrieveBatch",
    params(("batch_id" = String, Path, description = "The ID of a batch")),
    responses(
        (status = OK, description = "The batch", body = Batch),
        (status = NOT_FOUND, description = "There is no such batch, or it belongs to another API key", body = ErrorResponse<'_>),
        (status = BAD_REQUEST, description = "The path is not UTF-8", body = ErrorResponse<'_>),
    )
)]
pub async fn retrieve(context: RequestContext, ModelId(id): ModelId) -> Result<JsonBody<Batch>, ApiError> {
    Ok(JsonBody(store(&context)?.batch(&context.owner(), &id)?.describe()))
}

/// Cancel a batch
///
/// The batch is `cancelling` until the current requests are answered, and then `cancelled`. The answers so far are available.
#[utoipa::path(
    post,
    path = "/v1/batches/{batch_id}/cancel",
    tag = "batches",
    operation_id = "cancelBatch",
    params(("batch_id" = String, Path, description = "The ID of a batch")),
    responses((status = OK, description = "The batch", body = Batch), ApiError)
)]
pub async fn cancel(context: RequestContext, ModelId(id): ModelId) -> Result<JsonBody<Batch>, ApiError> {
    let (store, owner) = (Arc::clone(store(&context)?), context.owner());
    Ok(JsonBody(blocking(move || store.cancel_batch(&owner, &id)).await?.describe()))
}
