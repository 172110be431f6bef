//! Slow clients: how long a request may wait for its client to send its body or to receive its response.
//!
//! A request keeps its weight in the in-flight budget until its response is sent, so a client that sends or reads
//! slowly, or not at all, takes room from all others. Two rules limit this:
//!
//! - A client that stays below [`MINIMUM_RATE`] for [`WINDOW`] is disconnected.
//! - If a new request does not fit, requests that wait for their clients are abandoned to make room: those that have
//!   waited longest first, or the heaviest first if waiting requests hold more than half of the budget.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::future::{AbortHandle, Abortable, Aborted};

/// The minimum transfer rate of a client in bytes per second, averaged over [`WINDOW`].
pub const MINIMUM_RATE: u64 = 4 << 10;
pub const WINDOW: Duration = Duration::from_secs(30);

/// A request whose client transfers fewer bytes per second than this, after a pause of [`GRACE_PERIOD`], may be
/// abandoned if there is no room for another request.
const NORMAL_RATE: u64 = 32 << 10;
const GRACE_PERIOD: Duration = Duration::from_secs(1);

/// The pause between two searches for requests to abandon after a search without success, in milliseconds.
const SEARCH_INTERVAL: u64 = 100;

/// The interval between two searches for clients below [`MINIMUM_RATE`].
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

tokio::task_local! {
        /// Ends the task that sends the response: a whole connection on HTTP/1, one stream on HTTP/2.
    static TASK: AbortHandle;
}

/// Wraps `task` so that it ends if the client that it sends a response to is disconnected.
pub fn abortable<F: Future>(task: F) -> impl Future<Output = Result<F::Output, Aborted>> {
    let (handle, registration) = AbortHandle::new_pair();
    TASK.scope(handle, Abortable::new(task, registration))
}

/// Runs each stream of an HTTP/2 connection as its own task, so that each can be ended alone.
#[derive(Debug, Clone, Copy)]
pub struct StreamExecutor;

impl<F: Future + Send + 'static> hyper::rt::Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        let stream = abortable(stream);
        tokio::spawn(async {
            let _ = stream.await;
        });
    }
}

/// Returns the milliseconds since the first call, plus one: the result is never 0.
fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// Whether, and since when, one request waits for its client.
#[derive(Debug, Default)]
pub struct ClientWait {
    /// The time (of [`now`]) since which the request waits, or 0 if it does not wait for its client.
    since: AtomicU64,
    /// The size of the piece that the client has to receive, in bytes.
    piece: AtomicU64,
    abandoned: AtomicBool,
    /// Whether the request is listed in a [`WaitingRequests`].
    listed: AtomicBool,
    task: OnceLock<AbortHandle>,
}

impl ClientWait {
    /// Records that the request waits from now on, and that the client has `piece` bytes to receive.
    pub fn begin(&self, piece: u64) {
        self.piece.store(piece, Ordering::Relaxed);
        self.since.store(now(), Ordering::Relaxed);
    }

    /// Records that the client has sent or received something.
    pub fn end(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// Makes the current task the one that is ended if the client is disconnected.
    pub fn set_task_to_abort(&self) {
        if let Ok(task) = TASK.try_with(Clone::clone) {
            let _ = self.task.set(task);
        }
    }

    /// Returns whether the request was abandoned to make room for another one.
    pub fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    /// Returns whether the request waits for its client.
    pub fn waits(&self) -> bool {
        self.since.load(Ordering::Relaxed) != 0
    }

    /// Returns by how many milliseconds the request has waited longer than `pause` plus the time that its piece takes
    /// at `rate` bytes per second, or `None` if it has not.
    fn overdue(&self, pause: Duration, rate: u64) -> Option<u64> {
        let since = self.since.load(Ordering::Relaxed);
        if since == 0 {
            return None;
        }
        let piece = self.piece.load(Ordering::Relaxed).saturating_mul(1000) / rate;
        now().checked_sub(since.saturating_add(milliseconds(pause)).saturating_add(piece))
    }
}

/// A request that holds a part of the in-flight budget and may have to wait for its client.
pub trait BudgetedRequest: std::fmt::Debug + Send + Sync {
    /// Returns whether, and since when, the request waits for its client.
    fn wait(&self) -> &ClientWait;

    /// Returns the bytes that the request holds of the budget.
    fn weight(&self) -> u64;

