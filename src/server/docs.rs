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

/// The sections of the page at [`PAGE`], in its order.
const TAGS: [(&str, &str); 4] = [
    ("embeddings", "OpenAI's API, with the paths of Azure OpenAI and of old clients as well."),
    ("models", "The models that this server offers, as in OpenAI's API."),
    ("tools", "What OpenAI's API does not have: the tokens of a text, and similarities without vectors."),
    ("operations", "Probes and metrics for those who run the server."),
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

/// Schemas whose example names a model: the pointer to the name.
const MODELS_IN_EXAMPLES: [&str; 8] = [
    "CreateEmbeddingRequest/example/model",
    "CreateEmbeddingResponse/example/model",
    "CreateTokensRequest/example/model",
    "CreateTokensResponse/example/model",
    "CreateSimilarityRequest/example/model",
    "CreateSimilarityResponse/example/model",
    "Model/example/id",
    "ListModelsResponse/example/data/0/id",
];

/// The description with the default model's name in all examples, and this server's limits as far as the models are loaded.
pub fn description(mut api: Value, state: &State) -> Answer<Bytes> {
    let model = json!(state.config.default_model());
    for pointer in MODELS_IN_EXAMPLES {
        if let Some(name) = api.pointer_mut(&format!("/components/schemas/{pointer}")) {
            *name = model.clone();
        }
    }
    if let Some(Value::Object(paths)) = api.get_mut("paths") {
        let operations = paths.values_mut().filter_map(Value::as_object_mut).flat_map(|item| item.values_mut());
        let parameters = operations.filter_map(|operation| operation.get_mut("parameters")?.as_array_mut()).flatten();
        for parameter in parameters.filter_map(Value::as_object_mut) {
            if parameter.get("name") == Some(&json!("id")) {
                parameter.insert("example".to_owned(), model.clone());
            }
        }
    }
    let mut set = |pointer: &str, key: &str, limit: Value| {
        if let Some(Value::Object(schema)) = api.pointer_mut(&format!("/components/schemas/{pointer}")) {
            schema.insert(key.to_owned(), limit);
        }
    };
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

/// The page, without its link to the playground where there is none.
pub fn page(playground: bool) -> Answer<String> {
    const HTML: &str = include_str!("../../assets/docs.html");
    const LINK: &str = "<a href=\"./\">Playground</a>";
    let html = if playground { HTML.to_owned() } else { HTML.replace(LINK, "") };
    ([(CONTENT_TYPE, "text/html; charset=utf-8")], html)
}

pub async fn script() -> ([(HeaderName, &'static str); 2], &'static [u8]) {
    // Every browser accepts gzip.
    ([(CONTENT_TYPE, "text/javascript; charset=utf-8"), (CONTENT_ENCODING, "gzip")], RAPIDOC)
}
