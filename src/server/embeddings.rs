//! POST /v1/embeddings: parse, find the model, tokenize, pool, write.
//!
//! Two jobs on the workers: the first tokenizes every input, so that all errors of the request are known before its
//! answer begins; the second pools and writes, and its pieces are sent as they come. A request of a line or two is done
//! where it is: handing it over would cost more than it does.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;

use super::State;
use super::access::Accounting;
use super::error::ApiError;
use super::json::Json;
use super::write;
use crate::embedder::{Embedder, Input, PooledTokens};
use crate::error::EmbedError;
use crate::openai::{CreateEmbeddingRequest, EncodingFormat};
use crate::workers::{self, Panicked, Slices};

/// Bytes of text in a slice of tokenizing: about 4 ms at 4 MB/s.
const TOKENIZE_SLICE: usize = 16 << 10;

/// Numbers read in a slice of pooling, about 1 ms at 4 G/s; and bytes of answer in one, so that the pieces stay small.
const POOL_SLICE: usize = 4 << 20;
const WRITE_SLICE: usize = 64 << 10;

/// What is done on the async thread: at most this much text, and this much answer. Some 0.2 ms in the worst case.
const TEXT_HERE: usize = 512;
const ANSWER_HERE: usize = 64 << 10;

pub async fn create(
    Shared(state): Shared<Arc<State>>,
    Json(request): Json<CreateEmbeddingRequest>,
) -> Result<Response<Body>, ApiError> {
    let CreateEmbeddingRequest { input, model, encoding_format, dimensions } = request;
    let inputs = input.0;
    if inputs.len() > state.config.server.max_inputs {
        return Err(ApiError::too_many_inputs(inputs.len(), state.config.server.max_inputs));
    }
    let entry = state
        .registry
        .get(model.as_deref())
        .ok_or_else(|| ApiError::model_not_found(model.as_deref().unwrap_or_default()))?;
    let embedder = entry.embedder().ok_or_else(|| ApiError::loading(&[entry.id()]))?;
    let dimensions = embedder.resolve_dimensions(dimensions)?;

    let accounting = Accounting { model: entry.id().to_owned(), inputs: inputs.len(), tokens: 0 };
    let size_of_answer = inputs.len().saturating_mul(write::size_of_embedding(dimensions, encoding_format));
    let small = inputs.iter().map(size_of_input).sum::<usize>() <= TEXT_HERE && size_of_answer <= ANSWER_HERE;
    let tokens = if small {
        workers::here(|| tokens_of(embedder, 0..inputs.len(), &inputs))??
    } else {
        tokenize(&state, Arc::clone(embedder), inputs).await?
    };
    let count = tokens.iter().map(PooledTokens::len).sum();
    let model = model.unwrap_or_else(|| entry.id().to_owned());
    let answer = Answer { embedder: Arc::clone(embedder), tokens, dimensions, encoding_format, model };
    let mut response = if small { answer.respond_here()? } else { answer.respond(&state).await? };
    response.extensions_mut().insert(Accounting { tokens: count, ..accounting });
    Ok(response)
}

async fn tokenize(state: &State, embedder: Arc<Embedder>, inputs: Vec<Input>) -> Result<Vec<PooledTokens>, ApiError> {
    let slices = slices(inputs.iter().map(size_of_input), TOKENIZE_SLICE);
    let mut tokens = Vec::with_capacity(inputs.len());
    let mut job = state.workers.run(slices.len(), move |slice| {
        let range = slices.get(slice).cloned().unwrap_or_default();
        tokens_of(&embedder, range, &inputs)
    });
    while let Some(result) = job.next().await {
        tokens.extend(result??);
    }
    Ok(tokens)
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
fn slices(sizes: impl Iterator<Item = usize>, max: usize) -> Vec<Range<usize>> {
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

/// All that is needed to write an answer.
struct Answer {
    embedder: Arc<Embedder>,
    tokens: Vec<PooledTokens>,
    dimensions: usize,
    encoding_format: EncodingFormat,
    model: String,
}

impl Answer {
    async fn respond(self, state: &State) -> Result<Response<Body>, ApiError> {
        let answer_size = write::size_of_embedding(self.dimensions, self.encoding_format);
        // Either limit ends a slice: sizes are shares of the slice that an input takes.
        const WHOLE: usize = 1 << 20;
        let share = |tokens: &PooledTokens| {
            let pooled = tokens.len().saturating_mul(self.dimensions).saturating_mul(WHOLE) / POOL_SLICE;
            pooled.max(answer_size * (WHOLE / WRITE_SLICE))
        };
        let slices = slices(self.tokens.iter().map(share), WHOLE);
        let count = slices.len();
        let mut job = state.workers.run(count, move |slice| self.write(slices.get(slice).cloned().unwrap_or_default()));
        // The first piece before the status: a device that fails, or a panic, is an error still.
        let first = job.next().await.unwrap_or(Ok(Ok(Bytes::new())))??;
        let body =
            if count <= 1 { Body::from(first) } else { Body::new(Pieces { first: Some(first), job }.boxed_unsync()) };
        Ok(json(body))
    }

    fn respond_here(self) -> Result<Response<Body>, ApiError> {
        let body = workers::here(|| self.write(0..self.tokens.len()))??;
        Ok(json(Body::from(body)))
    }

    /// The piece of the answer that holds the embeddings of `range`; the first has the head, the last the tail.
    fn write(&self, range: Range<usize>) -> Result<Bytes, EmbedError> {
        let tokens = self.tokens.get(range.clone()).unwrap_or_default();
        let mut vectors = vec![0.0; tokens.len() * self.dimensions];
        self.embedder.pool(tokens, self.dimensions, &mut vectors)?;
        let each = write::size_of_embedding(self.dimensions, self.encoding_format);
        let mut out = Vec::with_capacity(tokens.len() * each + 256);
        if range.start == 0 {
            out.extend_from_slice(write::HEAD);
        }
        let last = range.end == self.tokens.len();
        for (index, vector) in range.zip(vectors.chunks(self.dimensions.max(1))) {
            write::embedding(&mut out, index, vector, self.encoding_format);
        }
        if last {
            write::tail(&mut out, &self.model, self.tokens.iter().map(PooledTokens::len).sum());
        }
        Ok(out.into())
    }
}

fn json(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The pieces of a long answer, as they are written.
struct Pieces {
    first: Option<Bytes>,
    job: Slices<Result<Bytes, EmbedError>>,
}

/// The answer has begun and cannot be finished: the connection is cut, so that no client takes it for whole.
#[derive(Debug, thiserror::Error)]
enum Cut {
    #[error("a worker panicked: {}", .0.0)]
    Panicked(Panicked),
    #[error(transparent)]
    Embed(#[from] EmbedError),
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        self.job.poll_next(context).map(|piece| {
            Some(match piece? {
                Ok(Ok(bytes)) => Ok(Frame::data(bytes)),
                Ok(Err(error)) => Err(error.into()),
                Err(panicked) => Err(Cut::Panicked(panicked)),
            })
            .inspect(|piece| {
                if let Err(error) = piece {
                    tracing::error!(%error, "an answer was cut short");
                }
            })
        })
    }
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
