//! The errors of embedding files.

use std::io;
use std::path::PathBuf;

use layer0::error::EmbedError;
use layer0_files::{Diagnostic, FileError};
use layer0_records::{BadRecord, RecordsError, TableError};

/// Why files cannot be embedded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BulkError {
    /// An input cannot be read, or has too many bad records.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The output or its parts cannot be written or read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The model fails on texts that it has accepted.
    #[error("the model: {0}")]
    Model(EmbedError),
    /// The output exists, and [`Options::force`](super::Options::force) is not set.
    #[error("{}: exists already", .0.display())]
    Exists(PathBuf),
    /// The output is not a file, is one of the inputs, or has no name.
    #[error("{0}")]
    Output(Diagnostic),
    /// An interrupted run with other inputs or settings left parts, and [`Options::force`](super::Options::force) is
    /// not set.
    #[error("{0}")]
    OtherRun(Diagnostic),
    /// A part is missing or was changed after it was written.
    #[error("{0}")]
    DamagedPart(Diagnostic),
    /// The first bad record, and [`Options::skip`](super::Options::skip) is not set.
    #[error("{0}")]
    BadRecord(Diagnostic),
    /// An input already has a column or a field of the name that the vectors are written to.
    #[error("{0}")]
    NameTaken(Diagnostic),
    /// The rows of an input do not fit into the format or the columns of the output.
    #[error("{0}")]
    Rows(Diagnostic),
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    StandardOutput(io::ErrorKind),
}

/// Why one record cannot be embedded. The message continues a sentence whose subject is the record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordProblem {
    /// The record is damaged, has no text, or its text is refused by the model.
    #[error(transparent)]
    Bad(#[from] BadRecord),
    /// The record already has a field of the name that the vector is written to.
    #[error("has a field {0:?} already")]
    NameTaken(String),
}

/// Why rows cannot be written in the format of the output. The message continues a sentence whose subject is the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnwritableRows(pub String);

impl From<TableError> for UnwritableRows {
    fn from(error: TableError) -> Self {
        Self(error.to_string())
    }
}

impl From<EmbedError> for UnwritableRows {
    fn from(error: EmbedError) -> Self {
        Self(error.to_string())
    }
}
