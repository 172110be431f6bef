//! The error of a certificate or a private key that cannot be used.

use crate::config::error::{ConfigError, ConfigErrorKind};

/// Why the certificate or its key cannot be used: a sentence with the setting, the file and the remedy, and its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TlsError {
    kind: TlsErrorKind,
    message: String,
}

/// The kinds of [`TlsError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsErrorKind {
    /// A file cannot be read, or is empty.
    #[cfg(feature = "tls")]
    File,
    /// A file is not PEM, or its PEM is damaged.
    #[cfg(feature = "tls")]
    Malformed,
    /// A file is PEM, but has no certificate or no private key where one is expected.
    #[cfg(feature = "tls")]
    Missing,
    /// The private key is encrypted.
    #[cfg(feature = "tls")]
    Encrypted,
    /// The private key does not belong to the certificate.
    #[cfg(feature = "tls")]
    Mismatch,
    /// The format or the algorithm of the private key, or TLS in this build, is not supported.
    Unsupported,
}

impl TlsError {
    pub fn new(kind: TlsErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> TlsErrorKind {
        self.kind
    }
}

impl From<TlsError> for ConfigError {
    fn from(error: TlsError) -> Self {
        Self::new(ConfigErrorKind::Certificate, error.message)
    }
}
