//! Connections, below HTTP: listening, TLS, transport, socket threads, refusing and draining.

pub mod accept_loop;
pub mod activity;
pub mod bind;
pub mod bind_error;
pub mod connection;
pub mod descriptors;
pub mod drain;
pub mod early_answer;
pub mod early_refusal;
pub mod listen;
pub mod malformed;
pub mod protocol;
pub mod refuse;
pub mod request_body;
pub mod request_boundary;
#[cfg(unix)]
pub mod socket_file;
pub mod stream;
pub mod systemd;
pub mod threads;
pub mod tls;
pub mod transport;
#[cfg(unix)]
pub mod unix_socket;
