//! Each route once, and what surrounds them all.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method, Uri};
use axum::middleware;
use axum::routing::{get, post};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use super::error::ApiError;
use super::{State, access, embeddings, health, models};

/// The service, for a listener or for a test.
pub fn router(state: Arc<State>) -> Router {
    let cors = cors(&state.config.server.cors_origins);
    let routes = Router::new()
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/models", get(models::list))
        // A wildcard: ids may hold a slash, and clients send it both plain and as %2F.
        .route("/v1/models/{*id}", get(models::retrieve))
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .fallback(async |method: Method, uri: Uri| ApiError::no_such_path(&method, uri.path()))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| ApiError::method_not_allowed(&method, uri.path()))
        .with_state(state);
    let routes = match cors {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    routes.layer(middleware::from_fn(access::log))
}

/// Browsers ask for `authorization` by name: `*` does not cover it, so the names asked for are mirrored.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    Some(
        CorsLayer::new()
            .allow_origin(origin)
            .allow_methods(AllowMethods::mirror_request())
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([HeaderName::from_static(access::REQUEST_ID)])
            .max_age(std::time::Duration::from_secs(600)),
    )
}
