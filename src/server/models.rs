//! GET /v1/models and GET /v1/models/{id}.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State as Shared};

use super::State;
use super::error::ApiError;
use crate::openai::{ListModelsResponse, Model};

/// Ids and aliases alike: clients look a name up here before they use it.
pub async fn list(Shared(state): Shared<Arc<State>>) -> Json<ListModelsResponse> {
    let data = state
        .registry
        .models()
        .iter()
        .flat_map(|entry| entry.names().map(|name| Model::new(name, entry.created())))
        .collect();
    Json(ListModelsResponse { object: "list", data })
}

pub async fn retrieve(Shared(state): Shared<Arc<State>>, Path(id): Path<String>) -> Result<Json<Model>, ApiError> {
    match state.registry.get(Some(&id)) {
        Some(entry) => Ok(Json(Model::new(id, entry.created()))),
        None => Err(ApiError::model_not_found(&id)),
    }
}
