//! Responses that are sent before the body of the request has arrived: every client must be able to read them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use embedding_server::config::units::ByteCount;
use embedding_server::keys::ApiKeys;

use crate::common::TestApp;

const KEY: &str = "sk-0123456789abcdef";
const JSON: &str = "content-type: application/json\r\nauthorization: Bearer sk-0123456789abcdef\r\n";

/// Longer than any of these tests takes, and shorter than the wait for a client that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn app() -> TestApp {
    TestApp::start(|c| {
        c.server.api_keys = ApiKeys::new([KEY.to_owned()]);
        c.server.max_body = ByteCount(1_000_000);
    })
}

/// A client that reads no response before it has sent all of its request.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(app: &TestApp) -> Self {
        let stream = TcpStream::connect(&app.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    /// Sends the head and the body in two writes, as Python's http.client does.
    fn send(&mut self, request: &str, headers: &str, body: &[u8]) {
        let length = body.len();
        self.write(format!("{request} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length}\r\n\r\n").as_bytes());
        self.write(body);
    }

    /// Returns the status and the head of the next response.
    fn answer(&mut self) -> (u16, String) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.0.read_line(&mut head).unwrap() > 0, "the connection was closed after {head:?}");
        }
        let head = head.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        self.0.read_exact(&mut vec![0; length.unwrap().parse().unwrap()]).unwrap();
        (head[9..12].parse().unwrap(), head)
    }

    fn assert_works(&mut self) {
        self.send("POST /v1/embeddings", JSON, br#"{"input": "a"}"#);
        assert_eq!(self.answer().0, 200);
    }
}

/// Returns a body of which each piece looks like another request.
fn body(length: usize) -> Vec<u8> {
    b"GET / HTTP/1.1\r\n\r\n".iter().copied().cycle().take(length).collect()
}

#[test]
fn a_client_that_sends_all_of_a_refused_body_reads_the_response_and_can_continue() {
    let app = app();
    let refused = [
        ("POST /v1/embeddings", "content-type: application/json\r\nauthorization: Bearer wrong\r\n", 401),
        ("POST /v1/embeddings", "content-type: application/json\r\n", 401),
        ("POST /v1/nothing", JSON, 404),
        ("PUT /v1/embeddings", JSON, 405),
        ("GET /v1/embeddings", JSON, 405),
        ("GET /health", JSON, 200),
        ("DELETE /nothing", JSON, 404),
        ("POST /v1/embeddings", "content-type: text/plain\r\nauthorization: Bearer sk-0123456789abcdef\r\n", 415),
    ];
    for length in [1, 64, 3000, 512 << 10, 4 << 20, 30 << 20] {
        let body = body(length);
        for (request, headers, status) in refused {
            let mut client = Client::connect(&app);
            for _ in 0..if length < 1 << 20 { 5 } else { 1 } {
                client.send(request, headers, &body);
                let (found, head) = client.answer();
                assert_eq!((found, head.contains("connection: close")), (status, false), "{request} {length}: {head}");
            }
            client.assert_works();
        }
        if length > 1_000_000 {
            let mut client = Client::connect(&app);
            client.send("POST /v1/embeddings", JSON, &body);
            assert_eq!(client.answer().0, 413);
            client.assert_works();
        }
    }
}

#[test]
fn a_refused_chunked_body_is_discarded_and_the_connection_stays_open() {
    let app = app();
    let mut client = Client::connect(&app);
    for status in [404, 401, 413] {
        let (path, key) = if status == 404 { ("nothing", KEY) } else { ("embeddings", KEY) };
        let key = if status == 401 { "wrong" } else { key };
        client.write(format!("POST /v1/{path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nauthorization: Bearer {key}\r\n\r\n").as_bytes());
        for _ in 0..30 {
            client.write(b"186a0\r\n");
            client.write(&body(100_000));
            client.write(b"\r\n");
        }
        client.write(b"0\r\n\r\n");
        assert_eq!(client.answer().0, status);
        client.assert_works();
    }
}

#[test]
fn a_transfer_coding_other_than_chunked_is_refused() {
    let app = app();
    let mut client = Client::connect(&app);
    let body = r#"{"input": "a"}"#;
    for (codings, status) in [
        ("transfer-encoding: chunked", 200),
        ("transfer-encoding: Chunked", 200),
        ("transfer-encoding: gzip, chunked", 501),
        ("transfer-encoding: chunked, chunked", 501),
        ("transfer-encoding: gzip\r\ntransfer-encoding: chunked", 501),
    ] {
        let head = format!("POST /v1/embeddings HTTP/1.1\r\nhost: x\r\n{JSON}{codings}\r\n\r\n");
        client.write(format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).as_bytes());
        assert_eq!(client.answer().0, status, "{codings}");
    }
}

#[test]
fn a_refusal_is_sent_before_the_body_has_arrived() {
    let app = app();
    for (path, length, status) in [("/v1/embeddings", 2_000_000, 413), ("/v1/nothing", 200_000, 404)] {
        let mut client = Client::connect(&app);
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\n{JSON}content-length: {length}\r\n\r\n");
        client.write(head.as_bytes());
        client.write(&body(1000));
        assert_eq!(client.answer().0, status);
        client.write(&body(length - 1000));
        client.assert_works();
    }
}

