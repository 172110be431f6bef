//! Text embeddings from the token embeddings of any LLM, without running the LLM.
//!
//! A *layer-0 checkpoint* is a model's embedding table and final norm. The vector of a text is computed in three steps:
//! the model's own tokenizer splits it into tokens, the row of each token is normalized, and the mean of the rows is
//! the vector. There are no positions and no attention. So the norm reduces to a few numbers per row of the table,
//! which are computed once at load, and a text costs one gather and one sum.
//!
//! The modules, from the files to the vectors:
//!
//! * [`checkpoint`] opens a model directory: [`checkpoint::family`] knows model types, tensor names and norms,
//!   [`checkpoint::weights`] finds tensors in safetensors files, and [`checkpoint::map`] maps the files into memory.
//! * [`table`] holds the rows as they are stored; [`norm`] reduces a final norm to numbers per row.
//! * [`pooling`] computes the mean: with this crate's own kernels on CPU and CUDA, and with candle on Metal.
//! * [`cl100k`] decodes the token IDs that OpenAI's clients send.
//! * [`embedder`] combines them with a tokenizer of the crate `layer0_tokenizers`: it turns texts or token IDs into
//!   vectors.
//! * [`retrieval`] scores documents against a query.
//! * [`extract`] makes layer-0 checkpoints from whole models; `hub` (feature `hub`) downloads models from the Hugging
//!   Face Hub, and [`location`] distinguishes a Hub ID from a path.
//!
//! ```no_run
//! use layer0::{checkpoint::Checkpoint, embedder::{Embedder, Settings}};
//!
//! let checkpoint = Checkpoint::open("models/gemma-3-270m-layer0".as_ref(), &Default::default())?;
//! let embedder = Embedder::new(checkpoint, Settings::default())?;
//! let vectors = embedder.embed(&["hello", "안녕하세요"])?;
//! assert_eq!(vectors[0].len(), embedder.dimensions());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// These macros panic if their stream is closed or full.
#![deny(clippy::print_stdout, clippy::print_stderr)]

/// Runs the examples of the README as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;

pub mod checkpoint;
pub mod cl100k;
pub mod embedder;
pub mod error;
pub mod extract;
#[cfg(feature = "hub")]
pub mod hub;
pub mod location;
pub mod norm;
pub mod pooling;
pub mod progress;
pub mod retrieval;
pub mod table;

pub use error::{EmbedError, LoadError};
pub use layer0_tokenizers::yield_point;
