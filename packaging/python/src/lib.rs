//! The native module `embedding_server._native`: the library and the command line for Python.
//!
//! The Python files beside this crate are the interface for users. They check and convert arguments, and this module does the work, without
//! the global interpreter lock.

mod command;
mod embedder;
mod errors;
mod fork;
mod parallel;
mod settings;
mod texts;

/// The program's allocator. Python keeps its own for its objects.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The native part of `embedding_server`.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use super::command::run_command;
    #[pymodule_export]
    use super::embedder::NativeEmbedder;
    #[pymodule_export]
    use super::fork::{after_fork, before_fork};
}
