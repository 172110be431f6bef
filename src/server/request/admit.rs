//! Admits a request: gives it a weight in the in-flight budget, and limits how long the server works on it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, Response};
use axum::response::IntoResponse;

use super::context::RequestContext;
use crate::config::units::{ByteCount, Seconds};
use crate::server::error::ApiError;
use crate::server::response::weighed_body::keep_weight;
use crate::server::state::admission::Admission;

/// The limits of a configuration on the requests in flight.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionLimits {
    /// The in-flight budget (`server.max_in_flight`).
    pub max_in_flight: ByteCount,
    /// How long the server works on one request (`server.request_timeout`).
    pub request_timeout: Seconds,
}

/// Runs `next` with a weight and a time limit for a request that brings work (POST). When the time is over, the request
/// is dropped together with its work, and the client gets status 503.
pub async fn admit<F: Future<Output = Response<Body>>>(
    admission: &Arc<Admission>,
    limits: AdmissionLimits,
    context: RequestContext,
    request: Request,
    next: impl FnOnce(RequestContext, Request) -> F,
) -> Response<Body> {
    if request.method() != Method::POST {
        return next(context, request).await;
    }
    let weight = admission.enter(limits.max_in_flight.0, limits.request_timeout.0);
    let version = request.version();
    let context = RequestContext { weight: Some(Arc::clone(&weight)), ..context };
    let response = tokio::select! {
        biased;
        response = next(context, request) => response,
        () = weight.is_late() => return ApiError::too_slow(limits.request_timeout).into_response(),
    };
    keep_weight(response, version, weight)
}
