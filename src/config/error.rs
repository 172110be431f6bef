//! The error of a configuration that cannot be used.

use std::fmt::Display;

use super::values::InvalidValue;
use crate::keys::{KeysError, KeysErrorKind};

/// Why a configuration cannot be used: a sentence for the operator, and its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConfigError {
    kind: ConfigErrorKind,
    message: String,
}

/// The kinds of [`ConfigError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConfigErrorKind {
    /// The configuration file cannot be read.
    File,
    /// The configuration file is not valid TOML, or has its sections in another form than a configuration.
    Syntax,
    /// A section, a key, a variable or a flag is not known.
    Unknown,
    /// A value is not one that its setting accepts, or is missing.
    Value,
    /// Two values cannot be used together: a name is given twice, or a setting needs another one.
    Conflict,
    /// A model cannot be served as it is configured.
    Model,
    /// The API keys cannot be used.
    Keys(KeysErrorKind),
    /// The certificate or its private key cannot be used.
    Certificate,
    /// The operating system does not give what the configuration asks for, such as threads.
    System,
}

impl ConfigError {
    pub fn new(kind: ConfigErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Creates the error of a value that its setting does not accept.
    pub fn value(message: impl Into<String>) -> Self {
        Self::new(ConfigErrorKind::Value, message)
    }

    /// Creates the error of values that cannot be used together.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ConfigErrorKind::Conflict, message)
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> ConfigErrorKind {
        self.kind
    }

    /// Returns the error with the place of the mistake before its message.
    #[must_use]
    pub fn at(self, place: impl Display) -> Self {
        Self { message: format!("{place}{}", self.message), ..self }
    }
}

impl From<InvalidValue> for ConfigError {
    fn from(error: InvalidValue) -> Self {
        Self::value(error.0)
    }
}

impl From<KeysError> for ConfigError {
    fn from(error: KeysError) -> Self {
        Self::new(ConfigErrorKind::Keys(error.kind()), error.to_string())
    }
}
