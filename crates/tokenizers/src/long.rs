//! Tokenizing long texts on a thread that other requests wait for: in steps if the implementation supports them, otherwise on a
//! separate thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use super::{EncodeError, Tokenize};
use crate::yield_point::Steps;

/// The length in bytes above which a text is long. Shorter texts take a few milliseconds at most.
pub const LONG: usize = 16 << 10;

/// The interval at which the waiting thread checks for other work.
const PAUSE: Duration = Duration::from_millis(1);

/// The number of threads that are tokenizing long texts.
static BESIDE: AtomicUsize = AtomicUsize::new(0);

/// A permit for one such thread. It is released when the text is done.
struct Beside;

impl Beside {
    fn begin() -> Option<Self> {
        let most = thread::available_parallelism().map_or(1, usize::from);
        let begun = BESIDE.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| (now < most).then_some(now + 1));
        begun.is_ok().then_some(Self)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        BESIDE.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Calls [`Tokenize::encode`] on a separate thread, while this thread takes steps. An implementation that cannot be stopped
/// continues to the end of a text even if nobody waits for the result any more. There are never more such threads than the
/// machine has processors.
///
/// # Errors
/// As for [`Tokenize::encode_in_steps`].
pub fn encode_beside(
    implementation: &Arc<dyn Tokenize>,
    text: &str,
    special: bool,
    ids: &mut Vec<u32>,
    steps: &Steps<'_>,
) -> Result<(), EncodeError> {
    let beside = loop {
        if let Some(beside) = Beside::begin() {
            break beside;
        }
        thread::sleep(PAUSE);
        steps.now(ids.len())?;
    };
    let (implementation, text) = (Arc::clone(implementation), text.to_owned());
    let (done, result) = sync_channel(1);
    let work = move || {
        let mut ids = Vec::with_capacity(text.len() / 3);
        let encoded = implementation.encode(&text, special, &mut ids).map(|()| ids);
        drop(beside);
        // The receiver may be gone.
        let _ = done.send(encoded);
    };
    let started = thread::Builder::new().name("long-text".to_owned()).spawn(work);
    started.map_err(|error| EncodeError::Failed(format!("no thread for a long text: {error}")))?;
    loop {
        match result.recv_timeout(PAUSE) {
            Ok(encoded) => {
                ids.append(&mut encoded?);
                return Ok(());
            }
            Err(RecvTimeoutError::Timeout) => steps.now(ids.len())?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(EncodeError::Failed("the tokenizer panicked".to_owned()));
            }
        }
    }
}
