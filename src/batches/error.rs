//! The error of files and batches.

use layer0_files::FileError;

/// Why a file or a batch cannot be stored or changed: a sentence with the remedy, and its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StorageError {
    kind: StorageErrorKind,
    message: String,
}

/// The kinds of [`StorageError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StorageErrorKind {
    /// There is no such file, or it belongs to another API key.
    NoSuchFile,
    /// There is no such batch, or it belongs to another API key.
    NoSuchBatch,
    /// A file is larger than a file may be.
    FileTooLarge,
    /// The files together would be larger than they may be, or there would be too many.
    Full,
    /// As many files are being uploaded as the server accepts at the same time.
    Busy,
    /// The file or the batch is in a state that does not allow the change.
    Conflict,
    /// The disk fails, or the directory was changed by something else.
    Disk,
}

impl StorageError {
    pub fn new(kind: StorageErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> StorageErrorKind {
        self.kind
    }

    pub(super) fn no_such_file(id: &str) -> Self {
        Self::new(StorageErrorKind::NoSuchFile, format!("No such File object: {}", shortened(id)))
    }

    pub(super) fn no_such_batch(id: &str) -> Self {
        Self::new(StorageErrorKind::NoSuchBatch, format!("No batch found with id '{}'.", shortened(id)))
    }
}

impl From<FileError> for StorageError {
    fn from(error: FileError) -> Self {
        Self::new(StorageErrorKind::Disk, error.to_string())
    }
}

/// Returns the beginning of an ID that a client sent.
fn shortened(id: &str) -> String {
    const LONGEST: usize = 64;
    match id.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", id.get(..end).unwrap_or_default()),
        None => id.to_owned(),
    }
}
