//! The errors of this crate.

use std::path::{Path, PathBuf};

pub use layer0_files::{Diagnostic, FileError, FileErrorKind, Place};
use layer0_tokenizers::yield_point::Stopped;

/// Why a checkpoint cannot be loaded: which file is wrong, what was found, what was expected, and the remedy.
///
/// # Examples
///
/// ```
/// use layer0::error::{FileErrorKind, LoadErrorKind};
/// use layer0::{Checkpoint, Overrides};
///
/// let error = Checkpoint::open("no/such/model".as_ref(), &Overrides::default()).unwrap_err();
/// let advice = match error.kind() {
///     LoadErrorKind::Missing | LoadErrorKind::File(FileErrorKind::NotFound) => "check the path",
///     LoadErrorKind::Unsupported => "choose another model",
///     LoadErrorKind::Setting => "change the setting",
///     kind if kind.is_at_run_time() => "try again, or check the machine",
///     _ => "download the model again",
/// };
/// assert_eq!(advice, "check the path");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{diagnostic}")]
pub struct LoadError {
    kind: LoadErrorKind,
    diagnostic: Diagnostic,
}

/// The kinds of [`LoadError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LoadErrorKind {
    /// A file cannot be read.
    File(FileErrorKind),
    /// The checkpoint, or a file, a tensor or a value that it must have, does not exist.
    Missing,
    /// A file does not have the form that its format prescribes.
    Malformed,
    /// The file is valid, but its type of model, of numbers or of tokenizer is not supported.
    Unsupported,
    /// Two parts of the checkpoint do not belong together, such as the tokenizer and the table.
    Mismatch,
    /// A setting or an override does not apply to this checkpoint or to this build.
    Setting,
    /// The table holds numbers that are not finite, or its file was changed while it was read.
    Damaged,
    /// The device cannot be used.
    Device,
}

impl LoadErrorKind {
    /// Returns whether the error comes from the machine or from damaged data, so that no change of the settings avoids
    /// it.
    pub const fn is_at_run_time(self) -> bool {
        match self {
            Self::File(kind) => kind.is_at_run_time(),
            Self::Damaged | Self::Device => true,
            Self::Missing | Self::Malformed | Self::Unsupported | Self::Mismatch | Self::Setting => false,
        }
    }
}

impl LoadError {
    /// Creates an error. `problem` continues a sentence that begins with the path: "config.json: is missing".
    fn new(kind: LoadErrorKind, path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self { kind, diagnostic: Diagnostic::new(path.into(), problem) }
    }

    pub(crate) fn missing(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::new(LoadErrorKind::Missing, path, problem)
    }

    pub(crate) fn from_missing(diagnostic: Diagnostic) -> Self {
        Self { kind: LoadErrorKind::Missing, diagnostic }
    }

    pub(crate) fn malformed(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::new(LoadErrorKind::Malformed, path, problem)
    }

    pub(crate) fn unsupported(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::new(LoadErrorKind::Unsupported, path, problem)
    }

    pub(crate) fn mismatch(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::new(LoadErrorKind::Mismatch, path, problem)
    }

    pub(crate) fn setting(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::new(LoadErrorKind::Setting, path, problem)
    }

    pub(crate) fn damaged(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::new(LoadErrorKind::Damaged, path, problem)
    }

    pub(crate) fn device(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::new(LoadErrorKind::Device, path, problem)
    }

    pub(crate) fn io(path: impl Into<PathBuf>, error: &std::io::Error) -> Self {
        FileError::reading(path, error).into()
    }

    pub(crate) fn expected(self, expected: impl Into<String>) -> Self {
        Self { diagnostic: self.diagnostic.expected(expected), ..self }
    }

    pub(crate) fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { diagnostic: self.diagnostic.remedy(remedy), ..self }
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> LoadErrorKind {
        self.kind
    }

