//! Serves an LLM's token embeddings as text embeddings.
//!
//! A *layer-0 checkpoint* is a model's embedding table and final norm. The vector of a text is computed in three steps:
//! the model's own tokenizer splits it into tokens, the row of each token is normalized, and the mean of the rows is
//! the vector. There are no positions and no attention. So the norm reduces to a few numbers per row of the table,
//! which are computed once at load, and a text costs one gather and one sum.
//!
//! The modules, from the files to the network:
//!
//! * [`checkpoint`] opens a model directory: [`checkpoint::family`] knows model types, tensor names and norms,
//!   [`checkpoint::weights`] finds tensors in safetensors files, and [`checkpoint::map`] maps the files into memory.
//! * [`table`] holds the rows as they are stored; [`norm`] reduces a final norm to numbers per row.
//! * [`pooling`] computes the mean: with this crate's own kernels on CPU and CUDA, and with candle on Metal.
//! * [`tokenize`] is the interface to tokenizers; [`cl100k`] decodes the token IDs that OpenAI's clients send.
//! * [`embedder`] combines them: it turns texts or token IDs into vectors. It is synchronous and knows neither HTTP nor
//!   configuration files.
//! * [`retrieval`] scores documents against a query.
//! * [`extract`] makes layer-0 checkpoints from whole models; `hub` (feature `hub`) downloads models from the Hugging
//!   Face Hub, and [`location`] distinguishes a Hub ID from a path.
//! * `refine` improves the rows of a table, `fit` moves them toward the vectors of a teacher model, and `eval` measures
//!   the quality of vectors (feature `refine`).
//! * `records` reads data files of all formats (feature `data`), and `bulk` embeds whole files (feature `bulk`).
//! * [`server`] is the HTTP server. [`config`], [`keys`], [`registry`], [`workers`] and [`openai`] are its parts, and
//!   [`client`] is a client for such servers (feature `server`).
//!
//! ```no_run
//! use embedding_server::{checkpoint::Checkpoint, embedder::{Embedder, Settings}};
//!
//! let checkpoint = Checkpoint::open("models/gemma-3-270m-layer0".as_ref(), &Default::default())?;
//! let embedder = Embedder::new(checkpoint, Settings::default())?;
//! let vectors = embedder.embed(&["hello", "안녕하세요"])?;
//! assert_eq!(vectors[0].len(), embedder.dimensions());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// These macros panic if their stream is closed or full. `cli::output` writes without panicking.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[cfg(feature = "bulk")]
pub mod bulk;
pub mod checkpoint;
pub mod cl100k;
#[cfg(feature = "refine")]
pub mod corpus;
#[cfg(feature = "server")]
pub mod decimal;
pub mod embedder;
pub mod error;
#[cfg(feature = "refine")]
pub mod eval;
pub mod extract;
pub mod files;
#[cfg(feature = "refine")]
pub mod fit;
#[cfg(feature = "hub")]
pub mod hub;
pub mod json;
mod large_pages;
pub mod location;
pub mod norm;
pub mod pooling;
mod prefetch;
pub mod progress;
#[cfg(feature = "data")]
pub mod records;
#[cfg(feature = "refine")]
pub mod refine;
pub mod retrieval;
pub mod table;
pub mod tokenize;
pub mod yield_point;

#[cfg(feature = "server")]
pub mod cli;
#[cfg(all(feature = "server", feature = "refine"))]
pub mod client;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod keys;
#[cfg(feature = "server")]
pub mod line_queue;
#[cfg(feature = "server")]
pub mod openai;
#[cfg(feature = "server")]
pub mod registry;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod stamp;
#[cfg(feature = "server")]
mod text_file;
#[cfg(feature = "server")]
pub mod workers;

pub use error::{EmbedError, LoadError};
