//! The requests in flight on one connection. A request is in flight from its head to the last byte of its response.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::http::Version;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

/// How many times in a row, evenly spread over a time limit, a connection must be found idle to count as idle for all
/// of it.
const IDLE_CHECKS: u32 = 8;

/// The requests in flight on one connection.
#[derive(Debug, Default)]
pub struct Activity {
    requests: AtomicUsize,
    /// The number of requests that have begun since the connection was opened.
    begun: AtomicUsize,
    /// Whether bytes of a response wait for the client to read.
    blocked: AtomicBool,
}

/// One request in flight on its connection. It ends when this is dropped.
#[derive(Debug)]
pub struct RequestInFlight(Arc<Activity>);

impl Activity {
    /// Records that a request begins.
    pub fn begin(self: &Arc<Self>) -> RequestInFlight {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        RequestInFlight(Arc::clone(self))
    }

    /// Records whether the connection accepts no more bytes at the moment.
    pub fn set_blocked(&self, blocked: bool) {
        if self.blocked.load(Ordering::Relaxed) != blocked {
            self.blocked.store(blocked, Ordering::Relaxed);
        }
    }

    /// Returns the number of requests that have begun and whose responses are not completely sent.
    pub fn in_flight(&self) -> usize {
        self.requests.load(Ordering::Relaxed).max(usize::from(self.blocked.load(Ordering::Relaxed)))
    }

    /// Resolves when no request has been in flight for about `limit`.
    pub async fn idle_for(&self, limit: Duration) {
        let (mut begun, mut looks) = (self.begun.load(Ordering::Relaxed), 0);
        while looks < IDLE_CHECKS {
            tokio::time::sleep(limit / IDLE_CHECKS).await;
            let now = self.begun.load(Ordering::Relaxed);
            looks = if now == begun && self.in_flight() == 0 { looks + 1 } else { 0 };
            begun = now;
        }
    }
}

impl Drop for RequestInFlight {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A response body that keeps its request in flight until the body, and all bytes that came out of it, are dropped. The
/// HTTP/2 implementation holds bytes back until the client's flow-control window has room for them.
pub struct TrackedBody {
    body: Body,
    request: Arc<RequestInFlight>,
    version: Version,
}

impl TrackedBody {
    pub fn new(body: Body, request: RequestInFlight, version: Version) -> Self {
        Self { body, request: Arc::new(request), version }
    }
}

/// Bytes of a response, which keep the request in flight.
struct ResponseBytes {
    bytes: Bytes,
    _request: Arc<RequestInFlight>,
}

impl AsRef<[u8]> for ResponseBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl hyper::body::Body for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if self.version <= Version::HTTP_11 {
            // HTTP/1 writes the bytes at once, or else the connection counts as blocked.
            return Poll::Ready(frame);
        }
        let part = |bytes| Bytes::from_owner(ResponseBytes { bytes, _request: Arc::clone(&self.request) });
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use hyper::body::Body as _;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_connection_is_idle_for_the_limit_after_its_last_request() {
        const LIMIT: Duration = Duration::from_millis(400);
        let activity = Arc::new(Activity::default());
        let requests = async {
            for _ in 0..10 {
                let request = activity.begin();
                tokio::time::sleep(LIMIT / 4).await;
                drop(request);
            }
            activity.set_blocked(true);
            tokio::time::sleep(LIMIT * 2).await;
            activity.set_blocked(false);
            Instant::now()
        };
        let idle = async {
            activity.idle_for(LIMIT).await;
            Instant::now()
        };
        let (ended, idle) = tokio::join!(requests, idle);
        assert!(idle > ended + LIMIT / 2, "{:?}", idle - ended);
    }

    #[tokio::test]
    async fn a_request_is_in_flight_until_its_last_bytes_are_dropped() {
        let activity = Arc::new(Activity::default());
        let mut body = TrackedBody::new(Body::from("answer"), activity.begin(), Version::HTTP_2);
        assert_eq!(body.size_hint().exact(), Some(6));
        let bytes = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!((&bytes[..], body.is_end_stream()), (&b"answer"[..], true));
        drop(body);
        assert_eq!(activity.in_flight(), 1);
        drop(bytes);
        assert_eq!(activity.in_flight(), 0);
    }
}
