//! How long a request may wait for its client: for more of its body, or until more of its answer is taken.
//!
//! What a request holds counts against `server.max_in_flight` until its answer is sent, so a client that sends or reads
//! slowly, or not at all, takes room from all others. Two rules bound that. A client that stays below [`LEAST_RATE`] is
//! cut off. And a request that does not fit makes room for itself: requests that wait for their clients give way, those
//! that have waited longest first, and the largest first where waiting requests hold more than half of the room.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::future::{AbortHandle, Abortable, Aborted};

use super::admission::Weight;

/// Bytes that a client has to send or to take each second, on average over [`WINDOW`].
pub const LEAST_RATE: u64 = 4 << 10;
pub const WINDOW: Duration = Duration::from_secs(30);

/// A client that moves fewer bytes each second than this, after a pause of [`PAUSE`], gives way where there is no room.
const BRISK_RATE: u64 = 32 << 10;
const PAUSE: Duration = Duration::from_secs(1);

/// How often clients that have to give way are looked for, after none was found.
const SEARCH_INTERVAL: u64 = 100;

/// How often clients below [`LEAST_RATE`] are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

tokio::task_local! {
    /// Ends the task that sends the answer: a connection of HTTP/1, a stream of HTTP/2.
    static TASK: AbortHandle;
}

/// Makes `task` end where a client that it sends an answer to is cut off.
pub fn abortable<F: Future>(task: F) -> impl Future<Output = Result<F::Output, Aborted>> {
    let (handle, registration) = AbortHandle::new_pair();
    TASK.scope(handle, Abortable::new(task, registration))
}

/// Runs the streams of an HTTP/2 connection so that each can be ended alone.
#[derive(Debug, Clone, Copy)]
pub struct Streams;

impl<F: Future + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let stream = abortable(stream);
        tokio::spawn(async {
            let _ = stream.await;
        });
    }
}

/// Milliseconds since the first call; never 0.
fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// What one request waits for.
#[derive(Debug, Default)]
pub struct Wait {
    /// Since when, by [`now`]; 0: the request does not wait for its client.
    since: AtomicU64,
    /// The bytes that the client has been given to take.
    piece: AtomicU64,
    given_up: AtomicBool,
    /// Whether the request is in a [`Waiting`].
    listed: AtomicBool,
    task: OnceLock<AbortHandle>,
}

impl Wait {
    /// From now on the request waits for its client, which has `piece` bytes to take.
    pub fn begin(&self, piece: u64) {
        self.piece.store(piece, Ordering::Relaxed);
        self.since.store(now(), Ordering::Relaxed);
    }

    /// The client has moved.
    pub fn end(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// The task that is to be ended where the client is cut off: the one that this is called in.
    pub fn may_end_this_task(&self) {
        if let Ok(task) = TASK.try_with(Clone::clone) {
            let _ = self.task.set(task);
        }
    }

    /// Whether the request had to give way to another one.
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    /// Whether the request waits for its client.
    pub fn waits(&self) -> bool {
        self.since.load(Ordering::Relaxed) != 0
    }

    /// How long the request has waited, in milliseconds, beyond `pause` and the time that its piece takes at `rate`.
    fn overdue(&self, pause: Duration, rate: u64) -> Option<u64> {
        let since = self.since.load(Ordering::Relaxed);
        if since == 0 {
            return None;
        }
        let piece = self.piece.load(Ordering::Relaxed).saturating_mul(1000) / rate;
        now().checked_sub(since.saturating_add(milliseconds(pause)).saturating_add(piece))
    }
}

/// The requests that wait, or may wait, for their clients for long.
#[derive(Debug, Default)]
pub struct Waiting {
    list: Mutex<List>,
    /// When [`Waiting::make_room`] looks again, by [`now`].
    search_at: AtomicU64,
}

#[derive(Debug, Default)]
struct List {
    requests: Vec<Listed>,
    /// Whether a task sweeps the list.
    swept: bool,
}

#[derive(Debug)]
struct Listed {
    since: u64,
    request: Weak<Weight>,
}

impl Waiting {
    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request, which leaves when it is dropped. While there are any, a task of the runtime that this is called in
    /// looks every second for clients that are too slow.
    pub fn add(self: &Arc<Self>, request: &Arc<Weight>) {
        if request.wait.listed.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut list = self.list();
        list.requests.push(Listed { since: now(), request: Arc::downgrade(request) });
        if !list.swept {
            list.swept = true;
            let sweep = Sweep { waiting: Arc::clone(self), ended: false };
            // The list must not be locked where the runtime drops the task at once.
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

    /// Says whether any requests are left.
    fn cut_off_slow_clients(&self) -> bool {
        let mut list = self.list();
        list.requests.retain(|listed| {
            let Some(request) = listed.request.upgrade() else { return false };
            if request.wait.overdue(request.window(), LEAST_RATE).is_none() {
                return true;
            }
            tracing::info!("a client takes its answer too slowly: it is cut off");
            request.give_up();
            false
        });
        list.swept = !list.requests.is_empty();
        list.swept
    }

    /// Has requests give way that hold `bytes` or more, of the `max` bytes that all may hold. Says whether there were
    /// enough; otherwise none gives way.
    pub fn make_room(&self, bytes: u64, max: u64) -> bool {
        let now = now();
        if now < self.search_at.load(Ordering::Relaxed) {
            return false;
        }
        let mut found = Vec::new();
        for listed in &self.list().requests {
            if let Some(request) = listed.request.upgrade()
                && now.saturating_sub(listed.since) >= milliseconds(PAUSE)
                && request.wait.waits()
            {
                found.push((request.wait.overdue(PAUSE, BRISK_RATE), request.weight(), request));
            }
        }
        let all: u64 = found.iter().map(|(_, weight, _)| weight).sum();
        if all <= max / 2 {
            found.retain(|(overdue, ..)| overdue.is_some());
        }
        // Those that are overdue come first.
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
            tracing::info!(bytes = weight, "a request that waits for its client gives way to another one");
            request.give_up();
        }
        true
    }
}

/// A task that looks for slow clients.
struct Sweep {
    waiting: Arc<Waiting>,
    /// It found none left, and has said so in the list.
    ended: bool,
}

impl Drop for Sweep {
    /// Its runtime ends before it does: the next request starts another one.
    fn drop(&mut self) {
        if !self.ended {
            self.waiting.list().swept = false;
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
