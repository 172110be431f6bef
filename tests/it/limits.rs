//! Overload, slow clients, and clients that disconnect.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use embedding_server::config::ModelConfig;
use embedding_server::config::units::{ByteCount, Seconds};
use serde_json::{Value, json};

use crate::common::TestApp;
use crate::models;

const SHORT: Seconds = Seconds(Duration::from_millis(300));

fn wait(what: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !what() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
}

/// Opens a request with a body of `length` bytes and waits until the server is reading the body.
fn in_flight(app: &TestApp, length: usize) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(&app.address).unwrap();
    write!(stream, "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 100"), "{line}");
    reader
}

/// A request whose body has arrived except for its end, with one more byte from time to time. It holds the weight of
/// the whole body.
struct Held {
    go_on: Sender<()>,
    thread: JoinHandle<String>,
}

impl Held {
    /// Creates a request with one input of at least `length` bytes.
    fn new(app: &TestApp, length: usize) -> Self {
        const DRIPS: usize = 10_000;
        let body = json!({"input": "a".repeat(length - 12)}).to_string();
        let mut stream = in_flight(app, body.len() + DRIPS);
        stream.get_mut().write_all(&body.as_bytes()[..length - 2]).unwrap();
        let (go_on, told) = channel();
        let thread = std::thread::spawn(move || {
            let mut drips = 0;
            while told.recv_timeout(Duration::from_millis(20)) == Err(RecvTimeoutError::Timeout) && drips < DRIPS {
                stream.get_mut().write_all(b"a").unwrap();
                drips += 1;
            }
            let end = format!("\"}}{}", " ".repeat(DRIPS - drips));
            stream.get_mut().write_all(end.as_bytes()).unwrap();
            rest(stream)
        });
        wait(|| app.metric("embedding_server_bytes_in_flight") >= length as f64 - 2.0);
        Self { go_on, thread }
    }

    /// Sends the end of the body and returns the response.
    fn finish(self) -> String {
        let _ = self.go_on.send(());
        self.thread.join().unwrap()
    }
}

fn rest(mut stream: impl Read) -> String {
    let mut text = Vec::new();
    match stream.read_to_end(&mut text) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => String::from_utf8(text).unwrap(),
    }
}

/// The same weight in each of the four shapes of input: one input with that many bytes, or the corresponding number of
/// inputs.
#[test]
fn requests_over_the_in_flight_budget_are_refused_in_every_shape_until_there_is_room() {
    let app = TestApp::start(|c| c.server.max_in_flight = ByteCount(60_000));
    let held = Held::new(&app, 20_000);
    let shapes = |inputs: usize| {
        [json!(vec!["a"; inputs]), json!(vec![[1]; inputs])].map(|input| json!({"input": input})).into_iter()
    };
    let long = [json!("a ".repeat(20_000)), json!(vec![1; 20_000])].map(|input| json!({"input": input}));
    for body in shapes(10).chain(long) {
        let answer = app.embed(&body);
        let (status, kind, code, _, message) = answer.error();
        assert_eq!((status, kind, code), (429, "requests", Some("rate_limit_exceeded")));
        assert!(message.contains("max_in_flight"), "{message}");
        assert_eq!(answer.header("retry-after"), "1");
    }
    // There is room for one more input, and for requests without work.
    assert_eq!((app.embed(&json!({"input": "a"})).status, app.get("/v1/models").status), (200, 200));
    let answer = held.finish();
    assert!(answer.contains("HTTP/1.1 200"), "{answer}");
    // This request is larger than the limit, and the only one.
    wait(|| app.metric("embedding_server_bytes_in_flight") == 0.0);
    for body in shapes(20) {
        assert_eq!(app.embed(&body).status, 200);
        wait(|| app.metric("embedding_server_bytes_in_flight") == 0.0);
    }
}

