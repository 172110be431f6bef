//! TLS: the handshake of HTTPS connections. A build without the feature `tls` refuses a configured certificate.

use std::io;

use super::listen::Socket;
use super::transport::SocketStream;
use crate::config::ServerConfig;

/// The result of a handshake. Without the feature `tls` there are only streams.
#[cfg_attr(not(feature = "tls"), allow(dead_code))]
pub enum HandshakeOutcome {
    Stream(Box<dyn SocketStream>),
    /// The client speaks plain HTTP on an HTTPS port.
    PlainHttp(Box<dyn SocketStream>),
    /// The client closed the connection before it sent anything.
    Closed,
}

#[cfg(feature = "tls")]
pub struct Tls(Option<tokio_rustls::TlsAcceptor>);

#[cfg(feature = "tls")]
impl Tls {
    /// Reads the certificate chain and the private key that `server` names, if it names them.
    ///
    /// # Errors
    /// If they cannot be read, or do not belong together.
    pub fn read(server: &ServerConfig) -> Result<Self, String> {
        let (Some(cert), Some(key)) = (&server.tls_cert, &server.tls_key) else { return Ok(Self(None)) };
        let mut config = crate::server::state::certificate::read(cert, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(Some(std::sync::Arc::new(config).into())))
    }

    /// Performs the TLS handshake, if TLS is configured.
    ///
    /// # Errors
    /// If the client does not speak TLS, or no version of it that the server supports.
    pub async fn accept(&self, socket: Socket) -> io::Result<HandshakeOutcome> {
        let Some(acceptor) = &self.0 else { return Ok(HandshakeOutcome::Stream(plain(socket))) };
        match (socket.first_byte().await?, &socket) {
            (None, Socket::Tcp(_)) => Ok(HandshakeOutcome::Closed),
            // Plain HTTP begins with a capital letter, the method; a TLS handshake begins with the byte 22.
            (Some(b'A'..=b'Z'), _) => Ok(HandshakeOutcome::PlainHttp(plain(socket))),
            _ => Ok(HandshakeOutcome::Stream(Box::new(acceptor.accept(socket).await?))),
        }
    }
}

#[cfg(not(feature = "tls"))]
pub struct Tls;

#[cfg(not(feature = "tls"))]
impl Tls {
    pub fn read(server: &ServerConfig) -> Result<Self, String> {
        match &server.tls_cert {
            Some(_) => Err("server.tls_cert is set, but this build does not have the feature `tls`".to_owned()),
            None => Ok(Self),
        }
    }

    pub async fn accept(&self, socket: Socket) -> io::Result<HandshakeOutcome> {
        Ok(HandshakeOutcome::Stream(plain(socket)))
    }
}

fn plain(socket: Socket) -> Box<dyn SocketStream> {
    match socket {
        Socket::Tcp(stream) => Box::new(stream),
        #[cfg(unix)]
        Socket::Unix(stream) => Box::new(stream),
    }
}
