//! Sends ordinary requests for hours, beside slow peers, hostile input and reloads. Memory, descriptors and threads must not grow, and
//! ordinary requests must be answered.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Shutdown;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::Client;
use crate::server::{Resources, Server};
use crate::soak::{REFUSED, one};

const CONNECTIONS: usize = 8;
const PER_CONNECTION: usize = 500;
/// The number of ordinary requests per second, on all connections together.
const RATE: u32 = 200;
/// The number of peers at any time that send or read slowly.
const SLOW_PEERS: usize = 16;
const SLOW_BYTES_PER_SECOND: usize = 32 << 10;
/// The number of ordinary requests for each hostile request.
const HOSTILE_SHARE: u32 = 100;
/// At most one of this many requests may be answered with 429.
const MOST_REFUSED: u64 = 10_000;
/// How long a hostile peer keeps its connection open if the server does not close it.
const HOSTILE_PATIENCE: Duration = Duration::from_secs(20);
const RELOAD_INTERVAL: Duration = Duration::from_secs(20);
const SAMPLES: u32 = 24;

pub async fn run(minutes: u64) {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.toml");
    std::fs::write(&config, configuration(0)).unwrap();
    let path = config.to_str().unwrap();
    let mut server = Server::start(&[
        ("EMBEDDING_SERVER_CONFIG", path),
        ("EMBEDDING_SERVER_HEADER_TIMEOUT", "10s"),
        ("EMBEDDING_SERVER_REQUEST_TIMEOUT", "30s"),
    ])
    .await;
    let before = server.resources();
    let (kinds, stop) = (Mutex::new(BTreeMap::<&str, u64>::new()), AtomicBool::new(false));
    let count = |kind| *kinds.lock().unwrap().entry(kind).or_default() += 1;
    let going = || !stop.load(Ordering::Relaxed);
    let address = server.address.clone();

    let ordinary = join_all((0..CONNECTIONS).map(async |seed| {
        let mut rng = Rng::with_seed(seed as u64);
        let mut turns = tokio::time::interval(Duration::from_secs(1) * CONNECTIONS as u32 / RATE);
        while going() {
            let mut client = Client::connect(&address).await;
            for _ in 0..PER_CONNECTION {
                turns.tick().await;
                let (kind, goes_on) = one(&mut client, &mut rng, true).await;
                count(kind);
                if !goes_on || !going() {
                    break;
                }
            }
        }
    }));
    let slow = join_all((0..SLOW_PEERS).map(async |seed| {
        let mut rng = Rng::with_seed(1000 + seed as u64);
        while going() {
            count(if seed % 2 == 0 { slow_sender(&address, &mut rng).await } else { slow_reader(&address).await });
        }
    }));
    // The number of concurrent hostile peers that gives HOSTILE_SHARE, since each peer takes HOSTILE_PATIENCE.
    let at_once = RATE / HOSTILE_SHARE * HOSTILE_PATIENCE.as_secs() as u32;
    let hostile = join_all((0..at_once).map(async |seed| {
        let mut rng = Rng::with_seed(2000 + u64::from(seed));
        let mut turns = tokio::time::interval(HOSTILE_PATIENCE);
        tokio::time::sleep(HOSTILE_PATIENCE * seed / at_once).await;
        while going() {
            turns.tick().await;
            count(hostile(&address, &mut rng).await);
        }
    }));
    let reloads = async {
        let mut generation = 0;
        while going() {
            tokio::time::sleep(RELOAD_INTERVAL).await;
            generation += 1;
            std::fs::write(&config, configuration(generation)).unwrap();
            server.hang_up();
            count("reload");
        }
    };
    let length = Duration::from_secs(60 * minutes);
    let started = Instant::now();
    let measure = async {
        let mut samples = Vec::new();
        for sample in 1..=SAMPLES {
            tokio::time::sleep((length * sample / SAMPLES).saturating_sub(started.elapsed())).await;
            let now = server.resources();
            println!("{:5.1} min: {now}", started.elapsed().as_secs_f64() / 60.0);
            std::io::stdout().flush().unwrap();
            samples.push(now);
        }
        stop.store(true, Ordering::Relaxed);
        samples
    };
    let (_, _, _, (), samples) = tokio::join!(ordinary, slow, hostile, reloads, measure);

    let kinds = kinds.into_inner().unwrap();
    println!("{kinds:?}");
    // Responses that no client reads may fill the in-flight budget for a moment, until the server ends their requests.
    let (refused, all) = (kinds.get(REFUSED).copied().unwrap_or(0), kinds.values().sum::<u64>());
    assert!(refused <= all / MOST_REFUSED, "{refused} of {all} requests were refused");
    assert!(server.lives(), "the server has ended");
    // The server closes abandoned connections after its own time limits.
    let deadline = Instant::now() + Duration::from_secs(90);
    let mut after = server.resources();
    while after.descriptors > before.descriptors || after.threads > before.threads {
        assert!(Instant::now() < deadline, "left open: {after}; before: {before}");
        tokio::time::sleep(Duration::from_millis(200)).await;
        after = server.resources();
    }
    println!("before: {before}\nafter:  {after}");
    let greatest = |part: &[Resources]| part.iter().map(|sample| sample.memory).max().unwrap();
    let (early, late) = samples.split_at(samples.len() / 2);
    let (early, late) = (greatest(early), greatest(late));
    assert!(late <= early + early / 10 + (8 << 20), "memory grows: {} MiB, then {} MiB", early >> 20, late >> 20);
}

