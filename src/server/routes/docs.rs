//! GET /openapi.json: the OpenAPI description of the routes. GET /docs: a page that shows it, made only of files inside
//! the binary.

use std::sync::LazyLock;

use axum::http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue};
use axum::response::IntoResponse;
use base64_simd::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{Info, License, OpenApi, OpenApiBuilder};

use crate::config::DEFAULT_MODEL_ID;
use crate::server::error::shape::ErrorShape;
use crate::server::request::context::RequestContext;
use crate::server::state::ServerState;

pub const DESCRIPTION: &str = "/openapi.json";
pub const PAGE: &str = "/docs";
pub const SCRIPT: &str = "/docs/rapidoc-min.js";

/// The page's script, RapiDoc, as npm publishes it, compressed (see assets/rapidoc).
const RAPIDOC: &[u8] = include_bytes!("../../../assets/rapidoc/rapidoc-min.js.gz");

/// The tags that group the operations, in the order of the page at [`PAGE`].
const TAGS: [(&str, &str); 7] = [
    ("embeddings", "Embeddings, as in OpenAI's API. The paths of Azure OpenAI and of older clients work too."),
    (
        "retrieval",
        "Documents ranked by their relevance to a query, in the form that Cohere, Jina and vLLM share, and sparse vectors.",
    ),
    ("batches", "Files and batches, as in OpenAI's API: requests that are answered in the background."),
    ("models", "The models that this server offers, as in OpenAI's API."),
    ("tools", "Tokens of texts and similarities between texts. OpenAI's API does not have these."),
    ("other systems", "Embeddings in the forms of Ollama, text-embeddings-inference and Cohere, for their clients."),
    ("operations", "Health probes and metrics for operators."),
];

type JsonResponse<T> = ([(HeaderName, &'static str); 1], T);

/// Returns the description without its routes.
pub fn introduction() -> OpenApi {
    let mut info = Info::new("embedding-server", env!("CARGO_PKG_VERSION"));
    info.description = Some(env!("CARGO_PKG_DESCRIPTION").to_owned());
    info.license = Some(License::new(env!("CARGO_PKG_LICENSE")));
    let tag = |(name, what)| TagBuilder::new().name(name).description(Some(what)).build();
    OpenApiBuilder::new().info(info).tags(Some(TAGS.map(tag))).build()
}

/// Returns the complete description as JSON. `protected` are the paths of the routes that need an API key, empty if
/// none does.
pub fn document(api: OpenApi, protected: &[String]) -> Value {
    // A description consists of strings and numbers, which always serialize.
    let mut api = serde_json::to_value(api).unwrap_or_default();
    if !protected.is_empty() {
        describe_keys(&mut api, protected);
    }
    if let Some(Value::Object(paths)) = api.get_mut("paths") {
        for (path, item) in paths.iter_mut() {
            if let Some(shape) = ErrorShape::of(path) {
                describe_errors(item, &shape.schema());
            }
        }
        // axum writes `{*id}` for a parameter that may contain slashes. OpenAPI has no notation for that.
        for path in paths.keys().filter(|path| path.contains("{*")).cloned().collect::<Vec<_>>() {
            if let Some(item) = paths.remove(&path) {
                paths.insert(path.replace("{*", "{"), item);
            }
        }
    }
    api
}

/// Replaces the schema of the errors of a path by that of another system.
fn describe_errors(path: &mut Value, schema: &Value) {
    for operation in path.as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
        let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) else { continue };
        for (_, response) in responses.iter_mut().filter(|(status, _)| status.starts_with(['4', '5'])) {
            if let Some(content) = response.pointer_mut("/content/application~1json") {
                *content = json!({"schema": schema});
            }
        }
    }
}

/// Describes the ways to send an API key, any one of which is enough.
fn describe_keys(api: &mut Value, protected: &[String]) {
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
    for path in protected {
        let item = api.get_mut("paths").and_then(|paths| paths.get_mut(path)?.as_object_mut());
        for operation in item.into_iter().flat_map(|item| item.values_mut()).filter_map(Value::as_object_mut) {
            operation.insert("security".to_owned(), security.clone());
        }
    }
}

/// The fields that ask for a number of dimensions, below the schemas of the description.
const DIMENSION_FIELDS: [&str; 5] = [
    "CreateEmbeddingRequest/properties/dimensions",
    "CreateSimilarityRequest/properties/dimensions",
    "OllamaEmbedRequest/properties/dimensions",
    "TeiRequest/properties/dimensions",
    "CohereEmbedRequest/properties/output_dimension",
];

/// JSON pointers to the names of models in the example of a schema.
const MODELS_IN_EXAMPLES: [&str; 2] = ["/example/model", "/example/data/0/id"];

/// Returns the description for this server: its examples name the default model, and its schemas have the server's
/// limits and those of the models that are loaded. Without a known API key, on a server that has keys, the examples
/// name OpenAI's model and the limits of the models are left out.
pub fn description(mut api: Value, state: &ServerState, context: &RequestContext) -> JsonResponse<Bytes> {
    let may_see_names = context.may_see_names();
    let model = json!(if may_see_names { state.config.default_model() } else { DEFAULT_MODEL_ID });
    for (name, schema) in api.pointer_mut("/components/schemas").and_then(Value::as_object_mut).into_iter().flatten() {
        let of_model = (name == "Model").then_some("/example/id");
        for pointer in MODELS_IN_EXAMPLES.into_iter().chain(of_model) {
            if let Some(name) = schema.pointer_mut(pointer) {
                *name = model.clone();
            }
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
        for field in DIMENSION_FIELDS {
            set(field, "maximum", json!(max));
        }
    }
    let prefix = &state.config.server.path_prefix;
    if let Some(api) = api.as_object_mut().filter(|_| !prefix.is_empty()) {
        api.insert("servers".to_owned(), json!([{"url": prefix}]));
    }
    ([(CONTENT_TYPE, "application/json")], api.to_string().into())
}

/// Security headers of all responses of this file: browsers must not guess another content type, and pages that are
/// linked to must not learn the URL of this one.
const HARDENED: [(HeaderName, &str); 3] =
    [(X_CONTENT_TYPE_OPTIONS, "nosniff"), (REFERRER_POLICY, "no-referrer"), (CACHE_CONTROL, "no-cache")];

/// The content security policy of the page. Its inline script is allowed by a digest; RapiDoc adds inline styles.
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

const HTML: &str = include_str!("../../../assets/docs.html");

/// Returns the page. Its link to the playground is removed if `server.playground` is false.
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
