//! Writes the progress of long operations to the log.

use layer0::progress::Progress;

/// Writes the beginning of each operation, and all notes, to the log. The server uses it while loading models.
pub struct LoggedProgress;

impl Progress for LoggedProgress {
    fn start(&self, what: &str, done: u64, total: u64) {
        tracing::info!(what, done, total, "downloading");
    }
    fn start_counted(&self, what: &str, total: u64) {
        tracing::info!(what, total, "operation started");
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
