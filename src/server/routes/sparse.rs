//! POST /v1/sparse-embeddings and POST /embed_sparse: sparse vectors for inverted indexes.
//!
//! As for embeddings, a first job tokenizes the inputs, and a second one makes the vectors and writes the response in slices.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::openai::{
    CreateSparseEmbeddingRequest, CreateSparseEmbeddingResponse, EmbedSparseRequest, InputType, SparseValue,
};
use crate::server::error::ApiError;
use crate::server::observe::stages::{Stage, Stages};
use crate::server::request::context::RequestContext;
use crate::server::request::inputs::{self, RequestedModel};
use crate::server::request::json::Json;
use crate::server::response::accounted::AccountedResponse;
use crate::server::response::slices::{WRITE_SLICE, split_by_size};
use crate::server::response::{stream, write};
use layer0::embedder::{Embedder, Input, PooledTokens};
use layer0::error::EmbedError;
use layer0::retrieval::soft::MAX_QUERY_TOKENS;
use layer0::retrieval::sparse::{DEFAULT_NEIGHBORS, SparseEncoder};
use layer0::yield_point::YieldPoint;

/// The bytes that one number takes in a response, with its index.
const BYTES_PER_NUMBER: usize = 20;
/// How many rows are compared with a few tokens in a microsecond.
const ROWS_PER_MICROSECOND: usize = 8;
/// The tokens that one pass over the table looks for.
const TOKENS_PER_PASS: usize = 32;

/// Create sparse embeddings
///
/// Returns one sparse vector for each input: token IDs with positive numbers. The dot product of a query's vector with a document's ranks
/// documents by exact and similar tokens, in any store with sparse vectors.
#[utoipa::path(
    post,
    path = "/v1/sparse-embeddings",
    tag = "retrieval",
    operation_id = "createSparseEmbedding",
    request_body = CreateSparseEmbeddingRequest,
    responses((status = OK, description = "One sparse vector per input, in the order of the inputs", body = CreateSparseEmbeddingResponse), ApiError)
)]
pub async fn create(
    context: RequestContext,
    Json(request): Json<CreateSparseEmbeddingRequest>,
) -> Result<AccountedResponse, ApiError> {
    let CreateSparseEmbeddingRequest { input, model, input_type, expand } = request;
    let expand = expand.map_or(DEFAULT_NEIGHBORS, |expand| expand as usize);
    let neighbors = (input_type == InputType::Query).then_some(expand);
    answer(&context, "input", input.list, model, neighbors, false).await
}

/// Create sparse embeddings (clients of text-embeddings-inference)
///
/// The same vectors as those of `/v1/sparse-embeddings`, in the form of text-embeddings-inference.
#[utoipa::path(
    post,
    path = "/embed_sparse",
    tag = "retrieval",
    operation_id = "embedSparse",
    request_body = EmbedSparseRequest,
    responses((status = OK, description = "One sparse vector per input, in the order of the inputs", body = Vec<Vec<SparseValue>>), ApiError)
)]
pub async fn create_for_tei(
    context: RequestContext,
    Json(request): Json<EmbedSparseRequest>,
) -> Result<AccountedResponse, ApiError> {
    let EmbedSparseRequest { inputs, model, prompt_name, .. } = request;
    let neighbors = (prompt_name == InputType::Query).then_some(DEFAULT_NEIGHBORS);
    answer(&context, "inputs", inputs.list, model, neighbors, true).await
}

