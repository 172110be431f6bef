//! What is recorded about requests: the access log, metrics, stage times and traces.

pub mod access;
pub mod accounting;
pub mod histogram;
pub mod metrics;
pub mod peer;
pub mod stages;
pub mod throttle;
pub mod trace;
