//! The TLS configuration of the listening sockets. A build without the feature `tls` refuses a configured certificate.

use super::tls_error::TlsError;
#[cfg(not(feature = "tls"))]
use super::tls_error::TlsErrorKind;
use crate::config::ServerConfig;

/// The certificate chain and the private key for HTTPS, if the configuration names them.
#[cfg(feature = "tls")]
pub struct TlsConfig(Option<tokio_rustls::TlsAcceptor>);

#[cfg(feature = "tls")]
impl TlsConfig {
    /// Reads the certificate chain and the private key that `server` names, if it names them.
    ///
    /// # Errors
    /// If they cannot be read, or do not belong together.
    pub fn read(server: &ServerConfig) -> Result<Self, TlsError> {
        let (Some(cert), Some(key)) = (&server.tls_cert, &server.tls_key) else { return Ok(Self(None)) };
        let mut config = super::certificate::read(cert, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(Some(std::sync::Arc::new(config).into())))
    }

    /// Returns what performs TLS handshakes, or `None` if connections speak plain HTTP.
    pub fn acceptor(&self) -> Option<&tokio_rustls::TlsAcceptor> {
        self.0.as_ref()
    }
}

/// Without the feature `tls` there is never a certificate.
#[cfg(not(feature = "tls"))]
pub struct TlsConfig;

#[cfg(not(feature = "tls"))]
impl TlsConfig {
    /// Accepts a configuration without a certificate.
    ///
    /// # Errors
    /// If `server` names a certificate.
    pub fn read(server: &ServerConfig) -> Result<Self, TlsError> {
        match &server.tls_cert {
            Some(_) => Err(TlsError::new(
                TlsErrorKind::Unsupported,
                "server.tls_cert is set, but this build does not have the feature `tls`",
            )),
            None => Ok(Self),
        }
    }
}
