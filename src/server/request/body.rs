//! Receives request bodies: limits their size and how slowly they may arrive, and counts their weight while they
//! arrive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body as _;

use crate::config::units::{ByteCount, Seconds};
use crate::server::error::ApiError;
use crate::server::state::admission::RequestWeight;
use crate::server::state::clients::{BudgetedRequest, MINIMUM_RATE, WINDOW};

/// The most memory, in bytes, that is allocated for a body before any of it has arrived.
const FIRST_CAPACITY: usize = 64 << 10;

/// The interval at which the arrival of a body is checked.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Receives all of `body`.
///
/// # Errors
/// If the body is larger than `max`, arrives too slowly, or does not fit into the in-flight budget.
pub async fn read(mut body: Body, max: ByteCount, weight: Option<&Arc<RequestWeight>>) -> Result<Bytes, ApiError> {
    let announced = body.size_hint().exact();
    if announced.is_some_and(|size| size > max.0) {
        return Err(ApiError::body_too_large(announced, max));
    }
    if let Some(weight) = weight {
        weight.announce(announced.unwrap_or(0))?;
        weight.wait.begin(0);
    }
    let capacity = announced.and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
    let mut bytes = BytesMut::with_capacity(capacity.min(FIRST_CAPACITY));
    let mut window = ProgressWindow::new(weight.map_or(WINDOW, |weight| weight.window()));
    loop {
        let rest = receive(&mut body, &mut bytes, max, weight.map(Arc::as_ref));
        if let Ok(received) = tokio::time::timeout(CHECK_INTERVAL.min(window.length), rest).await {
            received?;
            break;
        }
        window.check(bytes.len(), weight)?;
    }
    if let Some(weight) = weight {
        weight.received()?;
    }
    Ok(bytes.freeze())
}

async fn receive(
    body: &mut Body,
    bytes: &mut BytesMut,
    max: ByteCount,
    weight: Option<&RequestWeight>,
) -> Result<(), ApiError> {
    while !body.is_end_stream()
        && let Some(frame) = body.frame().await
    {
        let Ok(data) = frame.map_err(|_| ApiError::body_cut_short())?.into_data() else { continue };
        if (bytes.len() + data.len()) as u64 > max.0 {
            return Err(ApiError::body_too_large(None, max));
        }
        if let Some(weight) = weight {
            weight.arrived(data.len() as u64)?;
        }
        bytes.extend_from_slice(&data);
    }
    Ok(())
}

/// A period of time in which a client must send at least a certain number of bytes.
pub(super) struct ProgressWindow {
    length: Duration,
    begin: Instant,
    /// The number of bytes that had arrived when the period began, and at the last check.
    before: usize,
    seen: usize,
}

impl ProgressWindow {
    pub fn new(length: Duration) -> Self {
        Self { length, begin: Instant::now(), before: 0, seen: 0 }
    }

    /// Returns the length of the period.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// Checks the client's progress: `arrived` bytes have arrived, and the body is not complete.
    ///
    /// # Errors
    /// If the client is too slow, or its request was abandoned to make room for others.
    pub fn check(&mut self, arrived: usize, weight: Option<&Arc<RequestWeight>>) -> Result<(), ApiError> {
        let least = (MINIMUM_RATE as f64 * self.length.as_secs_f64()) as usize;
        let is_over = self.begin.elapsed() >= self.length;
        if (is_over && arrived - self.before < least) || weight.is_some_and(|weight| weight.wait.is_abandoned()) {
            return Err(ApiError::body_too_slow(ByteCount(MINIMUM_RATE), Seconds(self.length)));
        }
        if is_over {
            (self.begin, self.before) = (Instant::now(), arrived);
        }
        if let Some(weight) = weight {
            if arrived > self.seen {
                weight.wait.begin(0);
            }
            weight.register_waiting();
        }
        self.seen = arrived;
        Ok(())
    }
}
