//! From a request's inputs to the tokens that are pooled: what embeddings, tokens and similarities begin with.

use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;

use super::State;
use super::access::Accounting;
use super::error::ApiError;
use super::stages::{SERVER_TIMING, Stage, Stages};
use crate::embedder::{Embedder, Input, PooledTokens};
use crate::error::EmbedError;
use crate::registry::Entry;
use crate::workers;

/// Bytes of text in a slice of tokenizing: about 4 ms at 4 MB/s.
const TOKENIZE_SLICE: usize = 16 << 10;

/// What is done on the async thread: at most this much text. Some 0.1 ms in the worst case.
const TEXT_HERE: usize = 512;

/// The model that a request names, loaded, and the times that the request takes.
pub struct Asked {
    pub entry: Arc<Entry>,
    pub embedder: Arc<Embedder>,
    pub stages: Arc<Stages>,
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

    /// The tokens of `inputs`, made where we are if `here`, else on the workers. All errors of an input come from here.
    ///
    /// # Errors
    /// When an input is not one that the model takes.
    pub async fn tokens(&self, state: &State, inputs: Vec<Input>, here: bool) -> Result<Vec<PooledTokens>, ApiError> {
        if here {
            let tokens = || self.stages.time(Stage::Tokenize, || tokens_of(&self.embedder, 0..inputs.len(), &inputs));
            return Ok(workers::here(tokens)??);
        }
        let slices = slices(inputs.iter().map(size_of_input), TOKENIZE_SLICE);
        let mut tokens = Vec::with_capacity(inputs.len());
        let (embedder, stages, queued) = (Arc::clone(&self.embedder), Arc::clone(&self.stages), self.stages.queued());
        let mut job = state.workers.run(slices.len(), move |slice| {
            queued(slice);
            let range = slices.get(slice).cloned().unwrap_or_default();
            stages.time(Stage::Tokenize, || tokens_of(&embedder, range, &inputs))
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

/// # Errors
/// When a request has more inputs than `server.max_inputs`; `field` holds them.
pub fn check_count(state: &State, field: &str, inputs: &[Input]) -> Result<(), ApiError> {
    let max = state.config.server.max_inputs;
    if inputs.len() > max { Err(ApiError::too_many_inputs(field, inputs.len(), max)) } else { Ok(()) }
}

/// Whether handing the inputs to another thread would cost more than to tokenize them.
pub fn are_short(inputs: &[Input]) -> bool {
    inputs.iter().map(size_of_input).sum::<usize>() <= TEXT_HERE
}

/// How many tokens are pooled in all: what `usage` counts.
pub fn count(tokens: &[PooledTokens]) -> usize {
    tokens.iter().map(PooledTokens::len).sum()
}

fn tokens_of(embedder: &Embedder, range: Range<usize>, inputs: &[Input]) -> Result<Vec<PooledTokens>, EmbedError> {
    let inputs = inputs.get(range.clone()).unwrap_or_default();
    range.zip(inputs).map(|(index, input)| embedder.tokens(index, input)).collect()
}

fn size_of_input(input: &Input) -> usize {
    match input {
        Input::Text(text) => text.len(),
        Input::TokenIds(ids) => ids.len() * 4,
    }
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
