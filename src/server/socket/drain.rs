//! Draining: every connection is asked to finish, an idle one is closed after a moment, and what is left at the
//! deadline is cut off.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::activity::Activity;

/// How long a connection without a request in flight stays open after it was asked to finish, for a request that the
/// client sent before it could know (RFC 9113, section 6.8).
const LINGER: Duration = Duration::from_secs(1);

/// How long connections may take to close after they were cut off.
const CUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    Draining,
    Cut,
}

/// Controls the draining of one server.
pub struct Drain {
    phase: watch::Sender<Phase>,
    cut: Arc<AtomicUsize>,
}

/// One connection's view of [`Drain`]. The connection counts as open until this is dropped.
pub struct Watcher {
    phase: watch::Receiver<Phase>,
    cut: Arc<AtomicUsize>,
}

impl Drain {
    pub fn new() -> Self {
        Self { phase: watch::Sender::new(Phase::Serving), cut: Arc::default() }
    }

    pub fn watcher(&self) -> Watcher {
        Watcher { phase: self.phase.subscribe(), cut: Arc::clone(&self.cut) }
    }

    /// Returns the number of open connections.
    pub fn open(&self) -> usize {
        self.phase.receiver_count()
    }

    /// Asks all connections to finish, and waits until they have.
    pub async fn finish(&self) {
        self.phase.send_replace(Phase::Draining);
        self.phase.closed().await;
    }

    /// Closes all connections at once. Returns the number of requests that this cut off.
    pub async fn cut(&self) -> usize {
        self.phase.send_replace(Phase::Cut);
        let closed = tokio::time::timeout(CUT, self.phase.closed()).await;
        // If a thread is too busy to close its connection, the connection counts as one request.
        let stuck = if closed.is_err() { self.open() } else { 0 };
        self.cut.load(Ordering::Relaxed) + stuck
    }
}

impl Watcher {
    /// Resolves when the connection is asked to finish.
    pub async fn draining(&mut self) {
        // An error means that the server no longer exists.
        let _ = self.phase.wait_for(|phase| *phase >= Phase::Draining).await;
    }

    /// Resolves when a connection that must finish has had no request in flight for a moment, or when it is cut off.
    pub async fn given_up(&mut self, activity: &Activity) {
        let cut = async {
            let _ = self.phase.wait_for(|phase| *phase == Phase::Cut).await;
        };
        tokio::select! {
            () = activity.idle_for(LINGER) => {}
            () = cut => {
                self.cut.fetch_add(activity.in_flight(), Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn draining_closes_idle_connections_after_a_moment_and_cuts_off_busy_ones() {
        let drain = Drain::new();
        let (idle, busy) = (Arc::new(Activity::default()), Arc::new(Activity::default()));
        let _request = busy.begin();
        let mut ends = tokio::task::JoinSet::new();
        for activity in [idle, busy] {
            let mut watcher = drain.watcher();
            ends.spawn(async move {
                watcher.draining().await;
                watcher.given_up(&activity).await;
                activity.in_flight()
            });
        }
        assert_eq!(drain.open(), 2);
        let ended = tokio::select! {
            () = drain.finish() => panic!("a request is in flight"),
            ended = ends.join_next() => ended.unwrap().unwrap(),
        };
        assert_eq!((ended, drain.open()), (0, 1));
        assert_eq!((drain.cut().await, drain.open()), (1, 0));
    }

    #[tokio::test]
    async fn connections_can_be_cut_off_without_draining_first() {
        let drain = Drain::new();
        let activity = Arc::new(Activity::default());
        let _requests = [activity.begin(), activity.begin()];
        let mut watcher = drain.watcher();
        let connection = tokio::spawn(async move {
            watcher.draining().await;
            watcher.given_up(&activity).await;
        });
        assert_eq!(drain.cut().await, 2);
        connection.await.unwrap();
    }
}
