//! What the access log and the metrics record about a response.

use std::sync::Arc;

use crate::registry::RegisteredModel;

/// What a response reports to the access log and the metrics. It is the only extension of responses: error responses
/// and the responses of handlers set it, and the router reads it.
#[derive(Clone)]
pub enum ResponseAccounting {
    /// An error.
    Failed(ErrorClass),
    /// The response to the inputs of a request.
    Answered { entry: Arc<RegisteredModel>, inputs: usize, tokens: usize },
}

/// The error code under which the metrics count an error response. An error without a code has a class of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorClass(pub &'static str);

impl ErrorClass {
    pub const MODEL_DAMAGED: Self = Self("model_damaged");
    /// A key has reached its own rate limit. (The server's own limit has the class `rate_limit_exceeded`.)
    pub const KEY_RATE_LIMIT: Self = Self("key_rate_limit_exceeded");
}
