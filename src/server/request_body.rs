//! The body of a request as it arrives on its connection, and what becomes of a body that is not read to its end.
//!
//! Many answers are given before the body has arrived: the key is wrong, the path does not exist, the body is too large.
//! Most clients send their whole body before they read. If the connection were closed at that point, the system would
//! reset it, and the client would never see the answer (RFC 9112, 9.6). So the rest of a body that is dropped unread is
//! received behind the answer and discarded, and the connection is good for the next request. A body that is too large
//! for that, or that the client holds back until it gets leave to send, ends the connection instead: the answer says
//! `connection: close`, and [`super::transport`] closes in an orderly way. On HTTP/2 only the stream ends, by RST_STREAM
//! with NO_ERROR (RFC 9113, 8.1).
//!
//! Everything that answers requests gets its body from here, so no handler has to think of it.

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

use super::transport::{FIRST_READ, Received};

/// The most bytes of a body that are discarded to keep its connection.
const DISCARDED: u64 = 64 << 20;

/// How long a client may take to send at least [`DISCARDED_LEAST`] more bytes of a body that is discarded, and how often
/// it may do so.
const DISCARD_WINDOW: Duration = Duration::from_secs(5);
const DISCARDED_LEAST: u64 = 20 << 10;
const DISCARD_WINDOWS: usize = 60;

/// The body of one request. Dropped before its end, it is discarded or ends its connection.
pub struct RequestBody {
    /// `None` at its end.
    incoming: Option<Incoming>,
    received: Received,
    /// HTTP/1 has one request at a time on a connection.
    alone: bool,
    /// The client sends nothing before it is told to go on, which the first read does.
    waits: bool,
}

impl RequestBody {
    /// Gives `request` a body that may be dropped at any time. `received` belongs to its connection.
    pub fn of(request: Request<Incoming>, received: &Received) -> Request<Body> {
        let alone = request.version() <= Version::HTTP_11;
        if !alone {
            received.is_multiplexed();
        }
        let waits = alone && waits_for_leave(request.headers());
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

/// Adds to an answer that its connection will be closed, where the body that was not read makes that necessary.
pub fn close_if_unread(response: &mut Response<Body>, received: &Received) {
    if received.must_close() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Whether the client waits for `100 Continue`. Expectations are compared without case (RFC 9110, 10.1.1).
fn waits_for_leave(headers: &HeaderMap) -> bool {
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
        if self.waits || length.is_some_and(|length| length > DISCARDED) {
            if self.alone {
                self.received.close_after_answer();
            }
            return;
        }
        // Without a runtime the connection is ending, too.
        if let Ok(runtime) = Handle::try_current() {
            let received = self.received.clone();
            // Where the kernel can drop the bytes; HTTP/2 has the frames of other requests between those of a body.
            let length = length.filter(|length| self.alone && *length > FIRST_READ as u64);
            runtime.spawn(discard(incoming, length, received));
        }
    }
}

/// Receives a body to its end and keeps nothing of it. `length` is what of it can be dropped by the kernel.
async fn discard(mut body: Incoming, length: Option<u64>, received: Received) {
    let mut all = 0;
    for _ in 0..DISCARD_WINDOWS {
        let before = all;
        let rest = async {
            while let Some(Ok(frame)) = body.frame().await {
                let piece = frame.data_ref().map_or(0, Bytes::len) as u64;
                // The first piece is what was read together with the head.
                if all == 0
                    && let Some(length) = length
                {
                    received.skip(length.saturating_sub(piece));
                }
                all += piece;
                if all > DISCARDED {
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
            Err(_) if all - before < DISCARDED_LEAST => break,
            Err(_) => {}
        }
    }
    tracing::debug!(bytes = all, "a client is still sending a body that is refused: its connection is closed");
}
