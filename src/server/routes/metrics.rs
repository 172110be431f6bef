//! GET /metrics: the metrics for Prometheus.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderValue, Response};

use super::exposition::Format;
use crate::openai::ErrorResponse;
use crate::server::error::ApiError;
use crate::server::observe::metrics::Gauges;
use crate::server::request::accept::Accept;
use crate::server::state::ServerState;

/// Metrics for Prometheus
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "operations",
    responses(
        (
            status = OK,
            description = "The metrics in Prometheus's text format, or in OpenMetrics if `Accept` asks for it",
            content((String = Format::TEXT), (String = Format::OPENMETRICS)),
        ),
        (status = INTERNAL_SERVER_ERROR, description = "The server failed", body = ErrorResponse<'_>),
    )
)]
pub async fn metrics(State(state): State<Arc<ServerState>>, headers: HeaderMap) -> Result<Response<Body>, ApiError> {
    let format = Format::negotiate(&Accept::new(&headers));
    let text = text(&state).map_err(|_| ApiError::internal())?;
    let mut response = Response::new(Body::from(format.write(text)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    headers.insert(VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// Returns all metrics in the OpenMetrics text format.
///
/// # Errors
/// If a metric cannot be encoded.
pub fn text(state: &ServerState) -> Result<String, std::fmt::Error> {
    let process = &state.process;
    process.metrics.text(&Gauges {
        waiting_jobs: process.workers.waiting(),
        bytes_in_flight: process.admission.in_flight(),
        models: state.registry.models(),
        batches: process.batches.as_ref().map(|batches| batches.statuses()).unwrap_or_default(),
        stored_files: process.batches.as_ref().map(|batches| batches.size()).unwrap_or_default(),
    })
}
