//! The output of commands and their exit codes.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

/// The exit code of a command that did its work.
pub const SUCCESS: u8 = 0;

/// The exit code of a failure at run time.
pub const FAILURE: u8 = 1;

/// The result was written, but on held-out texts it is worse than what it was made from.
const WORSE: u8 = 3;

/// EX_IOERR of sysexits.h: the result could not be written to standard output.
const OUTPUT_ERROR: u8 = 74;

/// EX_CONFIG of sysexits.h: the configuration must change before a restart can help.
const CONFIG_ERROR: u8 = 78;

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// A failure at run time: exit code 1.
    Run(String),
    /// A configuration that must change: exit code 78.
    Configuration(String),
    /// The command did its work, but its result is worse than what it was made from: exit code 3. Only `fit` ends so.
    #[cfg_attr(not(feature = "refine"), allow(dead_code))]
    Worse(String),
    /// Standard output could not be written: exit code 74. There is no message if its reader has exited, as in
    /// `embedding-server check | head -1`.
    Output(ErrorKind),
}

impl Failure {
    pub fn run(error: impl Display) -> Self {
        Self::Run(error.to_string())
    }

    pub fn configuration(error: impl Display) -> Self {
        Self::Configuration(error.to_string())
    }

    /// Returns the message without its "error: ", or `None` if there is nothing to print.
    pub fn message(&self) -> Option<String> {
        match self {
            Self::Run(message) | Self::Configuration(message) | Self::Worse(message) => Some(message.clone()),
            Self::Output(ErrorKind::BrokenPipe) => None,
            Self::Output(kind) => Some(format!("cannot write to standard output: {kind}")),
        }
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Run(_) => FAILURE,
            Self::Configuration(_) => CONFIG_ERROR,
            Self::Worse(_) => WORSE,
            Self::Output(_) => OUTPUT_ERROR,
        }
    }
}

impl From<Box<dyn std::error::Error>> for Failure {
    fn from(error: Box<dyn std::error::Error>) -> Self {
        Self::Run(error.to_string())
    }
}

impl From<&str> for Failure {
    fn from(error: &str) -> Self {
        Self::Run(error.to_owned())
    }
}

impl From<String> for Failure {
    fn from(error: String) -> Self {
        Self::Run(error)
    }
}

/// Prints the result of a command, and returns its exit code.
pub fn end<E: Into<Failure>>(result: Result<String, E>) -> u8 {
    match result.map_err(Into::into).and_then(|text| print(&text)) {
        Ok(()) => SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                let label = if matches!(failure, Failure::Worse(_)) { "warning" } else { "error" };
                say(&format!("{label}: {message}"));
            }
            failure.exit_code()
        }
    }
}

/// Writes `text` to standard output.
///
/// # Errors
/// If standard output cannot be written.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Failure::Output(e.kind()))
}

/// Writes a warning to standard error.
pub fn warn(warning: &dyn Display) {
    say(&format!("warning: {warning}"));
}

/// Writes a line to standard error. A failure is ignored, because there is nowhere to report it.
pub fn say(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}
