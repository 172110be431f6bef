//! POST /v1/embeddings: reads the request, tokenizes its inputs, pools the vectors and writes the response.
//!
//! A request is two jobs on the worker threads. The first tokenizes every input, so that all errors of the request are
//! known before its response begins. The second pools and writes in slices, which are sent while later slices are still
//! being written. A request of a few hundred bytes is processed on the socket thread instead, because handing it over
//! would take longer than processing it.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Response};
use axum::response::IntoResponse;
use bytes::Bytes;

use crate::openai::{CreateEmbeddingRequest, CreateEmbeddingResponse, EncodingFormat};
use crate::server::error::ApiError;
use crate::server::observe::stages::{Stage, Stages};
use crate::server::request::context::RequestContext;
use crate::server::request::inputs::{self, RequestedModel};
use crate::server::request::json::Json;
use crate::server::request::model_id::ModelId;
use crate::server::response::accounted::AccountedResponse;
use crate::server::response::slices::{DEVICE_POOL_SLICE, DEVICE_WRITE_SLICE, POOL_SLICE, WRITE_SLICE, split_by_size};
use crate::server::response::{stream, write};
use crate::server::state::ServerState;
use crate::workers;
use layer0::embedder::{Embedder, PooledTokens};
use layer0::error::EmbedError;
use layer0::yield_point::{Undisturbed, YieldPoint};

/// The longest response, in bytes, that is written on the socket thread: about 0.1 ms in the worst case.
const INLINE_RESPONSE_BYTES: usize = 64 << 10;

/// The header with the fingerprint of the model that made the vectors.
pub const FINGERPRINT: HeaderName = HeaderName::from_static("embedding-fingerprint");

/// The path of almost all requests.
pub const PATH: &str = "/v1/embeddings";

/// Does what [`create`] does, without axum's router.
pub async fn direct(context: RequestContext, request: Request) -> Response<Body> {
    let answered = match Json::read(&context, request).await {
        Ok(Json(request)) => answer(&context, request).await,
        Err(error) => Err(error),
    };
    answered.into_response()
}

/// Create embeddings
///
/// Returns one embedding vector for each input, as OpenAI's API does.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    tag = "embeddings",
    operation_id = "createEmbedding",
    request_body = CreateEmbeddingRequest,
    responses((status = OK, description = "One embedding per input, in the order of the inputs", body = CreateEmbeddingResponse), ApiError)
)]
pub async fn create(
    context: RequestContext,
    Json(request): Json<CreateEmbeddingRequest>,
) -> Result<AccountedResponse, ApiError> {
    answer(&context, request).await
}

/// Create embeddings (older OpenAI clients)
///
/// The engine ID in the path selects the model. Everything else is as for `/v1/embeddings`.
#[utoipa::path(
    post,
    path = "/v1/engines/{id}/embeddings",
    tag = "embeddings",
    operation_id = "createEngineEmbedding",
    params(("id" = String, Path, description = "The ID or an alias of a model; `model` in the body is ignored")),
    request_body = CreateEmbeddingRequest,
    responses((status = OK, description = "The same as for `/v1/embeddings`", body = CreateEmbeddingResponse), ApiError)
)]
pub async fn create_for_engine(
    context: RequestContext,
    ModelId(id): ModelId,
    Json(request): Json<CreateEmbeddingRequest>,
) -> Result<AccountedResponse, ApiError> {
    answer(&context, CreateEmbeddingRequest { model: Some(id), ..request }).await
}

/// Create embeddings (Azure OpenAI clients)
///
/// The deployment ID in the path selects the model. Everything else is as for `/v1/embeddings`.
#[utoipa::path(
    post,
    path = "/openai/deployments/{id}/embeddings",
    tag = "embeddings",
    operation_id = "createDeploymentEmbedding",
    params(
        ("id" = String, Path, description = "The deployment ID: the ID or an alias of a model; `model` in the body is ignored"),
        ("api-version" = Option<String>, Query, description = "Ignored: the response is the same for all versions"),
    ),
    request_body = CreateEmbeddingRequest,
    responses((status = OK, description = "The same as for `/v1/embeddings`", body = CreateEmbeddingResponse), ApiError)
)]
pub async fn create_for_deployment(
    context: RequestContext,
    ModelId(id): ModelId,
    Json(request): Json<CreateEmbeddingRequest>,
) -> Result<AccountedResponse, ApiError> {
    answer(&context, CreateEmbeddingRequest { model: Some(id), ..request }).await
}

