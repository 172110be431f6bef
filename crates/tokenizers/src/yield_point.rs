//! The interface through which a long operation lets other work run on its thread, and learns that its result is not
//! needed.

use std::cell::Cell;
use std::fmt;

/// A point that a long operation must reach every few thousand bytes of text, or more often.
pub trait YieldPoint {
    /// Lets other work run on this thread, if other work is waiting and this operation has used up its share of
    /// time.
    ///
    /// # Errors
    /// Returns an error if nobody waits for the result any more. The operation must then end at once.
    fn reached(&self) -> Result<(), Stopped>;

    /// Returns whether other work can run at this point at all. If not, the operation may use a faster algorithm
    /// that does not reach yield points.
    fn is_needed(&self) -> bool {
        true
    }
}

/// The operation was stopped before it was finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work was stopped, because nobody waits for its result any more")]
pub struct Stopped;

/// The yield point of operations that are never stopped and have their thread to themselves.
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

/// Counts work, and calls a function after every [`Steps::UNITS`] units.
pub struct Steps<'a> {
    left: Cell<usize>,
    reached: &'a dyn Fn(usize) -> Result<(), Stopped>,
}

/// Shows how much of the current step is left.
impl fmt::Debug for Steps<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steps").field("left", &self.left).finish_non_exhaustive()
    }
}

impl<'a> Steps<'a> {
    /// The number of units in a step: bytes of text, or operations of about a microsecond each.
    pub const UNITS: usize = 2048;

    /// `reached` is called with a lower bound of the number of tokens in the text.
    pub fn new(reached: &'a dyn Fn(usize) -> Result<(), Stopped>) -> Self {
        Self { left: Cell::new(Self::UNITS), reached }
    }

    /// Creates a counter for work that is never stopped.
    pub fn unlimited() -> Self {
        Self::new(&|_| Ok(()))
    }

    /// Counts `units` units of work. `tokens` is a lower bound of the number of tokens in the text.
    ///
    /// # Errors
    /// Returns an error if the work must end.
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

    /// Ends the current step early. `tokens` is a lower bound of the number of tokens in the text.
    ///
    /// # Errors
    /// Returns an error if the work must end.
    #[cold]
    pub fn now(&self, tokens: usize) -> Result<(), Stopped> {
        self.left.set(Self::UNITS);
        (self.reached)(tokens)
    }
}
