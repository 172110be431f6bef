//! Reads the certificate chain and the private key for HTTPS, with error messages for operators.

use std::fmt::Display;
use std::path::Path;

use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{Error, ServerConfig};

use super::tls_error::{TlsError, TlsErrorKind};

/// Reads the certificate chain from `cert` and its private key from `key`, both in PEM format.
///
/// # Errors
/// A sentence with the setting and the file that are wrong, and the remedy.
pub fn read(cert: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let in_cert = |Problem { kind, message }: Problem| {
        TlsError::new(kind, format!("server.tls_cert, {}: {message}", cert.display()))
    };
    let in_key = |Problem { kind, message }: Problem| {
        TlsError::new(kind, format!("server.tls_key, {}: {message}", key.display()))
    };
    let (cert_text, key_text) = (text(cert, "x509").map_err(in_cert)?, text(key, "pkey").map_err(in_key)?);

    let damaged = |e: &dyn Display| {
        Problem::new(TlsErrorKind::Malformed, format!("the PEM is damaged ({e}); write or copy the file again"))
    };
    let chain: Vec<CertificateDer<'_>> =
        CertificateDer::pem_slice_iter(&cert_text).collect::<Result<_, _>>().map_err(|e| in_cert(damaged(&e)))?;
    if chain.is_empty() {
        return Err(in_cert(no_certificate(&labels(&cert_text))));
    }
    if let Some(problem) = no_key(&labels(&key_text), &key_text) {
        return Err(in_key(problem));
    }
    let private = PrivateKeyDer::from_pem_slice(&key_text).map_err(|e| in_key(damaged(&e)))?;

    let builder = ServerConfig::builder_with_provider(default_provider().into())
        .with_safe_default_protocol_versions()
        .map_err(|e| in_cert(Problem::new(TlsErrorKind::Unsupported, e.to_string())))?
        .with_no_client_auth();
    builder.with_single_cert(chain, private).map_err(|error| match error {
        Error::InconsistentKeys(_) => in_key(Problem::new(
            TlsErrorKind::Mismatch,
            format!(
                "the private key does not belong to the certificate in {}; set the key that the certificate was made \
                 for, and put the server's own certificate first in its file, before those of the authorities",
                cert.display()
            ),
        )),
        Error::InvalidCertificate(error) => in_cert(Problem::new(
            TlsErrorKind::Malformed,
            format!("the first certificate cannot be read ({error:?}); write or copy the file again"),
        )),
        error => in_key(Problem::new(
            TlsErrorKind::Unsupported,
            format!(
                "the private key cannot be used ({error}); expected RSA of 2048 to 4096 bits, ECDSA P-256 or P-384, or \
                 Ed25519"
            ),
        )),
    })
}

/// What is wrong with one of the two files.
struct Problem {
    kind: TlsErrorKind,
    message: String,
}

