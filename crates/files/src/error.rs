//! The error for a file or directory that cannot be used.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::FileError;

/// Why a checkpoint cannot be loaded: which file is wrong, what was found, what was expected, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    path: PathBuf,
    problem: String,
    expected: Option<String>,
    remedy: Option<String>,
    /// The kind of the I/O error, if standard output could not be written.
    standard_output: Option<std::io::ErrorKind>,
    at_run_time: bool,
}

impl LoadError {
    /// Creates an error. `problem` continues a sentence that begins with the path: "/models/x/config.json: is
    /// missing".
    pub fn new(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            problem: problem.into(),
            expected: None,
            remedy: None,
            standard_output: None,
            at_run_time: false,
        }
    }

    /// Adds what was expected. The text follows the word "expected".
    #[must_use]
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    /// Adds the remedy: the setting to change, or what to do, as a sentence without its period.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Marks an error that no change of the configuration can fix, such as one of the network, a device, or damaged
    /// data.
    #[must_use]
    pub fn at_run_time(self) -> Self {
        Self { at_run_time: true, ..self }
    }

    /// Returns whether no change of the configuration can fix the error.
    pub fn is_at_run_time(&self) -> bool {
        self.at_run_time
    }

    /// Creates an error for a failure to read `path`, with a remedy for common causes.
    pub fn io(path: impl Into<PathBuf>, error: &std::io::Error) -> Self {
        FileError::reading(path, error).into()
    }

    /// Creates the error for a Git LFS pointer at `path` in place of the file that the pointer stands for.
    pub fn lfs_pointer(path: impl Into<PathBuf>) -> Self {
        FileError::lfs_pointer(path).into()
    }

    /// Creates an error for a failure to write to standard output.
    pub fn of_standard_output(error: &std::io::Error) -> Self {
        Self { standard_output: Some(error.kind()), ..Self::new("standard output", error.to_string()) }
    }

    /// Returns the kind of the I/O error, if standard output could not be written.
    pub fn standard_output(&self) -> Option<std::io::ErrorKind> {
        self.standard_output
    }

    /// Creates an error for a failure to write `path`, with a remedy for common causes.
    pub fn writing(path: impl Into<PathBuf>, error: &std::io::Error) -> Self {
        FileError::writing(path, error).into()
    }

    /// Returns the file or directory that the error is about.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.problem)?;
        if let Some(expected) = &self.expected {
            write!(f, "; expected {expected}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, " ({remedy})")?;
        }
        Ok(())
    }
}

impl std::error::Error for LoadError {}

impl From<FileError> for LoadError {
    fn from(error: FileError) -> Self {
        let at_run_time = error.kind().is_at_run_time();
        let (path, problem, expected, remedy) = error.into_diagnostic().into_parts();
        let path = path.file().unwrap_or(Path::new("")).to_owned();
        Self { path, problem, expected, remedy, standard_output: None, at_run_time }
    }
}