/// Answers with the vectors of documents, or with those of queries if `neighbors` has a number.
async fn answer(
    context: &RequestContext,
    field: &'static str,
    inputs: Vec<Input>,
    model: Option<String>,
    neighbors: Option<usize>,
    is_tei: bool,
) -> Result<AccountedResponse, ApiError> {
    let state = &context.state;
    let requested = RequestedModel::resolve(state, model.as_deref())?;
    let encoder = requested.entry.sparse().ok_or_else(|| ApiError::loading(&[requested.entry.id()]))?;
    let count = inputs.len();
    let checked = requested.check(context, field, inputs)?;
    let short = checked.are_short();
    let tokens = requested.tokenize(state, checked, short).await.map_err(|error| error.for_field(field))?;
    let usage = inputs::charge(state, &tokens).map_err(|error| error.for_field(field))?;
    let response = SparseResponse {
        encoder: Arc::clone(encoder),
        stages: Arc::clone(&requested.stages),
        model: model.unwrap_or_else(|| requested.entry.id().to_owned()),
        tokens,
        neighbors,
        is_tei,
    };
    // Slices are sent while later ones are written, so only the longest vector is in memory.
    context.add_weight(response.tokens.iter().map(|tokens| response.bytes(tokens)).max().unwrap_or(0) as u64)?;
    let slices = split_by_size(response.tokens.iter().map(|tokens| response.size(tokens)), WRITE_SLICE);
    let longest = response.longest(requested.embedder.rows());
    let queued = response.stages.queued();
    let written = stream::respond(&state.process.workers, slices.len(), longest, move |slice, at| {
        queued(slice);
        response.write(slices.get(slice).cloned().unwrap_or_default(), at)
    });
    Ok(requested.with_accounting(written.await?, count, usage))
}

/// What is needed to write the response.
struct SparseResponse {
    encoder: Arc<SparseEncoder<Arc<Embedder>>>,
    stages: Arc<Stages>,
    model: String,
    tokens: Vec<PooledTokens>,
    /// For queries, the number of tokens by which each token is expanded.
    neighbors: Option<usize>,
    is_tei: bool,
}

impl SparseResponse {
    /// Returns the bytes that the vector of a text takes in the response, at most.
    fn bytes(&self, tokens: &PooledTokens) -> usize {
        let distinct = tokens.len().min(self.encoder.embedder().rows());
        let expanded = distinct.min(MAX_QUERY_TOKENS).saturating_mul(self.neighbors.unwrap_or(0));
        distinct.saturating_add(expanded).saturating_mul(BYTES_PER_NUMBER).saturating_add(64)
    }

    /// Returns the share of a slice that a text takes. A query may need passes over the table, so a slice has few of them.
    fn size(&self, tokens: &PooledTokens) -> usize {
        const QUERIES_A_SLICE: usize = 8;
        let least =
            if self.neighbors.is_some_and(|neighbors| neighbors > 0) { WRITE_SLICE / QUERIES_A_SLICE } else { 0 };
        self.bytes(tokens).max(least)
    }

    /// Returns how long the longest text takes, or zero if that is at most a few milliseconds.
    fn longest(&self, rows: usize) -> Duration {
        const SHORT: Duration = Duration::from_millis(4);
        let micros = |tokens: &PooledTokens| {
            let passes = match self.neighbors {
                None | Some(0) => 0,
                Some(_) => tokens.len().min(MAX_QUERY_TOKENS).div_ceil(TOKENS_PER_PASS),
            };
            (tokens.len() / 4 + passes * rows / ROWS_PER_MICROSECOND) as u64
        };
        let longest = Duration::from_micros(self.tokens.iter().map(micros).max().unwrap_or_default());
        if longest > SHORT { longest } else { Duration::ZERO }
    }

    fn write(&self, range: Range<usize>, at: &dyn YieldPoint) -> Result<Bytes, EmbedError> {
        let mut out = Vec::with_capacity(WRITE_SLICE);
        if range.start == 0 {
            out.extend_from_slice(if self.is_tei { b"[" } else { write::HEAD });
        }
        let last = range.end == self.tokens.len();
        for (tokens, index) in self.tokens.get(range.clone()).unwrap_or_default().iter().zip(range) {
            let vector = self.stages.time(Stage::Pool, || match self.neighbors {
                Some(neighbors) => self.encoder.query(tokens, neighbors, at),
                None => self.encoder.document(tokens, at),
            })?;
            self.stages.time(Stage::Serialize, || match self.is_tei {
                true => write::sparse_entries(&mut out, index, &vector),
                false => write::sparse_embedding(&mut out, index, &vector),
            });
        }
        match (last, self.is_tei) {
            (true, true) => out.push(b']'),
            (true, false) => write::tail(&mut out, &self.model, inputs::token_count(&self.tokens)),
            (false, _) => {}
        }
        Ok(out.into())
    }
}
