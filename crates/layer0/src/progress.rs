//! The interface through which long operations report their progress.

/// Receives progress reports. Its methods are called on the thread that does the work.
pub trait Progress: Sync {
    /// An operation named `what` begins, with `done` of `total` bytes already done.
    fn start(&self, what: &str, done: u64, total: u64);
    /// An operation named `what` begins that consists of `total` items other than bytes.
    fn start_counted(&self, what: &str, total: u64);
    /// An operation named `what` begins on texts in files of `bytes` bytes. How many texts they hold is not known.
    fn start_texts(&self, what: &str, bytes: u64) {
        self.start(what, 0, bytes);
    }
    /// `texts` more texts are done, which are `bytes` bytes of the files.
    fn advance_texts(&self, _texts: u64, bytes: u64) {
        self.advance(bytes);
    }
    /// `by` more bytes or items are done.
    fn advance(&self, by: u64);
    /// Replaces the description of the current operation.
    fn describe(&self, _what: &str) {}
    /// The current operation has ended.
    fn finish(&self);
    /// Reports something that the user should know.
    fn note(&self, text: &str);
    /// Reports what happens next. The user does not have to do anything about it.
    fn remark(&self, text: &str) {
        self.note(text);
    }
}

/// Formats a count with its noun, such as "1 file" or "2 files". The plural of the noun must end in s.
pub fn counted(count: impl TryInto<u64>, noun: &str) -> String {
    let count = count.try_into().unwrap_or(u64::MAX);
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Ignores all reports.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _: &str, _: u64, _: u64) {}
    fn start_counted(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
}
