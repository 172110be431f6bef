//! POST /v1/embeddings: reads the request, tokenizes its inputs, pools the vectors and writes the response.
//!
//! A request is two jobs on the worker threads. The first tokenizes every input, so that all errors of the request are
//! known before its response begins. The second pools and writes in slices, which are sent while later slices are still
//! being written. A request of a few hundred bytes is processed on the socket thread instead, because handing it over
//! would take longer than processing it. The endpoints of other systems that return embeddings use [`respond`], too.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, Response};
use axum::response::IntoResponse;
use bytes::Bytes;

use crate::openai::{CreateEmbeddingRequest, CreateEmbeddingResponse, EncodingFormat};
use crate::server::error::ApiError;
use crate::server::observe::stages::{Stage, Stages};
use crate::server::request::accept::WantsBytes;
use crate::server::request::context::RequestContext;
use crate::server::request::inputs::{self, RequestedModel};
use crate::server::request::json::Json;
use crate::server::request::model_id::ModelId;
use crate::server::response::accounted::AccountedResponse;
use crate::server::response::form::{ResponseForm, Section};
use crate::server::response::slices::{DEVICE_POOL_SLICE, DEVICE_WRITE_SLICE, POOL_SLICE, WRITE_SLICE, split_by_size};
use crate::server::response::stream;
use crate::server::state::ServerState;
use crate::workers;
use layer0::embedder::{Embedder, Input, PooledTokens};
use layer0::error::EmbedError;
use layer0::yield_point::{Undisturbed, YieldPoint};

/// The longest response, in bytes, that is written on the socket thread: about 0.1 ms in the worst case.
const INLINE_RESPONSE_BYTES: usize = 64 << 10;

/// The header with the fingerprint of the model that made the vectors.
pub const FINGERPRINT: HeaderName = HeaderName::from_static("embedding-fingerprint");

/// The headers of a response that consists of bytes alone: the numbers of rows and of columns, the type of the numbers as numpy
/// names it, and the number of tokens.
pub const SHAPE: HeaderName = HeaderName::from_static("embedding-shape");
pub const DTYPE: HeaderName = HeaderName::from_static("embedding-dtype");
pub const PROMPT_TOKENS: HeaderName = HeaderName::from_static("embedding-prompt-tokens");

/// The path of almost all requests.
pub const PATH: &str = "/v1/embeddings";

/// Does what [`create`] does, without axum's router.
pub async fn direct(context: RequestContext, request: Request) -> Response<Body> {
    let wants_bytes = WantsBytes::of(request.headers());
    let answered = match Json::read(&context, request).await {
        Ok(Json(request)) => answer(&context, wants_bytes, request).await,
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
    responses(
        (
            status = OK,
            description = "One embedding per input, in the order of the inputs",
            content((CreateEmbeddingResponse), (Vec<u8> = "application/octet-stream")),
        ),
        ApiError,
    )
)]
pub async fn create(
    context: RequestContext,
    wants_bytes: WantsBytes,
    Json(request): Json<CreateEmbeddingRequest>,
) -> Result<AccountedResponse, ApiError> {
    answer(&context, wants_bytes, request).await
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
    responses(
        (
            status = OK,
            description = "The same as for `/v1/embeddings`",
            content((CreateEmbeddingResponse), (Vec<u8> = "application/octet-stream")),
        ),
        ApiError,
    )
)]
pub async fn create_for_engine(
    context: RequestContext,
    wants_bytes: WantsBytes,
    ModelId(id): ModelId,
    Json(request): Json<CreateEmbeddingRequest>,
) -> Result<AccountedResponse, ApiError> {
    answer(&context, wants_bytes, CreateEmbeddingRequest { model: Some(id), ..request }).await
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
    responses(
        (
            status = OK,
            description = "The same as for `/v1/embeddings`",
            content((CreateEmbeddingResponse), (Vec<u8> = "application/octet-stream")),
        ),
        ApiError,
    )
)]
pub async fn create_for_deployment(
    context: RequestContext,
    wants_bytes: WantsBytes,
    ModelId(id): ModelId,
    Json(request): Json<CreateEmbeddingRequest>,
) -> Result<AccountedResponse, ApiError> {
    answer(&context, wants_bytes, CreateEmbeddingRequest { model: Some(id), ..request }).await
}

async fn answer(
    context: &RequestContext,
    WantsBytes(wants_bytes): WantsBytes,
    request: CreateEmbeddingRequest,
) -> Result<AccountedResponse, ApiError> {
    let CreateEmbeddingRequest { input, model, encoding_format, output_dtype: dtype, dimensions, .. } = request;
    let format = encoding_format.unwrap_or(if wants_bytes { EncodingFormat::Bytes } else { EncodingFormat::Float });
    let form = match format {
        EncodingFormat::Bytes => ResponseForm::Bytes { dtype },
        format => ResponseForm::OpenAi { format, dtype },
    };
    let job = EmbeddingJob { field: "input", inputs: input.list, model, dimensions };
    respond(context, job, |_| form).await
}

/// What a request asks for, whatever API it belongs to.
pub struct EmbeddingJob {
    /// The field of the request that holds the inputs, for errors.
    pub field: &'static str,
    pub inputs: Vec<Input>,
    pub model: Option<String>,
    pub dimensions: Option<u64>,
}

