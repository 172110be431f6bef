//! GET /: a page to try the server in a browser, from assets in the binary alone. It knows the API and nothing else.

use axum::Router;
use axum::http::HeaderName;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::routing::get;

/// The page, its style and its script.
pub const PATHS: [&str; 3] = ["/", "/playground.css", "/playground.js"];

/// Only what this server sends itself, nothing inline, and no page may frame it: the page may hold a key.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = include_str!("../../assets/playground/playground.html");
const CSS: &str = include_str!("../../assets/playground/playground.css");
const JS: &str = include_str!("../../assets/playground/playground.js");

type Answer = ([(HeaderName, &'static str); 5], &'static str);

pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let [page, style, script] = PATHS;
    Router::new()
        .route(page, get(async || asset("text/html; charset=utf-8", HTML)))
        .route(style, get(async || asset("text/css; charset=utf-8", CSS)))
        .route(script, get(async || asset("text/javascript; charset=utf-8", JS)))
}

fn asset(kind: &'static str, text: &'static str) -> Answer {
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        // The three belong together, and another release has others.
        (CACHE_CONTROL, "no-cache"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text)
}
