//! Responses that worker threads write slice by slice, and that are sent while later slices are still being written.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;

use crate::server::error::ApiError;
use crate::workers::{Panicked, Slices, Workers};
use layer0::error::EmbedError;
use layer0::yield_point::YieldPoint;

/// Responds with the output of `write`, which `workers` call for the slices 0 to `count - 1`. The longest slice takes
/// about `longest`.
///
/// # Errors
/// If the first slice fails. If a later slice fails, the response has begun and its connection is closed.
pub async fn respond<F>(
    workers: &Workers,
    count: usize,
    longest: Duration,
    write: F,
) -> Result<Response<Body>, ApiError>
where
    F: Fn(usize, &dyn YieldPoint) -> Result<Bytes, EmbedError> + Send + Sync + 'static,
{
    let mut job = workers.run_next(count, longest, write);
    // The first slice is awaited before the status is chosen, so that a failing device or a panic still becomes an
    // error.
    let first = job.next().await.unwrap_or(Ok(Ok(Bytes::new())))??;
    let body =
        if count <= 1 { Body::from(first) } else { Body::new(StreamedBody { first: Some(first), job }.boxed_unsync()) };
    Ok(json(body))
}

/// Returns a JSON response with this body.
pub fn json(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The body of a long response, sent in pieces while they are being written.
struct StreamedBody {
    first: Option<Bytes>,
    job: Slices<Result<Bytes, EmbedError>>,
}

/// The reason why a response that has begun cannot be finished. The connection is closed, so that no client takes the
/// response for a complete one.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("a worker panicked: {}", .0.0)]
    Panicked(Panicked),
    #[error(transparent)]
    Embed(#[from] EmbedError),
}

impl hyper::body::Body for StreamedBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        self.job.poll_next(context).map(|piece| {
            Some(match piece? {
                Ok(Ok(bytes)) => Ok(Frame::data(bytes)),
                Ok(Err(error)) => Err(error.into()),
                Err(panicked) => Err(StreamError::Panicked(panicked)),
            })
            .inspect(|piece| {
                if let Err(error) = piece {
                    tracing::error!(%error, "a response was cut short");
                }
            })
        })
    }
}
