//! Each route once, with its description, and what surrounds them all.

use std::sync::Arc;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{HeaderName, HeaderValue, Method, Request, Uri};
use axum::middleware;
use axum::routing::get;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::{
    State, access, docs, embeddings, health, metrics, models, playground, similarity, stages, tokenize, trace,
};

/// The service, for a listener or for a test.
pub fn router(state: Arc<State>) -> Router {
    let server = &state.config.server;
    let described = OpenApiRouter::with_openapi(docs::introduction())
        .routes(routes!(embeddings::create))
        .routes(routes!(embeddings::of_engine))
        .routes(routes!(embeddings::of_deployment))
        .routes(routes!(models::list))
        .routes(routes!(models::retrieve))
        .routes(routes!(tokenize::create))
        .routes(routes!(similarity::create))
        .routes(routes!(health::health))
        .routes(routes!(health::ready));
    let described = if server.metrics { described.routes(routes!(metrics::metrics)) } else { described };
    let (mut routes, description) = described.split_for_parts();

    let mut paths: Vec<String> = description.paths.paths.keys().cloned().collect();
    if server.docs {
        let description = docs::of_routes(description);
        let describe = async |Shared(state): Shared<Arc<State>>| docs::description(description, &state);
        routes = routes
            .route(docs::DESCRIPTION, get(describe))
            .route(docs::PAGE, get(docs::page))
            .route(docs::SCRIPT, get(docs::script));
        paths.extend([docs::DESCRIPTION, docs::PAGE, docs::SCRIPT].map(str::to_owned));
    }
    if server.playground {
        routes = routes.merge(playground::routes());
        paths.extend(playground::PATHS.map(str::to_owned));
    }
    let cors = cors(&server.cors_origins);
    let log = Arc::new(access::Log::new(Arc::clone(&state.metrics), &paths));
    let routes = routes
        .fallback(async |method: Method, uri: Uri| ApiError::no_such_path(&method, uri.path()))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| ApiError::method_not_allowed(&method, uri.path()))
        .with_state(state);
    let routes = match cors {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    routes.layer(middleware::from_fn_with_state(log, access::log))
}

/// Makes one slash of several: a client whose base URL ends in one asks for `/v1//embeddings`.
pub fn single_slashes<B>(request: &mut Request<B>) {
    if !request.uri().path().contains("//") {
        return;
    }
    let mut path = String::with_capacity(request.uri().path().len());
    for c in request.uri().path().chars() {
        if c != '/' || !path.ends_with('/') {
            path.push(c);
        }
    }
    if let Some(query) = request.uri().query() {
        path.extend(["?", query]);
    }
    // What is left out of a valid path leaves a valid one.
    if let Ok(uri) = path.parse() {
        *request.uri_mut() = uri;
    }
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
            .expose_headers(
                [access::REQUEST_ID, stages::SERVER_TIMING, trace::TRACE_PARENT].map(HeaderName::from_static),
            )
            .max_age(std::time::Duration::from_secs(600)),
    )
}
