//! The seam through which long work says how far it is.

/// Told of each long piece of work. Called from the thread that does it.
pub trait Progress: Sync {
    /// Work on `what` begins: `done` of `total` bytes are there already.
    fn start(&self, what: &str, done: u64, total: u64);
    /// Work on `what` begins, of `total` pieces that are no bytes.
    fn start_counted(&self, what: &str, total: u64);
    /// So many more bytes or pieces are done.
    fn advance(&self, by: u64);
    /// The work that was started is over.
    fn finish(&self);
    /// Something that a user who waits should know.
    fn note(&self, text: &str);
    /// Something that explains what happens next, and asks for nothing.
    fn remark(&self, text: &str) {
        self.note(text);
    }
}

/// "1 file", "2 files": a count with its noun, whose plural takes an s.
pub fn counted(count: impl TryInto<u64>, noun: &str) -> String {
    let count = count.try_into().unwrap_or(u64::MAX);
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Says nothing.
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _: &str, _: u64, _: u64) {}
    fn start_counted(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}
}

/// Writes the beginning of each piece, and notes, to the log: for a server that loads.
pub struct Logged;

impl Progress for Logged {
    fn start(&self, what: &str, done: u64, total: u64) {
        tracing::info!(what, done, total, "fetching");
    }
    fn start_counted(&self, what: &str, total: u64) {
        tracing::info!(what, total, "working");
    }
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, text: &str) {
        tracing::warn!("{text}");
    }
    fn remark(&self, text: &str) {
        tracing::info!("{text}");
    }
}