    /// Returns the time over which the client's transfer rate is averaged.
    fn window(&self) -> Duration;

    /// Frees the weight of the request, and ends it.
    fn abandon(&self);
}

/// The requests that wait, or may wait, long for their clients.
#[derive(Debug, Default)]
pub struct WaitingRequests {
    list: Mutex<WaitingList>,
    /// The time (of [`now`]) from which [`WaitingRequests::make_room`] searches again.
    search_at: AtomicU64,
}

#[derive(Debug, Default)]
struct WaitingList {
    requests: Vec<WaitingEntry>,
    /// Whether a task is checking the list for slow clients.
    swept: bool,
}

#[derive(Debug)]
struct WaitingEntry {
    since: u64,
    request: Weak<dyn BudgetedRequest>,
}

impl WaitingRequests {
    fn list(&self) -> MutexGuard<'_, WaitingList> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request, which leaves the list when it is dropped. As long as the list is not empty, a task on the
    /// current runtime checks it every second for clients that are too slow.
    pub fn add(self: &Arc<Self>, request: Weak<dyn BudgetedRequest>, wait: &ClientWait) {
        if wait.listed.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut list = self.list();
        list.requests.push(WaitingEntry { since: now(), request });
        if !list.swept {
            list.swept = true;
            let sweep = SlowClientSweep { waiting: Arc::clone(self), ended: false };
            // The lock is released first, because the runtime may drop the task at once, which locks the list again.
            drop(list);
            tokio::spawn(async move {
                let mut sweep = sweep;
                while sweep.waiting.cut_off_slow_clients() {
                    tokio::time::sleep(SWEEP_INTERVAL).await;
                }
                sweep.ended = true;
            });
        }
    }

    /// Disconnects clients below [`MINIMUM_RATE`]. Returns whether any requests are left in the list.
    fn cut_off_slow_clients(&self) -> bool {
        let mut list = self.list();
        list.requests.retain(|listed| {
            let Some(request) = listed.request.upgrade() else { return false };
            if request.wait().overdue(request.window(), MINIMUM_RATE).is_none() {
                return true;
            }
            tracing::info!("a client receives its response too slowly: the connection is closed");
            request.abandon();
            false
        });
        list.swept = !list.requests.is_empty();
        list.swept
    }

    /// Returns whether [`WaitingRequests::make_room`] has just searched in vain, and would not search again now.
    pub fn was_just_searched(&self) -> bool {
        now() < self.search_at.load(Ordering::Relaxed)
    }

    /// Abandons waiting requests that together hold at least `bytes` of the `max` bytes of the budget. Returns whether
    /// there were enough; if not, none is abandoned.
    pub fn make_room(&self, bytes: u64, max: u64) -> bool {
        if self.was_just_searched() {
            return false;
        }
        let now = now();
        let mut found = Vec::new();
        for listed in &self.list().requests {
            if let Some(request) = listed.request.upgrade()
                && now.saturating_sub(listed.since) >= milliseconds(GRACE_PERIOD)
                && request.wait().waits()
            {
                found.push((request.wait().overdue(GRACE_PERIOD, NORMAL_RATE), request.weight(), request));
            }
        }
        let all: u64 = found.iter().map(|(_, weight, _)| weight).sum();
        if all <= max / 2 {
            found.retain(|(overdue, ..)| overdue.is_some());
        }
        // Requests that have waited too long come first.
        found.sort_by_key(|(overdue, weight, _)| std::cmp::Reverse((*overdue, *weight)));
        let mut given = 0;
        let least = found.iter().position(|(_, weight, _)| {
            given += weight;
            given >= bytes
        });
        let Some(last) = least else {
            self.search_at.store(now + SEARCH_INTERVAL, Ordering::Relaxed);
            return false;
        };
        for (_, weight, request) in found.into_iter().take(last + 1) {
            tracing::info!(
                bytes = weight,
                "a request that waits for its slow client is abandoned to make room for another one"
            );
            request.abandon();
        }
        true
    }
}

/// The task that checks the list for slow clients.
struct SlowClientSweep {
    waiting: Arc<WaitingRequests>,
    /// Whether the task found the list empty, and has already recorded that it ends.
    ended: bool,
}

impl Drop for SlowClientSweep {
    /// Records that the task has ended, if its runtime ended first: the next request then starts another task.
    fn drop(&mut self) {
        if !self.ended {
            self.waiting.list().swept = false;
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