    /// Returns the file or the directory that the error is about.
    pub fn path(&self) -> &Path {
        self.diagnostic.place().file().unwrap_or(Path::new(""))
    }

    /// Returns whether no change of the settings avoids the error.
    pub fn is_at_run_time(&self) -> bool {
        self.kind.is_at_run_time()
    }
}

impl From<FileError> for LoadError {
    fn from(error: FileError) -> Self {
        Self { kind: LoadErrorKind::File(error.kind()), diagnostic: error.into_diagnostic() }
    }
}

/// Why a layer-0 checkpoint cannot be made of a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExtractError {
    /// The output cannot be written, or must not be replaced: see [`FileErrorKind::Exists`] and
    /// [`FileErrorKind::Foreign`].
    #[error(transparent)]
    File(#[from] FileError),
    /// The model cannot be loaded, or is not of a kind that can be extracted.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model has no tensor of the names that are known for its purpose.
    #[error("{problem} (if the model has another name for it, set {setting})")]
    MissingTensor {
        /// The name of the field in [`Overrides`](crate::Overrides) that names the tensor.
        setting: &'static str,
        /// What is missing, and where.
        problem: Diagnostic,
    },
    /// The model has no tokenizer.json.
    #[error("{problem} ({remedy} set tokenizer to where it lies)")]
    MissingTokenizer {
        /// What is missing, and where.
        problem: Diagnostic,
        /// The beginning of the remedy, which ends in how to name another file.
        remedy: &'static str,
    },
    /// The model is not on this machine, and cannot be read from where it is.
    #[error("{0}")]
    Remote(Diagnostic),
}

/// Why a model cannot be taken from the Hugging Face Hub.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A request to the Hub failed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The cache on this machine cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of the model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Layer 0 of the model cannot be extracted.
    #[error(transparent)]
    Extract(#[from] ExtractError),
    /// A text is neither an existing path nor a model that the Hub has.
    #[error("{id}: is no path here ({} does not exist{hint}), and as a model of the Hub it fails: {source}", .path.display())]
    Unresolved {
        /// The text as the caller gave it.
        id: String,
        /// The path that does not exist.
        path: PathBuf,
        /// A continuation of the message: which directory with the beginning of the path does exist.
        hint: String,
        /// Why the Hub does not have the model.
        source: Box<HubError>,
    },
}

impl From<HubError> for ExtractError {
    fn from(error: HubError) -> Self {
        match error {
            HubError::Request(error) => Self::Remote(error.diagnostic),
            HubError::File(error) => Self::File(error),
            HubError::Load(error) => Self::Load(error),
            HubError::Extract(error) => error,
            HubError::Unresolved { source, .. } => (*source).into(),
        }
    }
}

/// Why the Hub does not give a model or a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{diagnostic}")]
pub struct RequestError {
    kind: RequestErrorKind,
    diagnostic: Diagnostic,
}

/// The kinds of [`RequestError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RequestErrorKind {
    /// There is no model, no revision or no file of that name, or this user may not know of it.
    NotFound,
    /// The token is missing or invalid, or may not read the model.
    Unauthorized,
    /// The server answered with another status that is not a success.
    Refused,
    /// The server does not answer.
    Unanswered,
    /// The transfer was interrupted, and several attempts to continue it failed.
    Interrupted,
    /// The server answered with something else than the Hub does, or with other bytes than it announced.
    WrongAnswer,
    /// The settings do not give a valid request.
    InvalidRequest,
    /// The settings forbid requests, and the cache does not hold the model.
    Offline,
    /// The repository has no weights that can be read in parts.
    NoWeights,
    /// This build cannot send requests, because it lacks the feature `hub`.
    NotInThisBuild,
}

impl RequestError {
    pub(crate) fn new(kind: RequestErrorKind, url: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { kind, diagnostic: Diagnostic::new(Place::Url(url.into()), problem) }
    }