/// Returns a configuration with the built-in model. Odd generations also have a second model and another alias.
fn configuration(generation: u32) -> String {
    let builtin = "[[models]]\nid = \"multilingual-e5-small-static-2\"\npath = \"builtin:default\"\n";
    if generation.is_multiple_of(2) {
        return format!("{builtin}aliases = [\"text-embedding-3-small\"]\n");
    }
    let llama = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints/llama");
    format!(
        "{builtin}aliases = [\"text-embedding-3-small\", \"text-embedding-3-large\"]\n[[models]]\nid = \"llama\"\npath = {:?}\n",
        llama.to_str().unwrap()
    )
}

/// Sends a body of a few hundred kilobytes slowly, and checks that the request succeeds.
async fn slow_sender(address: &str, rng: &mut Rng) -> &'static str {
    let body =
        format!("{{\"input\": {:?}, \"encoding_format\": \"base64\"}}", "slow upload ".repeat(rng.usize(1..30_000)));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head("POST", "/v1/embeddings", body.len()).as_bytes()).await.unwrap();
    for piece in body.as_bytes().chunks(SLOW_BYTES_PER_SECOND / 4) {
        stream.write_all(piece).await.unwrap();
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200", "{}", String::from_utf8_lossy(&answer));
    "slow sender"
}

/// Reads a response of some megabytes slowly, and disconnects after half a minute.
async fn slow_reader(address: &str) -> &'static str {
    let body = serde_json::json!({"input": vec!["slow reader"; 500]}).to_string();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all((head("POST", "/v1/embeddings", body.len()) + &body).as_bytes()).await.unwrap();
    let mut piece = vec![0; SLOW_BYTES_PER_SECOND / 4];
    for _ in 0..120 {
        if !matches!(stream.read(&mut piece).await, Ok(1..)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    "slow reader"
}

/// Acts as one hostile peer. The server may respond in any way, but it must keep running, so the response is ignored.
async fn hostile(address: &str, rng: &mut Rng) -> &'static str {
    let Ok(mut stream) = TcpStream::connect(address).await else { return "hostile: not accepted" };
    let embeddings = |body: &str| head("POST", "/v1/embeddings", body.len()) + body;
    let (kind, bytes): (&str, Vec<u8>) = match rng.u32(0..16) {
        0 => ("hostile: silence", Vec::new()),
        1 => ("hostile: half a head", b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nx-a: ".to_vec()),
        2 => ("hostile: announced, never sent", (head("POST", "/v1/embeddings", 30 << 20) + "{").into_bytes()),
        3 => ("hostile: not HTTP", (0..4096).map(|_| rng.u8(..)).collect()),
        4 => (
            "hostile: TLS to plain HTTP",
            [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &[7; 512]].concat(),
        ),
        5 => ("hostile: HTTP/2 preface alone", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()),
        6 => ("hostile: HTTP/2 frames at random", {
            let frames = (0..2048).map(|_| rng.u8(..));
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".iter().copied().chain(frames).collect()
        }),
        7 => (
            "hostile: unknown path with a large body",
            (head("POST", "/v1/embedding", 1 << 20) + &"x".repeat(1 << 20)).into_bytes(),
        ),
        8 => ("hostile: nested JSON", embeddings(&format!("{{\"input\": {}", "[".repeat(100_000))).into_bytes()),
        9 => (
            "hostile: many empty inputs",
            embeddings(&format!("{{\"input\": [\"\"{}]}}", ",\"\"".repeat(300_000))).into_bytes(),
        ),
        10 => (
            "hostile: foreign ids that decode to much text",
            embeddings(&format!("{{\"input\": [90280{}]}}", ",90280".repeat(20_000))).into_bytes(),
        ),
        11 => (
            "hostile: one word without an end",
            embeddings(&format!("{{\"input\": \"{}\"}}", "a".repeat(500_000))).into_bytes(),
        ),
        12 => ("hostile: lone surrogates", embeddings("{\"input\": [\"\\ud83d\", \"\\udc00\\ud800\"]}").into_bytes()),
        13 => (
            "hostile: two lengths",
            b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}".to_vec(),
        ),
        14 => (
            "hostile: chunks without an end",
            b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{"
                .to_vec(),
        ),
        _ => (
            "hostile: an answer that is not read",
            embeddings(&serde_json::json!({"input": vec!["a"; 2000]}).to_string()).into_bytes(),
        ),
    };
    let _ = timeout(HOSTILE_PATIENCE, stream.write_all(&bytes)).await;
    match rng.u32(0..3) {
        // The peer disconnects at once. Dropping the socket sends a reset if a response was not read.
        0 => {}
        // The peer closes only its sending side.
        1 => {
            let stream = stream.into_std().unwrap();
            let _ = stream.shutdown(Shutdown::Write);
            let mut stream = TcpStream::from_std(stream).unwrap();
            let _ = timeout(HOSTILE_PATIENCE / 2, stream.read(&mut [0; 64])).await;
        }
        _ => {
            let _ = timeout(HOSTILE_PATIENCE, stream.read(&mut [0; 64])).await;
        }
    }
    kind
}

fn head(method: &str, path: &str, length: usize) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n")
}
