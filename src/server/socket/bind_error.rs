//! The error of a socket that cannot be opened to listen on.

use std::io;

/// Why the server cannot listen: a sentence with the address and the setting that changes it, and its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BindError {
    kind: BindErrorKind,
    message: String,
}

/// The kinds of [`BindError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BindErrorKind {
    /// Another process listens on the address or the Unix socket.
    InUse,
    /// The user of this process may not listen on the address or at the path.
    PermissionDenied,
    /// The host does not resolve, or the machine has no such address.
    NoSuchAddress,
    /// The path of the Unix socket cannot be used: its directory does not exist, or the path is another file.
    Path,
    /// The operating system reports another error.
    Other,
}

impl BindError {
    pub fn new(kind: BindErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Creates the error of a system call.
    pub fn io(error: &io::Error, message: impl Into<String>) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::AddrInUse => BindErrorKind::InUse,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => BindErrorKind::PermissionDenied,
            io::ErrorKind::AddrNotAvailable => BindErrorKind::NoSuchAddress,
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => BindErrorKind::Path,
            _ => BindErrorKind::Other,
        };
        Self::new(kind, message)
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> BindErrorKind {
        self.kind
    }

    /// Returns the error with the address before its message.
    #[must_use]
    pub fn at(self, address: impl std::fmt::Display) -> Self {
        Self { message: format!("cannot listen on {address}: {}", self.message), ..self }
    }
}
