//! Turns the library's errors into the exceptions of `embedding_server.errors`.

use embedding_server::model_error::ModelError;
use layer0::error::{ExtractError, FileErrorKind, HubError, RequestErrorKind};
use layer0::{EmbedError, LoadError, LoadErrorKind};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The name of an exception's class, and its attributes beside the message.
struct Exception<'py> {
    class: &'static str,
    attributes: Bound<'py, PyDict>,
}

impl<'py> Exception<'py> {
    fn new(py: Python<'py>, class: &'static str) -> Self {
        Self { class, attributes: PyDict::new(py) }
    }

    fn with(self, name: &str, value: impl IntoPyObject<'py>) -> PyResult<Self> {
        self.attributes.set_item(name, value)?;
        Ok(self)
    }

    fn raised(self, message: String) -> PyResult<PyErr> {
        let py = self.attributes.py();
        let class = py.import("embedding_server.errors")?.getattr(self.class)?;
        Ok(PyErr::from_value(class.call((message,), Some(&self.attributes))?))
    }
}

/// Returns the exception for an input that has no vector.
pub fn embed_error(py: Python<'_>, error: &EmbedError) -> PyErr {
    exception_of(py, error).and_then(|exception| exception.raised(error.to_string())).unwrap_or_else(|failed| failed)
}

fn exception_of<'py>(py: Python<'py>, error: &EmbedError) -> PyResult<Exception<'py>> {
    let of = |class| Exception::new(py, class);
    match error {
        EmbedError::TokenIdOutOfRange { input, position, id, .. } => {
            of("TokenIdOutOfRangeError").with("input", *input)?.with("position", *position)?.with("id", *id)
        }
        EmbedError::NotCl100k { input, position, id } => {
            of("NotCl100kError").with("input", *input)?.with("position", *position)?.with("id", *id)
        }
        EmbedError::TokenIdsRejected { input } => of("TokenIdsRejectedError").with("input", *input),
        EmbedError::Empty { input } => of("EmptyInputError").with("input", *input),
        EmbedError::TooManyTokens { input, tokens, max } => {
            of("TooManyTokensError").with("input", *input)?.with("tokens", *tokens)?.with("max", *max)
        }
        EmbedError::Dimensions { requested, max } => {
            of("DimensionsError").with("requested", *requested)?.with("max", *max)
        }
        EmbedError::Tokenizer { input, .. } => of("TokenizerError").with("input", *input),
        EmbedError::Damaged { path, .. } => of("TableChangedError").with("path", path),
        EmbedError::TooLarge { input } => of("VectorTooLargeError").with("input", *input),
        EmbedError::NotFinite { input } => of("VectorNotFiniteError").with("input", *input),
        EmbedError::Stopped(_) => Ok(of("StoppedError")),
        EmbedError::Device { .. } => Ok(of("DeviceFailedError")),
    }
}

/// Returns the exception for a model that cannot be opened.
pub fn model_error(py: Python<'_>, error: &ModelError) -> PyErr {
    let of = |class| Exception::new(py, class);
    let exception = match error {
        ModelError::Load(load) => load_exception(py, load),
        ModelError::Hub(hub) => hub_exception(py, hub),
        ModelError::NotInThisBuild => of("UnsupportedModelError").with("kind", "not_in_this_build"),
        _ => Ok(of("LoadError")),
    };
    exception.and_then(|exception| exception.raised(error.to_string())).unwrap_or_else(|failed| failed)
}

/// Returns the exception for a checkpoint that cannot be loaded.
pub fn load_error(py: Python<'_>, error: &LoadError) -> PyErr {
    let exception = load_exception(py, error);
    exception.and_then(|exception| exception.raised(error.to_string())).unwrap_or_else(|failed| failed)
}

fn load_exception<'py>(py: Python<'py>, error: &LoadError) -> PyResult<Exception<'py>> {
    let (class, kind) = match error.kind() {
        LoadErrorKind::File(kind) => return file_exception(py, kind)?.with("path", error.path()),
        LoadErrorKind::Missing => ("ModelNotFoundError", "missing"),
        LoadErrorKind::Malformed => ("MalformedModelError", "malformed"),
        LoadErrorKind::Unsupported => ("UnsupportedModelError", "unsupported"),
        LoadErrorKind::Mismatch => ("MismatchedModelError", "mismatch"),
        LoadErrorKind::Setting => ("SettingError", "setting"),
        LoadErrorKind::Damaged => ("DamagedModelError", "damaged"),
        LoadErrorKind::Device => ("DeviceError", "device"),
        _ => ("LoadError", "other"),
    };
    Exception::new(py, class).with("kind", kind)?.with("path", error.path())
}

fn file_exception(py: Python<'_>, kind: FileErrorKind) -> PyResult<Exception<'_>> {
    let (class, kind) = match kind {
        FileErrorKind::NotFound => ("ModelNotFoundError", "not_found"),
        FileErrorKind::PermissionDenied => ("ModelFileError", "permission_denied"),
        FileErrorKind::WrongType => ("ModelFileError", "wrong_type"),
        FileErrorKind::NotRegular => ("ModelFileError", "not_regular"),
        FileErrorKind::LfsPointer => ("ModelFileError", "lfs_pointer"),
        FileErrorKind::TooLarge => ("ModelFileError", "too_large"),
        FileErrorKind::Malformed => ("MalformedModelError", "malformed"),
        _ => ("ModelFileError", "io"),
    };
    Exception::new(py, class).with("kind", kind)
}

fn hub_exception<'py>(py: Python<'py>, error: &HubError) -> PyResult<Exception<'py>> {
    let of = |class| Exception::new(py, class);
    match error {
        HubError::Unresolved { source, .. } => hub_exception(py, source),
        HubError::Load(error) | HubError::Extract(ExtractError::Load(error)) => load_exception(py, error),
        HubError::File(error) => file_exception(py, error.kind()),
        HubError::Request(error) => of("HubError").with(
            "kind",
            match error.kind() {
                RequestErrorKind::NotFound => "not_found",
                RequestErrorKind::Unauthorized => "unauthorized",
                RequestErrorKind::Refused => "refused",
                RequestErrorKind::Unanswered => "unanswered",
                RequestErrorKind::Interrupted => "interrupted",
                RequestErrorKind::WrongAnswer => "wrong_answer",
                RequestErrorKind::InvalidRequest => "invalid_request",
                RequestErrorKind::Offline => "offline",
                RequestErrorKind::NoWeights => "no_weights",
                _ => "other",
            },
        ),
        _ => of("HubError").with("kind", "extract"),
    }
}