    pub(crate) fn expected(self, expected: impl Into<String>) -> Self {
        Self { diagnostic: self.diagnostic.expected(expected), ..self }
    }

    pub(crate) fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { diagnostic: self.diagnostic.remedy(remedy), ..self }
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> RequestErrorKind {
        self.kind
    }
}

/// What happened to a table's file while it was mapped. The text continues a sentence that begins with the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The file is shorter than it was, or can no longer be read.
    #[error("was cut short while it was in use")]
    CutShort,
    /// The size or the modification time of the file has changed.
    #[error("was changed in place while it was in use")]
    Changed,
    /// A sum of rows is not finite, although every row was finite when the table was loaded.
    #[error("holds numbers that are not finite, which it did not when it was loaded")]
    NotFinite,
}

/// Why an input has no vector. `input` is its index among the inputs of one call.
///
/// # Examples
///
/// ```
/// use layer0::{EmbedError, Embedder};
///
/// # let path = "../../tests/fixtures/checkpoints/llama";
/// let embedder = Embedder::builder(path).max_input_tokens(100).open()?;
/// let long = "a long text ".repeat(1000);
/// match embedder.embed(&["a short text", &long]) {
///     Err(EmbedError::TooManyTokens { input: 1, max: 100, .. }) => {}
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), layer0::LoadError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// The input contains a token ID of the model's own vocabulary that has no row.
    #[error("token ID {id} at position {position} of input {input} is not in this model's vocabulary of {rows} tokens")]
    TokenIdOutOfRange { input: usize, position: usize, id: u32, rows: usize },
    /// The input contains a token ID that cl100k_base does not have.
    #[error("token ID {id} at position {position} of input {input} is not a cl100k_base token")]
    NotCl100k { input: usize, position: usize, id: u32 },
    /// The input is an array of token IDs, and the model is configured to accept only text.
    #[error("input {input} is an array of token IDs, and this model accepts only text")]
    TokenIdsRejected { input: usize },
    /// The input has no tokens, and the model is configured to refuse empty inputs.
    #[error("input {input} is empty or has no tokens")]
    Empty { input: usize },
    /// The input has more tokens than `max_input_tokens`. Inputs are never truncated.
    #[error(
        "this model's maximum input length is {max} tokens, and input {input} has {}",
        .tokens.map_or_else(|| "more".to_owned(), |tokens| tokens.to_string())
    )]
    TooManyTokens {
        input: usize,
        /// The number of tokens, or `None` if not all of them were counted.
        tokens: Option<usize>,
        max: usize,
    },
    /// `dimensions` is zero, or more than the table has.
    #[error("invalid value for 'dimensions' = {requested}: must be between 1 and {max}, the dimensions of this model")]
    Dimensions { requested: u64, max: usize },
    /// The tokenizer could not encode the text.
    #[error("input {input} could not be tokenized: {message}")]
    Tokenizer { input: usize, message: String },
    /// The table's file has changed since the model was loaded.
    #[error("the table of this model is damaged: {} {damage}", .path.display())]
    Damaged { path: PathBuf, damage: Damage },
    /// A number of the mean is too large for a 32-bit float, and the model does not scale its vectors to length 1.
    #[error("the vector of input {input} holds a number that is too large for a 32-bit float")]
    TooLarge { input: usize },
    /// A number of the mean is not finite, and the table is not a mapped file whose damage would explain it.
    #[error("the vector of input {input} holds a number that is not finite")]
    NotFinite { input: usize },
    /// The work was stopped before it was finished.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The accelerator failed.
    #[error("the device failed: {message}")]
    Device { message: String },
}

/// Errors must be able to cross threads and to become a boxed error of the caller.
const fn is_portable<E: std::error::Error + Send + Sync + 'static>() {}
const _: () = is_portable::<LoadError>();
const _: () = is_portable::<EmbedError>();
const _: () = is_portable::<ExtractError>();
const _: () = is_portable::<HubError>();
