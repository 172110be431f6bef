//! Admission: decides whether a request is accepted or refused with status 429, and limits how long it may take.
//!
//! Every request has a weight in bytes, its share of the in-flight budget (`server.max_in_flight`): the bytes of its
//! body that have arrived, plus [`BYTES_PER_INPUT`] bytes for each input, which is about the size of the response to
//! one input. A request is accepted while the weights of all requests in flight add up to at most the budget. A request
//! that is the only one in flight is always accepted.
//!
//! Announced bytes (`Content-Length`) do not count as weight, because they take no memory and may never arrive. Under
//! overload, however, most requests are refused, and a server that first reads their bodies has little time left for
//! the others. So a request is refused without reading its body if its announced bytes and the weight that its inputs
//! are expected to have ([`Admission::expected`]) do not fit. Once a body is being read, its announced bytes are kept
//! free until they arrive. At most a quarter of the budget is kept free in this way, so announcements alone never make
//! the server refuse a request that fits. While requests are being refused, a thread handles them in batches
//! ([`Admission::batch_arrivals`]).
//!
//! # Example
//!
//! The budget is 64 MiB (65,536 KiB), and requests in flight weigh 64,512 KiB. Recent requests had one input each, so
//! the inputs of a request are expected to weigh 4 KiB.
//!
//! 1. Request A announces 500 KiB: 64,512 + 500 + 4 = 65,016 KiB fit, so its body is read. 504 KiB are kept free for
//!    it.
//! 2. Request B announces 800 KiB: 64,512 + 504 + 800 + 4 = 65,820 KiB do not fit, so B gets status 429 without its
//!    body being read.
//! 3. The body of A has arrived and holds 100 inputs, which weigh 400 KiB in place of the expected 4 KiB:
//!    64,512 + 500 + 400 = 65,412 KiB fit, so A is answered. The expected weight rises by an eighth, to 4.5 KiB.
//! 4. The response to A is sent. Its 900 KiB are free again, so a retry of B now fits.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::clients::{BudgetedRequest, ClientWait, WINDOW, WaitingRequests};
use crate::server::error::ApiError;

/// The weight of one input in addition to the bytes of its text, in bytes: the size of 768 dimensions in base64.
pub const BYTES_PER_INPUT: u64 = 4 << 10;

/// How long a thread collects requests into a batch after requests were refused. This is short compared with the time
/// that accepted requests wait for a worker.
const BATCH_DELAY: Duration = Duration::from_millis(8);

/// The in-flight budget: the weights of all requests in flight.
#[derive(Debug, Default)]
pub struct Admission {
    all: AtomicU64,
    /// The bytes that are announced and have not arrived yet, over all requests.
    announced: AtomicU64,
    expected: AtomicU64,
    /// Whether a request was refused since the last [`Admission::batch_arrivals`].
    refused: AtomicBool,
    waiting: Arc<WaitingRequests>,
}

/// The weight of one request, held until its response is sent.
#[derive(Debug)]
pub struct RequestWeight {
    in_flight: Arc<Admission>,
    own: AtomicU64,
    /// The bytes that are announced and have not arrived yet, with the expected weight of the inputs.
    announced: AtomicU64,
    /// The part of `own` that stands for inputs which are not counted yet.
    expected: AtomicU64,
    max: u64,
    timeout: Duration,
    /// The time at which the whole body had arrived.
    received: OnceLock<Instant>,
    pub wait: ClientWait,
}

