//! How much work may be in flight, and for how long.
//!
//! One rule for every shape of input: a request weighs its body's bytes, which are at least its tokens, and
//! [`INPUT`] for each of its inputs, which is about what an answer to it takes. Requests are admitted while all of them
//! together weigh at most `server.max_in_flight`; one that is alone always is.
//!
//! Under overload most requests are refused, and a server that reads them first has little time left for the others. So
//! one whose body is still to come weighs [`Admission::expected`] for its inputs until they are counted, and a thread that
//! refuses takes requests in batches: [`Admission::gather`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, Response};
use axum::response::IntoResponse;
use hyper::body::Body as _;

use super::State;
use super::access::Sending;
use super::error::ApiError;

/// What an input weighs beside its bytes: the base64 of 768 dimensions.
pub const INPUT: u64 = 4 << 10;

/// How long requests gather where some were refused. Little beside what those that were admitted wait for their turn.
const GATHERING: Duration = Duration::from_millis(8);

/// The weight of all requests in flight.
#[derive(Debug, Default)]
pub struct Admission {
    all: AtomicU64,
    expected: AtomicU64,
    /// Whether a request was refused since the last [`Admission::gather`].
    refused: AtomicBool,
}

/// What one request weighs, until its answer is sent.
#[derive(Debug)]
pub struct Weight {
    in_flight: Arc<Admission>,
    own: AtomicU64,
    /// What of `own` stands for inputs that are not counted yet.
    expected: AtomicU64,
    max: u64,
    received: AtomicBool,
}

impl Admission {
    /// In bytes.
    pub fn in_flight(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    /// For a thread that is about to wait for its sockets: where requests are refused, `wait_while_busy` blocks it for that
    /// long at most, while more gather. To be woken for each of them, in the midst of the work on others, costs about as
    /// much as to refuse it.
    pub fn gather(&self, wait_while_busy: impl FnOnce(Duration)) {
        if self.refused.swap(false, Ordering::Relaxed) {
            wait_while_busy(GATHERING);
        }
    }

    /// What the inputs of a request weigh at least, by those of late: down to the lightest at once, up by an eighth at most.
    ///
    /// Where that is too much, all are refused until none is in flight; the next one is admitted, and corrects it.
    fn expected(&self) -> u64 {
        self.expected.load(Ordering::Relaxed)
    }

    fn learn(&self, inputs: u64) {
        let expected = self.expected().max(INPUT);
        let risen = expected.saturating_add(expected / 8);
        self.expected.store(inputs.min(risen), Ordering::Relaxed);
    }

    fn enter(self: &Arc<Self>, max: u64) -> Arc<Weight> {
        Arc::new(Weight {
            in_flight: Arc::clone(self),
            own: AtomicU64::new(0),
            expected: AtomicU64::new(0),
            max,
            received: AtomicBool::new(false),
        })
    }
}

impl Weight {
    /// Adds the bytes of a body that is still to come, 0 where their number is not known, and what its inputs will weigh.
    ///
    /// # Errors
    /// When that is more than may be in flight, and other requests are.
    pub fn add_unread(&self, bytes: u64) -> Result<(), ApiError> {
        let expected = self.in_flight.expected();
        self.add(bytes.saturating_add(expected))?;
        self.expected.store(expected, Ordering::Relaxed);
        Ok(())
    }

    /// Adds bytes that have come.
    ///
    /// # Errors
    /// When that is more than may be in flight, and other requests are.
    pub fn add_read(&self, bytes: u64) -> Result<(), ApiError> {
        self.add(bytes)
    }

    /// Puts the inputs in the place of those that were expected.
    ///
    /// # Errors
    /// When that is more than may be in flight, and other requests are.
    pub fn add_inputs(&self, count: usize) -> Result<(), ApiError> {
        let weight = INPUT.saturating_mul(count as u64);
        self.in_flight.learn(weight);
        let expected = self.expected.swap(0, Ordering::Relaxed);
        if let Some(more) = weight.checked_sub(expected) {
            return self.add(more);
        }
        self.own.fetch_sub(expected - weight, Ordering::Relaxed);
        self.in_flight.all.fetch_sub(expected - weight, Ordering::Relaxed);
        Ok(())
    }

    fn add(&self, weight: u64) -> Result<(), ApiError> {
        let own = self.own.load(Ordering::Relaxed);
        let admitted = self.in_flight.all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| {
            let sum = all.saturating_add(weight);
            (sum <= self.max || all == own).then_some(sum)
        });
        admitted.map_err(|_| {
            self.in_flight.refused.store(true, Ordering::Relaxed);
            ApiError::overloaded()
        })?;
        self.own.fetch_add(weight, Ordering::Relaxed);
        Ok(())
    }

