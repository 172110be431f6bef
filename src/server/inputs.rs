//! From a request's inputs to the tokens that are pooled: what embeddings, tokens and similarities begin with.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Response;

use super::State;
use super::access::Accounting;
use super::admission::Weight;
use super::error::ApiError;
use super::stages::{SERVER_TIMING, Stage, Stages};
use crate::embedder::{Embedder, Input, PooledTokens};
use crate::error::EmbedError;
use crate::registry::Entry;
use crate::workers;
use crate::yield_point::{Undisturbed, YieldPoint};

/// Bytes of text in a slice of tokenizing: about 4 ms at 4 MB/s.
const TOKENIZE_SLICE: usize = 16 << 10;

/// What is done on the async thread: at most this much text. Some 0.1 ms in the worst case.
const TEXT_HERE: usize = 512;

/// Numbers that are read in a microsecond of pooling.
const NUMBERS_A_MICROSECOND: u64 = 4096;

/// The model that a request names, loaded, and the times that the request takes.
pub struct Asked {
    pub entry: Arc<Entry>,
    pub embedder: Arc<Embedder>,
    pub stages: Arc<Stages>,
}

/// Inputs that may be tokenized: they are within the limits that are known before.
pub struct Admitted {
    inputs: Vec<Input>,
    /// The bytes of each one's text.
    bytes: Vec<usize>,
}

impl Admitted {
    /// Whether handing the inputs to another thread would cost more than to tokenize them.
    pub fn are_short(&self) -> bool {
        self.bytes.iter().sum::<usize>() <= TEXT_HERE
    }
}

impl Asked {
    /// # Errors
    /// When there is no such model, or it is still loading.
    pub fn of(state: &State, model: Option<&str>) -> Result<Self, ApiError> {
        let entry = state
            .registry
            .get(model)
            .ok_or_else(|| ApiError::model_not_found(model.unwrap_or(state.config.default_model())))?;
        let embedder = entry.embedder().ok_or_else(|| ApiError::loading(&[entry.id()]))?;
        let stages = Stages::new(&state.metrics);
        Ok(Self { entry: Arc::clone(entry), embedder: Arc::clone(embedder), stages })
    }

    /// Counts what the inputs of `field` stand for: their number, and the text that is made of token ids, which may be
    /// many times as long as the ids.
    ///
    /// # Errors
    /// When that is over a limit, or more than may be in flight beside what is.
    pub fn admit(
        &self,
        state: &State,
        weight: Option<&Weight>,
        field: &str,
        inputs: Vec<Input>,
    ) -> Result<Admitted, ApiError> {
        let server = &state.config.server;
        let bytes: Vec<usize> = inputs.iter().map(|input| self.embedder.bytes_of(input)).collect();
        let all = bytes.iter().fold(0u64, |all, &bytes| all.saturating_add(bytes as u64));
        if all > server.max_body.0 {
            return Err(ApiError::text_too_large(field, all, server.max_body));
        }
        let sent = inputs.iter().map(|input| match input {
            Input::Text(text) => text.len(),
            Input::TokenIds(ids) => ids.iter().map(|id| id.checked_ilog10().unwrap_or_default() as usize + 2).sum(),
        });
        let made = bytes.iter().zip(sent).map(|(bytes, sent)| bytes.saturating_sub(sent) as u64).sum();
        if let Some(weight) = weight.filter(|_| made > 0) {
            weight.arrived(made)?;
        }
        Ok(Admitted { inputs, bytes })
    }

