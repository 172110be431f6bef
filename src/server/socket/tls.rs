//! The TLS handshake of HTTPS connections.

use std::io;

use super::listen::Socket;
use super::stream::SocketStream;
use crate::server::state::tls::TlsConfig;

/// The result of a handshake. Without the feature `tls` there are only streams.
#[cfg_attr(not(feature = "tls"), allow(dead_code))]
pub enum HandshakeOutcome {
    Stream(Box<dyn SocketStream>),
    /// The client speaks plain HTTP on an HTTPS port.
    PlainHttp(Box<dyn SocketStream>),
    /// The client closed the connection before it sent anything.
    Closed,
}

/// Performs the TLS handshake, if TLS is configured.
///
/// # Errors
/// If the client does not speak TLS, or no version of it that the server supports.
#[cfg(feature = "tls")]
pub async fn accept(tls: &TlsConfig, socket: Socket) -> io::Result<HandshakeOutcome> {
    let Some(acceptor) = tls.acceptor() else { return Ok(HandshakeOutcome::Stream(plain(socket))) };
    match (socket.first_byte().await?, &socket) {
        (None, Socket::Tcp(_)) => Ok(HandshakeOutcome::Closed),
        // Plain HTTP begins with a capital letter, the method; a TLS handshake begins with the byte 22.
        (Some(b'A'..=b'Z'), _) => Ok(HandshakeOutcome::PlainHttp(plain(socket))),
        _ => Ok(HandshakeOutcome::Stream(Box::new(acceptor.accept(socket).await?))),
    }
}

/// Returns the connection as it is: without the feature `tls` there is no handshake.
#[cfg(not(feature = "tls"))]
pub async fn accept(_: &TlsConfig, socket: Socket) -> io::Result<HandshakeOutcome> {
    Ok(HandshakeOutcome::Stream(plain(socket)))
}

fn plain(socket: Socket) -> Box<dyn SocketStream> {
    match socket {
        Socket::Tcp(stream) => Box::new(stream),
        #[cfg(unix)]
        Socket::Unix(stream) => Box::new(stream),
    }
}

#[cfg(feature = "tls")]
impl SocketStream for tokio_rustls::server::TlsStream<Socket> {}
