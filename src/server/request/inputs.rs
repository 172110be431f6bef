//! Resolves the model of a request and tokenizes its inputs, for every route that has inputs.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Response;

use super::context::RequestContext;
use crate::registry::RegisteredModel;
use crate::server::error::ApiError;
use crate::server::observe::accounting::ResponseAccounting;
use crate::server::observe::stages::{SERVER_TIMING, Stage, Stages};
use crate::server::response::accounted::AccountedResponse;
use crate::server::response::slices::split_by_size;
use crate::server::state::ServerState;
use crate::workers;
use layer0::embedder::{Embedder, Input, PooledTokens};
use layer0::error::EmbedError;
use layer0::yield_point::{Undisturbed, YieldPoint};

/// The size of a tokenizing slice in bytes of text: about 4 ms at 4 MB/s.
const TOKENIZE_SLICE: usize = 16 << 10;

/// The most text, in bytes, that is tokenized on the socket thread: about 0.1 ms in the worst case.
const INLINE_TEXT_BYTES: usize = 512;

/// How many table numbers are pooled in a microsecond.
const NUMBERS_PER_MICROSECOND: u64 = 4096;

/// The loaded model that a request names, and the times that the request spends in each stage.
pub struct RequestedModel {
    pub entry: Arc<RegisteredModel>,
    pub embedder: Arc<Embedder>,
    pub stages: Arc<Stages>,
}

/// Inputs that have passed all checks that are possible before tokenizing.
pub struct CheckedInputs {
    inputs: Arc<Vec<Input>>,
    /// The length of each input's text, in bytes.
    bytes: Vec<usize>,
}

impl CheckedInputs {
    /// Returns the inputs, which stay shared with the job that tokenizes them.
    pub fn inputs(&self) -> Arc<Vec<Input>> {
        Arc::clone(&self.inputs)
    }

    /// Returns whether tokenizing the inputs takes less time than handing them to a worker thread.
    pub fn are_short(&self) -> bool {
        self.bytes.iter().sum::<usize>() <= INLINE_TEXT_BYTES
    }
}

impl RequestedModel {
    /// Returns the model with this ID or alias, or the default model for `None`.
    ///
    /// # Errors
    /// If there is no such model, or it is still loading.
    pub fn resolve(state: &ServerState, model: Option<&str>) -> Result<Self, ApiError> {
        let entry = state
            .registry
            .get(model)
            .ok_or_else(|| ApiError::model_not_found(model.unwrap_or(state.config.default_model())))?;
        let embedder = entry.embedder().ok_or_else(|| ApiError::loading(&[entry.id()]))?;
        let stages = Stages::new(&state.process.metrics);
        Ok(Self { entry: Arc::clone(entry), embedder: Arc::clone(embedder), stages })
    }

    /// Checks the inputs of `field` against the limits, and adds to the request's weight the text that token IDs stand
    /// for, which may be many times as long as the IDs.
    ///
    /// # Errors
    /// If the text is longer than `server.max_body`, or does not fit into the in-flight budget.
    pub fn check(&self, context: &RequestContext, field: &str, inputs: Vec<Input>) -> Result<CheckedInputs, ApiError> {
        let server = &context.state.config.server;
        let bytes: Vec<usize> = inputs.iter().map(|input| self.embedder.bytes_of(input)).collect();
        let all = bytes.iter().fold(0u64, |all, &bytes| all.saturating_add(bytes as u64));
        if all > server.max_body.0 {
            return Err(ApiError::text_too_large(field, all, server.max_body));
        }
        let sent = inputs.iter().map(|input| match input {
            Input::Text(text) => text.len(),
            Input::TokenIds(ids) => ids.iter().map(|id| id.checked_ilog10().unwrap_or_default() as usize + 2).sum(),
        });
        let made: u64 = bytes.iter().zip(sent).map(|(bytes, sent)| bytes.saturating_sub(sent) as u64).sum();
        if made > 0 {
            context.add_weight(made)?;
        }
        Ok(CheckedInputs { inputs: Arc::new(inputs), bytes })
    }

    /// Tokenizes the inputs, on the current thread if `inline` is true, and otherwise on the worker threads. All errors
    /// that an input can have are found here.
    ///
    /// # Errors
    /// If the model does not accept one of the inputs.
    pub async fn tokenize(
        &self,
        state: &ServerState,
        checked: CheckedInputs,
        inline: bool,
    ) -> Result<Vec<PooledTokens>, ApiError> {
        let CheckedInputs { inputs, bytes } = checked;
        if inline {
            let tokens = || tokenize_range(&self.embedder, 0..inputs.len(), &inputs, &Undisturbed);
            return Ok(workers::run_inline(|| self.stages.time(Stage::Tokenize, tokens))??);
        }
        let longest = bytes.iter().copied().max().filter(|&bytes| bytes > TOKENIZE_SLICE).unwrap_or_default();
        // The estimate is the worst case of one microsecond per byte.
        let longest = Duration::from_micros(longest as u64);
        let slices = split_by_size(bytes.into_iter(), TOKENIZE_SLICE);
        let mut tokens = Vec::with_capacity(inputs.len());
        let (embedder, stages, queued) = (Arc::clone(&self.embedder), Arc::clone(&self.stages), self.stages.queued());
        let mut job = state.process.workers.run_long(slices.len(), longest, move |slice, at| {
            queued(slice);
            let range = slices.get(slice).cloned().unwrap_or_default();
            stages.time(Stage::Tokenize, || tokenize_range(&embedder, range, &inputs, at))
        });
        while let Some(result) = job.next().await {
            tokens.extend(result??);
        }
        Ok(tokens)
    }

    /// Adds to `response` what the access log, the metrics and the client report about it.
    pub fn with_accounting(self, mut response: Response<Body>, inputs: usize, tokens: usize) -> AccountedResponse {
        response.headers_mut().insert(SERVER_TIMING, self.stages.header());
        AccountedResponse::new(response, ResponseAccounting::Answered { entry: self.entry, inputs, tokens })
    }
}

/// Returns how long the longest text takes to pool, or zero if that is at most a few milliseconds.
pub fn longest_to_pool(tokens: &[PooledTokens], dimensions: usize) -> Duration {
    let most = tokens.iter().map(PooledTokens::len).max().unwrap_or_default();
    let micros = (most as u64).saturating_mul(dimensions as u64) / NUMBERS_PER_MICROSECOND;
    Some(Duration::from_micros(micros)).filter(|time| *time > Duration::from_millis(4)).unwrap_or_default()
}

/// Charges the tokens to the request's API key, if the key's tokens are limited, and returns their number.
///
/// # Errors
/// If the key may never use that many tokens at once.
pub fn charge(state: &ServerState, tokens: &[PooledTokens]) -> Result<usize, ApiError> {
    let count = token_count(tokens);
    if let Some(limiter) = &state.limiter {
        limiter.charge_tokens(count as u64, Instant::now())?;
    }
    Ok(count)
}

/// Returns the total number of pooled tokens, which is what `usage` reports.
pub fn token_count(tokens: &[PooledTokens]) -> usize {
    tokens.iter().map(PooledTokens::len).sum()
}

fn tokenize_range(
    embedder: &Embedder,
    range: Range<usize>,
    inputs: &[Input],
    at: &dyn YieldPoint,
) -> Result<Vec<PooledTokens>, EmbedError> {
    let inputs = inputs.get(range.clone()).unwrap_or_default();
    range.zip(inputs).map(|(index, input)| embedder.tokens_in_steps(index, input, at)).collect()
}