impl Admission {
    /// Returns the weight of all requests in flight, in bytes.
    pub fn in_flight(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    /// Blocks a thread that is about to wait for its sockets, if requests were refused since the last call, so that
    /// more requests arrive meanwhile and are handled together. `wait_while_busy` blocks for at most the given time,
    /// and only while the worker threads are busy. Waking up for each request alone costs about as much as refusing it.
    pub fn batch_arrivals(&self, wait_while_busy: impl FnOnce(Duration)) {
        if self.refused.swap(false, Ordering::Relaxed) {
            wait_while_busy(BATCH_DELAY);
        }
    }

    /// Returns the expected weight of a request's inputs, from recent requests. It falls at once to the weight of the
    /// lightest request, and rises by at most an eighth per request.
    ///
    /// If the expectation is too high, requests are refused until none is in flight. The next request is then accepted
    /// and corrects the expectation.
    fn expected(&self) -> u64 {
        self.expected.load(Ordering::Relaxed)
    }

    /// Returns whether a request whose body has `bytes` bytes is certain to be refused unread, with `max` as the budget.
    /// This costs much less than [`Admission::enter`] and [`RequestWeight::announce`], and does nothing to make room:
    /// the result is false if a search for slow clients that can be abandoned is due.
    pub fn is_full(&self, bytes: u64, max: u64) -> bool {
        let weight = bytes.saturating_add(self.expected());
        let all = self.in_flight();
        all > 0 && self.missing(all, weight, max) > 0 && self.waiting.was_just_searched()
    }

    /// Returns how many bytes of room are missing for `weight` more bytes beside the `all` bytes in flight and the room
    /// that is kept for announced bytes.
    fn missing(&self, all: u64, weight: u64, max: u64) -> u64 {
        let kept = self.announced.load(Ordering::Relaxed).min(max / 4);
        all.saturating_add(kept).saturating_add(weight).saturating_sub(max)
    }

    /// Records that a request is refused, and returns the error.
    pub fn refuse(&self) -> ApiError {
        self.refused.store(true, Ordering::Relaxed);
        ApiError::overloaded()
    }

    fn update_expected(&self, inputs: u64) {
        let expected = self.expected().max(BYTES_PER_INPUT);
        let risen = expected.saturating_add(expected / 8);
        self.expected.store(inputs.min(risen), Ordering::Relaxed);
    }

    /// Registers a request, whose weight is zero at first. `timeout` is how long the server may work on it.
    pub fn enter(self: &Arc<Self>, max: u64, timeout: Duration) -> Arc<RequestWeight> {
        Arc::new(RequestWeight {
            in_flight: Arc::clone(self),
            own: AtomicU64::new(0),
            announced: AtomicU64::new(0),
            expected: AtomicU64::new(0),
            max,
            timeout,
            received: OnceLock::new(),
            wait: ClientWait::default(),
        })
    }
}

impl RequestWeight {
    /// Keeps room for a body of `bytes` bytes (0 if the length is unknown) and for the expected weight of its inputs.
    ///
    /// # Errors
    /// If the room is not there and other requests are in flight.
    pub fn announce(&self, bytes: u64) -> Result<(), ApiError> {
        let weight = bytes.saturating_add(self.in_flight.expected());
        self.check(weight)?;
        self.announced.store(weight, Ordering::Relaxed);
        self.in_flight.announced.fetch_add(weight, Ordering::Relaxed);
        Ok(())
    }

    /// Adds `bytes` bytes that have arrived to the weight.
    ///
    /// # Errors
    /// If they do not fit and other requests are in flight.
    pub fn arrived(&self, bytes: u64) -> Result<(), ApiError> {
        self.add(bytes)?;
        self.release_announced(bytes);
        Ok(())
    }

    /// Records that the whole body has arrived, and adds the expected weight of its inputs. The time limit of the
    /// server starts now.
    ///
    /// # Errors
    /// If the inputs do not fit and other requests are in flight.
    pub fn received(&self) -> Result<(), ApiError> {
        self.body_arrived();
        let expected = self.in_flight.expected();
        self.add(expected)?;
        self.expected.store(expected, Ordering::Relaxed);
        Ok(())
    }

    /// Records that the whole body of a request without inputs has arrived. The time limit of the server starts now.
    pub fn body_arrived(&self) {
        self.wait.end();
        let _ = self.received.set(Instant::now());
        self.release_announced(u64::MAX);
    }

