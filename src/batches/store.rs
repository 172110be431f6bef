//! The files and batches of a directory: finds, adds, changes and deletes them, within limits.
//!
//! The records are in memory as well, so reading never waits for the disk. Changes are made one after another: first on disk, then in
//! memory. Functions that change something block until the disk has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use layer0_files::{self as files, FileError};
use tokio::sync::Notify;

use super::directory::Directory;
use super::error::{StorageError, StorageErrorKind};
use super::lines::LineReader;
use super::output::BatchOutput;
use super::record::{BatchRecord, FileRecord, NewBatch, Owner, Progress, id_at, now};
use super::upload::Upload;
use crate::config::units::ByteCount;
use crate::openai::{BatchRequestCounts, BatchStatus, FilePurpose};

/// How many files may be uploaded at the same time.
const MAX_UPLOADS: usize = 16;

/// The limits on what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorageLimits {
    /// The largest size of an uploaded file, in bytes.
    pub max_file_bytes: u64,
    /// The largest size of all files together, in bytes.
    pub max_stored_bytes: u64,
    /// The largest number of files and batches.
    pub max_stored_files: usize,
}

/// Which part of a list is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub limit: usize,
    /// The ID of the last entry before the page.
    pub after: Option<String>,
    /// Whether the oldest entry comes first.
    pub ascending: bool,
}

/// The files and batches of one directory.
pub struct BatchStore {
    directory: Directory,
    /// Held while the directory is changed.
    writing: Mutex<()>,
    index: Mutex<Index>,
    /// Notified when there may be work on batches.
    changed: Notify,
}

#[derive(Default)]
struct Index {
    files: BTreeMap<String, FileRecord>,
    batches: BTreeMap<String, BatchEntry>,
    /// The size of all contents, with those of uploads and outputs that are not complete.
    bytes: u64,
    uploads: usize,
    /// The time in the ID that was made last, in milliseconds.
    last_id: u64,
}

struct BatchEntry {
    record: BatchRecord,
    /// The counts that clients see, which may be ahead of those in the record.
    counts: BatchRequestCounts,
    tokens: u64,
}

impl BatchEntry {
    fn new(record: BatchRecord) -> Self {
        Self { counts: record.counts, tokens: record.tokens, record }
    }

    fn shown(&self) -> BatchRecord {
        BatchRecord { counts: self.counts, tokens: self.tokens, ..self.record.clone() }
    }
}

