//! The library's errors. Neither knows HTTP: `server/error.rs` gives them their status.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::yield_point::Stopped;

/// Why a checkpoint cannot be served: what is wrong where, what was expected, and what to set or do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    path: PathBuf,
    problem: String,
    expected: Option<String>,
    remedy: Option<String>,
    /// Set where standard output could not be written.
    standard_output: Option<std::io::ErrorKind>,
    at_run_time: bool,
}

impl LoadError {
    /// `problem` reads on from the path: "/models/x/config.json: is missing".
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

    /// What would have been right; reads on from "expected".
    #[must_use]
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    /// The setting that overrides it, or what to do: a sentence without its full stop.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Marks an error that no change of the configuration mends: of the network, a device, or damaged data.
    #[must_use]
    pub fn at_run_time(self) -> Self {
        Self { at_run_time: true, ..self }
    }

    /// Whether no change of the configuration mends it.
    pub fn is_at_run_time(&self) -> bool {
        self.at_run_time
    }

    /// An I/O error on `path`, with the remedies of the usual ones.
    pub fn io(path: impl Into<PathBuf>, error: &std::io::Error) -> Self {
        let path = path.into();
        if error.kind() == std::io::ErrorKind::PermissionDenied
            && let Some(directory) = closed_directory(&path)
        {
            let directory = directory.display().to_string();
            let problem = format!("cannot be reached: this process may not enter the directory {directory}");
            return Self::new(path, problem).remedy(format!(
                "run `chmod a+x {directory}` as its owner, or run this program as a user who may enter it"
            ));
        }
        let found = Self::new(path, error.to_string());
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => found
                .expected("a file that this user may read")
                .remedy("mergekit and save_pretrained write model.safetensors with mode 0600: run `chmod a+r` on it, or serve as the user who owns it"),
            std::io::ErrorKind::NotFound => found.expected("an existing file"),
            std::io::ErrorKind::NotADirectory | std::io::ErrorKind::IsADirectory => found,
            _ => found.at_run_time(),
        }
    }

    /// An error of writing to standard output.
    pub fn of_standard_output(error: &std::io::Error) -> Self {
        Self { standard_output: Some(error.kind()), ..Self::new("standard output", error.to_string()) }
    }

    /// What went wrong in writing to standard output, if that is the error.
    pub fn standard_output(&self) -> Option<std::io::ErrorKind> {
        self.standard_output
    }

    /// An I/O error when `path` is to be written, with the remedies of the usual ones.
    pub fn writing(path: impl Into<PathBuf>, error: &std::io::Error) -> Self {
        let path = path.into();
        let owner = match error.kind() {
            std::io::ErrorKind::PermissionDenied => owner(&path).unwrap_or_default(),
            _ => String::new(),
        };
        let found = Self::new(path, format!("cannot be written: {error}{owner}"));
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => found
                .expected("a place where this user may write")
                .remedy("give another output, or run the command as the owner of that directory"),
            std::io::ErrorKind::ReadOnlyFilesystem => found
                .expected("a file system that is not mounted read-only")
                .remedy("give another output, or mount it for writing"),
            std::io::ErrorKind::NotFound => {
                found.expected("a directory that exists").remedy("make it with `mkdir -p`, or correct the path")
            }
            std::io::ErrorKind::StorageFull => found.remedy("free space on that disk, and run the same command again"),
            _ => found,
        }
    }

    /// The file or directory at fault.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// To whom the file or directory belongs that keeps `path` from being written; reads on from the error.
fn owner(path: &Path) -> Option<String> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let (existing, metadata) =
            path.ancestors().find_map(|path| Some((path, std::fs::symlink_metadata(path).ok()?)))?;
        Some(format!("; {} belongs to the user with the ID {}", existing.display(), metadata.uid()))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// The directory above `path` that this process may not enter, if there is one.
fn closed_directory(path: &Path) -> Option<&Path> {
    let is_hidden = |path: &&Path| {
        std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    };
    path.ancestors().take_while(is_hidden).last()?.parent().filter(|directory| !directory.as_os_str().is_empty())
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

/// What happened to a table's file while it was mapped; reads on from its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It is shorter than it was, or cannot be read any more.
    #[error("was cut short while it was in use")]
    CutShort,
    /// Its size or its time of change is another.
    #[error("was changed in place while it was in use")]
    Changed,
    /// A sum of its rows is not finite, although every row was when it was loaded.
    #[error("holds numbers that are not finite, which it did not when it was loaded")]
    NotFinite,
}

/// Why an input has no vector. `input` is its index among the inputs of one call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// An id of the model's own vocabulary that has no row.
    #[error("token id {id} at position {position} of input {input} is not in this model's vocabulary of {rows} tokens")]
    TokenIdOutOfRange { input: usize, position: usize, id: u32, rows: usize },
    /// An id that cl100k_base does not have.
    #[error(
        "token id {id} at position {position} of input {input} is not a cl100k_base token; \
         send text, or set token_input = \"model\" for this model if these are ids of its own vocabulary"
    )]
    NotCl100k { input: usize, position: usize, id: u32 },
    /// Token ids where the model is configured to take text only.
    #[error(
        "input {input} is an array of token ids, and this model takes text only (token_input = \"reject\"); \
         with LangChain, set check_embedding_ctx_length=False"
    )]
    TokenIdsRejected { input: usize },
    /// Nothing to embed where the model is configured to refuse that.
    #[error(
        "input {input} is empty or has no tokens; send a text with at least one token \
         (this server's setting empty_input = \"reject\" refuses it)"
    )]
    Empty { input: usize },
    /// More tokens than `max_input_tokens` allows. Nothing is ever truncated instead.
    #[error(
        "this model's maximum input length is {max} tokens, and input {input} has {}; \
         please shorten it (the limit is this server's setting max_input_tokens)",
        .tokens.map_or_else(|| "more".to_owned(), |tokens| tokens.to_string())
    )]
    TooManyTokens {
        input: usize,
        /// `None` where they were not all counted.
        tokens: Option<usize>,
        max: usize,
    },
    /// `dimensions` asks for what the table does not have.
    #[error("invalid value for 'dimensions' = {requested}: must be between 1 and {max}, the dimensions of this model")]
    Dimensions { requested: u64, max: usize },
    /// The tokenizer could not encode the text.
    #[error("input {input} could not be tokenized: {message}")]
    Tokenizer { input: usize, message: String },
    /// The table's file is no longer what it was when the model was loaded.
    #[error("the table of this model is damaged: {} {damage}", .path.display())]
    Damaged { path: PathBuf, damage: Damage },
    /// A mean is too large for a 32-bit float, and the model does not scale its vectors to length 1.
    #[error("the vector of input {input} holds a number that is too large for a 32-bit float")]
    TooLarge { input: usize },
    /// A mean is not finite, and its table is not a mapped file whose damage would explain it.
    #[error("the vector of input {input} holds a number that is not finite")]
    NotFinite { input: usize },
    /// The work was ended before its time.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The accelerator failed.
    #[error("the device failed: {message}")]
    Device { message: String },
}
