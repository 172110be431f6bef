//! How a response is written and sent.

pub mod accounted;
pub mod form;
pub mod guarded_body;
pub mod offline;
pub mod slices;
pub mod stream;
pub mod weighed_body;
pub mod write;
