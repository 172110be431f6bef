//! Serves an LLM's token embeddings as text embeddings.
//!
//! A *layer-0 checkpoint* is a model's embedding table and final norm. The vector of a text is computed in three steps:
//! the model's own tokenizer splits it into tokens, the row of each token is normalized, and the mean of the rows is
//! the vector. There are no positions and no attention. So the norm reduces to a few numbers per row of the table,
//! which are computed once at load, and a text costs one gather and one sum.
//!
//! The library crates of the workspace do that: `layer0` embeds texts, `layer0_tokenizers` has the tokenizers,
//! `layer0_tuning` improves and measures tables, `layer0_records` reads data files, and `layer0_files` opens files.
//! This crate is the program around them. It is not meant as a library: its modules are public for its own tests.
//!
//! * [`builtin`] is the model inside the program.
//! * `server` is the HTTP server. `config`, `keys`, `registry`, `workers` and `openai` are its parts.
//! * `cli` is the command line, `bulk` embeds whole files, and `client` is a client for embedding servers.

// These macros panic if their stream is closed or full. `cli::output` writes without panicking.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod batches;
pub mod builtin;
#[cfg(feature = "bulk")]
pub mod bulk;
pub mod cli;
#[cfg(feature = "refine")]
pub mod client;
pub mod config;
pub mod decimal;
pub mod keys;
pub mod line_queue;
mod logged_progress;
pub mod model_error;
pub mod openai;
pub mod registry;
pub mod server;
pub mod stamp;
mod text_file;
pub mod workers;