#[test]
fn a_body_too_large_to_discard_closes_the_connection_without_a_reset() {
    let app = app();
    let length = 100 << 20;
    let mut client = Client::connect(&app);
    client.send("POST /v1/embeddings", JSON, &body(length));
    let (status, head) = client.answer();
    assert_eq!((status, head.contains("connection: close")), (413, true), "{head}");
    assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
}

#[test]
fn an_invalid_head_is_answered_while_its_body_is_still_being_sent() {
    let app = app();
    for head in ["POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", "no request\r\n\r\n"] {
        let mut client = Client::connect(&app);
        client.write(head.as_bytes());
        client.write(&body(4 << 20));
        assert_eq!(client.answer().0, 400, "{head}");
        assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
    }
}

/// Expectations are case-insensitive, and a client that receives a response instead of `100 Continue` does not send its
/// body.
#[test]
fn a_client_that_waits_for_100_continue_is_answered_at_once() {
    let app = app();
    for expect in ["100-continue", "100-Continue", "100-CONTINUE"] {
        for (path, status) in [("/v1/embeddings", 413), ("/v1/nothing", 404)] {
            let mut client = Client::connect(&app);
            client.write(
                format!(
                    "POST {path} HTTP/1.1\r\nhost: x\r\n{JSON}expect: {expect}\r\ncontent-length: 1700000000\r\n\r\n"
                )
                .as_bytes(),
            );
            let (found, head) = client.answer();
            assert_eq!((found, head.contains("connection: close")), (status, true), "{head}");
            assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
        }
    }
}

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Returns the field block of a POST to `path`, in HPACK without compression.
pub fn h2_headers(path: &str, length: usize) -> Vec<u8> {
    let length = length.to_string();
    // POST and http are in the static table; :path, :authority and content-length are literals with indexed names.
    let mut block = vec![0x83, 0x86];
    for (name, value) in [(&[4][..], path), (&[1], "x"), (&[0x0f, 13], &length)] {
        block.extend_from_slice(name);
        block.push(u8::try_from(value.len()).unwrap());
        block.extend_from_slice(value.as_bytes());
    }
    block
}

fn headers(stream: u32, path: &str, length: usize) -> Vec<u8> {
    frame(HEADERS, 4, stream, &h2_headers(path, length))
}

/// Returns the kind, flags, stream and payload of the next frame.
fn next_frame(client: &mut Client) -> (u8, u8, u32, Vec<u8>) {
    let mut head = [0; 9];
    client.0.read_exact(&mut head).unwrap();
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    client.0.read_exact(&mut payload).unwrap();
    (head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload)
}

/// Reads until the response on `stream` is complete, and returns its body.
fn h2_answer(client: &mut Client, stream: u32) -> String {
    let mut body = Vec::new();
    loop {
        let (kind, flags, of, payload) = next_frame(client);
        assert!(!matches!(kind, RST_STREAM | GOAWAY), "{kind} {payload:?}");
        if kind == DATA && of == stream {
            body.extend_from_slice(&payload);
        }
        if matches!(kind, DATA | HEADERS) && of == stream && flags & 1 == 1 {
            return String::from_utf8(body).unwrap();
        }
    }
}

#[test]
fn a_refused_http2_upload_is_answered_and_ends_only_its_stream() {
    let app = app();
    let mut client = Client::connect(&app);
    client.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    client.write(&frame(SETTINGS, 0, 0, &[]));
    client.write(&frame(SETTINGS, 1, 0, &[]));

    // The response comes before the end of the body, and the rest of the body is still accepted.
    client.write(&headers(1, "/v1/nothing", 60_000));
    let answer = h2_answer(&mut client, 1);
    assert!(answer.contains("unknown_url"), "{answer}");
    for n in 0..6 {
        client.write(&frame(DATA, u8::from(n == 5), 1, &body(10_000)));
    }
    client.write(&frame(PING, 0, 0, b"12345678"));
    loop {
        let (kind, flags, _, payload) = next_frame(&mut client);
        assert!(!matches!(kind, RST_STREAM | GOAWAY), "{kind} {payload:?}");
        if kind == PING && flags == 1 {
            break;
        }
    }

    // A body that is too large to be discarded is ended without an error after the response.
    client.write(&headers(3, "/v1/nothing", 1_700_000_000));
    let answer = h2_answer(&mut client, 3);
    assert!(answer.contains("unknown_url"), "{answer}");
    loop {
        let (kind, _, stream, payload) = next_frame(&mut client);
        assert_ne!(kind, GOAWAY, "{payload:?}");
        if kind == RST_STREAM {
            assert_eq!((stream, &payload[..]), (3, &[0, 0, 0, 0][..]));
            break;
        }
    }
    client.write(&headers(5, "/v1/nothing", 0));
    client.write(&frame(DATA, 1, 5, &[]));
    assert!(h2_answer(&mut client, 5).contains("unknown_url"));
}
