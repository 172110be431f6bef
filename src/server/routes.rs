//! The resources of the API: one file for each, with its handlers and their OpenAPI descriptions.

pub mod batches;
pub mod cohere;
pub mod docs;
pub mod embeddings;
pub mod exposition;
pub mod files;
pub mod health;
pub mod metrics;
pub mod models;
pub mod ollama;
pub mod playground;
pub mod rerank;
pub mod similarity;
pub mod sparse;
pub mod tei;
pub mod tokenize;
