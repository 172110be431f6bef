//! The body of a request as it arrives on its connection, and what happens to a body that is not read to its end.
//!
//! Many requests are answered before their body has arrived: the key is wrong, the path does not exist, the body is too
//! large. Most clients send their whole body before they read. If the server closed the connection at that point, the
//! system would reset it, and the client would never see the response (RFC 9112, section 9.6). So if a handler drops a
//! body, the rest of it is received and discarded in the background, and the connection can be used for the next
//! request.
//!
//! If the body is too large for that, or if the client waits for `100 Continue`, the connection ends instead: the
//! response says `connection: close`, and [`super::transport`] closes the connection in an orderly way. On HTTP/2 only
//! the stream ends, with RST_STREAM and NO_ERROR (RFC 9113, section 8.1).
//!
//! All request bodies of the server are of this type, so no handler has to deal with this.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONNECTION, EXPECT};
use axum::http::{HeaderMap, HeaderValue, Request, Response, Version};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::runtime::Handle;

use super::transport::{FIRST_READ, ReceiveState};

/// The largest body, in bytes, that is discarded to keep its connection open.
pub const LARGEST_DISCARDED: u64 = 64 << 20;

/// The limits on a body that is discarded: a client must send at least [`MINIMUM_DISCARDED`] bytes in each window of
/// this length, and may take this many windows.
const DISCARD_WINDOW: Duration = Duration::from_secs(5);
const MINIMUM_DISCARDED: u64 = 20 << 10;
const DISCARD_WINDOWS: usize = 60;

/// The body of one request. If it is dropped before its end, the rest is discarded, or its connection is closed.
pub struct RequestBody {
    /// The rest of the body, or `None` at its end.
    incoming: Option<Incoming>,
    received: ReceiveState,
    /// Whether the request has the connection to itself, as on HTTP/1.
    alone: bool,
    /// Whether the client waits for `100 Continue`, which the first read of the body sends.
    waits: bool,
}

impl RequestBody {
    /// Gives `request` a body that may be dropped at any time. `received` belongs to the connection.
    pub fn wrap(request: Request<Incoming>, received: &ReceiveState) -> Request<Body> {
        let alone = request.version() <= Version::HTTP_11;
        if !alone {
            received.is_multiplexed();
        }
        let waits = alone && expects_continue(request.headers());
        received.body_begins(request.body().size_hint().exact());
        request.map(|incoming| {
            if incoming.is_end_stream() {
                received.body_ended();
                return Body::empty();
            }
            Body::new(Self { incoming: Some(incoming), received: received.clone(), alone, waits })
        })
    }

    fn ended(&mut self) {
        self.incoming = None;
        self.received.body_ended();
    }
}

/// Adds `connection: close` to a response if the unread body requires closing the connection.
pub fn close_if_unread(response: &mut Response<Body>, received: &ReceiveState) {
    if received.must_close() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Returns whether the client waits for `100 Continue`. Expectations are case-insensitive (RFC 9110, section 10.1.1).
fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

impl hyper::body::Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.waits = false;
        let Some(incoming) = self.incoming.as_mut() else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(incoming).poll_frame(context));
        if frame.is_none() || self.is_end_stream() {
            self.ended();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(incoming) = self.incoming.take() else { return };
        let length = incoming.size_hint().exact();
        if self.waits || length.is_some_and(|length| length > LARGEST_DISCARDED) {
            if self.alone {
                self.received.close_after_answer();
            }
            return;
        }
        // If there is no runtime, the connection is ending too.
        if let Ok(runtime) = Handle::try_current() {
            let received = self.received.clone();
            // Only the kernel of an HTTP/1 connection can drop the bytes: on HTTP/2, frames of other requests are
            // between those of a body.
            let length = length.filter(|length| self.alone && *length > FIRST_READ as u64);
            runtime.spawn(discard(incoming, length, received));
        }
    }
}

/// Receives the rest of a body and discards it. `length` is the length of the body if the kernel may drop its bytes.
async fn discard(mut body: Incoming, length: Option<u64>, received: ReceiveState) {
    let mut all = 0;
    for _ in 0..DISCARD_WINDOWS {
        let before = all;
        let rest = async {
            while let Some(Ok(frame)) = body.frame().await {
                let piece = frame.data_ref().map_or(0, Bytes::len) as u64;
                // The first piece was read together with the head of the request.
                if all == 0
                    && let Some(length) = length
                {
                    received.skip(length.saturating_sub(piece));
                }
                all += piece;
                if all > LARGEST_DISCARDED {
                    return false;
                }
            }
            true
        };
        match tokio::time::timeout(DISCARD_WINDOW, rest).await {
            Ok(true) => {
                received.body_ended();
                return;
            }
            Ok(false) => break,
            Err(_) if all - before < MINIMUM_DISCARDED => break,
            Err(_) => {}
        }
    }
    tracing::debug!(bytes = all, "a client is still sending the body of a refused request: its connection is closed");
}
