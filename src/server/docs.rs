//! GET /openapi.json: the description that the routes give of themselves. GET /docs: the same as a page, from assets in
//! the binary alone.

use axum::http::HeaderName;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use bytes::Bytes;
use serde_json::{Value, json};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{Info, License, OpenApi, OpenApiBuilder};

use super::State;

pub const DESCRIPTION: &str = "/openapi.json";
pub const PAGE: &str = "/docs";
pub const SCRIPT: &str = "/docs/rapidoc-min.js";

/// RapiDoc as npm has it, compressed (assets/rapidoc).
const RAPIDOC: &[u8] = include_bytes!("../../assets/rapidoc/rapidoc-min.js.gz");

/// The tags of the routes, in the page's order.
const TAGS: [(&str, &str); 4] = [
    ("embeddings", "As OpenAI has them, under its own path and under Azure's and the first clients'."),
    ("models", "As OpenAI has them."),
    ("neighbours", "What OpenAI does not have."),
    ("operations", "Probes and metrics."),
];

type Answer<T> = ([(HeaderName, &'static str); 1], T);

/// What stands before the routes.
pub fn introduction() -> OpenApi {
    let mut info = Info::new("embedding-server", env!("CARGO_PKG_VERSION"));
    info.description = Some(env!("CARGO_PKG_DESCRIPTION").to_owned());
    info.license = Some(License::new(env!("CARGO_PKG_LICENSE")));
    let tag = |(name, what)| TagBuilder::new().name(name).description(Some(what)).build();
    OpenApiBuilder::new().info(info).tags(Some(TAGS.map(tag))).build()
}

/// The description as the routes give it.
pub fn of_routes(api: OpenApi) -> Value {
    // A description of strings and numbers always serializes.
    let mut api = serde_json::to_value(api).unwrap_or_default();
    if let Some(Value::Object(paths)) = api.get_mut("paths") {
        // axum's way to say that a parameter may hold slashes, which OpenAPI cannot say.
        for path in paths.keys().filter(|path| path.contains("{*")).cloned().collect::<Vec<_>>() {
            if let Some(item) = paths.remove(&path) {
                paths.insert(path.replace("{*", "{"), item);
            }
        }
    }
    api
}

/// The description with this server's model as the example, and its limits as far as the models are loaded.
pub fn description(mut api: Value, state: &State) -> Answer<Bytes> {
    let mut set = |pointer: &str, key: &str, limit: Value| {
        if let Some(Value::Object(schema)) = api.pointer_mut(&format!("/components/schemas/{pointer}")) {
            schema.insert(key.to_owned(), limit);
        }
    };
    set("CreateEmbeddingRequest/example", "model", json!(state.config.default_model()));
    let max_inputs = json!(state.config.server.max_inputs);
    set("Inputs/oneOf/1", "maxItems", max_inputs.clone());
    set("Inputs/oneOf/3", "maxItems", max_inputs);
    let loaded = || state.registry.models().iter().filter_map(|entry| entry.embedder());
    if let Some(last) = loaded().filter_map(|embedder| embedder.max_token_id()).max() {
        set("Inputs/oneOf/2/items", "maximum", json!(last));
        set("Inputs/oneOf/3/items/items", "maximum", json!(last));
    }
    if let Some(max) = loaded().map(|embedder| embedder.max_dimensions()).max() {
        set("CreateEmbeddingRequest/properties/dimensions", "maximum", json!(max));
        set("CreateSimilarityRequest/properties/dimensions", "maximum", json!(max));
    }
    ([(CONTENT_TYPE, "application/json")], api.to_string().into())
}

pub async fn page() -> Answer<&'static str> {
    ([(CONTENT_TYPE, "text/html; charset=utf-8")], include_str!("../../assets/docs.html"))
}

pub async fn script() -> ([(HeaderName, &'static str); 2], &'static [u8]) {
    // Every browser takes it so.
    ([(CONTENT_TYPE, "text/javascript; charset=utf-8"), (CONTENT_ENCODING, "gzip")], RAPIDOC)
}
