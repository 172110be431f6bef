//! POST /v1/similarity: returns the cosine similarities of texts, without their vectors.

use std::sync::Arc;
use std::time::Duration;

use crate::decimal;
use crate::openai::{CreateSimilarityRequest, CreateSimilarityResponse, EncodingFormat};
use crate::server::error::ApiError;
use crate::server::observe::stages::Stage;
use crate::server::request::context::RequestContext;
use crate::server::request::inputs::{self, RequestedModel};
use crate::server::request::json::Json;
use crate::server::response::accounted::AccountedResponse;
use crate::server::response::slices::{DEVICE_POOL_SLICE, POOL_SLICE, WRITE_SLICE, split_by_size};
use crate::server::response::{stream, write};
use crate::server::state::ServerState;
use layer0::OutputDtype;
use layer0::embedder::PooledTokens;
use layer0::pooling::dot;

/// How many products are computed and added in a microsecond.
const PRODUCTS_PER_MICROSECOND: u64 = 1000;

/// Compare texts
///
/// Returns the cosine similarity of each query with each input, or of all inputs with each other.
#[utoipa::path(
    post,
    path = "/v1/similarity",
    tag = "tools",
    operation_id = "createSimilarity",
    request_body = CreateSimilarityRequest,
    responses(
        (status = OK, description = "One row per query (per input if there are no queries), with one number per input", body = CreateSimilarityResponse),
        ApiError,
    )
)]
pub async fn create(
    context: RequestContext,
    Json(request): Json<CreateSimilarityRequest>,
) -> Result<AccountedResponse, ApiError> {
    answer(&context, request).await
}

/// Compares the texts of a request, whatever API it belongs to.
///
/// # Errors
/// If there is no such model, or an input or the number of dimensions is not valid for it.
pub async fn answer(context: &RequestContext, request: CreateSimilarityRequest) -> Result<AccountedResponse, ApiError> {
    let state = &context.state;
    let CreateSimilarityRequest { input, queries, model, dimensions, is_tei } = request;
    let inputs = input.list;
    let queries = queries.map(|queries| queries.list).unwrap_or_default();
    let requested = RequestedModel::resolve(state, model.as_deref())?;
    let dimensions = requested.embedder.resolve_dimensions(dimensions)?;

    let count = inputs.len() + queries.len();
    let (columns, asked_for) = (inputs.len(), queries.len());
    let inputs = requested.check(context, "input", inputs)?;
    let queries = requested.check(context, "queries", queries)?;
    let rows = if asked_for == 0 { columns } else { asked_for };
    // The work and the response grow with the number of pairs, which the size of the body does not show.
    context.add_weight((rows as u64).saturating_mul(columns as u64).saturating_mul(size_of::<f32>() as u64))?;
    let short = (inputs.are_short(), queries.are_short());
    let mut tokens = requested.tokenize(state, inputs, short.0).await?;
    tokens.extend(requested.tokenize(state, queries, short.1).await.map_err(|error| error.for_field("queries"))?);
    let usage = inputs::charge(state, &tokens)?;
    let vectors = unit_vectors(state, &requested, tokens, dimensions).await?;

    let rows = if asked_for == 0 { 0..columns } else { columns..count };
    let first = rows.start;
    let model = model.unwrap_or_else(|| requested.entry.id().to_owned());
    let size = write::size_of_embedding(columns, EncodingFormat::Float, OutputDtype::Float);
    let cost = columns.saturating_mul(dimensions).saturating_mul(WRITE_SLICE) / POOL_SLICE;
    let slices = split_by_size(rows.map(|_| size.max(cost)), WRITE_SLICE);
    let last = slices.len().saturating_sub(1);
    let (stages, queued) = (Arc::clone(&requested.stages), requested.stages.queued());
    let longest = Duration::from_micros((columns as u64).saturating_mul(dimensions as u64) / PRODUCTS_PER_MICROSECOND);
    let longest = Some(longest).filter(|longest| *longest > Duration::from_millis(4)).unwrap_or_default();
    let response = stream::respond(&state.process.workers, slices.len(), longest, move |slice, at| {
        queued(slice);
        stages.time(Stage::Serialize, || {
            let mut out = Vec::with_capacity(WRITE_SLICE);
            if slice == 0 && !is_tei {
                out.extend_from_slice(write::HEAD);
            }
            let vector = |at: usize| vectors.get(at * dimensions..(at + 1) * dimensions).unwrap_or_default();
            for row in slices.get(slice).cloned().unwrap_or_default() {
                let mut cosines = Vec::with_capacity(columns);
                for column in 0..columns {
                    cosines.push(dot(vector(first + row), vector(column)).clamp(-1.0, 1.0));
                    at.reached()?;
                }
                match is_tei {
                    // There is a single row, because there is a single source sentence.
                    true => decimal::array(&mut out, &cosines),
                    false => write::similarity(&mut out, row, &cosines),
                }
            }
            if slice == last && !is_tei {
                write::tail(&mut out, &model, usage);
            }
            Ok(out.into())
        })
    });
    Ok(requested.with_accounting(response.await?, count, usage))
}

/// Pools `tokens` and scales every vector to length 1, whatever the model's settings are, so that dot products are
/// cosines.
async fn unit_vectors(
    state: &ServerState,
    requested: &RequestedModel,
    tokens: Vec<PooledTokens>,
    dimensions: usize,
) -> Result<Vec<f32>, ApiError> {
    let slice = if requested.embedder.wants_whole_batches() { DEVICE_POOL_SLICE } else { POOL_SLICE };
    let slices = split_by_size(tokens.iter().map(|tokens| tokens.len().max(1).saturating_mul(dimensions)), slice);
    let mut vectors = Vec::with_capacity(tokens.len() * dimensions);
    let (embedder, stages, queued) =
        (Arc::clone(&requested.embedder), Arc::clone(&requested.stages), requested.stages.queued());
    let longest = inputs::longest_to_pool(&tokens, dimensions);
    let mut job = state.process.workers.run_long(slices.len(), longest, move |slice, at| {
        queued(slice);
        let range = slices.get(slice).cloned().unwrap_or_default();
        let first = range.start;
        let tokens = tokens.get(range).unwrap_or_default();
        let mut vectors = vec![0.0; tokens.len() * dimensions];
        stages.time(Stage::Pool, || embedder.unit_vectors(first, tokens, dimensions, &mut vectors, at))?;
        Ok::<_, layer0::error::EmbedError>(vectors)
    });
    while let Some(result) = job.next().await {
        vectors.extend(result??);
    }
    Ok(vectors)
}
