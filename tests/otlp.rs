//! Tests the feature `otlp` with the real binary and a collector that receives one export. This is a separate test binary, so that the
//! feature can be built without all others.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Accepts one request, and returns its headers and its body.
fn collect(listener: &TcpListener) -> std::io::Result<(String, Vec<u8>)> {
    let mut reader = BufReader::new(listener.accept()?.0);
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    Ok((head, body))
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

/// The span has the client's trace and parent and the fields of the log line, but no text.
#[test]
fn spans_are_sent_to_the_collector_that_the_environment_names() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let (send, exported) = mpsc::channel();
    std::thread::spawn(move || send.send(collect(&collector)));

    let model = concat!("m=", env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/checkpoints/llama");
    let mut server = Command::new(env!("CARGO_BIN_EXE_embedding-server"))
        .args(["--model", model, "--port", "0"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env_remove("OTEL_TRACES_SAMPLER")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").expect(&line);
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    while agent.get(format!("{address}/ready")).call().unwrap().status() != 200 {
        std::thread::yield_now();
    }
    let answer = agent
        .post(format!("{address}/v1/embeddings"))
        .header("content-type", "application/json")
        .header("traceparent", format!("00-{TRACE}-{PARENT}-01"))
        .send(r#"{"input":"secret"}"#)
        .unwrap();
    let own = answer.headers()["traceparent"].to_str().unwrap();
    let span = own.strip_prefix(&format!("00-{TRACE}-")).and_then(|rest| rest.strip_suffix("-01")).expect(own);
    assert_ne!(span, PARENT);

    // The server sends the remaining spans before it ends.
    assert!(Command::new("kill").args(["-TERM", &server.id().to_string()]).status().unwrap().success());
    let end = server.wait_with_output().unwrap();
    let log = String::from_utf8(end.stderr).unwrap();
    assert_eq!(end.status.code(), Some(0), "{log}");
    assert!(log.contains(TRACE) && !log.contains("http.route"), "{log}");

    let (head, body) = exported.recv_timeout(Duration::from_secs(30)).expect(&log).unwrap();
    assert!(head.starts_with("POST /v1/traces "), "{head}");
    let has = |part: &[u8]| body.windows(part.len()).any(|window| window == part);
    for id in [TRACE, PARENT, span] {
        assert!(has(&bytes(id)), "{id} in {body:?}");
    }
    for word in ["POST /v1/embeddings", "embedding-server", "http.response.status_code", "tokenize;dur="] {
        assert!(has(word.as_bytes()), "{word} in {body:?}");
    }
    assert!(!has(b"secret"));
}
