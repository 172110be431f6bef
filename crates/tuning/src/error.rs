//! The errors of this crate: one for reading a corpus, and one each for refining, fitting and evaluating.

use std::path::PathBuf;

use layer0::error::LoadError;
use layer0_files::{Diagnostic, FileError};
use layer0_records::RecordsError;

/// Why a corpus cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CorpusError {
    /// A file cannot be read, or has too many bad records.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The files hold no text at all.
    #[error(
        "{}: holds no text; {skipped} records could not be read; expected lines of UTF-8 text, or JSONL, JSON, CSV, TSV or \
         Parquet with texts in the field {field:?}", .file.display()
    )]
    NoText {
        /// The first file of the corpus.
        file: PathBuf,
        /// The number of records that could not be read.
        skipped: u64,
        /// The name of the field or column in which the texts were looked for.
        field: String,
    },
}

/// Why a table cannot be refined.
///
/// ```
/// use layer0_tuning::RefineError;
///
/// fn advice(error: &RefineError) -> &'static str {
///     match error {
///         RefineError::OutOfRange(_) => "choose another value",
///         RefineError::NoTokens(_) => "pass a corpus",
///         RefineError::Load(_) | RefineError::NotFinite(_) => "check the checkpoint",
///         _ => "read the message",
///     }
/// }
/// # let _ = advice;
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefineError {
    /// The checkpoint was damaged while it was read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The output cannot be written, or must not be replaced.
    #[error(transparent)]
    File(#[from] FileError),
    /// The corpus cannot be used.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// A value in the options is out of its range.
    #[error("{0}")]
    OutOfRange(Diagnostic),
    /// The tokenizer refuses a text.
    #[error("{0}")]
    Tokenizer(Diagnostic),
    /// The vocabulary has no token for any text of the built-in sample.
    #[error("{0}")]
    NoTokens(Diagnostic),
    /// The table holds a number that is not finite.
    #[error("{0}")]
    NotFinite(Diagnostic),
    /// The computation does not converge.
    #[error("{0}")]
    NoSolution(Diagnostic),
}

impl From<RecordsError> for RefineError {
    fn from(error: RecordsError) -> Self {
        Self::Corpus(error.into())
    }
}

/// Why a table cannot be fitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FitError {
    /// The checkpoint was damaged while it was read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A file of vectors, the cache, or a temporary file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The corpus cannot be used.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// A file of pairs cannot be used.
    #[error(transparent)]
    Pairs(RecordsError),
    /// A value in the options is out of its range.
    #[error("{0}")]
    OutOfRange(Diagnostic),
    /// The tokenizer refuses a text.
    #[error("{0}")]
    Tokenizer(Diagnostic),
    /// All texts of the corpus are held out, or the corpus has none, or the pairs are too few.
    #[error("{0}")]
    NothingToFit(Diagnostic),
    /// Too few texts are held out to choose lambda on them.
    #[error("{0}")]
    TooFewHeldOut(Diagnostic),
    /// A vector of the teacher is invalid, or the file of vectors does not fit the corpus.
    #[error("{0}")]
    Vectors(Diagnostic),
    /// The teacher has no vectors for texts.
    #[error("{0}")]
    Teacher(Diagnostic),
    /// The file that should hold the teacher's answers is not a cache of this teacher.
    #[error("{0}")]
    ForeignCache(Diagnostic),
    /// The cache holds vectors of another length than the teacher's answers, so another model answered before.
    #[error("{0}")]
    OutdatedCache(Diagnostic),
    /// The saved state of a training is that of another training, or is damaged.
    #[error("{0}")]
    ForeignState(Diagnostic),
    /// The computation does not converge.
    #[error("{0}")]
    NoSolution(Diagnostic),
}

impl From<RecordsError> for FitError {
    fn from(error: RecordsError) -> Self {
        Self::Corpus(error.into())
    }
}

/// Why a data set for an evaluation cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A file cannot be read.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// A file of the data set is missing, or does not have the form of its kind of data set.
    #[error("{0}")]
    Malformed(Diagnostic),
    /// Two files of the data set do not belong together.
    #[error("{0}")]
    Mismatch(Diagnostic),
}

impl From<FileError> for EvalError {
    fn from(error: FileError) -> Self {
        Self::Records(error.into())
    }
}

/// Why a vector or a file of vectors cannot be used. The message continues a sentence whose subject is the vector or
/// the file: "holds NaN".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidVectors(String);

impl From<String> for InvalidVectors {
    fn from(problem: String) -> Self {
        Self(problem)
    }
}

impl From<&str> for InvalidVectors {
    fn from(problem: &str) -> Self {
        Self(problem.to_owned())
    }
}
