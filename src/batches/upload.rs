//! A file that a client is uploading: its content is on disk, and it becomes visible only when it is complete.

use std::fs::File;
use std::sync::Arc;

use super::error::{StorageError, StorageErrorKind};
use super::record::{FileRecord, Owner, now};
use super::store::{BatchStore, StorageLimits};
use crate::config::units::ByteCount;
use crate::openai::FilePurpose;

/// A file that is being uploaded. Dropping it deletes the content.
pub struct Upload {
    store: Arc<BatchStore>,
    id: String,
    bytes: u64,
    limits: StorageLimits,
    content: Option<File>,
    is_complete: bool,
}

impl Upload {
    pub(super) fn create(store: Arc<BatchStore>, id: String, limits: StorageLimits) -> Result<Self, StorageError> {
        let mut upload = Self { store, id, bytes: 0, limits, content: None, is_complete: false };
        upload.content = Some(upload.store.create_content(&upload.id)?);
        Ok(upload)
    }

    /// Returns the content, into which the caller writes what arrives. It can be taken once.
    pub fn take_content(&mut self) -> Option<File> {
        self.content.take()
    }

    /// Takes room for `bytes` more bytes, which the caller is about to write.
    ///
    /// # Errors
    /// If the file is larger than a file may be, or there is no room.
    pub fn reserve(&mut self, bytes: u64) -> Result<(), StorageError> {
        let all = self.bytes.saturating_add(bytes);
        if all > self.limits.max_file_bytes {
            return Err(too_large(self.limits.max_file_bytes));
        }
        self.store.reserve(bytes, self.limits)?;
        self.bytes = all;
        Ok(())
    }

    /// Makes the file visible to its owner. The content must be on disk. Blocks until the disk has the record.
    ///
    /// # Errors
    /// If the disk fails. The content is then deleted.
    pub fn complete(mut self, owner: Owner, filename: String, lifetime: u64) -> Result<FileRecord, StorageError> {
        let created_at = now();
        let record = FileRecord {
            id: self.id.clone(),
            owner,
            bytes: self.bytes,
            created_at,
            expires_at: Some(created_at.saturating_add(lifetime)),
            filename,
            purpose: FilePurpose::Batch,
        };
        self.is_complete = true;
        self.store.end_upload(&self.id, self.bytes, Some(record.clone()))?;
        Ok(record)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.is_complete
            && let Err(error) = self.store.end_upload(&self.id, self.bytes, None)
        {
            tracing::error!(%error, "the content of an upload that was not completed cannot be deleted");
        }
    }
}

/// Returns the error of a file that is larger than `max`.
pub fn too_large(max: u64) -> StorageError {
    let message = format!(
        "The file is larger than {}, the limit of this server on one file (the setting server.max_file_bytes). Split it into \
         several files.",
        ByteCount(max)
    );
    StorageError::new(StorageErrorKind::FileTooLarge, message)
}
