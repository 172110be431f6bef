//! A rate limit for log lines that clients can cause, so that they cannot fill the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Reports at most one event of a kind per interval, with the number of events since the last report.
#[derive(Debug)]
pub struct Throttle {
    every: Duration,
    state: Mutex<ThrottleState>,
}

#[derive(Debug, Default)]
struct ThrottleState {
    told: Option<Instant>,
    events: u64,
}

impl Throttle {
    pub fn new(every: Duration) -> Self {
        Self { every, state: Mutex::default() }
    }

    /// Counts one event. If a report is due, returns the number of events since the last report.
    pub fn event(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.events += 1;
        if state.told.is_some_and(|told| told.elapsed() < self.every) {
            return None;
        }
        state.told = Some(Instant::now());
        Some(std::mem::take(&mut state.events))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_is_reported_at_once_and_later_ones_as_a_count() {
        let throttle = Throttle::new(Duration::from_secs(3600));
        assert_eq!([(); 3].map(|()| throttle.event()), [Some(1), None, None]);
        throttle.state.lock().unwrap().told = Instant::now().checked_sub(Duration::from_secs(3601));
        assert_eq!([(); 2].map(|()| throttle.event()), [Some(3), None]);
    }
}
