//! The errors of reading data files.

use std::path::Path;

use layer0_files::{Diagnostic, FileError, FileErrorKind, Place};

/// Why a data file cannot be read. A bad record alone is not such an error: see [`BadRecord`].
///
/// ```
/// use std::path::Path;
/// use layer0_records::{RecordsErrorKind, Source};
///
/// let error = Source::new(Path::new("texts.tar"), None).unwrap_err();
/// assert_eq!(error.kind(), RecordsErrorKind::Unsupported);
/// assert!(error.to_string().starts_with("texts.tar: is an archive"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{diagnostic}")]
pub struct RecordsError {
    kind: RecordsErrorKind,
    diagnostic: Diagnostic,
}

/// The kinds of [`RecordsError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RecordsErrorKind {
    /// The file cannot be opened or read.
    File(FileErrorKind),
    /// The file is an archive, is compressed in a way that is not read, or is not text.
    Unsupported,
    /// The content of the file is damaged beyond single records.
    Damaged,
    /// The file has no column of the name in [`Reading::field`](crate::Reading::field).
    MissingColumn,
    /// The file has several columns of the name in [`Reading::field`](crate::Reading::field).
    DuplicateColumn,
    /// The column of the name in [`Reading::field`](crate::Reading::field) does not hold text.
    ColumnType,
    /// The share of bad records exceeds [`MaxSkipped`](crate::MaxSkipped).
    TooManySkipped,
}

impl RecordsError {
    pub(crate) fn new(kind: RecordsErrorKind, place: impl Into<Place>, problem: impl Into<String>) -> Self {
        Self { kind, diagnostic: Diagnostic::new(place, problem) }
    }

    pub(crate) fn expected(self, expected: impl Into<String>) -> Self {
        Self { diagnostic: self.diagnostic.expected(expected), ..self }
    }

    pub(crate) fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { diagnostic: self.diagnostic.remedy(remedy), ..self }
    }

    /// Creates the error for the Parquet file at `path`, whose rows cannot be used.
    pub fn from_table(path: &Path, error: &TableError) -> Self {
        Self::new(RecordsErrorKind::Unsupported, path, error.to_string())
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> RecordsErrorKind {
        self.kind
    }

    /// Returns the file or the stream that the error is about.
    pub fn place(&self) -> &Place {
        self.diagnostic.place()
    }
}

impl From<FileError> for RecordsError {
    fn from(error: FileError) -> Self {
        Self { kind: RecordsErrorKind::File(error.kind()), diagnostic: error.into_diagnostic() }
    }
}

/// Why one record cannot be used. The message continues a sentence whose subject is the record: "is not UTF-8".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadRecord(String);

impl BadRecord {
    /// Creates the problem of a record.
    pub fn new(problem: impl Into<String>) -> Self {
        Self(problem.into())
    }
}

/// Why the rows of a Parquet file cannot be used as they are asked for. The message continues a sentence whose subject
/// is the file: "has no column \"text\"".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TableError(pub(crate) String);