    /// Replaces the expected weight of the inputs by the weight of `count` inputs.
    ///
    /// # Errors
    /// If they do not fit and other requests are in flight.
    pub fn add_inputs(&self, count: usize) -> Result<(), ApiError> {
        let weight = BYTES_PER_INPUT.saturating_mul(count as u64);
        self.in_flight.update_expected(weight);
        let expected = self.expected.swap(0, Ordering::Relaxed);
        if let Some(more) = weight.checked_sub(expected) {
            return self.add(more);
        }
        self.release(expected - weight);
        Ok(())
    }

    /// Subtracts `weight` bytes from the weight.
    pub fn release(&self, weight: u64) {
        let own = self.own.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |own| own.checked_sub(weight));
        if own.is_ok() {
            self.in_flight.all.fetch_sub(weight, Ordering::Relaxed);
        }
    }

    fn add(&self, weight: u64) -> Result<(), ApiError> {
        if self.wait.is_abandoned() {
            return Err(self.refused());
        }
        let add = || {
            let own = self.own.load(Ordering::Relaxed);
            self.in_flight.all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| {
                let sum = all.saturating_add(weight);
                (sum <= self.max || all == own).then_some(sum)
            })
        };
        if let Err(all) = add() {
            let missing = all.saturating_add(weight).saturating_sub(self.max);
            if !self.in_flight.waiting.make_room(missing, self.max) || add().is_err() {
                return Err(self.refused());
            }
        }
        self.own.fetch_add(weight, Ordering::Relaxed);
        Ok(())
    }

    /// Checks whether `weight` more bytes would fit in addition to the room that is kept for other requests.
    fn check(&self, weight: u64) -> Result<(), ApiError> {
        let missing = || {
            let all = self.in_flight.in_flight();
            let is_alone = all == self.own.load(Ordering::Relaxed);
            if is_alone { 0 } else { self.in_flight.missing(all, weight, self.max) }
        };
        let fits = match missing() {
            0 => true,
            bytes => self.in_flight.waiting.make_room(bytes, self.max) && missing() == 0,
        };
        if fits { Ok(()) } else { Err(self.refused()) }
    }

    fn refused(&self) -> ApiError {
        self.in_flight.refuse()
    }

    fn release_announced(&self, weight: u64) {
        let kept = self.announced.load(Ordering::Relaxed);
        let weight = kept.min(weight);
        self.announced.store(kept - weight, Ordering::Relaxed);
        self.in_flight.announced.fetch_sub(weight, Ordering::Relaxed);
    }

    /// Registers the request as one that may wait long for its client. It may be abandoned to make room for others.
    pub fn register_waiting(self: &Arc<Self>) {
        let request: Weak<Self> = Arc::downgrade(self);
        self.in_flight.waiting.add(request, &self.wait);
    }

    /// Resolves when the server has worked on the request for longer than `timeout` after the body had arrived, or when
    /// no handler reads the body at all.
    pub async fn is_late(&self) {
        let mut end = Instant::now() + self.timeout;
        loop {
            tokio::time::sleep_until(end).await;
            let begin = match self.received.get() {
                Some(received) => *received,
                // The body is still arriving, which has its own limits.
                None if self.wait.waits() => Instant::now(),
                None => return,
            };
            end = begin + self.timeout;
            if end <= Instant::now() {
                return;
            }
        }
    }
}

impl BudgetedRequest for RequestWeight {
    fn wait(&self) -> &ClientWait {
        &self.wait
    }

    fn weight(&self) -> u64 {
        self.own.load(Ordering::Relaxed)
    }

    fn window(&self) -> Duration {
        WINDOW.min(self.timeout)
    }

    fn abandon(&self) {
        let own = self.own.swap(0, Ordering::Relaxed);
        self.in_flight.all.fetch_sub(own, Ordering::Relaxed);
        self.wait.abandon();
    }
}

