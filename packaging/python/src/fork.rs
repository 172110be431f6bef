//! Keeps a forked child usable: no thread of the pool holds a lock of the library while the process forks.
//!
//! A child has only the thread that forked. A lock that another thread held at that moment would stay locked in the child forever. All work on
//! texts therefore runs with [`working`], and [`before_fork`] waits until none does. A unit of work takes milliseconds.

use std::cell::RefCell;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use pyo3::prelude::*;

/// Locked for reading by each unit of work, and for writing by a thread that forks.
static WORK: RwLock<()> = RwLock::new(());

thread_local! {
    /// The lock of a thread that forks. The same thread continues in the parent and in the child.
    static FORKING: RefCell<Option<RwLockWriteGuard<'static, ()>>> = const { RefCell::new(None) };
}

/// Returns a guard that delays a fork. No guard may be held while Python code runs.
pub fn working() -> RwLockReadGuard<'static, ()> {
    WORK.read().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until no unit of work runs, and lets none begin before [`after_fork`]. Python calls this function before `os.fork`.
#[pyfunction]
pub fn before_fork(py: Python<'_>) {
    py.detach(|| {
        let lock = WORK.write().unwrap_or_else(PoisonError::into_inner);
        FORKING.with(|forking| *forking.borrow_mut() = Some(lock));
    });
}

/// Lets work begin again. Python calls this function after `os.fork`, in the parent and in the child.
#[pyfunction]
pub fn after_fork() {
    FORKING.with(|forking| drop(forking.borrow_mut().take()));
}
