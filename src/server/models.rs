//! GET /v1/models and GET /v1/models/{id}; model ids in paths.

use axum::Json;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use super::authorize::View;
use super::error::ApiError;
use crate::openai::{ErrorResponse, ListModelsResponse, ListObject, Model};

/// A model's name in the path, percent-decoded.
pub struct Id(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
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
/// Ids and aliases, because clients look a name up here before they use it. With an API key only the models that the key may use.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "models",
    operation_id = "listModels",
    responses((status = OK, description = "The configured models", body = ListModelsResponse))
)]
pub async fn list(View(state): View) -> Json<ListModelsResponse> {
    let data = state
        .registry
        .models()
        .iter()
        .flat_map(|entry| entry.names().map(|name| Model::new(name, entry.created())))
        .collect();
    Json(ListModelsResponse { object: ListObject::List, data })
}

/// Get one model
#[utoipa::path(
    get,
    // A wildcard: ids may hold a slash, and clients send it both plain and as %2F.
    path = "/v1/models/{*id}",
    tag = "models",
    operation_id = "retrieveModel",
    params(("id" = String, Path, description = "The id or alias of a model")),
    responses(
        (status = OK, description = "The model", body = Model),
        (status = NOT_FOUND, description = "No such model", body = ErrorResponse<'_>),
        (status = BAD_REQUEST, description = "The path is not UTF-8", body = ErrorResponse<'_>),
    )
)]
pub async fn retrieve(View(state): View, Id(id): Id) -> Result<Json<Model>, ApiError> {
    match state.registry.get(Some(&id)) {
        Some(entry) => Ok(Json(Model::new(id, entry.created()))),
        None => Err(ApiError::model_not_found(&id)),
    }
}
