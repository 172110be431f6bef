//! How a response is written and sent.

pub mod stream;
pub mod write;
