//! The error of API keys that cannot be used.

/// Why the API keys cannot be used: a sentence for the operator, and its kind. The sentence never quotes a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct KeysError {
    kind: KeysErrorKind,
    message: String,
}

/// The kinds of [`KeysError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeysErrorKind {
    /// The key file cannot be read.
    File,
    /// An entry or the key file is empty.
    Empty,
    /// An entry has no key at its beginning, or something else than a key.
    Malformed,
    /// An option of a key is unknown, is given twice, or has a value that it does not accept.
    Option,
    /// The same key has different models or options, or different keys have the same name.
    Conflict,
    /// The name of a key would show a key in the log and the metrics.
    Exposed,
    /// A key may use a model that is not configured.
    UnknownModel,
    /// The key file may be only half written.
    Incomplete,
}

impl KeysError {
    pub fn new(kind: KeysErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> KeysErrorKind {
        self.kind
    }

    /// Returns the error with the place of its entry before the message.
    #[must_use]
    pub fn at(self, place: &str) -> Self {
        Self { message: format!("{place} {}", self.message), ..self }
    }
}
