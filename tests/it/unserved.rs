//! Connections and bytes that are refused before there is a request: connections over the limit, and bytes that are not
//! HTTP.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{TestApp, agent, checkpoint};
use crate::process::{Server, command, model};

/// Sends these bytes and returns all that comes back.
fn answer(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => String::from_utf8_lossy(&answer).into_owned(),
    }
}

fn metrics(address: &str) -> String {
    agent().get(format!("http://{address}/metrics")).call().unwrap().body_mut().read_to_string().unwrap()
}

fn count(address: &str, code: &str) -> u64 {
    let (name, text) = (format!("embedding_server_errors_total{{code=\"{code}\"}} "), metrics(address));
    text.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
}

fn wait(what: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !what() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
}

#[test]
fn probes_are_answered_at_the_connection_limit_and_other_requests_are_refused() {
    let app = TestApp::start(|c| c.server.max_connections = 20);
    let _taken: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(&app.address).unwrap()).collect();
    // More silent connections than are answered at the same time do not prevent a probe from being answered.
    let _more: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(&app.address).unwrap()).collect();
    for path in ["/health", "/ready", "/metrics", "/health/", "//ready"] {
        let answer = answer(&app.address, format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
        assert!(!answer.contains("too_many_connections"), "{path}: {answer}");
        assert!(answer.contains("connection: close"), "{path}: {answer}");
        if !path.ends_with("h/") {
            assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        }
    }
    let body = "x".repeat(300_000);
    let post = format!("POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    for request in ["GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", &post] {
        let answer = answer(&app.address, request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("too_many_connections"), "{answer}");
        assert!(answer.contains("connection: close") && answer.contains("retry-after"), "{answer}");
    }
    assert!(count(&app.address, "too_many_connections") >= 2);
}

#[test]
fn the_health_check_works_at_the_connection_limit() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::configured(dir.path(), "[server]\nmax_connections = 3", &[]);
    server.wait_until_ready();
    let _taken: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    let port = server.address.rsplit(':').next().unwrap();
    for live in [&[][..], &["--live"]] {
        let output = command(&[&["health", "--port", port], live].concat()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The limit of open files allows fewer connections, including those that are answered with an error.
#[test]
fn a_low_limit_of_open_files_lowers_the_connection_limit() {
    let args = ["--port", "0", "--model", &model(&checkpoint("llama"))];
    // The limit is enough for the files that a server opens on this machine, and for some connections.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let limit = format!("ulimit -n {}; exec \"$0\" \"$@\"", 64 + 4 * threads);
    let mut limited = Command::new("sh");
    limited.args(["-c", &limit, env!("CARGO_BIN_EXE_embedding-server")]).args(args);
    let server = Server::run(limited.stdout(Stdio::piped()));
    server.wait_until_ready();
    let _silent: Vec<TcpStream> = (0..150).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    for path in ["/health", "/ready"] {
        let answer = answer(&server.address, format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    let answer = answer(&server.address, b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(answer.contains("too_many_connections"), "{answer}");
    server.signal("TERM");
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("server.max_connections is 10000, but"), "{log}");
    assert!(log.matches("connections are refused").count() <= 10, "{log}");
}

/// The limit is lowered while the server is running, so the server could not take it into account.
#[cfg(target_os = "linux")]
#[test]
fn a_server_without_free_descriptors_logs_it_occasionally_and_recovers() {
    let server = Server::start(&["--model", &model(&checkpoint("llama"))]);
    server.wait_until_ready();
    let files = || std::fs::read_dir(format!("/proc/{}/fd", server.child.id())).unwrap().count();
    let limit = files() + 10;
    let pid = server.child.id().to_string();
    let status = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={limit}")]).status();
    let Ok(status) = status else {
        println!("skipped: prlimit is not installed");
        return;
    };
    assert!(status.success());
    let mut silent: Vec<TcpStream> = (0..30).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    std::thread::sleep(Duration::from_secs(3));
    silent.clear();
    wait(|| server.status("/health") == 200);
    server.signal("TERM");
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log}");
    assert!((1..=8).contains(&log.matches("cannot accept").count()), "{log}");
}

#[test]
fn bytes_that_are_not_http_get_an_error_response_and_are_counted() {
    let app = TestApp::start(|_| {});
    let long = format!("GET /health HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "x".repeat(500_000));
    let many = format!("GET /health HTTP/1.1\r\nhost: x\r\n{}\r\n", "x-h: v\r\n".repeat(101));
    let url = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(66_000));
    let length = "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 18446744073709551615\r\n\r\n{}";
    let cases: [(&str, u16); 12] = [
        ("hello\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/3.0\r\nhost: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost x\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: ten\r\n\r\n", 400),
        (&long, 431),
        (&many, 431),
        (&url, 414),
        (length, 400),
        ("GET /health HTTP/1.1\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400),
        ("POST /v1/embeddings HTTP/1.1\r\nhost: a b\r\ncontent-length: 13\r\n\r\n{\"input\":\"a\"}", 400),
    ];
    for (done, (request, status)) in cases.iter().enumerate() {
        let shown = &request[..request.len().min(80)];
        let answer = answer(&app.address, request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown}: {answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let error: serde_json::Value = serde_json::from_str(body).expect(&answer);
        assert_eq!((error["error"]["code"].as_str(), answer.contains("connection: close")), (Some("bad_http"), true));
        wait(|| count(&app.address, "bad_http") == done as u64 + 1);
    }
    // On HTTP/2 this is a DATA frame on stream 0.
    let frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x01\0\0\0\0\0\0x";
    answer(&app.address, frames);
    wait(|| count(&app.address, "bad_http") == cases.len() as u64 + 1);
    // Neither of these violates the protocol.
    for fine in ["GET /health HTTP/1.0\r\n\r\n", "", "GET /health HT"] {
        let mut stream = TcpStream::connect(&app.address).unwrap();
        stream.write_all(fine.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(count(&app.address, "bad_http"), cases.len() as u64 + 1);
}

#[test]
fn bytes_that_are_not_http_are_logged_at_debug_and_once_a_minute_at_warn() {
    for (level, lines) in [("debug", 20), ("info", 0)] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::configured(dir.path(), &format!("[log]\nlevel = {level:?}"), &[]);
        server.wait_until_ready();
        for _ in 0..20 {
            assert!(answer(&server.address, b"hello\r\n\r\n").starts_with("HTTP/1.1 400"));
        }
        server.signal("TERM");
        let (_, log) = server.end();
        let about =
            log.lines().filter(|line| line.contains("do not speak the protocol") || line.contains("does not speak"));
        let (warnings, details): (Vec<&str>, Vec<&str>) = about.partition(|line| line.contains("WARN"));
        assert_eq!((warnings.len(), details.len()), (1, lines), "{log}");
        assert!(details.iter().all(|line| line.contains("peer=127.0.0.1:")), "{log}");
    }
}