    /// The whole body has come: from here on it is the server that takes the time.
    pub fn received(&self) {
        self.received.store(true, Ordering::Relaxed);
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.in_flight.all.fetch_sub(self.own.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Gives a request that brings work its weight and its deadline. What is not answered by then is dropped with its work.
pub async fn admit<F: Future<Output = Response<Body>>>(
    state: &State,
    mut request: Request,
    next: impl FnOnce(Request) -> F,
) -> Response<Body> {
    if request.method() != Method::POST {
        return next(request).await;
    }
    let server = &state.config.server;
    let weight = state.admission.enter(server.max_in_flight.0);
    request.extensions_mut().insert(Arc::clone(&weight));
    let max = server.request_timeout;
    let Ok(response) = tokio::time::timeout(max.0, next(request)).await else {
        let received = weight.received.load(Ordering::Relaxed);
        return if received { ApiError::too_slow(max) } else { ApiError::body_too_slow(max) }.into_response();
    };
    // One that lies ready is as good as sent.
    if response.body().size_hint().exact().is_none() {
        return response.map(|body| Body::new(Sending::new(body, weight)));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_admitted_up_to_the_limit_and_given_back() {
        let all = Arc::new(Admission::default());
        let (first, second) = (all.enter(100), all.enter(100));
        assert_eq!((first.add_unread(60), second.add_read(40)), (Ok(()), Ok(())));
        assert_eq!(second.add_read(1), Err(ApiError::overloaded()));
        assert_eq!(all.in_flight(), 100);
        drop(first);
        assert_eq!((all.in_flight(), second.add_read(60)), (40, Ok(())));
        drop(second);
        assert_eq!(all.in_flight(), 0);
    }

    #[test]
    fn a_request_that_is_alone_is_admitted_whatever_it_weighs() {
        let all = Arc::new(Admission::default());
        let alone = all.enter(100);
        assert_eq!((alone.add_unread(70), alone.add_inputs(1000)), (Ok(()), Ok(())));
        assert_eq!(all.enter(100).add_unread(1), Err(ApiError::overloaded()));
    }

    #[test]
    fn what_would_not_fit_with_the_inputs_that_requests_have_is_refused_unread() {
        let (all, max) = (Arc::new(Admission::default()), 12 * INPUT);
        for _ in 0..200 {
            assert_eq!(all.enter(max).add_inputs(8), Ok(()));
        }
        let held = all.enter(max);
        assert_eq!(held.add_read(4 * INPUT), Ok(()));
        let unread = |bytes| all.enter(max).add_unread(bytes);
        assert_eq!((unread(0), unread(INPUT)), (Ok(()), Err(ApiError::overloaded())));
        // One with fewer inputs, and more is read again; one with many changes little.
        assert_eq!(all.enter(max).add_inputs(2), Ok(()));
        assert_eq!((unread(6 * INPUT), unread(7 * INPUT)), (Ok(()), Err(ApiError::overloaded())));
        assert_eq!(all.enter(max).add_inputs(1000), Err(ApiError::overloaded()));
        assert_eq!(unread(5 * INPUT), Ok(()));
    }

    #[test]
    fn inputs_that_are_expected_take_their_place_until_they_are_counted() {
        let (all, max) = (Arc::new(Admission::default()), 20 * INPUT);
        for _ in 0..200 {
            assert_eq!(all.enter(max).add_inputs(8), Ok(()));
        }
        let [first, second, third] = [(); 3].map(|()| all.enter(max));
        assert_eq!((first.add_unread(INPUT), second.add_unread(INPUT)), (Ok(()), Ok(())));
        assert_eq!((all.in_flight(), third.add_unread(INPUT)), (18 * INPUT, Err(ApiError::overloaded())));
        // Fewer, more, and more than there is room for.
        assert_eq!((first.add_inputs(5), all.in_flight()), (Ok(()), 15 * INPUT));
        assert_eq!((second.add_inputs(10), all.in_flight()), (Ok(()), 17 * INPUT));
        drop(second);
        all.learn(5 * INPUT);
        assert_eq!((third.add_unread(INPUT), all.in_flight()), (Ok(()), 12 * INPUT));
        assert_eq!((third.add_inputs(14), all.in_flight()), (Err(ApiError::overloaded()), 12 * INPUT));
        drop((first, third));
        assert_eq!(all.in_flight(), 0);
    }

    #[test]
    fn requests_gather_once_after_a_refusal() {
        let all = Arc::new(Admission::default());
        let alone = all.enter(100);
        assert_eq!(alone.add_read(100), Ok(()));
        assert!(!all.refused.load(Ordering::Relaxed));
        assert_eq!(all.enter(100).add_read(1), Err(ApiError::overloaded()));
        let mut gathered = None;
        all.gather(|limit| gathered = Some(limit));
        assert_eq!(gathered, Some(GATHERING));
        all.gather(|_| panic!("nothing was refused since"));
    }

    #[test]
    fn an_expectation_that_admits_nothing_is_corrected_by_the_first_request_that_is_alone() {
        let (all, max) = (Arc::new(Admission::default()), 12 * INPUT);
        for _ in 0..200 {
            let _ = all.enter(max).add_inputs(1000);
        }
        let (first, second) = (all.enter(max), all.enter(max));
        assert_eq!((first.add_unread(1), second.add_unread(1)), (Ok(()), Err(ApiError::overloaded())));
        assert_eq!((first.add_inputs(1), second.add_unread(1)), (Ok(()), Ok(())));
    }
}
