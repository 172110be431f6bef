//! Response bodies that keep a value until they are sent.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::Response;
use bytes::Bytes;
use hyper::body::{Body as _, Frame, SizeHint};

/// Keeps `until_sent` until the body of `response` is sent. A complete body counts as sent: it is written to the socket
/// at once.
pub fn keep_until_sent<T: Send + Unpin + 'static>(response: Response<Body>, until_sent: T) -> Response<Body> {
    if response.body().size_hint().exact().is_none() {
        return response.map(|body| Body::new(GuardedBody { body, _until_sent: until_sent }));
    }
    response
}

/// A response body that is produced while it is sent, and a value that must live until all of it is sent.
struct GuardedBody<T> {
    body: Body,
    _until_sent: T,
}

impl<T: Unpin> hyper::body::Body for GuardedBody<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
