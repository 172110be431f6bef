//! The seam through which long work lets other work run, and learns that nobody waits for it any more.

use std::cell::Cell;

/// What long work calls every few thousand bytes, or more often.
pub trait YieldPoint {
    /// Lets other work run on this thread, if some waits and this work has had its share of time.
    ///
    /// # Errors
    /// When nobody waits for the result: the work is to end at once.
    fn reached(&self) -> Result<(), Stopped>;

    /// Whether anybody is let in there. Where nobody is, work may take a faster way that has no steps.
    fn is_needed(&self) -> bool {
        true
    }
}

/// The work was ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work was stopped, because nobody waits for its result any more")]
pub struct Stopped;

/// For work that is never stopped and has its thread to itself.
#[derive(Debug, Clone, Copy)]
pub struct Undisturbed;

impl YieldPoint for Undisturbed {
    fn reached(&self) -> Result<(), Stopped> {
        Ok(())
    }

    fn is_needed(&self) -> bool {
        false
    }
}

/// Counts work, and calls `reached` each time that [`Steps::UNITS`] of it are done.
pub struct Steps<'a> {
    left: Cell<usize>,
    reached: &'a dyn Fn(usize) -> Result<(), Stopped>,
}

impl<'a> Steps<'a> {
    /// Bytes of text, or as many operations of a microsecond.
    pub const UNITS: usize = 2048;

    /// `reached` is given how many tokens the text has at least.
    pub fn new(reached: &'a dyn Fn(usize) -> Result<(), Stopped>) -> Self {
        Self { left: Cell::new(Self::UNITS), reached }
    }

    /// For work that is never stopped.
    pub fn unlimited() -> Self {
        Self::new(&|_| Ok(()))
    }

    /// Counts `units` more. The text has `tokens` tokens at least.
    ///
    /// # Errors
    /// When the work is to end.
    #[inline]
    pub fn take(&self, units: usize, tokens: usize) -> Result<(), Stopped> {
        match self.left.get().checked_sub(units) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => self.now(tokens),
        }
    }

    /// Ends a step, however much was done in it. The text has `tokens` tokens at least.
    ///
    /// # Errors
    /// When the work is to end.
    #[cold]
    pub fn now(&self, tokens: usize) -> Result<(), Stopped> {
        self.left.set(Self::UNITS);
        (self.reached)(tokens)
    }
}
