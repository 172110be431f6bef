//! HTTPS: HTTP/1.1 and HTTP/2, certificates that change, and clients that do not complete the handshake.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::CertifiedKey;
use tempfile::TempDir;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::process::{Server, command};

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Writes a new certificate for this machine to `dir`.
fn certify(dir: &Path) -> CertificateDer<'static> {
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    std::fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), signing_key.serialize_pem()).unwrap();
    cert.der().clone()
}

fn start(dir: &Path) -> Server {
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let settings = format!("[server]\ntls_cert = {cert:?}\ntls_key = {key:?}\nheader_timeout = \"500ms\"");
    Server::configured(dir, &settings, &[])
}

/// Opens a connection that trusts only `certificate`, and performs the handshake.
fn connect(server: &Server, certificate: &CertificateDer<'static>, protocols: &[&[u8]]) -> Result<Stream, String> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from("127.0.0.1").unwrap()).unwrap();
    let mut socket = TcpStream::connect(&server.address).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut socket).map_err(|e| e.to_string())?;
    }
    Ok(StreamOwned::new(connection, socket))
}

fn health(stream: &mut Stream) -> String {
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let mut piece = [0; 1024];
        let length = stream.read(&mut piece).unwrap();
        assert!(length > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..length]);
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn http1_and_http2_work_over_tls() {
    let dir = TempDir::new().unwrap();
    let certificate = certify(dir.path());
    let server = start(dir.path());
    let mut stream = connect(&server, &certificate, &[b"http/1.1"]).unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert!(health(&mut stream).starts_with("HTTP/1.1 200"));
    let stream = connect(&server, &certificate, &[b"h2", b"http/1.1"]).unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));

    let url = format!("https://{}/v1/embeddings", server.address);
    let ca = dir.path().join("cert.pem");
    for (version, flag) in [("2", "--http2"), ("1.1", "--http1.1")] {
        let curl = Command::new("curl")
            .args(["-sS", flag, "--retry", "50", "--retry-delay", "1", "--cacert", ca.to_str().unwrap()])
            .args([
                "-H",
                "content-type: application/json",
                "-d",
                r#"{"input":"hello"}"#,
                "-w",
                "\n%{http_version} %{http_code}",
                &url,
            ])
            .output();
        let Ok(output) = curl else {
            println!("skipped: curl is not installed");
            return;
        };
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("\"embedding\"") && text.ends_with(&format!("{version} 200")), "{text}");
    }
}

#[test]
fn a_refused_body_over_tls_is_discarded_and_the_connection_stays_open() {
    let dir = TempDir::new().unwrap();
    let certificate = certify(dir.path());
    let server = start(dir.path());
    let mut stream = connect(&server, &certificate, &[b"http/1.1"]).unwrap();
    let length = 4 << 20;
    write!(stream, "POST /nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n").unwrap();
    stream.write_all(&vec![b' '; length]).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}}") {
        let mut piece = [0; 1024];
        let length = stream.read(&mut piece).unwrap();
        assert!(length > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..length]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 404"), "{}", String::from_utf8_lossy(&answer));
    assert!(health(&mut stream).starts_with("HTTP/1.1 200"));
}

#[test]
fn the_health_check_uses_tls_if_the_server_does() {
    let dir = tempfile::tempdir().unwrap();
    certify(dir.path());
    let server = start(dir.path());
    let port = server.address.rsplit(':').next().unwrap();
    let config = dir.path().join("c.toml");
    let output = command(&["health", "--live", "--port", port, "--config", config.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let host = format!("unix:{}", dir.path().join("s").display());
    let config = ["--host", &host, "--config", config.to_str().unwrap()];
    let mut server = command(&config).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    let output = command(&[&["health", "--live"], &config[..]].concat()).output().unwrap();
    let _ = (server.kill(), server.wait());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_reload_uses_a_new_certificate_and_refuses_an_invalid_one() {
    let dir = TempDir::new().unwrap();
    let old = certify(dir.path());
    let server = start(dir.path());
    let mut open = connect(&server, &old, &[b"http/1.1"]).unwrap();
    let ready = Instant::now() + Duration::from_secs(30);
    // A changed certificate is read only after the models are loaded.
    while {
        let mut stream = connect(&server, &old, &[b"http/1.1"]).unwrap();
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        !head.ends_with(b"200")
    } {
        assert!(Instant::now() < ready);
    }
    assert!(health(&mut open).contains("200"));
    let new = certify(dir.path());
    server.signal("HUP");
    let deadline = Instant::now() + Duration::from_secs(30);
    while connect(&server, &new, &[]).is_err() {
        assert!(Instant::now() < deadline);
    }
    assert!(connect(&server, &old, &[]).is_err());
    assert!(health(&mut open).contains("200"), "what is open goes on");

    std::fs::write(dir.path().join("key.pem"), "no key").unwrap();
    server.signal("HUP");
    server.signal("TERM");
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn a_certificate_that_cannot_be_used_ends_with_78_and_names_the_setting() {
    let dir = TempDir::new().unwrap();
    certify(dir.path());
    std::fs::write(dir.path().join("cert.pem"), "no certificate").unwrap();
    let config = dir.path().join("c.toml");
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&config, format!("[server]\nport = 0\ntls_cert = {cert:?}\ntls_key = {key:?}")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_embedding-server")).arg("--config").arg(config).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{error}");
    assert!(error.contains("server.tls_cert"), "{error}");
}

#[test]
fn a_connection_without_a_handshake_is_closed() {
    let dir = TempDir::new().unwrap();
    certify(dir.path());
    let server = start(dir.path());
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.is_empty());
}

/// The server answers in plain HTTP, as Go and nginx do. A client that receives a TLS alert reports an obscure HTTP/0.9
/// error.
#[test]
fn plain_http_gets_an_error_and_bytes_that_are_not_tls_are_counted() {
    let dir = TempDir::new().unwrap();
    let certificate = certify(dir.path());
    let server = start(dir.path());
    let refused = |count: u64| {
        let mut stream = connect(&server, &certificate, &[b"http/1.1"]).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text);
        let text = String::from_utf8(text).unwrap();
        text.contains(&format!("embedding_server_errors_total{{code=\"bad_http\"}} {count}\n"))
    };
    let body = "x".repeat(100_000);
    let post = format!("POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    for (done, request) in ["GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n", &post].iter().enumerate() {
        let mut plain = TcpStream::connect(&server.address).unwrap();
        plain.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        plain.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("This port expects HTTPS"), "{answer}");
        assert!(refused(done as u64 + 1));
    }
    for (done, bytes) in [b"hello\r\n\r\n".as_slice(), b"\x16\x03\x01\0\x05hello", b"\0\0\0\0\0\0"].iter().enumerate() {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.write_all(bytes).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
        let deadline = Instant::now() + Duration::from_secs(30);
        while !refused(done as u64 + 3) {
            assert!(Instant::now() < deadline, "{bytes:?}");
        }
    }
}

#[test]
fn a_client_that_does_not_finish_its_handshake_does_not_delay_a_stop() {
    let dir = TempDir::new().unwrap();
    certify(dir.path());
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let settings = format!("[server]\ntls_cert = {cert:?}\ntls_key = {key:?}\ndrain_timeout = \"300s\"");
    let server = Server::configured(dir.path(), &settings, &[]);
    let _idle = [b"".as_slice(), b"\x16\x03\x01"].map(|bytes| {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    });
    let started = Instant::now();
    server.signal("TERM");
    assert_eq!(server.end().0, Some(0));
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}