    /// The tokens of `inputs`, made where we are if `here`, else on the workers. All errors of an input come from here.
    ///
    /// # Errors
    /// When an input is not one that the model takes.
    pub async fn tokens(&self, state: &State, admitted: Admitted, here: bool) -> Result<Vec<PooledTokens>, ApiError> {
        let Admitted { inputs, bytes } = admitted;
        if here {
            let tokens = || tokens_of(&self.embedder, 0..inputs.len(), &inputs, &Undisturbed);
            return Ok(workers::here(|| self.stages.time(Stage::Tokenize, tokens))??);
        }
        let longest = bytes.iter().copied().max().filter(|&bytes| bytes > TOKENIZE_SLICE).unwrap_or_default();
        // At worst a microsecond a byte.
        let longest = Duration::from_micros(longest as u64);
        let slices = slices(bytes.into_iter(), TOKENIZE_SLICE);
        let mut tokens = Vec::with_capacity(inputs.len());
        let (embedder, stages, queued) = (Arc::clone(&self.embedder), Arc::clone(&self.stages), self.stages.queued());
        let mut job = state.workers.run_long(slices.len(), longest, move |slice, at| {
            queued(slice);
            let range = slices.get(slice).cloned().unwrap_or_default();
            stages.time(Stage::Tokenize, || tokens_of(&embedder, range, &inputs, at))
        });
        while let Some(result) = job.next().await {
            tokens.extend(result??);
        }
        Ok(tokens)
    }

    /// The answer to `inputs` inputs of `tokens` tokens, as the log, the metrics and the client are to see it.
    pub fn account(self, mut response: Response<Body>, inputs: usize, tokens: usize) -> Response<Body> {
        response.headers_mut().insert(SERVER_TIMING, self.stages.header());
        response.extensions_mut().insert(Accounting { entry: self.entry, inputs, tokens });
        response
    }
}

/// How long the longest of texts takes to pool, if that is more than a few milliseconds; else zero.
pub fn longest_to_pool(tokens: &[PooledTokens], dimensions: usize) -> Duration {
    let most = tokens.iter().map(PooledTokens::len).max().unwrap_or_default();
    let micros = (most as u64).saturating_mul(dimensions as u64) / NUMBERS_A_MICROSECOND;
    Some(Duration::from_micros(micros)).filter(|time| *time > Duration::from_millis(4)).unwrap_or_default()
}

/// Charges the key of the request with its tokens, where they are limited, and returns how many there are.
///
/// # Errors
/// When they are more than the key may ever use at once.
pub fn charge(state: &State, tokens: &[PooledTokens]) -> Result<usize, ApiError> {
    let count = count(tokens);
    if let Some(limiter) = &state.limiter {
        limiter.charge_tokens(count as u64, Instant::now())?;
    }
    Ok(count)
}

/// How many tokens are pooled in all: what `usage` counts.
pub fn count(tokens: &[PooledTokens]) -> usize {
    tokens.iter().map(PooledTokens::len).sum()
}

fn tokens_of(
    embedder: &Embedder,
    range: Range<usize>,
    inputs: &[Input],
    at: &dyn YieldPoint,
) -> Result<Vec<PooledTokens>, EmbedError> {
    let inputs = inputs.get(range.clone()).unwrap_or_default();
    range.zip(inputs).map(|(index, input)| embedder.tokens_in_steps(index, input, at)).collect()
}

/// Cuts items of the given sizes into ranges of at least one item and, beyond that, at most `max` in all.
pub fn slices(sizes: impl Iterator<Item = usize>, max: usize) -> Vec<Range<usize>> {
    let mut slices: Vec<Range<usize>> = Vec::new();
    let mut filled = 0;
    for (i, size) in sizes.enumerate() {
        match slices.last_mut() {
            Some(last) if filled + size <= max => {
                last.end = i + 1;
                filled += size;
            }
            _ => {
                slices.push(i..i + 1);
                filled = size;
            }
        }
    }
    slices
}

#[cfg(test)]
mod tests {
    use super::slices;

    #[test]
    fn slices_cover_every_item_once_and_hold_at_most_the_limit_or_one_item() {
        assert!(slices(std::iter::empty(), 10).is_empty());
        assert_eq!(slices([0, 0, 11].into_iter(), 10), [0..2, 2..3]);
        assert_eq!(slices([4, 6, 1, 100, 3, 3].into_iter(), 10), [0..2, 2..3, 3..4, 4..6]);
    }
}
