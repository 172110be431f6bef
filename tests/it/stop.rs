//! How the server stops: what may delay the stop, what is cut off, and what a second signal does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::common::checkpoint;
use crate::process::{Server, command, model};

/// The preface of HTTP/2 and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Much less than `drain_timeout`, and much more than a busy machine needs.
const SOON: Duration = Duration::from_secs(20);

fn open(server: &Server, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// Opens a request and waits until the server is reading its body.
fn in_flight(server: &Server) -> BufReader<TcpStream> {
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 15\r\n\r\n";
    let mut reader = BufReader::new(open(server, head.as_bytes()));
    let (mut status, mut end) = (String::new(), String::new());
    reader.read_line(&mut status).unwrap();
    reader.read_line(&mut end).unwrap();
    assert!(status.starts_with("HTTP/1.1 100"), "{status}");
    reader
}

/// Starts a server whose time limits for requests are longer than any test.
fn patient(dir: &tempfile::TempDir, settings: &str) -> Server {
    let server = Server::configured(dir.path(), &format!("[server]\ndrain_timeout = \"300s\"\n{settings}"), &[]);
    server.wait_until_ready();
    server
}

#[test]
fn connections_without_a_request_in_flight_do_not_delay_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let server = patient(&dir, "");
    let (half_preface, half_head) = (&PREFACE[..14], b"GET /health HTTP/1.1\r\nhost: x");
    let mut idle: Vec<TcpStream> =
        [b"".as_slice(), PREFACE, half_preface, half_head].map(|bytes| open(&server, bytes)).into();
    // This connection has been used, and begins another request.
    for rest in [b"".as_slice(), half_head] {
        let mut stream = open(&server, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n");
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.extend(byte);
        }
        stream.write_all(rest).unwrap();
        idle.push(stream);
    }
    // The connection is HTTP/2, because the server has sent its SETTINGS.
    idle[1].read_exact(&mut [0; 9]).unwrap();
    let started = Instant::now();
    server.signal("TERM");
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

#[test]
fn a_second_signal_cuts_off_requests_in_flight() {
    for (first, second) in [("TERM", "INT"), ("INT", "TERM"), ("TERM", "TERM")] {
        for (settings, phase) in [("", "draining"), ("drain_delay = \"300s\"", "shutting down")] {
            let dir = tempfile::tempdir().unwrap();
            let server = patient(&dir, settings);
            let request = in_flight(&server);
            let started = Instant::now();
            server.signal(first);
            let mut server = server;
            let mut log = BufReader::new(server.child.stderr.take().unwrap());
            let mut line = String::new();
            while !line.contains(phase) {
                line.clear();
                assert!(log.read_line(&mut line).unwrap() > 0, "{phase}");
            }
            server.signal(second);
            let mut rest = String::new();
            log.read_to_string(&mut rest).unwrap();
            assert_eq!(server.child.wait().unwrap().code(), Some(1), "{first}, {second}, {phase}: {rest}");
            assert!(started.elapsed() < SOON && rest.contains("requests=1"), "{rest}");
            drop(request);
        }
    }
}

#[test]
fn a_second_signal_without_requests_in_flight_exits_with_0() {
    let dir = tempfile::tempdir().unwrap();
    let server = patient(&dir, "drain_delay = \"300s\"");
    let _idle = open(&server, PREFACE);
    server.signal("TERM");
    let deadline = Instant::now() + SOON;
    while server.status("/ready") == 200 {
        assert!(Instant::now() < deadline, "still ready");
        std::thread::yield_now();
    }
    server.signal("TERM");
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log}");
}

/// The signal arrives while the server is still starting.
#[test]
fn a_sighup_during_the_start_does_not_end_the_process() {
    let mut starting = command(&["--port", "0", "--config", "/dev/stdin"])
        .args(["--model", &model(&checkpoint("llama"))])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // This is more than a pipe holds: once it is written, the server is reading its configuration, which does not
    // end.
    let mut feed = starting.stdin.take().unwrap();
    feed.write_all(format!("# {}\n", "x".repeat(256 << 10)).as_bytes()).unwrap();
    let hangup = std::process::Command::new("kill").args(["-HUP", &starting.id().to_string()]).status().unwrap();
    assert!(hangup.success());
    feed.write_all(b"[log]\nlevel = \"warn\"").unwrap();
    drop(feed);
    let mut line = String::new();
    BufReader::new(starting.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("listening on "), "{line:?}");
    let _ = (starting.kill(), starting.wait());
}

/// The client does what `printf 'GET / HTTP/1.1 ...' | nc -N` does: it sends a whole request and then closes its
/// sending side.
#[test]
fn a_client_that_closes_its_sending_side_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let server = patient(&dir, "");
    let texts = serde_json::json!({"input": (0..200).map(|i| format!("text number {i}")).collect::<Vec<_>>()});
    let texts = texts.to_string();
    let post =
        |body: &str| format!("POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let requests = ["GET /health HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), post(r#"{"input":"a"}"#), post(&texts)];
    for request in requests.iter().cycle().take(12) {
        let mut stream = open(&server, request.as_bytes());
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with('}'), "{request}: {answer}");
    }
}

#[test]
fn an_http2_connection_without_streams_is_idle_even_if_it_answers_pings() {
    let dir = tempfile::tempdir().unwrap();
    let server = patient(&dir, "header_timeout = \"400ms\"\nrequest_timeout = \"300s\"");
    let mut stream = open(&server, PREFACE);
    stream.set_read_timeout(Some(SOON)).unwrap();
    let started = Instant::now();
    let mut head = [0; 9];
    while stream.read_exact(&mut head).is_ok() {
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).unwrap();
        if head[3] == 6 && head[4] == 0 {
            head[4] = 1;
            let _ = stream.write_all(&[&head[..], &payload].concat());
        }
        assert!(started.elapsed() < SOON, "still open");
    }
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    // The preface is sent byte by byte, so that something arrives all the time.
    let mut stream = open(&server, &[]);
    let started = Instant::now();
    for byte in PREFACE.iter().cycle().take(23) {
        std::thread::sleep(Duration::from_millis(100));
        if stream.write_all(&[*byte]).is_err() {
            return;
        }
    }
    stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    assert_eq!(stream.read(&mut [0]).ok(), Some(0), "open after {:?}", started.elapsed());
}
