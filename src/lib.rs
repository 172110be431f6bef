//! An LLM's token embeddings, served as text embeddings.
//!
//! A *layer-0 checkpoint* is a model's embedding table and final norm. A text is tokenized with the
//! model's own tokenizer, each token's row is normalized, the rows are averaged: no positions, no
//! attention, so the norm collapses to a few numbers per vocabulary row and a text costs one gather
//! and one sum.
//!
//! The map, from the disk to the wire:
//!
//! * [`checkpoint`] opens a directory: [`checkpoint::family`] knows model types, tensor names and
//!   norms, [`checkpoint::weights`] finds tensors in safetensors files, [`checkpoint::map`] maps them.
//! * [`table`] holds rows as they are stored; [`norm`] turns a final norm into numbers per row.
//! * [`pooling`] is the seam to the arithmetic: the CPU's own kernel, our own on CUDA, candle elsewhere.
//! * [`tokenize`] is the seam to tokenizers; [`cl100k`] reads the token ids that OpenAI's clients send.
//! * [`embedder`] joins them: text or token ids to vectors. Sync; knows no HTTP, no config file.
//! * [`extract`] makes layer-0 directories of whole models; `hub` (feature `hub`) gives it models of the Hub, and
//!   [`location`] tells an id from a path.
//! * `refine` makes better rows from the same table, `fit` moves them toward a teacher's vectors, and `eval` measures how
//!   good vectors are (feature `refine`).
//! * `bulk` embeds whole files (feature `bulk`).
//! * [`config`], [`client`], [`registry`], [`workers`], [`openai`] and [`server`] make a server of it (feature `server`).
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

// These panic where their stream is closed or full. `cli::output` writes without.
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
#[cfg(feature = "refine")]
pub mod refine;
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
