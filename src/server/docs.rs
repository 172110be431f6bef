//! GET /openapi.json: the description that the routes give of themselves. GET /docs: the same as a page, from assets in
//! the binary alone.

use std::sync::LazyLock;

use axum::http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{Extensions, HeaderName, HeaderValue};
use axum::response::IntoResponse;
use base64_simd::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{Info, License, OpenApi, OpenApiBuilder};

use super::State;
use super::authorize::may_see_names;
use crate::config::DEFAULT_MODEL_ID;

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

/// The description as the routes give it. `closed` are the paths of those that ask for a key, if any does.
pub fn of_routes(api: OpenApi, closed: &[String]) -> Value {
    // A description of strings and numbers always serializes.
    let mut api = serde_json::to_value(api).unwrap_or_default();
    if !closed.is_empty() {
        describe_keys(&mut api, closed);
    }
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

/// The ways to send a key, any of which is enough.
fn describe_keys(api: &mut Value, closed: &[String]) {
    let header = |name| json!({"type": "apiKey", "in": "header", "name": name});
    let schemes = [
        ("bearer", json!({"type": "http", "scheme": "bearer"})),
        ("api-key", header("api-key")),
        ("x-api-key", header("x-api-key")),
    ];
    let security: Value = schemes.iter().map(|(name, _)| json!({*name: []})).collect();
    if let Some(components) = api.get_mut("components").and_then(Value::as_object_mut) {
        components.insert("securitySchemes".to_owned(), schemes.into_iter().collect());
    }
    for path in closed {
        let item = api.get_mut("paths").and_then(|paths| paths.get_mut(path)?.as_object_mut());
        for operation in item.into_iter().flat_map(|item| item.values_mut()).filter_map(Value::as_object_mut) {
            operation.insert("security".to_owned(), security.clone());
        }
    }
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

/// The description with the default model's name in all examples, and this server's limits as far as the models are loaded;
/// to those who have no key, with OpenAI's name of a model and without the limits of models.
pub fn description(mut api: Value, state: &State, extensions: &Extensions) -> Answer<Bytes> {
    let may_see_names = may_see_names(extensions, state);
    let model = json!(if may_see_names { state.config.default_model() } else { DEFAULT_MODEL_ID });
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
    let models = if may_see_names { state.registry.models() } else { &[] };
    let loaded = || models.iter().filter_map(|entry| entry.embedder());
    if let Some(last) = loaded().filter_map(|embedder| embedder.max_token_id()).max() {
        set("Inputs/oneOf/2/items", "maximum", json!(last));
        set("Inputs/oneOf/3/items/items", "maximum", json!(last));
    }
    if let Some(max) = loaded().map(|embedder| embedder.max_dimensions()).max() {
        set("CreateEmbeddingRequest/properties/dimensions", "maximum", json!(max));
        set("CreateSimilarityRequest/properties/dimensions", "maximum", json!(max));
    }
    let prefix = &state.config.server.path_prefix;
    if let Some(api) = api.as_object_mut().filter(|_| !prefix.is_empty()) {
        api.insert("servers".to_owned(), json!([{"url": prefix}]));
    }
    ([(CONTENT_TYPE, "application/json")], api.to_string().into())
}

/// What all answers here say to a browser beside their content type: nobody guesses another type, and no page that is
/// linked to learns where its reader came from.
const HARDENED: [(HeaderName, &str); 3] =
    [(X_CONTENT_TYPE_OPTIONS, "nosniff"), (REFERRER_POLICY, "no-referrer"), (CACHE_CONTROL, "no-cache")];

/// What the page may do. Its own script is allowed by its digest; RapiDoc writes styles into the page.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let scripts = HTML.split("<script>").skip(1).filter_map(|rest| rest.split("</script>").next());
    let digests: String =
        scripts.map(|script| format!(" 'sha256-{}'", STANDARD.encode_to_string(Sha256::digest(script)))).collect();
    let policy = format!(
        "default-src 'none'; script-src 'self'{digests}; style-src 'self' 'unsafe-inline'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
});

const HTML: &str = include_str!("../../assets/docs.html");

/// The page, without its link to the playground where there is none.
pub fn page(playground: bool) -> impl IntoResponse {
    const LINK: &str = "<a href=\"./\">Playground</a>";
    let html = if playground { HTML.to_owned() } else { HTML.replace(LINK, "") };
    let policy = [(CONTENT_SECURITY_POLICY, POLICY.clone())];
    (HARDENED, policy, [(CONTENT_TYPE, "text/html; charset=utf-8")], html)
}

pub async fn script() -> impl IntoResponse {
    // Every browser accepts gzip.
    (HARDENED, [(CONTENT_TYPE, "text/javascript; charset=utf-8"), (CONTENT_ENCODING, "gzip")], RAPIDOC)
}