/// Announced bytes take no room from other requests, however many they are and however long they do not arrive.
#[test]
fn announced_bodies_that_do_not_arrive_take_no_room() {
    let app = TestApp::start(|c| {
        c.server.max_in_flight = ByteCount(100_000);
        c.server.max_body = ByteCount(100_000);
    });
    let _announced: Vec<_> = (0..20).map(|_| in_flight(&app, 100_000)).collect();
    for inputs in [1, 8, 10] {
        let answer = app.embed(&json!({"input": vec!["a"; inputs]}));
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
}

/// A client that stops in the middle of its body keeps the weight of what it has sent until another request needs the
/// room.
#[test]
fn a_body_that_has_stopped_arriving_is_abandoned_to_make_room() {
    let app = TestApp::start(|c| c.server.max_in_flight = ByteCount(20_000));
    let mut stopped = in_flight(&app, 19_000);
    stopped.get_mut().write_all(&[b' '; 18_000]).unwrap();
    wait(|| app.metric("embedding_server_bytes_in_flight") == 18_000.0);
    wait(|| app.embed(&json!({"input": "a"})).status == 200);
    let answer = rest(stopped);
    assert!(answer.contains("HTTP/1.1 408"), "{answer}");
}

/// The body arrives slowly but above the minimum rate, for much longer than the limit on the server's own time.
#[test]
fn a_body_that_arrives_slowly_is_accepted() {
    let app = TestApp::start(|c| c.server.request_timeout = Seconds(Duration::from_secs(1)));
    let body = json!({"input": "a ".repeat(20_000)}).to_string();
    let mut stream = in_flight(&app, body.len());
    let started = Instant::now();
    for piece in body.as_bytes().chunks(body.len() / 30) {
        stream.get_mut().write_all(piece).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(started.elapsed() > Duration::from_secs(2));
    let answer = rest(stream);
    assert!(answer.contains("HTTP/1.1 200"), "{answer}");
}

fn request(body: &str) -> String {
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    format!("{head}content-length: {}\r\n\r\n{body}", body.len())
}

/// Reads one response with this status, and returns its head.
fn assert_status(stream: &mut BufReader<TcpStream>, status: &str) -> String {
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).unwrap() > 0, "the connection was closed: {head}");
        length = line.strip_prefix("content-length: ").map_or(length, |n| n.trim().parse().unwrap());
        head += &line;
    }
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    stream.read_exact(&mut vec![0; length]).unwrap();
    head
}

