//! The records of files and batches, as they are kept in memory and on disk.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use layer0_files::hexadecimal;
use serde::{Deserialize, Serialize};

use crate::openai::batch_line::URL;
use crate::openai::{
    Batch, BatchError, BatchErrors, BatchObjectKind, BatchRequestCounts, BatchStatus, BatchUsage, COMPLETION_WINDOW,
    FileObjectKind, FilePurpose, ListObject, OpenAiFile,
};

/// The time that a batch has to complete, in seconds.
const WINDOW_SECONDS: u64 = 24 * 60 * 60;

/// Whom a file or a batch belongs to: an API key, as [`crate::keys::Key::owner`] names it, or everybody on a server without keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Owner(pub Option<String>);

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    pub id: String,
    pub owner: Owner,
    pub bytes: u64,
    pub created_at: u64,
    pub expires_at: Option<u64>,
    /// The name that the client gave the file. It is never used as a path.
    pub filename: String,
    pub purpose: FilePurpose,
}

impl FileRecord {
    /// Returns whether the file belongs to `owner` and its time is not over.
    pub fn is_visible_to(&self, owner: &Owner) -> bool {
        self.owner == *owner && self.expires_at.is_none_or(|end| end > now())
    }

    /// Returns the file as the API describes it.
    pub fn describe(&self) -> OpenAiFile {
        OpenAiFile {
            id: self.id.clone(),
            object: FileObjectKind::File,
            bytes: self.bytes,
            created_at: self.created_at,
            expires_at: self.expires_at,
            filename: self.filename.clone(),
            purpose: self.purpose,
            status: "processed",
        }
    }
}

/// How far a batch has come: everything before these positions is done, and is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// The position in the input file, in bytes.
    pub input: u64,
    /// The number of lines of the input file before the position, including blank ones.
    pub lines: u64,
    /// The size of the output file, in bytes.
    pub output: u64,
    /// The size of the error file, in bytes.
    pub errors: u64,
}

/// What a client asks for when it creates a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBatch {
    pub input_file_id: String,
    pub metadata: Option<BTreeMap<String, String>>,
    /// After how many seconds the files with the answers are deleted.
    pub output_lifetime: u64,
}

/// A batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRecord {
    pub id: String,
    pub owner: Owner,
    pub input_file_id: String,
    pub metadata: Option<BTreeMap<String, String>>,
    pub output_lifetime: u64,
    pub status: BatchStatus,
    pub created_at: u64,
    pub in_progress_at: Option<u64>,
    pub finalizing_at: Option<u64>,
    pub cancelling_at: Option<u64>,
    /// When the batch reached its final status.
    pub ended_at: Option<u64>,
    /// The model that all requests name, or `None` for the default model.
    pub model: Option<String>,
    /// The fingerprint of the model that made the answers so far.
    pub fingerprint: Option<String>,
    /// The IDs of the files with the answers, which exist when the batch has ended and has such answers.
    pub output_file_id: String,
    pub error_file_id: String,
    pub errors: Vec<BatchError>,
    pub counts: BatchRequestCounts,
    pub tokens: u64,
    /// Whether requests were not processed because the completion window was over.
    pub has_expired: bool,
    pub progress: Progress,
}

impl BatchRecord {
    /// Returns the time at which the completion window ends, in Unix seconds.
    pub fn expires_at(&self) -> u64 {
        self.created_at.saturating_add(WINDOW_SECONDS)
    }

    /// Returns the time at which the record of a batch that has ended is deleted, in Unix seconds.
    pub fn deleted_at(&self) -> Option<u64> {
        Some(self.ended_at?.saturating_add(self.output_lifetime))
    }

    /// Returns the IDs of the output files, and how many bytes of each are on disk.
    pub fn outputs(&self) -> [(&str, u64); 2] {
        [(&self.output_file_id, self.progress.output), (&self.error_file_id, self.progress.errors)]
    }

    /// Sets the status, and the time at which it was reached.
    pub fn set_status(&mut self, status: BatchStatus) {
        let reached = Some(now());
        match status {
            BatchStatus::Validating => {}
            BatchStatus::InProgress => self.in_progress_at = reached,
            BatchStatus::Finalizing => self.finalizing_at = reached,
            BatchStatus::Cancelling => self.cancelling_at = reached,
            _ => self.ended_at = reached,
        }
        self.status = status;
    }

    /// Returns the batch as the API describes it.
    pub fn describe(&self) -> Batch {
        let ended = |status| self.ended_at.filter(|_| self.status == status);
        let has_ended = self.status.is_final();
        let file = |id: &String, bytes: u64| (has_ended && bytes > 0).then(|| id.clone());
        let errors = || BatchErrors { object: ListObject::List, data: self.errors.clone() };
        Batch {
            id: self.id.clone(),
            object: BatchObjectKind::Batch,
            endpoint: URL,
            model: self.model.clone(),
            errors: (!self.errors.is_empty()).then(errors),
            input_file_id: self.input_file_id.clone(),
            completion_window: COMPLETION_WINDOW,
            status: self.status,
            output_file_id: file(&self.output_file_id, self.progress.output),
            error_file_id: file(&self.error_file_id, self.progress.errors),
            created_at: self.created_at,
            in_progress_at: self.in_progress_at,
            expires_at: self.expires_at(),
            finalizing_at: self.finalizing_at,
            completed_at: ended(BatchStatus::Completed),
            failed_at: ended(BatchStatus::Failed),
            expired_at: ended(BatchStatus::Expired),
            cancelling_at: self.cancelling_at,
            cancelled_at: ended(BatchStatus::Cancelled),
            request_counts: self.counts,
            usage: BatchUsage::new(self.tokens),
            metadata: self.metadata.clone(),
        }
    }
}

/// Returns the current time in Unix seconds.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Returns a random ID of 32 hexadecimal digits that begins with a time, so that IDs are ordered by time.
pub(super) fn id_at(milliseconds: u64) -> String {
    let [_, _, time @ ..] = milliseconds.to_be_bytes();
    let random = fastrand::u128(..).to_be_bytes();
    let random = random.get(..10).unwrap_or_default();
    hexadecimal(&[&time, random].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_ordered_by_their_time() {
        let ids = [1, 2, 255, 256, 1 << 40].map(id_at);
        assert!(ids.is_sorted() && ids.iter().all(|id| id.len() == 32), "{ids:?}");
        assert_ne!(id_at(1), id_at(1));
    }
}
