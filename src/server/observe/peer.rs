//! The other end of a connection, as the log names it.

use std::net::SocketAddr;

/// The other end of a connection, for the log.
#[derive(Debug, Clone, Copy)]
pub enum Peer {
    Address(SocketAddr),
    /// A client of a Unix socket, which has no address.
    Local,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Local => f.write_str("local"),
        }
    }
}
