//! Text embeddings from the token embeddings of any LLM, without running the LLM.
//!
//! A *layer-0 checkpoint* is a model's embedding table and final norm. The vector of a text is computed in three steps:
//! the model's own tokenizer splits it into tokens, the row of each token is normalized, and the mean of the rows is
//! the vector. There are no positions and no attention. So the norm reduces to a few numbers per row of the table,
//! which are computed once at load, and a text costs one gather and one sum.
//!
//! [`Embedder`] is the way in:
//!
//! ```
//! use layer0::Embedder;
//!
//! # let path = "../../tests/fixtures/checkpoints/llama";
//! let embedder = Embedder::builder(path).dimensions(16).open()?;
//! let vectors = embedder.embed(&["hello", "안녕하세요"])?;
//! assert_eq!(vectors[0].len(), 16);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! * [`Embedder`] turns texts and token IDs into vectors. [`Checkpoint`] is an opened model, with its table, norm and tokenizer.
//! * [`retrieval`] scores documents against a query.
//! * [`extract`] makes a layer-0 checkpoint from a whole model, which is a hundred times as large.
//! * `hub` (feature `hub`) fetches models from the Hugging Face Hub, and [`location`] distinguishes a Hub ID from a path.
//!
//! Everything is synchronous and runs on the calling thread, except for loading. Long work can be interrupted at a [`yield_point`].
//!
//! Modules that this documentation does not show are public for the other packages of the workspace. They may change in any version.

// These macros panic if their stream is closed or full.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![deny(missing_docs, missing_debug_implementations)]

/// Runs the examples of the README as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;

pub mod checkpoint;
#[doc(hidden)]
pub mod cl100k;
#[doc(hidden)]
pub mod embedder;
#[doc(hidden)]
pub mod error;
pub mod extract;
#[doc(hidden)]
pub mod fingerprint;
#[cfg(feature = "hub")]
pub mod hub;
pub mod location;
#[doc(hidden)]
pub mod norm;
#[doc(hidden)]
pub mod output_dtype;
mod places;
#[doc(hidden)]
pub mod pooling;
pub mod progress;
pub mod retrieval;
#[doc(hidden)]
pub mod table;

pub use checkpoint::{Checkpoint, Overrides, TokenizerCache};
pub use embedder::{Embedder, EmbedderBuilder, EmptyInput, Input, Memory, PooledTokens, TokenInput};
pub use error::{Damage, EmbedError, ExtractError, HubError, LoadError, LoadErrorKind};
pub use fingerprint::{Fingerprint, InvalidFingerprint};
pub use layer0_tokenizers::yield_point;
pub use norm::NormKind;
pub use output_dtype::OutputDtype;
pub use pooling::place::DeviceChoice;
pub use table::TableDtype;