impl BatchStore {
    /// Opens the files and batches of a directory, which is created if it is missing.
    ///
    /// # Errors
    /// If the directory cannot be read or written, or if another process uses it.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let directory = Directory::open(path)?;
        let mut index = Index::default();
        let mut known = BTreeSet::new();
        for file in directory.read_files()? {
            known.insert(file.id.clone());
            index.bytes += file.bytes;
            index.files.insert(file.id.clone(), file);
        }
        for batch in directory.read_batches()? {
            if !batch.status.is_final() {
                for (id, bytes) in batch.outputs() {
                    // A process that was killed while it completed the batch may have made the file already.
                    if known.insert(id.to_owned()) {
                        index.bytes += bytes;
                    }
                }
            }
            index.batches.insert(batch.id.clone(), BatchEntry::new(batch));
        }
        directory.remove_leftovers(&known)?;
        Ok(Self { directory, writing: Mutex::default(), index: Mutex::new(index), changed: Notify::new() })
    }

    /// Returns the number of files, and the size of all contents in bytes.
    pub fn size(&self) -> (usize, u64) {
        let index = self.index();
        (index.files.len(), index.bytes)
    }

    /// Returns the number of batches with each status, in the order of [`BatchStatus::ALL`].
    pub fn statuses(&self) -> [usize; BatchStatus::ALL.len()] {
        let index = self.index();
        BatchStatus::ALL.map(|status| index.batches.values().filter(|batch| batch.record.status == status).count())
    }

    /// Begins to store a file that a client uploads.
    ///
    /// # Errors
    /// If there are too many files or uploads, or the content cannot be created.
    pub fn begin_upload(self: &Arc<Self>, limits: StorageLimits) -> Result<Upload, StorageError> {
        let id = {
            let mut index = self.index();
            index.check_count(limits)?;
            if index.uploads >= MAX_UPLOADS {
                let message = "The server is receiving as many files as it can at the same time. Please retry later.";
                return Err(StorageError::new(StorageErrorKind::Busy, message));
            }
            index.uploads += 1;
            format!("file-{}", index.new_id())
        };
        Upload::create(Arc::clone(self), id, limits)
    }

    /// Ends an upload. Without a record, the content and the room that it took are given back.
    pub(super) fn end_upload(&self, id: &str, bytes: u64, record: Option<FileRecord>) -> Result<(), StorageError> {
        let _writing = lock(&self.writing);
        let result = match &record {
            Some(record) => self.directory.write_file(record),
            None => self.directory.remove_content(id),
        };
        let mut index = self.index();
        index.uploads = index.uploads.saturating_sub(1);
        match record {
            Some(record) if result.is_ok() => {
                index.files.insert(record.id.clone(), record);
            }
            _ => index.bytes = index.bytes.saturating_sub(bytes),
        }
        drop(index);
        if result.is_err() {
            let _ = self.directory.remove_file(id);
        }
        Ok(result?)
    }

    /// Takes room for `bytes` more bytes of content.
    ///
    /// # Errors
    /// If the contents would be larger than they may be together.
    pub fn reserve(&self, bytes: u64, limits: StorageLimits) -> Result<(), StorageError> {
        let mut index = self.index();
        let all = index.bytes.saturating_add(bytes);
        if all > limits.max_stored_bytes {
            let message = format!(
                "The files of this server would be larger than {} together (the setting server.max_stored_bytes). Delete files \
                 that you do not need any more.",
                ByteCount(limits.max_stored_bytes)
            );
            return Err(StorageError::new(StorageErrorKind::Full, message));
        }
        index.bytes = all;
        Ok(())
    }

    /// Returns a file.
    ///
    /// # Errors
    /// If there is no such file, or it belongs to somebody else.
    pub fn file(&self, owner: &Owner, id: &str) -> Result<FileRecord, StorageError> {
        let found = self.index().files.get(id).filter(|file| file.is_visible_to(owner)).cloned();
        found.ok_or_else(|| StorageError::no_such_file(id))
    }

    /// Opens the content of a file.
    ///
    /// # Errors
    /// If the content cannot be opened, because the file was deleted meanwhile or the disk fails.
    pub fn open_content(&self, file: &FileRecord) -> Result<File, StorageError> {
        let path = self.directory.content(&file.id);
        files::open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => StorageError::no_such_file(&file.id),
            _ => FileError::reading(&path, &error).into(),
        })
    }

    /// Returns a page of the owner's files, and whether there are more.
    pub fn files(&self, owner: &Owner, purpose: Option<&str>, page: &Page) -> (Vec<FileRecord>, bool) {
        let index = self.index();
        let mut files: Vec<&FileRecord> = index.files.values().filter(|file| file.is_visible_to(owner)).collect();
        files.retain(|file| purpose.is_none_or(|purpose| purpose == file.purpose.name()));
        let (page, more) = page.of(&files, |file| &file.id);
        (page.into_iter().cloned().collect(), more)
    }

    /// Deletes a file.
    ///
    /// # Errors
    /// If there is no such file, if a batch still reads it, or if the disk fails.
    pub fn delete_file(&self, owner: &Owner, id: &str) -> Result<(), StorageError> {
        let _writing = lock(&self.writing);
        self.file(owner, id)?;
        if let Some(batch) = self.index().reader_of(id) {
            let message =
                format!("The file {id} is the input of the batch {batch}. Cancel the batch, or wait for its end.");
            return Err(StorageError::new(StorageErrorKind::Conflict, message));
        }
        self.remove_file(id)
    }

    fn remove_file(&self, id: &str) -> Result<(), StorageError> {
        self.directory.remove_file(id)?;
        let mut index = self.index();
        if let Some(file) = index.files.remove(id) {
            index.bytes = index.bytes.saturating_sub(file.bytes);
        }
        Ok(())
    }

    /// Creates a batch.
    ///
    /// # Errors
    /// If the owner has no such input file, if there are too many files and batches, or if the disk fails.
    pub fn create_batch(
        &self,
        owner: &Owner,
        batch: NewBatch,
        limits: StorageLimits,
    ) -> Result<BatchRecord, StorageError> {
        let _writing = lock(&self.writing);
        let file = self.file(owner, &batch.input_file_id)?;
        if file.purpose != FilePurpose::Batch {
            let message = format!(
                "The file {} has the purpose {}: the input of a batch has the purpose batch.",
                file.id,
                file.purpose.name()
            );
            return Err(StorageError::new(StorageErrorKind::Conflict, message));
        }
        let ids = {
            let mut index = self.index();
            index.check_count(limits)?;
            [(); 3].map(|()| index.new_id())
        };
        let [id, output, errors] = ids;
        let record = BatchRecord {
            id: format!("batch_{id}"),
            owner: owner.clone(),
            input_file_id: file.id,
            metadata: batch.metadata,
            output_lifetime: batch.output_lifetime,
            status: BatchStatus::Validating,
            created_at: now(),
            in_progress_at: None,
            finalizing_at: None,
            cancelling_at: None,
            ended_at: None,
            model: None,
            fingerprint: None,
            output_file_id: format!("file-{output}"),
            error_file_id: format!("file-{errors}"),
            errors: Vec::new(),
            counts: BatchRequestCounts::default(),
            tokens: 0,
            has_expired: false,
            progress: Progress::default(),
        };
        self.directory.write_batch(&record)?;
        self.index().batches.insert(record.id.clone(), BatchEntry::new(record.clone()));
        self.changed.notify_one();
        Ok(record)
    }

    /// Returns a batch.
    ///
    /// # Errors
    /// If there is no such batch, or it belongs to somebody else.
    pub fn batch(&self, owner: &Owner, id: &str) -> Result<BatchRecord, StorageError> {
        let found = self.index().batches.get(id).filter(|batch| batch.record.owner == *owner).map(BatchEntry::shown);
        found.ok_or_else(|| StorageError::no_such_batch(id))
    }

    /// Returns a page of the owner's batches, and whether there are more.
    pub fn batches(&self, owner: &Owner, page: &Page) -> (Vec<BatchRecord>, bool) {
        let index = self.index();
        let batches: Vec<&BatchEntry> = index.batches.values().filter(|batch| batch.record.owner == *owner).collect();
        let (page, more) = page.of(&batches, |batch| &batch.record.id);
        (page.into_iter().map(BatchEntry::shown).collect(), more)
    }

    /// Asks for the end of a batch.
    ///
    /// # Errors
    /// If there is no such batch, if it has ended or is ending, or if the disk fails.
    pub fn cancel_batch(&self, owner: &Owner, id: &str) -> Result<BatchRecord, StorageError> {
        self.batch(owner, id)?;
        let mut refused = None;
        let record = self.update(id, |record| match record.status {
            BatchStatus::Validating | BatchStatus::InProgress => record.set_status(BatchStatus::Cancelling),
            BatchStatus::Cancelling => {}
            status => refused = Some(status),
        })?;
        if let Some(status) = refused {
            let message = format!("Cannot cancel a batch with status '{}'.", status.name());
            return Err(StorageError::new(StorageErrorKind::Conflict, message));
        }
        self.changed.notify_one();
        Ok(BatchRecord { counts: self.batch(owner, id)?.counts, ..record })
    }

    /// Returns the batches that have not ended, oldest first.
    pub fn unfinished(&self) -> Vec<BatchRecord> {
        let index = self.index();
        let records = index.batches.values().map(|batch| &batch.record);
        records.filter(|record| !record.status.is_final()).cloned().collect()
    }

    /// Returns the record of a batch, whoever owns it.
    pub fn record(&self, id: &str) -> Option<BatchRecord> {
        self.index().batches.get(id).map(|batch| batch.record.clone())
    }

    /// Resolves when there may be work on batches.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Changes the record of a batch, and returns it. What the record says about output files must be on disk before.
    ///
    /// # Errors
    /// If there is no such batch, or the disk fails.
    pub fn update(&self, id: &str, change: impl FnOnce(&mut BatchRecord)) -> Result<BatchRecord, StorageError> {
        let _writing = lock(&self.writing);
        let before = self.record(id).ok_or_else(|| StorageError::no_such_batch(id))?;
        let mut record = before.clone();
        change(&mut record);
        if record != before {
            self.directory.write_batch(&record)?;
            if let Some(entry) = self.index().batches.get_mut(id) {
                // The counts that clients see never go back.
                if record.counts != before.counts {
                    (entry.counts, entry.tokens) = (record.counts, record.tokens);
                }
                entry.record = record.clone();
            }
        }
        Ok(record)
    }

    /// Shows clients how far a batch has come since its last checkpoint.
    pub fn show_progress(&self, id: &str, counts: BatchRequestCounts, tokens: u64) {
        if let Some(batch) = self.index().batches.get_mut(id) {
            (batch.counts, batch.tokens) = (counts, tokens);
        }
    }

    /// Opens the input file of a batch at the position that it has come to. Lines may have up to `longest` bytes.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn open_input(&self, file: &str, progress: &Progress, longest: usize) -> Result<LineReader, StorageError> {
        let path = self.directory.content(file);
        let failed = |error: std::io::Error| FileError::reading(&path, &error);
        let input = files::open(&path).map_err(failed)?;
        Ok(LineReader::new(input, progress.input, progress.lines, longest).map_err(failed)?)
    }

    /// Opens the output files of a batch at the positions that it has come to.
    ///
    /// # Errors
    /// If a file cannot be opened, or was changed by something else.
    pub fn open_output(&self, batch: &BatchRecord) -> Result<BatchOutput, StorageError> {
        let content = |id: &str| self.directory.content(id);
        Ok(BatchOutput::open(&content(&batch.output_file_id), &content(&batch.error_file_id), &batch.progress)?)
    }

    /// Gives back the room of answers that were written after the last checkpoint and are discarded.
    pub fn give_back(&self, bytes: u64) {
        let mut index = self.index();
        index.bytes = index.bytes.saturating_sub(bytes);
    }

    /// Ends a batch: makes its output files available, and sets its final status. The contents must be on disk before.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn end_batch(&self, id: &str, change: impl FnOnce(&mut BatchRecord)) -> Result<BatchRecord, StorageError> {
        let batch = self.record(id).ok_or_else(|| StorageError::no_such_batch(id))?;
        for (file, bytes) in batch.outputs() {
            let _writing = lock(&self.writing);
            if bytes == 0 {
                self.directory.remove_content(file)?;
                continue;
            }
            let is_output = file == batch.output_file_id;
            let record = FileRecord {
                id: file.to_owned(),
                owner: batch.owner.clone(),
                bytes,
                created_at: now(),
                expires_at: Some(now().saturating_add(batch.output_lifetime)),
                filename: format!("{id}_{}.jsonl", if is_output { "output" } else { "error" }),
                purpose: FilePurpose::BatchOutput,
            };
            self.directory.write_file(&record)?;
            self.index().files.insert(record.id.clone(), record);
        }
        self.update(id, change)
    }

    /// Deletes the files and batches whose time is over. An input file stays while a batch reads it.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn delete_expired(&self) -> Result<(), StorageError> {
        let _writing = lock(&self.writing);
        let time = now();
        let (files, batches) = {
            let index = self.index();
            let is_over = |end: Option<u64>| end.is_some_and(|end| end <= time);
            let files =
                index.files.values().filter(|file| is_over(file.expires_at) && index.reader_of(&file.id).is_none());
            let batches = index.batches.values().filter(|batch| is_over(batch.record.deleted_at()));
            let files: Vec<String> = files.map(|file| file.id.clone()).collect();
            (files, batches.map(|batch| batch.record.id.clone()).collect::<Vec<_>>())
        };
        for id in files {
            self.remove_file(&id)?;
        }
        for id in batches {
            self.directory.remove_batch(&id)?;
            self.index().batches.remove(&id);
        }
        Ok(())
    }

    /// Returns the path of the content of an upload.
    pub(super) fn create_content(&self, id: &str) -> Result<File, StorageError> {
        let path = self.directory.content(id);
        Ok(files::create(&path).map_err(|error| FileError::writing(&path, &error))?)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }
}

