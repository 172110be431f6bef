//! The interface between a connection's byte stream and what answers requests before HTTP sees them, and the state of
//! such answers on one connection.

use std::time::Duration;

use tokio::time::Instant;

use super::activity::RequestInFlight;
use super::request_boundary::RequestBoundary;

/// Answers requests that are refused in any case, before HTTP sees them.
pub trait RefuseEarly: Send {
    /// Returns whether some requests are refused at the moment. This must be cheap.
    fn may_refuse(&self) -> bool;

    /// Returns the response to the request that begins with the bytes `first`, or `None` if HTTP must handle the request.
    fn refuse(&self, first: &[u8]) -> Option<EarlyAnswer>;
}

/// The response to a request that HTTP does not see.
pub struct EarlyAnswer {
    /// The bytes of the response.
    pub bytes: Vec<u8>,
    /// The number of bytes of the request that are still to be received and discarded.
    pub unread: u64,
}

/// An [`EarlyAnswer`] that is being sent, and whose request is then discarded.
pub struct EarlyAnswerInProgress {
    pub answer: EarlyAnswer,
    /// The number of bytes of the response that are sent.
    pub sent: usize,
    /// The request, which is in flight until its body is discarded.
    pub _request: RequestInFlight,
}

/// Refuses requests on one connection before HTTP sees them.
pub struct EarlyRefusals {
    refusal: Box<dyn RefuseEarly>,
    /// How long HTTP may see no request although requests are answered. HTTP closes connections without requests.
    limit: Duration,
    /// The time at which HTTP last received bytes.
    delivered: Instant,
    boundary: RequestBoundary,
    pub in_progress: Option<EarlyAnswerInProgress>,
}

impl EarlyRefusals {
    /// Lets `refusal` answer requests until HTTP has seen none for `limit`.
    pub fn new(refusal: Box<dyn RefuseEarly>, limit: Duration) -> Self {
        Self { refusal, limit, delivered: Instant::now(), boundary: RequestBoundary::new(), in_progress: None }
    }

    /// Returns whether the next bytes may be refused. `body` is the length of the body of the last request that HTTP has
    /// seen, if that is known.
    pub fn are_possible(&mut self, body: Option<u64>) -> bool {
        self.boundary.is_reached(body) && self.refusal.may_refuse() && self.delivered.elapsed() < self.limit
    }

    /// Returns the response to the request that begins with the bytes `first`, or `None` if HTTP must handle the request.
    pub fn refuse(&self, first: &[u8]) -> Option<EarlyAnswer> {
        self.refusal.refuse(first)
    }

    /// Records that `bytes` were delivered to HTTP at the time `now`. Returns whether they complete the head of a
    /// request.
    pub fn deliver(&mut self, bytes: &[u8], now: Instant) -> bool {
        self.delivered = now;
        self.boundary.deliver(bytes)
    }
}
