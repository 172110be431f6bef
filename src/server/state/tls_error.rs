//! The error of a certificate or a private key that cannot be used.

use crate::config::layers::ConfigError;

/// Why the certificate or its key cannot be used: a sentence with the setting, the file and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(pub String);

impl From<String> for TlsError {
    fn from(problem: String) -> Self {
        Self(problem)
    }
}

impl From<&str> for TlsError {
    fn from(problem: &str) -> Self {
        Self(problem.to_owned())
    }
}

impl From<TlsError> for ConfigError {
    fn from(error: TlsError) -> Self {
        Self(error.0)
    }
}
