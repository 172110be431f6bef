//! An answer written slice by slice on the workers, and sent as the slices finish.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;

use super::State;
use super::error::ApiError;
use crate::error::EmbedError;
use crate::workers::{Panicked, Slices};
use crate::yield_point::YieldPoint;

/// Answers with what `write` makes of each slice from 0 to `count - 1`, of which the longest takes about `longest`.
///
/// # Errors
/// When the first slice fails: what fails later cuts the answer short.
pub async fn respond<F>(state: &State, count: usize, longest: Duration, write: F) -> Result<Response<Body>, ApiError>
where
    F: Fn(usize, &dyn YieldPoint) -> Result<Bytes, EmbedError> + Send + Sync + 'static,
{
    let mut job = state.workers.run_next(count, longest, write);
    // The first piece before the status: a device that fails, or a panic, is an error still.
    let first = job.next().await.unwrap_or(Ok(Ok(Bytes::new())))??;
    let body =
        if count <= 1 { Body::from(first) } else { Body::new(Pieces { first: Some(first), job }.boxed_unsync()) };
    Ok(json(body))
}

/// An answer of JSON.
pub fn json(body: Body) -> Response<Body> {
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