async fn answer(context: &RequestContext, request: CreateEmbeddingRequest) -> Result<AccountedResponse, ApiError> {
    let state = &context.state;
    let CreateEmbeddingRequest { input, model, encoding_format, dimensions, .. } = request;
    let inputs = input.list;
    let requested = RequestedModel::resolve(state, model.as_deref())?;
    let dimensions = requested.embedder.resolve_dimensions(dimensions)?;

    let count = inputs.len();
    let inputs = requested.check(context, "input", inputs)?;
    let size_of_answer = count.saturating_mul(write::size_of_embedding(dimensions, encoding_format));
    let small = inputs.are_short() && size_of_answer <= INLINE_RESPONSE_BYTES;
    let tokens = requested.tokenize(state, inputs, small).await?;
    let usage = inputs::charge(state, &tokens)?;
    let model = model.unwrap_or_else(|| requested.entry.id().to_owned());
    let (embedder, stages) = (Arc::clone(&requested.embedder), Arc::clone(&requested.stages));
    let answer = EmbeddingsResponse { embedder, stages, tokens, dimensions, encoding_format, model };
    let mut response = if small { answer.respond_inline()? } else { answer.respond(state).await? };
    if let Ok(fingerprint) = HeaderValue::from_maybe_shared(requested.entry.fingerprint()) {
        response.headers_mut().insert(FINGERPRINT, fingerprint);
    }
    Ok(requested.with_accounting(response, count, usage))
}

thread_local! {
        /// The vectors of the current slice, reused from slice to slice.
    static VECTORS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// What is needed to write the response.
struct EmbeddingsResponse {
    embedder: Arc<Embedder>,
    stages: Arc<Stages>,
    tokens: Vec<PooledTokens>,
    dimensions: usize,
    encoding_format: EncodingFormat,
    model: String,
}

impl EmbeddingsResponse {
    async fn respond(self, state: &ServerState) -> Result<Response<Body>, ApiError> {
        let answer_size = write::size_of_embedding(self.dimensions, self.encoding_format);
        // A slice ends at whichever of the two limits it reaches first: the sizes are shares of a slice.
        const WHOLE: usize = 1 << 30;
        let (pool_slice, write_slice) = match self.embedder.wants_whole_batches() {
            true => (DEVICE_POOL_SLICE, DEVICE_WRITE_SLICE),
            false => (POOL_SLICE, WRITE_SLICE),
        };
        let share = |tokens: &PooledTokens| {
            let pooled = tokens.len().saturating_mul(self.dimensions).saturating_mul(WHOLE / pool_slice);
            pooled.max(answer_size * (WHOLE / write_slice))
        };
        let slices = split_by_size(self.tokens.iter().map(share), WHOLE);
        let queued = self.stages.queued();
        let longest = inputs::longest_to_pool(&self.tokens, self.dimensions);
        stream::respond(&state.process.workers, slices.len(), longest, move |slice, at| {
            queued(slice);
            self.write(slices.get(slice).cloned().unwrap_or_default(), at)
        })
        .await
    }

    fn respond_inline(self) -> Result<Response<Body>, ApiError> {
        let body = workers::run_inline(|| self.write(0..self.tokens.len(), &Undisturbed))??;
        Ok(stream::json(Body::from(body)))
    }

    /// Pools and writes the embeddings of the inputs in `range`. The first piece of the response begins with its head,
    /// and the last ends with its tail.
    fn write(&self, range: Range<usize>, at: &dyn YieldPoint) -> Result<Bytes, EmbedError> {
        let tokens = self.tokens.get(range.clone()).unwrap_or_default();
        // The buffer is taken out of the thread local, because another response may be written inside this slice, at a
        // yield point of a long text.
        let mut vectors = VECTORS.take();
        vectors.resize(tokens.len() * self.dimensions, 0.0);
        let pool = || self.embedder.pool_in_steps(range.start, tokens, self.dimensions, &mut vectors, at);
        self.stages.time(Stage::Pool, pool)?;
        let written = self.stages.time(Stage::Serialize, || self.serialize(range, &vectors));
        VECTORS.set(vectors);
        Ok(written)
    }

    fn serialize(&self, range: Range<usize>, vectors: &[f32]) -> Bytes {
        let each = write::size_of_embedding(self.dimensions, self.encoding_format);
        let mut out = Vec::with_capacity(range.len() * each + 256);
        if range.start == 0 {
            out.extend_from_slice(write::HEAD);
        }
        let last = range.end == self.tokens.len();
        for (index, vector) in range.zip(vectors.chunks(self.dimensions.max(1))) {
            write::embedding(&mut out, index, vector, self.encoding_format);
        }
        if last {
            write::tail(&mut out, &self.model, inputs::token_count(&self.tokens));
        }
        out.into()
    }
}
