//! What a request passes before its response begins: host, API key, admission, body, inputs.

pub mod accept;
pub mod admit;
pub mod allowed_hosts;
pub mod authorize;
pub mod body;
pub mod coding;
pub mod context;
pub mod inputs;
pub mod json;
pub mod model_id;
pub mod query;
pub mod upload;