/// A refused body is discarded up to its last byte and not further, so the connection works for the next request.
#[test]
fn a_connection_survives_large_refused_bodies() {
    let app = TestApp::start(|c| {
        c.server.max_in_flight = ByteCount(60_000);
        c.server.max_body = ByteCount(1_000_000);
    });
    let held = Held::new(&app, 20_000);
    let mut stream = BufReader::new(TcpStream::connect(&app.address).unwrap());
    let mut ask = |body: &str, status: &str| {
        stream.get_mut().write_all(request(body).as_bytes()).unwrap();
        assert_status(&mut stream, status);
    };
    // Each piece of the body looks like another request.
    let refused = "GET / HTTP/1.1\r\n\r\n".repeat(50_000 / 18);
    for _ in 0..3 {
        ask(&refused, "429");
        ask(r#"{"input": "a"}"#, "200");
        ask(&refused.repeat(30), "413");
        ask(r#"{"input": "a"}"#, "200");
    }
    held.finish();
}

/// A request that waits for the compute threads takes the whole budget, so not even a request with an empty body fits.
/// Most requests are then refused before HTTP reads their heads.
#[test]
fn each_request_gets_one_refusal_while_the_budget_is_used_up() {
    let app = TestApp::start(|c| c.server.max_in_flight = ByteCount(60_000));
    let occupied = app.occupy_workers();
    let mut waiting = BufReader::new(send(&app, "/v1/embeddings", &json!({"input": "a ".repeat(27_500)})));
    wait(|| app.metric("embedding_server_bytes_in_flight") > 59_000.0);
    let mut stream = BufReader::new(TcpStream::connect(&app.address).unwrap());
    // A body that looks like requests, and bodies that arrive together with the head or in part.
    let bodies = [request("{}").repeat(300), r#"{"input": "a"}"#.to_owned(), "x".repeat(3000)];
    let mut heads = Vec::new();
    for body in bodies.iter().cycle().take(60) {
        let sent = request(body);
        let (first, rest) = sent.split_at(sent.len() - 1);
        stream.get_mut().write_all(first.as_bytes()).unwrap();
        // The server answers before the body has arrived.
        let head = assert_status(&mut stream, "429");
        heads.push(head.lines().filter_map(|line| Some(line.split_once(": ")?.0.to_owned())).collect::<Vec<_>>());
        stream.get_mut().write_all(rest.as_bytes()).unwrap();
    }
    heads.dedup();
    assert_eq!(heads, [["content-type", "retry-after", "x-request-id", "content-length", "date"]]);
    // Requests that do not wait for the response to the one before.
    let other = "GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n";
    for _ in 0..3 {
        let sent: String = bodies.iter().map(|body| request(body) + other).collect();
        stream.get_mut().write_all(sent.as_bytes()).unwrap();
        for _ in &bodies {
            assert_status(&mut stream, "429");
            assert_status(&mut stream, "200");
        }
    }
    assert_eq!(app.metric("embedding_server_errors_total{code=\"rate_limit_exceeded\"}"), 69.0);
    drop(occupied);
    assert_status(&mut waiting, "200");
    wait(|| app.metric("embedding_server_bytes_in_flight") == 0.0);
    stream.get_mut().write_all(request(r#"{"input": "a"}"#).as_bytes()).unwrap();
    assert_status(&mut stream, "200");
}

/// The body is sent in chunks, so its length is not known in advance.
#[test]
fn a_chunked_body_is_refused_once_it_exceeds_the_limit() {
    let app = TestApp::start(|c| c.server.max_in_flight = ByteCount(60_000));
    let held = Held::new(&app, 20_000);
    let mut stream = TcpStream::connect(&app.address).unwrap();
    write!(
        stream,
        "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    .unwrap();
    for _ in 0..500 {
        write!(stream, "64\r\n{}\r\n", " ".repeat(100)).unwrap();
    }
    write!(stream, "0\r\n\r\n").unwrap();
    assert!(rest(stream).starts_with("HTTP/1.1 429"));
    held.finish();
}

#[test]
fn a_connection_without_a_request_head_in_time_is_closed() {
    let app = TestApp::start(|c| {
        c.server.header_timeout = SHORT;
        c.server.request_timeout = SHORT;
    });
    for head in ["", "P", "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nx-slow: "] {
        let mut stream = TcpStream::connect(&app.address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        let started = Instant::now();
        let answer = rest(stream);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(started.elapsed() < Duration::from_secs(20));
    }
    // This head arrives byte by byte, faster than the idle timeout: the whole head has a time limit too.
    let mut stream = TcpStream::connect(&app.address).unwrap();
    stream.write_all(b"POST /v1/embeddings HTTP/1.1\r\nx-slow: ").unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while stream.write_all(b"x").is_ok() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(SHORT.0 / 20);
    }
    assert_eq!(app.embed(&json!({"input": "a"})).status, 200);
}

#[test]
fn a_body_that_does_not_arrive_in_time_is_answered_with_408() {
    let app = TestApp::start(|c| c.server.request_timeout = SHORT);
    let mut stream = in_flight(&app, 100);
    stream.get_mut().write_all(b"{").unwrap();
    let answer = rest(stream);
    assert!(answer.contains("HTTP/1.1 408") && answer.contains("request_timeout"), "{answer}");
    wait(|| app.metric("embedding_server_bytes_in_flight") == 0.0);
}

#[test]
fn a_connection_over_the_limit_gets_503_and_a_later_one_is_served() {
    let app = TestApp::start(|c| c.server.max_connections = 2);
    let ask = || {
        let mut stream = TcpStream::connect(&app.address).unwrap();
        write!(stream, "GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        (line, reader)
    };
    let (first, second) = (ask(), ask());
    assert!(first.0.contains("200") && second.0.contains("200"));
    let (line, third) = ask();
    assert!(line.contains("503"), "{line}");
    let answer = rest(third);
    assert!(answer.contains("too_many_connections") && answer.contains("retry-after"), "{answer}");
    drop(first);
    wait(|| ask().0.contains("200"));
}

fn batch(texts: usize) -> Value {
    json!((0..texts).map(|i| format!("text number {i}")).collect::<Vec<_>>())
}

fn send(app: &TestApp, path: &str, body: &Value) -> TcpStream {
    let mut stream = TcpStream::connect(&app.address).unwrap();
    let body = body.to_string();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    stream
}

/// The only compute thread is occupied, so the texts of one request wait for it, and so does the body of a request that
/// is too long to be parsed on the socket thread. Both requests can leave only by being dropped.
#[test]
fn the_work_for_a_disconnected_client_is_dropped() {
    let app = TestApp::start(|c| c.server.threads = 1);
    let waiting = || app.metric("embedding_server_queue_depth");
    let occupied = app.occupy_workers();
    let clients = [100, 10_000].map(|texts| send(&app, "/v1/embeddings", &json!({"input": batch(texts)})));
    wait(|| waiting() == 2.0);
    drop(clients);
    wait(|| waiting() == 0.0 && app.metric("embedding_server_bytes_in_flight") == 0.0);
    drop(occupied);
    // This is more text than is tokenized on the socket thread.
    assert_eq!(app.embed(&json!({"input": "word ".repeat(300)})).status, 200);
    assert_eq!(app.metric("embedding_server_inputs_total{model=\"text-embedding-3-small\"}"), 1.0);
}

/// Many responses that no client reads, on HTTP/1.1 and as streams of one HTTP/2 connection, are abandoned to make
/// room.
#[test]
fn unread_responses_are_abandoned_to_make_room() {
    let dir = models::layer0();
    for h2 in [false, true] {
        let app = TestApp::start(|c| {
            c.models = vec![ModelConfig::new("m", dir.path())];
            c.server.max_in_flight = ByteCount(30 << 20);
        });
        let body = json!({"input": vec!["a"; 2048]});
        let _streams: Vec<_> = if h2 {
            vec![h2_requests_without_window(&app, "/v1/embeddings", &body.to_string(), 3)]
        } else {
            (0..3).map(|_| send(&app, "/v1/embeddings", &body)).collect()
        };
        wait(|| app.metric("embedding_server_bytes_in_flight") > f64::from(24 << 20));
        wait(|| app.embed(&body).status == 200);
    }
}

/// Sends `count` requests on an HTTP/2 connection whose client never lets the server send a byte of a response.
fn h2_requests_without_window(app: &TestApp, path: &str, body: &str, count: u32) -> TcpStream {
    use crate::refused::{DATA, HEADERS, SETTINGS, frame, h2_headers};
    let mut stream = TcpStream::connect(&app.address).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    // SETTINGS_INITIAL_WINDOW_SIZE = 0.
    stream.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).unwrap();
    stream.write_all(&frame(SETTINGS, 1, 0, &[])).unwrap();
    for id in (0..count).map(|n| 2 * n + 1) {
        stream.write_all(&frame(HEADERS, 4, id, &h2_headers(path, body.len()))).unwrap();
        let pieces = body.as_bytes().chunks(16_000);
        let last = pieces.len() - 1;
        for (n, piece) in pieces.enumerate() {
            stream.write_all(&frame(DATA, u8::from(n == last), id, piece)).unwrap();
        }
    }
    stream
}

/// A response of 50 MB that nobody reads fills at most the sockets' buffers before the connection is closed.
#[test]
fn a_client_that_does_not_read_its_response_is_disconnected() {
    let dir = models::layer0();
    let app = TestApp::start(|c| {
        c.models = vec![ModelConfig::new("m", dir.path())];
        c.server.header_timeout = SHORT;
        c.server.request_timeout = Seconds(Duration::from_secs(5));
    });
    let _stream = send(&app, "/v1/similarity", &json!({"input": batch(2048), "dimensions": 2}));
    wait(|| app.metric("embedding_server_bytes_in_flight") > 0.0);
    let deadline = Instant::now() + Duration::from_secs(60);
    while app.metric("embedding_server_bytes_in_flight") > 0.0 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
}

/// Two threads each have a long text that is a single word and cannot be split. A small request does not wait for them,
/// and their work ends when their clients disconnect.
#[test]
fn a_long_text_yields_to_small_requests_and_ends_with_its_client() {
    for name in ["llama", "qwen2"] {
        let app = TestApp::start(|c| {
            c.server.threads = 2;
            c.models = vec![ModelConfig::new("m", crate::common::checkpoint(name))];
        });
        let long = json!({"input": " ".repeat(8 << 20)}).to_string();
        app.assert_that_large_requests_yield("/v1/embeddings", &long, (16 << 20) as f64);
    }
}
