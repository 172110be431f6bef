//! How much work may be in flight, and for how long.
//!
//! One rule for every shape of input: a request weighs its body's bytes, which are at least its tokens, and
//! [`INPUT`] for each of its inputs, which is about what an answer to it takes. Requests are admitted while all of them
//! together weigh at most `server.max_in_flight`; one that is alone always is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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

/// The weight of all requests in flight.
#[derive(Debug, Default)]
pub struct Admission(AtomicU64);

/// What one request weighs, until its answer is sent.
#[derive(Debug)]
pub struct Weight {
    all: Arc<Admission>,
    own: AtomicU64,
    max: u64,
    received: AtomicBool,
}

impl Admission {
    /// In bytes.
    pub fn in_flight(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn enter(self: &Arc<Self>, max: u64) -> Arc<Weight> {
        Arc::new(Weight { all: Arc::clone(self), own: AtomicU64::new(0), max, received: AtomicBool::new(false) })
    }
}

impl Weight {
    /// Adds to the request's weight.
    ///
    /// # Errors
    /// When that is more than may be in flight, and other requests are.
    pub fn add(&self, weight: u64) -> Result<(), ApiError> {
        let own = self.own.load(Ordering::Relaxed);
        let admitted = self.all.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| {
            let sum = all.saturating_add(weight);
            (sum <= self.max || all == own).then_some(sum)
        });
        admitted.map_err(|_| ApiError::overloaded())?;
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
        self.all.0.fetch_sub(self.own.load(Ordering::Relaxed), Ordering::Relaxed);
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
        assert_eq!((first.add(60), second.add(40)), (Ok(()), Ok(())));
        assert_eq!(second.add(1), Err(ApiError::overloaded()));
        assert_eq!(all.in_flight(), 100);
        drop(first);
        assert_eq!((all.in_flight(), second.add(60)), (40, Ok(())));
        drop(second);
        assert_eq!(all.in_flight(), 0);
    }

    #[test]
    fn a_request_that_is_alone_is_admitted_whatever_it_weighs() {
        let all = Arc::new(Admission::default());
        let alone = all.enter(100);
        assert_eq!((alone.add(70), alone.add(1000)), (Ok(()), Ok(())));
        assert_eq!(all.enter(100).add(1), Err(ApiError::overloaded()));
    }
}
