//! Connections, below HTTP: listening, TLS, transport, socket threads, refusing and draining.

pub mod accept_loop;
pub mod activity;
pub mod bind;
pub mod connection;
pub mod descriptors;
pub mod drain;
pub mod listen;
pub mod malformed;
pub mod refuse;
pub mod request_body;
pub mod systemd;
pub mod threads;
pub mod tls;
pub mod transport;
