//! GET /health: the process lives. GET /ready: it can take requests.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State as Shared;
use serde_json::{Value, json};

use super::State;
use super::error::ApiError;

pub async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

pub async fn ready(Shared(state): Shared<Arc<State>>) -> Result<Json<Value>, ApiError> {
    if state.draining.load(Ordering::Relaxed) {
        return Err(ApiError::draining());
    }
    let loading = state.registry.loading();
    if loading.is_empty() { Ok(Json(json!({"status": "ready"}))) } else { Err(ApiError::loading(&loading)) }
}
