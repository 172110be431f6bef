//! What a command prints, and the exit code that it ends with.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use crate::error::LoadError;

/// sysexits.h's EX_IOERR: the result could not be written to standard output.
const OUTPUT_ERROR: u8 = 74;

/// sysexits.h's EX_CONFIG: something in the configuration must change before a restart can help.
const CONFIG_ERROR: u8 = 78;

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 1.
    Run(String),
    /// Exit code 78.
    Configuration(String),
    /// Exit code 74, without a message where the reader of standard output has gone: `embedding-server check | head -1`.
    Output(ErrorKind),
}

impl Failure {
    pub fn configuration(error: impl Display) -> Self {
        Self::Configuration(error.to_string())
    }

    /// The message without its "error: "; `None` where there is nothing to say.
    pub fn message(&self) -> Option<String> {
        match self {
            Self::Run(message) | Self::Configuration(message) => Some(message.clone()),
            Self::Output(ErrorKind::BrokenPipe) => None,
            Self::Output(kind) => Some(format!("cannot write to standard output: {kind}")),
        }
    }

    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Run(_) => ExitCode::FAILURE,
            Self::Configuration(_) => CONFIG_ERROR.into(),
            Self::Output(_) => OUTPUT_ERROR.into(),
        }
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        error.standard_output().map_or_else(|| Self::Run(error.to_string()), Self::Output)
    }
}

impl From<Box<dyn std::error::Error>> for Failure {
    fn from(error: Box<dyn std::error::Error>) -> Self {
        error.downcast::<LoadError>().map_or_else(|error| Self::Run(error.to_string()), |error| Self::from(*error))
    }
}

impl From<String> for Failure {
    fn from(error: String) -> Self {
        Self::Run(error)
    }
}

/// Prints the result of a command that ends by itself.
pub fn end<E: Into<Failure>>(result: Result<String, E>) -> ExitCode {
    match result.map_err(Into::into).and_then(|text| print(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                say(&format!("error: {message}"));
            }
            failure.exit_code()
        }
    }
}

/// Writes `text` to standard output.
///
/// # Errors
/// When it cannot be written.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Failure::Output(e.kind()))
}

/// Writes a warning to standard error.
pub fn warn(warning: &dyn Display) {
    say(&format!("warning: {warning}"));
}

/// Writes a line to standard error. Where that cannot be written nobody can be told.
pub fn say(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}