impl Problem {
    fn new(kind: TlsErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// Reads the file and checks that it is text. `tool` is the openssl command that converts it to PEM.
fn text(path: &Path, tool: &str) -> Result<Vec<u8>, Problem> {
    let bytes = layer0_files::read(path).map_err(|e| Problem::new(TlsErrorKind::File, e.to_string()))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes).to_vec();
    match bytes.as_slice() {
        [] => Err(Problem::new(TlsErrorKind::File, "the file is empty")),
        // DER begins with an ASN.1 sequence. In PKCS #12 the number 3 follows.
        [0x30, 0x82, _, _, 2, 1, 3, ..] | [0x30, 0x80, 2, 1, 3, ..] => Err(Problem::new(
            TlsErrorKind::Malformed,
            format!("the file is PKCS #12, not PEM; convert it: openssl pkcs12 -in {} -nodes", path.display()),
        )),
        [0x30, length, ..] if *length >= 0x20 && !bytes.starts_with(b"0-") => Err(Problem::new(
            TlsErrorKind::Malformed,
            format!(
                "the file is DER, not PEM; convert it: openssl {tool} -inform der -in {} -out {}.pem",
                path.display(),
                path.display()
            ),
        )),
        _ => Ok(bytes),
    }
}

/// Returns the labels of the sections in a PEM file.
fn labels(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let label = |line: &str| Some(line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----")?.to_owned());
    text.lines().filter_map(label).collect()
}

fn no_certificate(labels: &[String]) -> Problem {
    let has = |part: &str| labels.iter().any(|label| label.contains(part));
    let message = if has("PRIVATE KEY") {
        "the file holds a private key and no certificate; are server.tls_cert and server.tls_key swapped?".to_owned()
    } else if has("CERTIFICATE REQUEST") {
        "the file holds a certificate request; set the certificate that the authority issued for it".to_owned()
    } else {
        let found = if labels.is_empty() { "no PEM section".to_owned() } else { labels.join(", ") };
        format!("the file holds {found}; expected PEM with the certificate chain (-----BEGIN CERTIFICATE-----)")
    };
    Problem::new(TlsErrorKind::Missing, message)
}

/// Returns why a file with these sections has no usable private key, or `None` if it has one.
fn no_key(labels: &[String], text: &[u8]) -> Option<Problem> {
    let has = |part: &str| labels.iter().any(|label| label.contains(part));
    let encrypted = has("ENCRYPTED PRIVATE KEY") || memchr::memmem::find(text, b"Proc-Type: 4,ENCRYPTED").is_some();
    if encrypted {
        return Some(Problem::new(
            TlsErrorKind::Encrypted,
            "the private key is encrypted, and the server cannot ask for its passphrase; write it without one: \
             openssl pkey -in KEY -out PLAIN",
        ));
    }
    if has("OPENSSH PRIVATE KEY") {
        return Some(Problem::new(
            TlsErrorKind::Unsupported,
            "the private key is in OpenSSH's own format; convert it: ssh-keygen -p -m PKCS8 -f KEY",
        ));
    }
    if has("PRIVATE KEY") {
        return None;
    }
    if has("CERTIFICATE") {
        return Some(Problem::new(
            TlsErrorKind::Missing,
            "the file holds a certificate and no private key; are server.tls_cert and server.tls_key swapped?",
        ));
    }
    let found = if labels.is_empty() { "no PEM section".to_owned() } else { labels.join(", ") };
    Some(Problem::new(
        TlsErrorKind::Missing,
        format!("the file holds {found}; expected PEM with the private key (-----BEGIN PRIVATE KEY-----)"),
    ))
}

#[cfg(test)]
mod tests {
    use rcgen::CertifiedKey;

    use super::*;

    #[test]
    fn every_mistake_in_the_certificate_files_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let names = || vec!["localhost".to_owned()];
        let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names()).unwrap();
        let other = rcgen::generate_simple_self_signed(names()).unwrap();
        let (cert_pem, key_pem) = (cert.pem(), signing_key.serialize_pem());
        let renamed = |label: &str| key_pem.replace("PRIVATE KEY", label);
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----";
        let files: [(&str, Vec<u8>); 16] = [
            ("cert", cert_pem.clone().into()),
            ("cert with a mark", format!("\u{feff}{cert_pem}").into()),
            ("key", key_pem.clone().into()),
            ("both", format!("{key_pem}{cert_pem}").into()),
            ("other key", other.signing_key.serialize_pem().into()),
            ("der cert", cert.der().to_vec()),
            ("der key", signing_key.serialize_der()),
            ("empty", Vec::new()),
            ("text", "hello".into()),
            ("damaged cert", cert_pem.replace("MII", "M!!").into()),
            ("damaged key", key_pem.replace("-----END", "-----EMD").into()),
            ("request", cert_pem.replace("CERTIFICATE-", "CERTIFICATE REQUEST-").into()),
            ("encrypted", renamed("ENCRYPTED PRIVATE KEY").into()),
            ("old encrypted", old.into()),
            ("ssh", renamed("OPENSSH PRIVATE KEY").into()),
            ("public", renamed("PUBLIC KEY").into()),
        ];
        for (name, content) in files {
            std::fs::write(at(name), content).unwrap();
        }
        for (cert, key) in [("cert", "key"), ("cert with a mark", "key"), ("both", "both")] {
            assert!(read(&at(cert), &at(key)).is_ok(), "{cert}, {key}");
        }
        for (cert, key, setting, why, kind) in [
            ("nowhere", "key", "tls_cert", "No such file", TlsErrorKind::File),
            ("cert", "nowhere", "tls_key", "No such file", TlsErrorKind::File),
            ("key", "cert", "tls_cert", "swapped", TlsErrorKind::Missing),
            ("cert", "cert", "tls_key", "swapped", TlsErrorKind::Missing),
            ("cert", "other key", "tls_key", "does not belong", TlsErrorKind::Mismatch),
            ("der cert", "key", "tls_cert", "openssl x509 -inform der", TlsErrorKind::Malformed),
            ("cert", "der key", "tls_key", "openssl pkey -inform der", TlsErrorKind::Malformed),
            ("empty", "key", "tls_cert", "is empty", TlsErrorKind::File),
            ("text", "key", "tls_cert", "BEGIN CERTIFICATE", TlsErrorKind::Missing),
            ("cert", "text", "tls_key", "BEGIN PRIVATE KEY", TlsErrorKind::Missing),
            ("damaged cert", "key", "tls_cert", "damaged", TlsErrorKind::Malformed),
            ("cert", "damaged key", "tls_key", "damaged", TlsErrorKind::Malformed),
            ("request", "key", "tls_cert", "request", TlsErrorKind::Missing),
            ("cert", "encrypted", "tls_key", "encrypted", TlsErrorKind::Encrypted),
            ("cert", "old encrypted", "tls_key", "encrypted", TlsErrorKind::Encrypted),
            ("cert", "ssh", "tls_key", "ssh-keygen", TlsErrorKind::Unsupported),
            ("cert", "public", "tls_key", "PUBLIC KEY", TlsErrorKind::Missing),
        ] {
            let error = read(&at(cert), &at(key)).unwrap_err();
            assert_eq!(error.kind(), kind, "{cert}, {key}: {error}");
            let error = error.to_string();
            assert!(error.starts_with(&format!("server.{setting}, ")) && error.contains(why), "{cert}, {key}: {error}");
        }
    }
}
