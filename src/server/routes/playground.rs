//! GET /: a page for trying out the server in a browser, made only of files inside the binary. The page uses only the
//! API.

use axum::Router;
use axum::http::HeaderName;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::routing::get;

pub const PAGE: &str = "/";

/// The paths of the page, its style sheet, its two scripts, and the model card of the built-in model.
pub const PATHS: [&str; 5] = [PAGE, "/playground.css", "/playground.js", "/playground-map.js", "/model-card"];

/// The content security policy of the page. The page can hold an API key, so it may load only what this server sends,
/// may have no inline script or style, and may not be framed.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = include_str!("../../../assets/playground/playground.html");
const CSS: &str = include_str!("../../../assets/playground/playground.css");
const JS: &str = include_str!("../../../assets/playground/playground.js");
const MAP_JS: &str = include_str!("../../../assets/playground/playground-map.js");
const MODEL_CARD: &str = include_str!("../../../models/default/README.md");

/// The page's link to the API reference, which is removed if `server.docs` is false.
const DOCS_LINK: &str = "<a href=\"docs\">API reference</a>";

type AssetResponse<T> = ([(HeaderName, &'static str); 5], T);

pub fn routes<S: Clone + Send + Sync + 'static>(docs: bool) -> Router<S> {
    let [page, style, script, map_script, model_card] = PATHS;
    let html = if docs { HTML.to_owned() } else { HTML.replace(DOCS_LINK, "") };
    Router::new()
        .route(page, get(async move || asset("text/html; charset=utf-8", html)))
        .route(style, get(async || asset("text/css; charset=utf-8", CSS)))
        .route(script, get(async || asset("text/javascript; charset=utf-8", JS)))
        .route(map_script, get(async || asset("text/javascript; charset=utf-8", MAP_JS)))
        .route(model_card, get(async || asset("text/plain; charset=utf-8", MODEL_CARD)))
}

fn asset<T>(kind: &'static str, text: T) -> AssetResponse<T> {
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        // The files belong together, and another release of the server has other files.
        (CACHE_CONTROL, "no-cache"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text)
}
