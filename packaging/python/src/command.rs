//! The command line in a Python process.

use std::ffi::OsString;
use std::io::Write;

use pyo3::prelude::*;

/// Runs the command line and returns its exit code. The first argument is the name of the program.
#[pyfunction]
pub fn run_command(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| {
        let code = embedding_server::cli::run(arguments);
        // Rust's runtime does so at the end of a program, of which this module is none. A failure was reported by the command.
        let _ = std::io::stdout().flush();
        code
    })
}