/// Embeds the inputs of a request. `form` makes the form of the response from the inputs.
///
/// # Errors
/// If there is no such model, or an input or the number of dimensions is not valid for it.
pub async fn respond(
    context: &RequestContext,
    job: EmbeddingJob,
    form: impl FnOnce(Arc<Vec<Input>>) -> ResponseForm,
) -> Result<AccountedResponse, ApiError> {
    let state = &context.state;
    let EmbeddingJob { field, inputs, model, dimensions } = job;
    let requested = RequestedModel::resolve(state, model.as_deref())?;
    let dimensions = requested.embedder.resolve_dimensions(dimensions)?;

    let count = inputs.len();
    let inputs = requested.check(context, field, inputs)?;
    let form = form(inputs.inputs());
    let size_of_answer = count.saturating_mul(form.size_of_vector(dimensions));
    let small = inputs.are_short() && size_of_answer <= INLINE_RESPONSE_BYTES;
    let tokens = requested.tokenize(state, inputs, small).await.map_err(|error| error.for_field(field))?;
    let usage = inputs::charge(state, &tokens).map_err(|error| error.for_field(field))?;
    let model = model.unwrap_or_else(|| requested.entry.id().to_owned());
    let (embedder, stages) = (Arc::clone(&requested.embedder), Arc::clone(&requested.stages));
    let bytes = if let ResponseForm::Bytes { dtype } = form { Some(dtype) } else { None };
    let answer = EmbeddingsResponse { embedder, stages, tokens, dimensions, form, model };
    let mut response = if small { answer.respond_inline()? } else { answer.respond(state).await? };
    let headers = response.headers_mut();
    if let Ok(fingerprint) = HeaderValue::from_maybe_shared(requested.entry.fingerprint()) {
        headers.insert(FINGERPRINT, fingerprint);
    }
    if let Some(dtype) = bytes {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(DTYPE, HeaderValue::from_static(dtype.numpy_name()));
        headers.insert(PROMPT_TOKENS, HeaderValue::from(usage));
        if let Ok(shape) = HeaderValue::try_from(format!("{count},{}", dtype.columns(dimensions))) {
            headers.insert(SHAPE, shape);
        }
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
    form: ResponseForm,
    model: String,
}

impl EmbeddingsResponse {
    async fn respond(self, state: &ServerState) -> Result<Response<Body>, ApiError> {
        let answer_size = self.form.size_of_vector(self.dimensions);
        // A slice ends at whichever of the two limits it reaches first: the sizes are shares of a slice.
        const WHOLE: usize = 1 << 30;
        let (pool_slice, write_slice) = match self.embedder.wants_whole_batches() {
            true => (DEVICE_POOL_SLICE, DEVICE_WRITE_SLICE),
            false => (POOL_SLICE, WRITE_SLICE),
        };
        let share = |tokens: &PooledTokens| {
            let pooled = tokens.len().saturating_mul(self.dimensions).saturating_mul(WHOLE / pool_slice);
            pooled.max(answer_size.saturating_mul(WHOLE / write_slice))
        };
        let ranges = split_by_size(self.tokens.iter().map(share), WHOLE);
        let sections = self.form.sections();
        let slices: Vec<(Section, Range<usize>)> = sections
            .into_iter()
            .flat_map(|section| ranges.iter().cloned().map(move |range| (section, range)))
            .collect();
        let queued = self.stages.queued();
        let longest = inputs::longest_to_pool(&self.tokens, self.dimensions);
        stream::respond(&state.process.workers, slices.len(), longest, move |slice, at| {
            queued(slice);
            let Some((section, range)) = slices.get(slice).cloned() else { return Ok(Bytes::new()) };
            let mut out = Vec::new();
            self.write(section, range, &mut out, at)?;
            Ok(out.into())
        })
        .await
    }

    fn respond_inline(self) -> Result<Response<Body>, ApiError> {
        let write = || {
            let mut out = Vec::new();
            for section in self.form.sections() {
                self.write(section, 0..self.tokens.len(), &mut out, &Undisturbed)?;
            }
            Ok::<_, EmbedError>(out)
        };
        let body = workers::run_inline(write)??;
        Ok(stream::json(Body::from(body)))
    }

    /// Appends the entries of a section for the inputs in `range`. The first piece of a section begins with its head, and
    /// the last ends with its tail.
    fn write(
        &self,
        section: Section,
        range: Range<usize>,
        out: &mut Vec<u8>,
        at: &dyn YieldPoint,
    ) -> Result<(), EmbedError> {
        if section == Section::Texts {
            self.stages.time(Stage::Serialize, || self.serialize(section, range, &[], out));
            return Ok(());
        }
        let tokens = self.tokens.get(range.clone()).unwrap_or_default();
        // The buffer is taken out of the thread local, because another response may be written inside this slice, at a
        // yield point of a long text.
        let mut vectors = VECTORS.take();
        vectors.resize(tokens.len() * self.dimensions, 0.0);
        let pool = || self.embedder.pool_in_steps(range.start, tokens, self.dimensions, &mut vectors, at);
        self.stages.time(Stage::Pool, pool)?;
        self.stages.time(Stage::Serialize, || self.serialize(section, range, &vectors, out));
        VECTORS.set(vectors);
        Ok(())
    }

    fn serialize(&self, section: Section, range: Range<usize>, vectors: &[f32], out: &mut Vec<u8>) {
        out.reserve(range.len().saturating_mul(self.form.size_of_vector(self.dimensions)) + 256);
        if range.start == 0 {
            self.form.begin(section, &self.model, out);
        }
        let last = range.end == self.tokens.len();
        if section == Section::Texts {
            range.for_each(|index| self.form.text(index, out));
        } else {
            for (index, vector) in range.zip(vectors.chunks(self.dimensions.max(1))) {
                self.form.vector(section, index, vector, out);
            }
        }
        if last {
            self.form.end(section, &self.model, inputs::token_count(&self.tokens), out);
        }
    }
}
