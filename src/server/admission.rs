//! How much work may be in flight, and for how long.
//!
//! One rule for every shape of input: a request weighs its body's bytes, which are at least its tokens, and
//! [`INPUT`] for each of its inputs, which is about what an answer to it takes. Requests are admitted while all of them
//! together weigh at most `server.max_in_flight`; one that is alone always is.
//!
//! Bytes weigh once they have arrived: what a client announces takes no memory, and it may never send it. Under overload,
//! however, most requests are refused, and a server that reads their bodies first has little time left for the others. So a
//! request is refused unread where its announced bytes and [`Admission::expected`] for its inputs do not fit. What
//! was announced is kept free for it until it arrives, within a quarter of the limit for all requests; so announcements
//! alone never make a server refuse what it has room for. A thread that refuses takes requests in batches:
//! [`Admission::gather`].

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, Response, Version};
use axum::response::IntoResponse;
use bytes::Bytes;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;

use super::State;
use super::clients::{WINDOW, Wait, Waiting};
use super::error::ApiError;

/// What an input weighs beside its bytes: the base64 of 768 dimensions.
pub const INPUT: u64 = 4 << 10;

/// How long requests gather where some were refused. Little beside what those that were admitted wait for their turn.
const GATHERING: Duration = Duration::from_millis(8);

/// The longest answer that may lie ready on an HTTP/2 connection without weighing anything.
const UNWEIGHED: u64 = 4 << 10;

/// The weight of all requests in flight.
#[derive(Debug, Default)]
pub struct Admission {
    all: AtomicU64,
    /// What is announced and has not arrived.
    announced: AtomicU64,
    expected: AtomicU64,
    /// Whether a request was refused since the last [`Admission::gather`].
    refused: AtomicBool,
    waiting: Arc<Waiting>,
}

/// What one request weighs, until its answer is sent.
#[derive(Debug)]
pub struct Weight {
    in_flight: Arc<Admission>,
    own: AtomicU64,
    /// What is announced and has not arrived, inputs included.
    announced: AtomicU64,
    /// What of `own` stands for inputs that are not counted yet.
    expected: AtomicU64,
    max: u64,
    timeout: Duration,
    /// When the whole body had arrived.
    received: OnceLock<Instant>,
    pub wait: Wait,
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

    /// A request that weighs nothing yet; `timeout` is how long the server may take for it.
    pub fn enter(self: &Arc<Self>, max: u64, timeout: Duration) -> Arc<Weight> {
        Arc::new(Weight {
            in_flight: Arc::clone(self),
            own: AtomicU64::new(0),
            announced: AtomicU64::new(0),
            expected: AtomicU64::new(0),
            max,
            timeout,
            received: OnceLock::new(),
            wait: Wait::default(),
        })
    }
}

impl Weight {
    /// Keeps free what a body of `bytes` bytes will weigh, 0 where their number is not known, and what its inputs will.
    ///
    /// # Errors
    /// When that is more than may be in flight, and other requests are.
    pub fn announce(&self, bytes: u64) -> Result<(), ApiError> {
        let weight = bytes.saturating_add(self.in_flight.expected());
        self.check(weight)?;
        self.announced.store(weight, Ordering::Relaxed);
        self.in_flight.announced.fetch_add(weight, Ordering::Relaxed);
        Ok(())
    }

    /// Adds bytes that have arrived.
    ///
    /// # Errors
    /// When that is more than may be in flight, and other requests are.
    pub fn arrived(&self, bytes: u64) -> Result<(), ApiError> {
        self.add(bytes)?;
        self.keep_no_longer(bytes);
        Ok(())
    }

    /// The whole body has arrived: adds what its inputs are expected to weigh. From here on it is the server that takes the
    /// time.
    ///
    /// # Errors
    /// When that is more than may be in flight, and other requests are.
    pub fn received(&self) -> Result<(), ApiError> {
        self.wait.end();
        let _ = self.received.set(Instant::now());
        self.keep_no_longer(u64::MAX);
        let expected = self.in_flight.expected();
        self.add(expected)?;
        self.expected.store(expected, Ordering::Relaxed);
        Ok(())
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
        self.release(expected - weight);
        Ok(())
    }