impl Index {
    fn check_count(&self, limits: StorageLimits) -> Result<(), StorageError> {
        if self.files.len() + self.batches.len() + self.uploads < limits.max_stored_files {
            return Ok(());
        }
        let message = format!(
            "The server keeps at most {} files and batches (the setting server.max_stored_files). Delete files that you do not need \
             any more.",
            limits.max_stored_files
        );
        Err(StorageError::new(StorageErrorKind::Full, message))
    }

    /// Returns an ID that is later than all before.
    fn new_id(&mut self) -> String {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        self.last_id = u64::try_from(time).unwrap_or_default().max(self.last_id + 1);
        id_at(self.last_id)
    }

    /// Returns the batch that still reads this file.
    fn reader_of(&self, file: &str) -> Option<String> {
        let mut batches = self.batches.values().map(|batch| &batch.record);
        let reads = |batch: &&BatchRecord| !batch.status.is_final() && batch.input_file_id == file;
        batches.find(reads).map(|batch| batch.id.clone())
    }
}

impl Page {
    /// Returns the entries of the page, and whether there are more. `all` are ordered by their IDs.
    fn of<'a, T>(&self, all: &[&'a T], id: impl Fn(&'a T) -> &'a str) -> (Vec<&'a T>, bool) {
        let ordered: Box<dyn Iterator<Item = &'a T>> = match self.ascending {
            true => Box::new(all.iter().copied()),
            false => Box::new(all.iter().rev().copied()),
        };
        // An entry that is gone still has its place in the order.
        let follows = |entry: &&'a T| match &self.after {
            Some(after) if self.ascending => id(entry) > after.as_str(),
            Some(after) => id(entry) < after.as_str(),
            None => true,
        };
        let mut rest = ordered.filter(follows);
        let page = rest.by_ref().take(self.limit).collect();
        (page, rest.next().is_some())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
