//! The integration tests in one binary: real requests over a socket, real checkpoints, and the real command line.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod architecture;
mod batches;
mod checkpoint_files;
mod common;
mod compiled_tokenizers;
mod config;
mod config_reference;
mod contract;
#[cfg(feature = "default-model")]
mod default_model;
mod device;
#[cfg(feature = "bulk")]
mod embed;
mod endpoints;
mod eval;
mod extract;
#[cfg(feature = "hub")]
mod fake_hub;
mod fake_teacher;
mod families;
mod files;
mod fingerprints;
mod fit;
mod gguf;
mod gguf_architectures;
mod golden;
#[cfg(feature = "hub")]
mod hub;
mod keys;
mod lexical_tail;
mod limits;
mod loading;
mod metrics;
mod models;
mod numbers;
mod openai_batch;
mod openapi;
mod operations;
mod other_systems;
mod output;
mod output_dtypes;
mod pairs;
mod paths;
mod playground;
mod preflight;
mod process;
mod properties;
mod refine;
mod refused;
mod reload;
mod rerank;
mod retrieval;
mod rooms;
mod sparse;
mod static_tables;
mod stop;
mod systemd;
mod teacher;
#[path = "../texts/mod.rs"]
mod texts;
#[cfg(feature = "tls")]
mod tls;
mod token_counts;
mod tokenize;
mod tools;
mod unix_socket;
mod unserved;
mod vectors;