    /// Takes `weight` away again.
    pub fn release(&self, weight: u64) {
        let own = self.own.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |own| own.checked_sub(weight));
        if own.is_ok() {
            self.in_flight.all.fetch_sub(weight, Ordering::Relaxed);
        }
    }

    fn add(&self, weight: u64) -> Result<(), ApiError> {
        if self.wait.is_given_up() {
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

    /// Whether `weight` more would fit, beside what is kept free for others.
    fn check(&self, weight: u64) -> Result<(), ApiError> {
        let missing = || {
            let all = self.in_flight.all.load(Ordering::Relaxed);
            let kept = self.in_flight.announced.load(Ordering::Relaxed).min(self.max / 4);
            let is_alone = all == self.own.load(Ordering::Relaxed);
            if is_alone { 0 } else { all.saturating_add(kept).saturating_add(weight).saturating_sub(self.max) }
        };
        let fits = match missing() {
            0 => true,
            bytes => self.in_flight.waiting.make_room(bytes, self.max) && missing() == 0,
        };
        if fits { Ok(()) } else { Err(self.refused()) }
    }

    fn refused(&self) -> ApiError {
        self.in_flight.refused.store(true, Ordering::Relaxed);
        ApiError::overloaded()
    }

    fn keep_no_longer(&self, weight: u64) {
        let kept = self.announced.load(Ordering::Relaxed);
        let weight = kept.min(weight);
        self.announced.store(kept - weight, Ordering::Relaxed);
        self.in_flight.announced.fetch_sub(weight, Ordering::Relaxed);
    }

    pub fn weight(&self) -> u64 {
        self.own.load(Ordering::Relaxed)
    }

    /// How long the client may stay below the least rate.
    pub fn window(&self) -> Duration {
        WINDOW.min(self.timeout)
    }

    /// The request may wait for its client for long from here on: others may have it give way.
    pub fn may_wait(self: &Arc<Self>) {
        self.in_flight.waiting.add(self);
    }

    /// Weighs nothing any longer, and ends.
    pub fn give_up(&self) {
        let own = self.own.swap(0, Ordering::Relaxed);
        self.in_flight.all.fetch_sub(own, Ordering::Relaxed);
        self.wait.give_up();
    }

    /// Resolves once the server has taken `timeout` since the whole body had arrived, or has not read it at all.
    async fn is_late(&self) {
        let mut end = Instant::now() + self.timeout;
        loop {
            tokio::time::sleep_until(end).await;
            let begin = match self.received.get() {
                Some(received) => *received,
                // The body is still arriving, which has limits of its own.
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

impl Drop for Weight {
    fn drop(&mut self) {
        self.keep_no_longer(u64::MAX);
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
    let max = server.request_timeout;
    let weight = state.admission.enter(server.max_in_flight.0, max.0);
    request.extensions_mut().insert(Arc::clone(&weight));
    let multiplexed = request.version() >= Version::HTTP_2;
    let response = tokio::select! {
        biased;
        response = next(request) => response,
        () = weight.is_late() => return ApiError::too_slow(max).into_response(),
    };
    // On HTTP/1 an answer that lies ready is as good as sent; on HTTP/2 its client may hold it back.
    match response.body().size_hint().exact() {
        Some(size) if !multiplexed || size <= UNWEIGHED => response,
        _ => response.map(|body| {
            weight.wait.may_end_this_task();
            weight.may_wait();
            Body::new(Answer { body, weight })
        }),
    }
}

/// An answer that is sent as fast as its client takes it.
struct Answer {
    body: Body,
    weight: Arc<Weight>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // Whoever asks for the next piece has sent the one before.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(all: &Arc<Admission>, max: u64) -> Arc<Weight> {
        all.enter(max, Duration::MAX)
    }

    fn refused() -> Result<(), ApiError> {
        Err(ApiError::overloaded())
    }

    #[test]
    fn weights_are_admitted_up_to_the_limit_and_given_back() {
        let all = Arc::new(Admission::default());
        let (first, second) = (enter(&all, 100), enter(&all, 100));
        assert_eq!((first.arrived(60), second.arrived(40)), (Ok(()), Ok(())));
        assert_eq!((second.arrived(1), second.announce(1)), (refused(), refused()));
        assert_eq!(all.in_flight(), 100);
        drop(first);
        assert_eq!((all.in_flight(), second.arrived(60)), (40, Ok(())));
        second.release(30);
        assert_eq!(all.in_flight(), 70);
        second.give_up();
        assert_eq!((all.in_flight(), second.arrived(1)), (0, refused()));
        drop(second);
        assert_eq!(all.in_flight(), 0);
    }

    #[test]
    fn a_request_that_is_alone_is_admitted_whatever_it_weighs() {
        let all = Arc::new(Admission::default());
        let alone = enter(&all, 100);
        assert_eq!((alone.announce(700), alone.arrived(700), alone.add_inputs(1000)), (Ok(()), Ok(()), Ok(())));
        assert_eq!(enter(&all, 100).announce(1), refused());
    }

    #[test]
    fn announced_bytes_are_kept_free_within_a_quarter_and_take_no_room_from_a_request_that_is_alone() {
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
        // What has arrived is no longer kept free beside.
        assert_eq!(announced[0].arrived(20), Ok(()));
        drop(announced);
        assert_eq!((all.in_flight(), enter(&all, 100).announce(90)), (10, Ok(())));
        assert_eq!(all.announced.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_would_not_fit_with_the_inputs_that_requests_have_is_refused_unread() {
        let (all, max) = (Arc::new(Admission::default()), 12 * INPUT);
        for _ in 0..200 {
            assert_eq!(enter(&all, max).add_inputs(8), Ok(()));
        }
        let held = enter(&all, max);
        assert_eq!(held.arrived(4 * INPUT), Ok(()));
        let unread = |bytes| enter(&all, max).announce(bytes);
        assert_eq!((unread(0), unread(INPUT)), (Ok(()), refused()));
        // One with fewer inputs, and more is read again; one with many changes little.
        assert_eq!(enter(&all, max).add_inputs(2), Ok(()));
        assert_eq!((unread(6 * INPUT), unread(7 * INPUT)), (Ok(()), refused()));
        assert_eq!(enter(&all, max).add_inputs(1000), refused());
        assert_eq!(unread(5 * INPUT), Ok(()));
    }

    #[test]
    fn inputs_that_are_expected_take_their_place_until_they_are_counted() {
        let (all, max) = (Arc::new(Admission::default()), 20 * INPUT);
        for _ in 0..200 {
            assert_eq!(enter(&all, max).add_inputs(8), Ok(()));
        }
        let [first, second, third] = [(); 3].map(|()| enter(&all, max));
        for weight in [&first, &second] {
            assert_eq!((weight.announce(INPUT), weight.arrived(INPUT), weight.received()), (Ok(()), Ok(()), Ok(())));
        }
        assert_eq!((all.in_flight(), third.announce(INPUT)), (18 * INPUT, refused()));
        // Fewer, more, and more than there is room for.
        assert_eq!((first.add_inputs(5), all.in_flight()), (Ok(()), 15 * INPUT));
        assert_eq!((second.add_inputs(10), all.in_flight()), (Ok(()), 17 * INPUT));
        drop(second);
        all.learn(5 * INPUT);
        assert_eq!((third.arrived(INPUT), third.received(), all.in_flight()), (Ok(()), Ok(()), 12 * INPUT));
        assert_eq!((third.add_inputs(14), all.in_flight()), (refused(), 12 * INPUT));
        drop((first, third));
        assert_eq!(all.in_flight(), 0);
    }

    #[test]
    fn requests_gather_once_after_a_refusal() {
        let all = Arc::new(Admission::default());
        let alone = enter(&all, 100);
        assert_eq!(alone.arrived(100), Ok(()));
        assert!(!all.refused.load(Ordering::Relaxed));
        assert_eq!(enter(&all, 100).arrived(1), Err(ApiError::overloaded()));
        let mut gathered = None;
        all.gather(|limit| gathered = Some(limit));
        assert_eq!(gathered, Some(GATHERING));
        all.gather(|_| panic!("nothing was refused since"));
    }

    #[test]
    fn an_expectation_that_admits_nothing_is_corrected_by_the_first_request_that_is_alone() {
        let (all, max) = (Arc::new(Admission::default()), 12 * INPUT);
        for _ in 0..200 {
            let _ = enter(&all, max).add_inputs(1000);
        }
        let (first, second) = (enter(&all, max), enter(&all, max));
        assert_eq!((first.announce(1), first.arrived(1), first.received()), (Ok(()), Ok(()), Ok(())));
        assert_eq!(second.announce(1), refused());
        assert_eq!((first.add_inputs(1), second.announce(1)), (Ok(()), Ok(())));
    }
}
