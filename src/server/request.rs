//! What a request passes before its response begins: host, API key, admission, body, inputs.

pub mod accept;
pub mod allowed_hosts;
pub mod authorize;
pub mod body;
pub mod coding;
pub mod inputs;
pub mod json;
