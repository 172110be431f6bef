//! Cross-origin requests: which web pages may use the server (`server.cors_origins`).

use axum::http::{HeaderName, HeaderValue};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use crate::server::observe::{access, stages, trace};
use crate::server::routes::embeddings;

/// The headers in which OpenAI's API tells a client when to retry.
const RETRY_HEADERS: [&str; 7] = [
    "retry-after",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
];

/// Returns the CORS layer, or `None` if no origin is allowed. The requested headers are mirrored, because the wildcard
/// `*` does not cover `authorization`.
pub fn layer(origins: &[String]) -> Option<CorsLayer> {
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
            .expose_headers(
                [access::REQUEST_ID, stages::SERVER_TIMING, trace::TRACE_PARENT]
                    .into_iter()
                    .chain(RETRY_HEADERS)
                    .map(HeaderName::from_static)
                    .chain([embeddings::FINGERPRINT, embeddings::SHAPE, embeddings::DTYPE, embeddings::PROMPT_TOKENS])
                    .collect::<Vec<_>>(),
            )
            .max_age(std::time::Duration::from_secs(600)),
    )
}