impl Drop for RequestWeight {
    fn drop(&mut self) {
        self.release_announced(u64::MAX);
        self.in_flight.all.fetch_sub(self.own.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(all: &Arc<Admission>, max: u64) -> Arc<RequestWeight> {
        all.enter(max, Duration::MAX)
    }

    fn refused() -> Result<(), ApiError> {
        Err(ApiError::overloaded())
    }

    #[test]
    fn weights_are_accepted_up_to_the_budget_and_freed() {
        let all = Arc::new(Admission::default());
        let (first, second) = (enter(&all, 100), enter(&all, 100));
        assert_eq!((first.arrived(60), second.arrived(40)), (Ok(()), Ok(())));
        assert_eq!((second.arrived(1), second.announce(1)), (refused(), refused()));
        assert_eq!(all.in_flight(), 100);
        drop(first);
        assert_eq!((all.in_flight(), second.arrived(60)), (40, Ok(())));
        second.release(30);
        assert_eq!(all.in_flight(), 70);
        second.abandon();
        assert_eq!((all.in_flight(), second.arrived(1)), (0, refused()));
        drop(second);
        assert_eq!(all.in_flight(), 0);
    }

    /// The example at the top of this file, in KiB.
    #[test]
    fn the_example_of_the_module_holds() {
        let all = Arc::new(Admission::default());
        let [earlier, a, b] = [(); 3].map(|()| enter(&all, 65_536 << 10));
        all.update_expected(BYTES_PER_INPUT);
        assert_eq!(earlier.arrived(64_512 << 10), Ok(()));
        assert_eq!((a.announce(500 << 10), b.announce(800 << 10)), (Ok(()), refused()));
        assert_eq!((a.arrived(500 << 10), a.received(), a.add_inputs(100)), (Ok(()), Ok(()), Ok(())));
        assert_eq!((all.in_flight() >> 10, a.weight() >> 10, all.expected()), (65_412, 900, 4608));
        drop(a);
        assert_eq!(b.announce(800 << 10), Ok(()));
    }

    #[test]
    fn a_single_request_is_accepted_whatever_its_weight() {
        let all = Arc::new(Admission::default());
        let alone = enter(&all, 100);
        assert_eq!((alone.announce(700), alone.arrived(700), alone.add_inputs(1000)), (Ok(()), Ok(()), Ok(())));
        assert_eq!(enter(&all, 100).announce(1), refused());
    }

    #[test]
    fn announced_bytes_are_kept_free_up_to_a_quarter_of_the_budget() {
        let all = Arc::new(Admission::default());
        let announced: Vec<_> = (0..10).map(|_| enter(&all, 100)).collect();
        for weight in &announced {
            assert_eq!(weight.announce(90), Ok(()));
        }
        assert_eq!(all.in_flight(), 0);
        let small = enter(&all, 100);
        assert_eq!(
            (small.arrived(10), enter(&all, 100).announce(65), enter(&all, 100).announce(66)),
            (Ok(()), Ok(()), refused())
        );
        // Bytes that have arrived are no longer kept free in addition.
        assert_eq!(announced[0].arrived(20), Ok(()));
        drop(announced);
        assert_eq!((all.in_flight(), enter(&all, 100).announce(90)), (10, Ok(())));
        assert_eq!(all.announced.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_request_whose_expected_inputs_do_not_fit_is_refused_unread() {
        let (all, max) = (Arc::new(Admission::default()), 12 * BYTES_PER_INPUT);
        for _ in 0..200 {
            assert_eq!(enter(&all, max).add_inputs(8), Ok(()));
        }
        let held = enter(&all, max);
        assert_eq!(held.arrived(4 * BYTES_PER_INPUT), Ok(()));
        let unread = |bytes| enter(&all, max).announce(bytes);
        assert_eq!((unread(0), unread(BYTES_PER_INPUT)), (Ok(()), refused()));
        // A request with few inputs lowers the expectation at once, and one with many raises it only a little.
        assert_eq!(enter(&all, max).add_inputs(2), Ok(()));
        assert_eq!((unread(6 * BYTES_PER_INPUT), unread(7 * BYTES_PER_INPUT)), (Ok(()), refused()));
        assert_eq!(enter(&all, max).add_inputs(1000), refused());
        assert_eq!(unread(5 * BYTES_PER_INPUT), Ok(()));
    }

    #[test]
    fn the_expected_weight_counts_until_the_inputs_are_counted() {
        let (all, max) = (Arc::new(Admission::default()), 20 * BYTES_PER_INPUT);
        for _ in 0..200 {
            assert_eq!(enter(&all, max).add_inputs(8), Ok(()));
        }
        let [first, second, third] = [(); 3].map(|()| enter(&all, max));
        for weight in [&first, &second] {
            assert_eq!(
                (weight.announce(BYTES_PER_INPUT), weight.arrived(BYTES_PER_INPUT), weight.received()),
                (Ok(()), Ok(()), Ok(()))
            );
        }
        assert_eq!((all.in_flight(), third.announce(BYTES_PER_INPUT)), (18 * BYTES_PER_INPUT, refused()));
        // Fewer inputs than expected, more, and more than fit.
        assert_eq!((first.add_inputs(5), all.in_flight()), (Ok(()), 15 * BYTES_PER_INPUT));
        assert_eq!((second.add_inputs(10), all.in_flight()), (Ok(()), 17 * BYTES_PER_INPUT));
        drop(second);
        all.update_expected(5 * BYTES_PER_INPUT);
        assert_eq!(
            (third.arrived(BYTES_PER_INPUT), third.received(), all.in_flight()),
            (Ok(()), Ok(()), 12 * BYTES_PER_INPUT)
        );
        assert_eq!((third.add_inputs(14), all.in_flight()), (refused(), 12 * BYTES_PER_INPUT));
        drop((first, third));
        assert_eq!(all.in_flight(), 0);
    }

    #[test]
    fn a_request_is_certain_to_be_refused_only_after_a_search_for_room() {
        let (all, max) = (Arc::new(Admission::default()), 100);
        assert!(!all.is_full(1000, max), "a request that is alone is accepted");
        let first = enter(&all, max);
        assert_eq!(first.arrived(90), Ok(()));
        assert!(!all.is_full(20, max), "slow clients were not searched");
        let is_full = |bytes| {
            // The result of a search is used only for a short time.
            (0..100).any(|_| enter(&all, max).announce(20) == refused() && all.is_full(bytes, max))
        };
        assert!(is_full(20) && !is_full(10));
        drop(first);
        assert!(!all.is_full(20, max));
    }

    #[test]
    fn a_thread_waits_for_more_requests_once_after_a_refusal() {
        let all = Arc::new(Admission::default());
        let alone = enter(&all, 100);
        assert_eq!(alone.arrived(100), Ok(()));
        assert!(!all.refused.load(Ordering::Relaxed));
        assert_eq!(enter(&all, 100).arrived(1), Err(ApiError::overloaded()));
        let mut gathered = None;
        all.batch_arrivals(|limit| gathered = Some(limit));
        assert_eq!(gathered, Some(BATCH_DELAY));
        all.batch_arrivals(|_| panic!("nothing was refused since"));
    }

    #[test]
    fn a_too_high_expectation_is_corrected_by_a_single_request() {
        let (all, max) = (Arc::new(Admission::default()), 12 * BYTES_PER_INPUT);
        for _ in 0..200 {
            let _ = enter(&all, max).add_inputs(1000);
        }
        let (first, second) = (enter(&all, max), enter(&all, max));
        assert_eq!((first.announce(1), first.arrived(1), first.received()), (Ok(()), Ok(()), Ok(())));
        assert_eq!(second.announce(1), refused());
        assert_eq!((first.add_inputs(1), second.announce(1)), (Ok(()), Ok(())));
    }
}
