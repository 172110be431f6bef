//! GET /v1/models and GET /v1/models/{id}, and reading model IDs from paths.

use axum::Json;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use crate::openai::{ErrorResponse, ListModelsResponse, ListObject, ModelDescription};
use crate::server::error::ApiError;
use crate::server::request::authorize::VisibleState;

/// The name of a model in the path, percent-decoded.
pub struct ModelId(pub String);

impl<S: Send + Sync> FromRequestParts<S> for ModelId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(_) => Err(ApiError::invalid_path()),
        }
    }
}

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
pub async fn list(VisibleState(state): VisibleState) -> Json<ListModelsResponse> {
    let data = state
        .registry
        .models()
        .iter()
        .flat_map(|entry| entry.names().map(|name| ModelDescription::new(name, entry.created())))
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
pub async fn retrieve(
    VisibleState(state): VisibleState,
    ModelId(id): ModelId,
) -> Result<Json<ModelDescription>, ApiError> {
    match state.registry.get(Some(&id)) {
        Some(entry) => Ok(Json(ModelDescription::new(id, entry.created()))),
        None => Err(ApiError::model_not_found(&id)),
    }
}
