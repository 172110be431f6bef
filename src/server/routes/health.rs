//! GET /health: whether the process is alive. GET /ready: whether it accepts requests.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::openai::ErrorResponse;
use crate::registry::RegisteredModel;
use crate::server::error::ApiError;
use crate::server::request::context::RequestContext;
use crate::server::state::ServerState;

#[derive(Debug, Serialize, ToSchema)]
pub struct Status {
    status: &'static str,
}

/// Liveness probe
///
/// Answers 200 as long as the process is running. It never needs an API key.
#[utoipa::path(
    get,
    path = "/health",
    tag = "operations",
    responses((status = OK, description = "The process is running", body = Status))
)]
pub async fn health() -> Json<Status> {
    Json(Status { status: "ok" })
}

/// Readiness probe
///
/// Answers 200 once every model is loaded. Answers 503 while models are loading, after the file of a table was damaged
/// while in use, and during shutdown. It never needs an API key.
#[utoipa::path(
    get,
    path = "/ready",
    tag = "operations",
    responses(
        (status = OK, description = "The server accepts requests", body = Status),
        (status = SERVICE_UNAVAILABLE, description = "Models are loading, the server is shutting down, or the file of a table was damaged while in use", body = ErrorResponse<'_>),
    )
)]
pub async fn ready(State(state): State<Arc<ServerState>>, context: RequestContext) -> Result<Json<Status>, ApiError> {
    if state.process.draining.load(Ordering::Relaxed) {
        return Err(ApiError::draining());
    }
    let damage = |entry: &Arc<RegisteredModel>| entry.embedder()?.damage();
    if let Some(damage) = state.registry.models().iter().find_map(damage) {
        return Err(ApiError::damaged(&damage));
    }
    let loading = state.registry.loading();
    if loading.is_empty() {
        return Ok(Json(Status { status: "ready" }));
    }
    Err(if context.may_see_names() { ApiError::loading(&loading) } else { ApiError::loading_models() })
}
