//! Improves the rows of a token embedding table, and measures the quality of text embeddings.
//!
//! * [`refine`] computes better rows from the table alone.
//! * [`fit`] moves rows toward the vectors of a teacher model.
//! * [`contrastive`] trains rows on pairs of texts.
//! * [`eval`] measures vectors on tasks with known answers.
//! * [`corpus`] gives `refine` and `fit` the texts of data files.

// These macros panic if their stream is closed or full.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![deny(missing_docs, missing_debug_implementations)]

pub mod contrastive;
pub mod corpus;
mod error;
pub mod eval;
pub mod fit;
pub mod refine;

pub use error::{CorpusError, EvalError, FitError, InvalidVectors, RefineError};
