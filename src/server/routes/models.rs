//! GET /v1/models and GET /v1/models/{id}: the models that the server offers.

use axum::Json;

use crate::openai::{ErrorResponse, ListModelsResponse, ListObject, ModelDescription};
use crate::registry::RegisteredModel;
use crate::server::error::ApiError;
use crate::server::request::context::RequestContext;
use crate::server::request::model_id::ModelId;

/// List the models
///
/// Lists IDs and aliases, because clients check here that a name exists before they use it. With an API key, only the
/// models that the key may use are listed.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "models",
    operation_id = "listModels",
    responses((status = OK, description = "The configured models", body = ListModelsResponse))
)]
pub async fn list(context: RequestContext) -> Json<ListModelsResponse> {
    let data = context
        .state
        .registry
        .models()
        .iter()
        .flat_map(|entry| entry.names().map(|name| describe(name, entry)))
        .collect();
    Json(ListModelsResponse { object: ListObject::List, data })
}

/// Get one model
#[utoipa::path(
    get,
        // The path has a wildcard because an ID may contain a slash, which clients send both plain and as %2F.
    path = "/v1/models/{*id}",
    tag = "models",
    operation_id = "retrieveModel",
    params(("id" = String, Path, description = "The ID or an alias of a model")),
    responses(
        (status = OK, description = "The model", body = ModelDescription),
        (status = NOT_FOUND, description = "There is no such model", body = ErrorResponse<'_>),
        (status = BAD_REQUEST, description = "The path is not UTF-8", body = ErrorResponse<'_>),
    )
)]
pub async fn retrieve(context: RequestContext, ModelId(id): ModelId) -> Result<Json<ModelDescription>, ApiError> {
    match context.state.registry.get(Some(&id)) {
        Some(entry) => Ok(Json(describe(&id, entry))),
        None => Err(ApiError::model_not_found(&id)),
    }
}

fn describe(name: &str, entry: &RegisteredModel) -> ModelDescription {
    ModelDescription::new(name, entry.created(), entry.embedder().map(|embedder| embedder.fingerprint().to_string()))
}
