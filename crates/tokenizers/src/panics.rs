//! Panics of tokenizer libraries on odd files, as errors: nothing is written to standard error.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread is about to be caught.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// The message of a panic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("panicked: {0}")]
pub struct Panicked(pub String);

/// Returns what `work` returns, or the message that it panicked with.
///
/// # Errors
/// If it panicked.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    static INSTALLED: Once = Once::new();
    // The hook of the process prints a report and a backtrace, even if the panic is caught.
    INSTALLED.call_once(|| {
        let report = take_hook();
        set_hook(Box::new(move |panic| {
            if !CAUGHT.get() {
                report(panic);
            }
        }));
    });
    let before = CAUGHT.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CAUGHT.set(before);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        Panicked(text.or_else(|| panic.downcast_ref().cloned()).unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_its_message() {
        let number = 7;
        assert_eq!(catch(|| panic!("at {number}")), Err::<(), _>(Panicked("at 7".to_owned())));
        assert_eq!(catch(|| catch(|| panic!("inner"))), Ok(Err::<(), _>(Panicked("inner".to_owned()))));
        assert_eq!(catch(|| 1), Ok(1));
        assert!(!CAUGHT.get());
    }
}
