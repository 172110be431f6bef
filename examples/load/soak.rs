//! Sends many requests of every kind, valid and invalid, some of which the client abandons. Memory and descriptors must not grow.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_util::future::join_all;
use serde_json::json;

use crate::client::Client;
use crate::server::Server;

const CONNECTIONS: usize = 8;
/// The number of requests after which a client opens a new connection.
const PER_CONNECTION: usize = 500;

pub async fn run(requests: u64) {
    let server = Server::start(&[]).await;
    let descriptors = server.descriptors();
    let (next, kinds) = (AtomicU64::new(0), Mutex::new(BTreeMap::<&str, u64>::new()));
    let started = Instant::now();
    let clients = join_all((0..CONNECTIONS).map(async |seed| {
        let mut rng = Rng::with_seed(seed as u64);
        while next.load(Ordering::Relaxed) < requests {
            let mut client = Client::connect(&server.address).await;
            for _ in 0..PER_CONNECTION {
                if next.fetch_add(1, Ordering::Relaxed) >= requests {
                    break;
                }
                let (kind, goes_on) = one(&mut client, &mut rng, false).await;
                *kinds.lock().unwrap().entry(kind).or_default() += 1;
                if !goes_on {
                    break;
                }
            }
        }
    }));
    // The first sample is after a tenth of the requests, when every cache is warm.
    let measure = async {
        let mut memory = Vec::new();
        for tenth in 1..=9 {
            while next.load(Ordering::Relaxed) < requests * tenth / 10 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            memory.push(server.memory());
        }
        memory
    };
    let (_, mut memory) = tokio::join!(clients, measure);
    memory.push(server.memory());
    let seconds = started.elapsed().as_secs_f64();
    let deadline = Instant::now() + Duration::from_secs(30);
    while server.descriptors() > descriptors {
        assert!(Instant::now() < deadline, "{} descriptors, {descriptors} before", server.descriptors());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mib: Vec<u64> = memory.iter().map(|bytes| bytes >> 20).collect();
    println!("{requests} requests in {seconds:.0} s: {:?}", kinds.into_inner().unwrap());
    println!(
        "MiB of memory after each tenth: {mib:?}; descriptors before and after: {descriptors}, {}",
        server.descriptors()
    );
    let (early, late) = (memory[..5].iter().max().unwrap(), memory[5..].iter().max().unwrap());
    assert!(*late <= early + early / 10 + (4 << 20), "memory grows: {mib:?} MiB");
}

/// The kind that [`one`] returns for a request that was answered with 429.
pub const REFUSED: &str = "refused with 429";

/// Sends one request, and returns its kind and whether the connection can be used again. Panics if the status is not the one that
/// the kind expects. If `may_be_refused`, status 429 is accepted for every kind.
pub async fn one(client: &mut Client, rng: &mut Rng, may_be_refused: bool) -> (&'static str, bool) {
    let words = |rng: &mut Rng, most: usize| {
        let count = rng.usize(0..most);
        (0..count)
            .map(|_| ["hello", "안녕하세요", "der", "Ω", "12.5", "\u{1f980}", "embedding"][rng.usize(0..7)])
            .collect::<Vec<_>>()
            .join(" ")
    };
    let ids = |rng: &mut Rng, last: u32| (0..rng.usize(1..40)).map(|_| rng.u32(0..last)).collect::<Vec<_>>();
    let embeddings = "/v1/embeddings";
    let mut refused = false;
    let mut ask = async |path: &str, body: String, status: u16| {
        let found = client.post(path, body.as_bytes()).await.unwrap_or_else(|e| panic!("{path} {body}: {e}"));
        refused |= found == 429 && may_be_refused;
        assert!(found == status || refused, "{path} {body}: {found}, expected {status}");
    };
    let kind = match rng.u32(0..1000) {
        0..350 => {
            ask(embeddings, json!({"input": words(rng, 20), "encoding_format": "base64"}).to_string(), 200).await;
            "base64"
        }
        350..550 => {
            ask(embeddings, json!({"input": words(rng, 20), "dimensions": rng.u32(1..385)}).to_string(), 200).await;
            "float"
        }
        550..650 => {
            let texts: Vec<String> = (0..rng.usize(1..64)).map(|_| words(rng, 40)).collect();
            ask(embeddings, json!({"input": texts, "encoding_format": "base64"}).to_string(), 200).await;
            "batch"
        }
        650..700 => {
            ask(embeddings, json!({"input": ids(rng, 100_000)}).to_string(), 200).await;
            "ids"
        }
        700..750 => {
            ask(embeddings, json!({"input": [ids(rng, 1000), [200_000]]}).to_string(), 400).await;
            "foreign ids"
        }
        750..800 => {
            ask(embeddings, "{\"input\": [1, \"a\"".to_owned(), 400).await;
            "no JSON"
        }
        800..840 => {
            ask(embeddings, json!({"input": "a", "model": words(rng, 3) + "!"}).to_string(), 404).await;
            "unknown model"
        }
        840..880 => {
            ask("/v1/tokenize", json!({"input": words(rng, 30)}).to_string(), 200).await;
            "tokenize"
        }
        880..900 => {
            let documents = [words(rng, 40), words(rng, 9), "a".to_owned()];
            ask("/v1/rerank", json!({"query": words(rng, 5), "documents": documents}).to_string(), 200).await;
            "rerank"
        }
        900..920 => {
            ask("/v1/similarity", json!({"input": [words(rng, 9), "a"], "queries": ["b"]}).to_string(), 200).await;
            "similarity"
        }
        920..970 => {
            for path in ["/v1/models", "/health", "/ready", "/metrics"] {
                assert_eq!(client.get(path).await.unwrap(), 200, "{path}");
            }
            "resources"
        }
        970..985 => {
            // The client disconnects before the response, which is long.
            let texts: Vec<String> = (0..200).map(|_| words(rng, 40)).collect();
            let body = json!({"input": texts}).to_string();
            client.send(embeddings, body.as_bytes(), body.len()).await.unwrap();
            return ("left", false);
        }
        _ => {
            client.send(embeddings, b"{\"input\": \"never", 1 << 20).await.unwrap();
            return ("cut", false);
        }
    };
    (if refused { REFUSED } else { kind }, true)
}
