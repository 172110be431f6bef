//! The parts from which the message of an error is put together, for every crate that reports errors about files.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where something is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// A file or a directory.
    File(PathBuf),
    /// One record of a data file. The position is the number of the record's line, or in formats without lines the
    /// number of the record. Both are counted from 1.
    Record {
        /// The data file.
        file: PathBuf,
        /// The number of the line or the record.
        position: u64,
    },
    /// An address on the network.
    Url(String),
    /// Anything else that has a name: a stream, a model, an option of a function.
    Name(String),
}

impl Place {
    /// Returns the file, if the place is a file or a record of a file.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) | Self::Record { file: path, .. } => Some(path),
            Self::Url(_) | Self::Name(_) => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Record { file, position } => write!(f, "{}:{position}", file.display()),
            Self::Url(text) | Self::Name(text) => f.write_str(text),
        }
    }
}

impl From<&Path> for Place {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

impl From<PathBuf> for Place {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl From<&PathBuf> for Place {
    fn from(path: &PathBuf) -> Self {
        Self::File(path.clone())
    }
}

/// What is wrong, in the parts of one sentence: the place, the problem, what was expected, and the remedy.
///
/// ```
/// use std::path::Path;
/// use layer0_files::Diagnostic;
///
/// let diagnostic = Diagnostic::new(Path::new("a.json"), "is empty").expected("an object").remedy("copy it again");
/// assert_eq!(diagnostic.to_string(), "a.json: is empty; expected an object (copy it again)");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    // Errors are returned by value in many results, so they are kept small.
    parts: Box<Parts>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Parts {
    place: Place,
    problem: String,
    expected: Option<String>,
    remedy: Option<String>,
}

impl Diagnostic {
    /// Creates a diagnostic. `problem` continues a sentence that begins with the place: "config.json: is missing".
    pub fn new(place: impl Into<Place>, problem: impl Into<String>) -> Self {
        let parts = Parts { place: place.into(), problem: problem.into(), expected: None, remedy: None };
        Self { parts: Box::new(parts) }
    }

    /// Adds what was expected. The text follows the word "expected".
    #[must_use]
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.parts.expected = Some(expected.into());
        self
    }

    /// Adds the remedy, as a sentence without its period. A remedy that consists in another option or setting is
    /// worded by the program that knows the name of the flag or the key.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.parts.remedy = Some(remedy.into());
        self
    }

    /// Returns where something is wrong.
    pub fn place(&self) -> &Place {
        &self.parts.place
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { place, problem, expected, remedy } = &*self.parts;
        write!(f, "{place}: {problem}")?;
        if let Some(expected) = expected {
            write!(f, "; expected {expected}")?;
        }
        if let Some(remedy) = remedy {
            write!(f, " ({remedy})")?;
        }
        Ok(())
    }
}
