//! The time that a request spends in each stage: added to the metrics when the request ends, and sent in
//! `server-timing`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::http::HeaderValue;

use super::metrics::Metrics;
pub use super::metrics::Stage;

/// The header with the times so far, as browsers and proxies read it (<https://www.w3.org/TR/server-timing/>).
pub const SERVER_TIMING: &str = "server-timing";

/// The times of one request, summed over its slices and the threads that ran them.
#[derive(Debug)]
pub struct Stages {
    nanoseconds: [AtomicU64; Stage::ALL.len()],
    metrics: Arc<Metrics>,
}

impl Stages {
    pub fn new(metrics: &Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { nanoseconds: Default::default(), metrics: Arc::clone(metrics) })
    }

    pub fn add(&self, stage: Stage, duration: Duration) {
        if let Some(spent) = self.nanoseconds.get(stage as usize) {
            spent.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// Runs `work` and adds the time that it took.
    pub fn time<T>(&self, stage: Stage, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = work();
        self.add(stage, started.elapsed());
        result
    }

    /// Returns a function that each slice of a new job must call; the first slice adds the time that the job waited.
    pub fn queued(self: &Arc<Self>) -> impl Fn(usize) + Send + Sync + use<> {
        let (stages, since) = (Arc::clone(self), Instant::now());
        move |slice| {
            if slice == 0 {
                stages.add(Stage::Queue, since.elapsed());
            }
        }
    }

    fn spent(&self, stage: Stage) -> Duration {
        self.nanoseconds.get(stage as usize).map_or(Duration::ZERO, |n| Duration::from_nanos(n.load(Ordering::Relaxed)))
    }

    /// Returns the times so far in milliseconds. For a streamed response that is the time until its first piece.
    pub fn header(&self) -> HeaderValue {
        let mut text = String::with_capacity(80);
        let mut number = itoa::Buffer::new();
        for stage in Stage::ALL {
            let microseconds = self.spent(stage).as_micros();
            let (whole, thousandths) = ((microseconds / 1000) as u64, (microseconds % 1000) as u64);
            let separator = if text.is_empty() { "" } else { ", " };
            text.extend([separator, stage.name(), ";dur=", number.format(whole), "."]);
            // The leading zeros come from formatting a fourth digit and dropping it.
            text.push_str(number.format(1000 + thousandths).get(1..).unwrap_or_default());
        }
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}

impl Drop for Stages {
    fn drop(&mut self) {
        for stage in Stage::ALL {
            let spent = self.spent(stage);
            // A request that failed early has no time in the stages that it did not reach.
            if stage == Stage::Queue || !spent.is_zero() {
                self.metrics.stage(stage, spent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stage_times_are_in_milliseconds() {
        let stages = Stages::new(&Arc::default());
        stages.add(Stage::Queue, Duration::from_nanos(999));
        stages.add(Stage::Tokenize, Duration::from_micros(7));
        stages.add(Stage::Tokenize, Duration::from_micros(5));
        stages.add(Stage::Pool, Duration::from_micros(12_345_678));
        let expected = "queue;dur=0.000, tokenize;dur=0.012, pool;dur=12345.678, serialize;dur=0.000";
        assert_eq!(stages.header(), expected);
    }
}
