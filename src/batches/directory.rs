//! The directory of files and batches: where each file is, and how records are written and read.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use layer0::extract::staging::Lock;
use layer0_files::{self as files, FileError, FileErrorKind};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::{BatchRecord, FileRecord};

const FILES: &str = "files";
const BATCHES: &str = "batches";
const RECORD: &str = "json";
const CONTENT: &str = "jsonl";
/// The end of the name of a record that is being written.
const INCOMPLETE: &str = "incomplete";

/// A directory that only this process uses.
pub struct Directory {
    files: PathBuf,
    batches: PathBuf,
    _lock: Lock,
}

impl Directory {
    /// Opens the directory, which is created if it is missing.
    ///
    /// # Errors
    /// If the directory cannot be created, or if another process uses it.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let directory = |path: &Path| create_private(path).map_err(|error| FileError::writing(path, &error));
        directory(path)?;
        let lock = Lock::take(&path.join("lock"), None)?;
        let (files, batches) = (path.join(FILES), path.join(BATCHES));
        directory(&files)?;
        directory(&batches)?;
        Ok(Self { files, batches, _lock: lock })
    }

    /// Returns the path of the content of the file with this ID, which must be an ID that this program has made.
    pub fn content(&self, id: &str) -> PathBuf {
        self.files.join(format!("{id}.{CONTENT}"))
    }

    /// Reads the records of all files.
    ///
    /// # Errors
    /// If the directory or a record cannot be read.
    pub fn read_files(&self) -> Result<Vec<FileRecord>, FileError> {
        read_records(&self.files)
    }

    /// Reads the records of all batches.
    ///
    /// # Errors
    /// If the directory or a record cannot be read.
    pub fn read_batches(&self) -> Result<Vec<BatchRecord>, FileError> {
        read_records(&self.batches)
    }

    /// Writes the record of a file. The content must be synchronized before.
    ///
    /// # Errors
    /// If the record cannot be written.
    pub fn write_file(&self, record: &FileRecord) -> Result<(), FileError> {
        write_record(&self.files, &record.id, record)
    }

    /// Writes the record of a batch.
    ///
    /// # Errors
    /// If the record cannot be written.
    pub fn write_batch(&self, record: &BatchRecord) -> Result<(), FileError> {
        write_record(&self.batches, &record.id, record)
    }

    /// Deletes a file: its record first, so that no record is ever without its content.
    ///
    /// # Errors
    /// If the file cannot be deleted.
    pub fn remove_file(&self, id: &str) -> Result<(), FileError> {
        remove(&self.files.join(format!("{id}.{RECORD}")))?;
        synchronize(&self.files)?;
        self.remove_content(id)
    }

    /// Deletes the content of a file, if there is one.
    ///
    /// # Errors
    /// If the content cannot be deleted.
    pub fn remove_content(&self, id: &str) -> Result<(), FileError> {
        remove(&self.content(id))
    }

    /// Deletes the record of a batch.
    ///
    /// # Errors
    /// If the record cannot be deleted.
    pub fn remove_batch(&self, id: &str) -> Result<(), FileError> {
        remove(&self.batches.join(format!("{id}.{RECORD}")))?;
        synchronize(&self.batches)
    }

    /// Deletes what an interrupted process has left: records that are not complete, and the contents of files that are not in `known`.
    ///
    /// # Errors
    /// If the directory cannot be read, or a file cannot be deleted.
    pub fn remove_leftovers(&self, known: &BTreeSet<String>) -> Result<(), FileError> {
        for directory in [&self.files, &self.batches] {
            for path in entries(directory)? {
                let extension = path.extension().and_then(|extension| extension.to_str());
                let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
                let is_left = match extension {
                    Some(INCOMPLETE) => true,
                    Some(CONTENT) => stem.starts_with("file-") && !known.contains(stem),
                    _ => false,
                };
                if is_left {
                    remove(&path)?;
                }
            }
        }
        Ok(())
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let failed = |error: std::io::Error| FileError::reading(directory, &error);
    let entries = fs::read_dir(directory).map_err(failed)?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
}

fn read_records<T: DeserializeOwned>(directory: &Path) -> Result<Vec<T>, FileError> {
    let is_record = |path: &PathBuf| path.extension().is_some_and(|extension| extension == RECORD);
    let read = |path: PathBuf| {
        let text = files::read(&path).map_err(|error| FileError::reading(&path, &error))?;
        serde_json::from_slice(&text).map_err(|error| {
            let problem = format!("is not a record of this version: {error}");
            FileError::new(FileErrorKind::Malformed, &path, problem).remedy("delete it, or restore it from a backup")
        })
    };
    entries(directory)?.into_iter().filter(is_record).map(read).collect()
}

fn write_record<T: Serialize>(directory: &Path, id: &str, record: &T) -> Result<(), FileError> {
    // Records consist of strings and numbers, which always serialize.
    let text = serde_json::to_vec(record).unwrap_or_default();
    let written = directory.join(format!("{id}.{INCOMPLETE}"));
    let result = files::create(&written)
        .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&written, directory.join(format!("{id}.{RECORD}"))));
    result.map_err(|error| FileError::writing(&written, &error))?;
    synchronize(directory)
}

/// Makes the names in a directory survive a power failure.
fn synchronize(directory: &Path) -> Result<(), FileError> {
    // Other systems cannot open a directory as a file.
    if cfg!(unix) {
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| FileError::writing(directory, &error))?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(FileError::writing(path, &error)),
        _ => Ok(()),
    }
}

/// Creates a directory that only this user may read, unless it exists.
fn create_private(path: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(path)
}
