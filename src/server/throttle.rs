//! Log lines that a client can cause, kept from filling the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets one of many like events through in a while.
#[derive(Debug)]
pub struct Throttle {
    every: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    told: Option<Instant>,
    events: u64,
}

impl Throttle {
    pub fn new(every: Duration) -> Self {
        Self { every, state: Mutex::default() }
    }

    /// One more event. `Some` when it is time to tell: how many events there were since the last time.
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
    fn the_first_event_is_told_at_once_and_others_as_a_number_later() {
        let throttle = Throttle::new(Duration::from_secs(3600));
        assert_eq!([(); 3].map(|()| throttle.event()), [Some(1), None, None]);
        throttle.state.lock().unwrap().told = Instant::now().checked_sub(Duration::from_secs(3601));
        assert_eq!([(); 2].map(|()| throttle.event()), [Some(3), None]);
    }
}
