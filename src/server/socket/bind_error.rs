//! The error of a socket that cannot be opened to listen on.

/// Why the server cannot listen: a sentence with the address and the setting that changes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BindError(pub String);

impl From<String> for BindError {
    fn from(problem: String) -> Self {
        Self(problem)
    }
}

impl From<&str> for BindError {
    fn from(problem: &str) -> Self {
        Self(problem.to_owned())
    }
}
