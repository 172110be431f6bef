//! Divides work on texts among the cores.
//!
//! The calling thread works as well, so a process with one core has no pool. Threads are kept between calls, because each of them keeps a cache
//! of tokenized words.

use std::ops::Range;
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::fork::working;

/// The bytes of text in a unit of work, which takes at least a few hundred microseconds. Handing it to a thread takes a few.
const UNIT: usize = 16 << 10;

/// The threads of this process beside the calling ones. A forked child has none of its parent's threads, so a pool belongs to a process.
struct Pool {
    process: u32,
    threads: Arc<ThreadPool>,
}

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

/// Returns the pool of this process, or `None` if it has one core or the system provides no threads.
fn pool() -> Option<Arc<ThreadPool>> {
    let others = thread::available_parallelism().map_or(0, |cores| cores.get() - 1);
    if others == 0 {
        return None;
    }
    // A fork waits, so that no child inherits the mutex locked.
    let _working = working();
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = pool.as_ref().filter(|pool| pool.process == process::id()) {
        return Some(Arc::clone(&pool.threads));
    }
    // Dropping the parent's pool would wait for its threads, which do not exist in this process.
    std::mem::forget(pool.take());
    let name = |n| format!("embedder-{n}");
    let threads = Arc::new(ThreadPoolBuilder::new().num_threads(others).thread_name(name).build().ok()?);
    *pool = Some(Pool { process: process::id(), threads: Arc::clone(&threads) });
    Some(threads)
}

/// Divides texts of these sizes, in bytes, into units of work.
pub fn units(sizes: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let (mut units, mut start, mut bytes, mut end) = (Vec::new(), 0, 0, 0);
    for size in sizes {
        bytes += size.max(1);
        end += 1;
        if bytes >= UNIT {
            units.push(start..end);
            (start, bytes) = (end, 0);
        }
    }
    if start < end {
        units.push(start..end);
    }
    units
}

/// A unit of work that no thread has begun yet, or its result.
enum Slot<U, T, E> {
    Waiting(U),
    Begun,
    Done(Result<T, E>),
}

/// Does `work` for each unit, on at most `threads` threads, and returns the results in the order of the units.
///
/// # Errors
/// Returns the error of the first unit that has one. Units after a failed one may be left undone.
pub fn each<U, T, E>(
    units: Vec<U>,
    threads: Option<usize>,
    work: impl Fn(U) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E>
where
    U: Send,
    T: Send,
    E: Send,
{
    let done = |unit: U| {
        let _working = working();
        work(unit)
    };
    let others = threads.unwrap_or(usize::MAX).min(units.len()).saturating_sub(1);
    let Some(pool) = (if others > 0 { pool() } else { None }) else { return units.into_iter().map(done).collect() };
    let slots: Vec<Mutex<Slot<U, T, E>>> = units.into_iter().map(|unit| Mutex::new(Slot::Waiting(unit))).collect();
    let (next, end) = (AtomicUsize::new(0), AtomicUsize::new(slots.len()));
    let replace =
        |slot: &Mutex<_>, with| std::mem::replace(&mut *slot.lock().unwrap_or_else(PoisonError::into_inner), with);
    let share = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(slot) = slots.get(at).filter(|_| at < end.load(Ordering::Relaxed)) else { break };
            let Slot::Waiting(unit) = replace(slot, Slot::Begun) else { break };
            let result = done(unit);
            if result.is_err() {
                end.fetch_min(at, Ordering::Relaxed);
            }
            replace(slot, Slot::Done(result));
        }
    };
    pool.in_place_scope(|scope| {
        for _ in 0..others.min(pool.current_num_threads()) {
            scope.spawn(|_| share());
        }
        share();
    });
    // Units were begun in their order, so all units before a failed one have results.
    let results = slots.into_iter().map(|slot| match slot.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Slot::Done(result) => Some(result),
        Slot::Waiting(_) | Slot::Begun => None,
    });
    results.map_while(|result| result).collect()
}
