//! HTTPS: the certificate, and the handshake. In a build without the feature `tls`, the error that says so.

use std::io;

use tokio::net::TcpStream;

use super::transport::Bytes;
use crate::config::Server;

#[cfg(feature = "tls")]
pub struct Tls(Option<tokio_rustls::TlsAcceptor>);

#[cfg(feature = "tls")]
impl Tls {
    /// Reads the certificate chain and the key that `server` names, if it does.
    ///
    /// # Errors
    /// When they cannot be read, or do not belong together.
    pub fn read(server: &Server) -> Result<Self, String> {
        use tokio_rustls::rustls::ServerConfig;
        use tokio_rustls::rustls::crypto::ring::default_provider;
        use tokio_rustls::rustls::pki_types::pem::PemObject;
        use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

        let (Some(cert), Some(key)) = (&server.tls_cert, &server.tls_key) else { return Ok(Self(None)) };
        let failed = |setting: &str, path: &std::path::Path, e: &dyn std::fmt::Display| {
            format!("server.{setting}, {}: {e}; expected PEM", path.display())
        };
        let chain: Vec<CertificateDer<'_>> = CertificateDer::pem_file_iter(cert)
            .and_then(Iterator::collect)
            .map_err(|e| failed("tls_cert", cert, &e))?;
        let private = PrivateKeyDer::from_pem_file(key).map_err(|e| failed("tls_key", key, &e))?;
        let mut config = ServerConfig::builder_with_provider(default_provider().into())
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
            .map_err(|e| failed("tls_cert", cert, &e))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(Some(std::sync::Arc::new(config).into())))
    }

    /// # Errors
    /// When the client does not speak TLS, or none that we do.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<Box<dyn Bytes>> {
        Ok(match &self.0 {
            Some(acceptor) => Box::new(acceptor.accept(stream).await?),
            None => Box::new(stream),
        })
    }
}

#[cfg(not(feature = "tls"))]
pub struct Tls;

#[cfg(not(feature = "tls"))]
impl Tls {
    pub fn read(server: &Server) -> Result<Self, String> {
        match &server.tls_cert {
            Some(_) => Err("server.tls_cert is set, and this build has no feature `tls`".to_owned()),
            None => Ok(Self),
        }
    }

    pub async fn accept(&self, stream: TcpStream) -> io::Result<Box<dyn Bytes>> {
        Ok(Box::new(stream))
    }
}
