//! Ollama's endpoints for embeddings, over the same models: POST /api/embed, /api/embeddings and /api/show, GET /api/tags and
//! /api/version.

use std::time::{Duration, Instant, UNIX_EPOCH};

use axum::Json as JsonBody;
use serde_json::json;

use super::embeddings::{EmbeddingJob, respond};
use crate::openai::{
    OllamaDetails, OllamaEmbedRequest, OllamaEmbedResponse, OllamaEmbeddingsRequest, OllamaEmbeddingsResponse,
    OllamaModel, OllamaShowRequest, OllamaShowResponse, OllamaTagsResponse, OllamaVersionResponse,
};
use crate::registry::{RegisteredModel, Registry};
use crate::server::error::ApiError;
use crate::server::request::context::RequestContext;
use crate::server::request::inputs::RequestedModel;
use crate::server::request::json::Json;
use crate::server::response::accounted::AccountedResponse;
use crate::server::response::form::ResponseForm;

/// The tag that Ollama's clients add to a name without one.
const LATEST: &str = ":latest";

/// Create embeddings (clients of Ollama)
#[utoipa::path(
    post,
    path = "/api/embed",
    tag = "other systems",
    operation_id = "ollamaEmbed",
    request_body = OllamaEmbedRequest,
    responses((status = OK, description = "One embedding per input, in the order of the inputs", body = OllamaEmbedResponse), ApiError)
)]
pub async fn embed(
    context: RequestContext,
    Json(request): Json<OllamaEmbedRequest>,
) -> Result<AccountedResponse, ApiError> {
    let started = Instant::now();
    let OllamaEmbedRequest { model, input, dimensions, .. } = request;
    let model = without_tag(&context.state.registry, model);
    let job = EmbeddingJob { field: "input", inputs: input.list, model, dimensions };
    respond(&context, job, |_| ResponseForm::Ollama { started }).await
}

/// Create one embedding (older clients of Ollama)
#[utoipa::path(
    post,
    path = "/api/embeddings",
    tag = "other systems",
    operation_id = "ollamaEmbeddings",
    request_body = OllamaEmbeddingsRequest,
    responses((status = OK, description = "The embedding of the prompt", body = OllamaEmbeddingsResponse), ApiError)
)]
pub async fn embeddings(
    context: RequestContext,
    Json(request): Json<OllamaEmbeddingsRequest>,
) -> Result<AccountedResponse, ApiError> {
    let OllamaEmbeddingsRequest { model, prompt } = request;
    let model = without_tag(&context.state.registry, model);
    let job = EmbeddingJob { field: "prompt", inputs: prompt.list, model, dimensions: None };
    respond(&context, job, |_| ResponseForm::OllamaSingle).await
}

/// List the models (clients of Ollama)
#[utoipa::path(
    get,
    path = "/api/tags",
    tag = "other systems",
    operation_id = "ollamaTags",
    responses((status = OK, description = "The configured models", body = OllamaTagsResponse))
)]
pub async fn tags(context: RequestContext) -> JsonBody<OllamaTagsResponse> {
    let models = context.state.registry.models().iter();
    let models = models.flat_map(|entry| entry.names().map(|name| describe(name, entry)));
    JsonBody(OllamaTagsResponse { models: models.collect() })
}

/// Describe a model (clients of Ollama)
#[utoipa::path(
    post,
    path = "/api/show",
    tag = "other systems",
    operation_id = "ollamaShow",
    request_body = OllamaShowRequest,
    responses((status = OK, description = "The model", body = OllamaShowResponse), ApiError)
)]
pub async fn show(
    context: RequestContext,
    Json(request): Json<OllamaShowRequest>,
) -> Result<JsonBody<OllamaShowResponse>, ApiError> {
    let model = without_tag(&context.state.registry, request.model);
    let RequestedModel { entry, embedder, .. } = RequestedModel::resolve(&context.state, model.as_deref())?;
    Ok(JsonBody(OllamaShowResponse {
        modified_at: modified_at(&entry),
        details: details(&entry),
        model_info: json!({
            "general.architecture": ARCHITECTURE,
            "general.parameter_count": embedder.rows() * embedder.max_dimensions(),
            "layer0.embedding_length": embedder.dimensions(),
            "layer0.fingerprint": embedder.fingerprint(),
        }),
        capabilities: ["embedding"],
    }))
}

/// Return the version (clients of Ollama)
#[utoipa::path(
    get,
    path = "/api/version",
    tag = "other systems",
    operation_id = "ollamaVersion",
    responses((status = OK, description = "The version of this server", body = OllamaVersionResponse))
)]
pub async fn version() -> JsonBody<OllamaVersionResponse> {
    JsonBody(OllamaVersionResponse { version: env!("CARGO_PKG_VERSION") })
}

/// What takes the place of a model's architecture in Ollama's descriptions.
const ARCHITECTURE: &str = "layer0";

/// Returns the name without the tag, unless a model has the name with the tag.
fn without_tag(registry: &Registry, model: Option<String>) -> Option<String> {
    let model = model?;
    match model.strip_suffix(LATEST) {
        Some(name) if registry.get(Some(&model)).is_none() => Some(name.to_owned()),
        _ => Some(model),
    }
}

fn describe(name: &str, entry: &RegisteredModel) -> OllamaModel {
    OllamaModel {
        name: name.to_owned(),
        model: name.to_owned(),
        modified_at: modified_at(entry),
        size: entry.embedder().map_or(0, |embedder| embedder.table_bytes() as u64),
        digest: String::from_utf8_lossy(&entry.fingerprint()).into_owned(),
        details: details(entry),
    }
}

fn details(entry: &RegisteredModel) -> OllamaDetails {
    let parameters = entry.embedder().map_or(0, |embedder| embedder.rows() * embedder.max_dimensions());
    OllamaDetails {
        family: ARCHITECTURE,
        families: vec![ARCHITECTURE],
        parameter_size: format!("{:.1}M", parameters as f64 / 1e6),
        ..OllamaDetails::default()
    }
}

fn modified_at(entry: &RegisteredModel) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(entry.created())).to_string()
}
