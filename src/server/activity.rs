//! What is in flight on one connection: a request counts from its head to the last byte of its answer.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::http::Version;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

/// How many times in a row, evenly spread over a limit, a connection must be found idle to have been idle for that long.
const LOOKS: u32 = 8;

/// What is in flight on one connection.
#[derive(Debug, Default)]
pub struct Activity {
    requests: AtomicUsize,
    /// All requests that have begun.
    begun: AtomicUsize,
    /// Whether bytes of an answer wait until the client reads.
    blocked: AtomicBool,
}

/// A request in flight on its connection, until this is dropped.
#[derive(Debug)]
pub struct InFlight(Arc<Activity>);

impl Activity {
    /// A request begins.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// Whether the connection takes no more bytes at the moment.
    pub fn set_blocked(&self, blocked: bool) {
        if self.blocked.load(Ordering::Relaxed) != blocked {
            self.blocked.store(blocked, Ordering::Relaxed);
        }
    }

    /// How many requests have begun whose answers are not sent to the last byte.
    pub fn in_flight(&self) -> usize {
        self.requests.load(Ordering::Relaxed).max(usize::from(self.blocked.load(Ordering::Relaxed)))
    }

    /// Resolves when nothing has been in flight for about `limit`.
    pub async fn idle_for(&self, limit: Duration) {
        let (mut begun, mut looks) = (self.begun.load(Ordering::Relaxed), 0);
        while looks < LOOKS {
            tokio::time::sleep(limit / LOOKS).await;
            let now = self.begun.load(Ordering::Relaxed);
            looks = if now == begun && self.in_flight() == 0 { looks + 1 } else { 0 };
            begun = now;
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer. Its request is in flight until this and all bytes that it gave out are dropped: HTTP/2 keeps what
/// the client's window does not admit yet.
pub struct AnswerBody {
    body: Body,
    request: Arc<InFlight>,
    version: Version,
}

impl AnswerBody {
    pub fn new(body: Body, request: InFlight, version: Version) -> Self {
        Self { body, request: Arc::new(request), version }
    }
}

/// Bytes of an answer, and its request.
struct Part {
    bytes: Bytes,
    _request: Arc<InFlight>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl hyper::body::Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if self.version <= Version::HTTP_11 {
            // Written at once, or the connection is blocked.
            return Poll::Ready(frame);
        }
        let part = |bytes| Bytes::from_owner(Part { bytes, _request: Arc::clone(&self.request) });
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
    async fn a_connection_is_idle_when_its_last_request_ended_that_long_ago() {
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
    async fn a_request_is_in_flight_until_the_last_of_its_bytes_is_dropped() {
        let activity = Arc::new(Activity::default());
        let mut body = AnswerBody::new(Body::from("answer"), activity.begin(), Version::HTTP_2);
        assert_eq!(body.size_hint().exact(), Some(6));
        let bytes = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!((&bytes[..], body.is_end_stream()), (&b"answer"[..], true));
        drop(body);
        assert_eq!(activity.in_flight(), 1);
        drop(bytes);
        assert_eq!(activity.in_flight(), 0);
    }
}
