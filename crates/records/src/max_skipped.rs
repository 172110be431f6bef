//! The limit on the records of a file that are left out because they are bad.

use std::path::Path;
use std::str::FromStr;

use crate::{RecordsError, RecordsErrorKind};

/// The largest share of the records of a file that may be bad and left out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaxSkipped(f64);

/// The error for a text that is no share between 0 and 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no share: write 10%, or 0.1")]
pub struct InvalidShare(String);

impl Default for MaxSkipped {
    fn default() -> Self {
        Self(0.1)
    }
}

impl FromStr for MaxSkipped {
    type Err = InvalidShare;

    fn from_str(text: &str) -> Result<Self, InvalidShare> {
        let share = match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
            None => text.trim().parse(),
        };
        let valid = share.ok().filter(|share| (0.0..=1.0).contains(share));
        valid.map(Self).ok_or_else(|| InvalidShare(text.to_owned()))
    }
}

impl MaxSkipped {
    /// Checks whether `skipped` of the `records` records of the file `name` may be left out. `first` describes the
    /// problem of the first of them for the error message.
    ///
    /// # Errors
    /// Fails if too many records were left out.
    pub fn check(self, name: &Path, skipped: u64, records: u64, first: &str) -> Result<(), RecordsError> {
        if skipped as f64 <= self.0 * records as f64 {
            return Ok(());
        }
        let limit = 100.0 * self.0;
        let first = if first.is_empty() { String::new() } else { format!("; the first one {first}") };
        let problem = format!("has {skipped} bad records among {records}, more than {limit} %{first}");
        Err(RecordsError::new(RecordsErrorKind::TooManySkipped, name, problem))
    }
}
