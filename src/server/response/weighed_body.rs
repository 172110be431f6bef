//! Response bodies that keep the weight of their request until the client has received them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{Response, Version};
use bytes::Bytes;
use hyper::body::{Body as _, Frame, SizeHint};

use crate::server::state::admission::RequestWeight;

/// The largest response, in bytes, that may wait unsent on an HTTP/2 connection without keeping its weight.
const LARGEST_UNWEIGHED_RESPONSE: u64 = 4 << 10;

/// Keeps `weight` until the client has received the response, which is sent in the given version of HTTP.
///
/// On HTTP/1 a complete response is written to the socket at once. On HTTP/2 the client may delay it by flow control.
pub fn keep_weight(response: Response<Body>, version: Version, weight: Arc<RequestWeight>) -> Response<Body> {
    match response.body().size_hint().exact() {
        Some(size) if version < Version::HTTP_2 || size <= LARGEST_UNWEIGHED_RESPONSE => response,
        _ => response.map(|body| {
            weight.wait.set_task_to_abort();
            weight.register_waiting();
            Body::new(WeighedBody { body, weight })
        }),
    }
}

/// A response body that keeps its request's weight until the client has received it.
struct WeighedBody {
    body: Body,
    weight: Arc<RequestWeight>,
}

impl hyper::body::Body for WeighedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // The next piece is requested only after the piece before was sent.
        self.weight.wait.end();
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.weight.wait.begin(frame.data_ref().map_or(0, Bytes::len) as u64);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
