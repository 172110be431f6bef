//! Compares the whole server with a handler that does nothing: `cargo bench --bench http -- NAME=CHECKPOINT...`.
//!
//! Needs `wrk` and `taskset`. The ceiling is `axum::serve` on tokio's usual runtime, which returns a ready-made body of the same size.
//! Every text is new (`benches/wrk.lua`). Client and server share the cores, so only the ratio means something. With one connection, the
//! client and the server have a core each. If both were free to move, the system would sometimes put them on the same core, which doubles
//! the measured rate.

// A benchmark reports a failure by a panic.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::process::Command;
use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::post;
use bytes::Bytes;
use embedding_server::config::{Config, ModelConfig};
use embedding_server::server::{self, ServerState};
use tokio::net::TcpListener;

/// The allocator of the server's own program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SECONDS: u32 = 4;
const ROUNDS: usize = 5;

fn main() {
    let models: Vec<ModelConfig> = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.split_once('=').map(|(name, path)| ModelConfig::new(name, path)))
        .collect();
    if models.is_empty() {
        println!(
            "skipped: name the checkpoints to serve, as in `cargo bench --bench http -- gemma=target/real/gemma-3-270m-layer0`"
        );
        return;
    }
    if Command::new("wrk").arg("--version").output().is_err() {
        println!("skipped: wrk is not installed");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run(models));
}

async fn run(models: Vec<ModelConfig>) {
    let config = Config { models, ..Config::default() };
    let state = Arc::new(ServerState::new(config.clone()).unwrap());
    state.load().await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = listener.local_addr().unwrap().to_string();
    tokio::spawn(server::serve(listener, Arc::clone(&state), std::future::pending(), std::future::pending()));

    println!("requests/s, one sentence of 11 words a request, median of {ROUNDS} rounds of {SECONDS} s\n");
    println!(
        "{:<14}{:<8}{:>12}{:>10}{:>12}{:>8}{:>24}",
        "model", "format", "connections", "ours", "ceiling", "", "p50 / p99 of ours"
    );
    for model in &config.models {
        for format in ["base64", "float"] {
            let body = answer(&ours, &model.id, format).await;
            let ceiling = ready_made(body).await;
            for connections in [1, 64] {
                let cores = Cores::of(connections);
                cores.take();
                let mut rounds = [Vec::new(), Vec::new()];
                for _ in 0..ROUNDS {
                    for (seen, address) in rounds.iter_mut().zip([&ours, &ceiling]) {
                        let (address, id) = (address.clone(), model.id.clone());
                        let cores = cores.clone();
                        let wrk = move || wrk(&address, &id, format, connections, &cores);
                        seen.push(tokio::task::spawn_blocking(wrk).await.unwrap());
                    }
                }
                for seen in &mut rounds {
                    seen.sort_by(|a, b| a.rate.total_cmp(&b.rate));
                }
                let [ours, ceiling] = rounds.each_ref().map(|seen| &seen[ROUNDS / 2]);
                println!(
                    "{:<14}{:<8}{:>12}{:>10.0}{:>12.0}{:>7.0}%{:>24}",
                    model.id,
                    format,
                    connections,
                    ours.rate,
                    ceiling.rate,
                    100.0 * ours.rate / ceiling.rate,
                    format!("{} / {}", ours.p50, ours.p99)
                );
            }
        }
    }
}

/// Returns the body of a real response, which the ceiling sends.
async fn answer(address: &str, model: &str, format: &str) -> Bytes {
    let body = format!(
        r#"{{"input":"the of and to in is that for it was on","model":"{model}","encoding_format":"{format}"}}"#
    );
    let url = format!("http://{address}/v1/embeddings");
    tokio::task::spawn_blocking(move || {
        let mut answer = ureq::post(url).header("content-type", "application/json").send(body).unwrap();
        answer.body_mut().read_to_vec().unwrap().into()
    })
    .await
    .unwrap()
}

/// Starts the ceiling: a server that receives each request, ignores it, and sends `body`. Returns its address.
async fn ready_made(body: Bytes) -> String {
    let handler = move |_: Bytes| std::future::ready(([(CONTENT_TYPE, "application/json")], body.clone()));
    let router = Router::new().route("/v1/embeddings", post(handler));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

struct Measured {
    rate: f64,
    p50: String,
    p99: String,
}

/// The cores of the client and of both servers, in the notation of `taskset`.
#[derive(Clone)]
struct Cores {
    client: String,
    servers: String,
}

impl Cores {
    fn of(connections: u32) -> Self {
        let last = std::thread::available_parallelism().unwrap().get() - 1;
        let all = format!("0-{last}");
        match connections {
            1 => Self { client: "0".to_owned(), servers: last.to_string() },
            _ => Self { client: all.clone(), servers: all },
        }
    }

    /// Moves all threads of this process to the cores of the servers.
    fn take(&self) {
        let process = std::process::id().to_string();
        let done = Command::new("taskset").args(["-a", "-c", "-p", &self.servers, &process]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }
}

fn wrk(address: &str, model: &str, format: &str, connections: u32, cores: &Cores) -> Measured {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/wrk.lua");
    let output = Command::new("taskset")
        .args([
            "-c",
            &cores.client,
            "wrk",
            "-t1",
            "--latency",
            &format!("-c{connections}"),
            &format!("-d{SECONDS}s"),
            "-s",
            script,
        ])
        .args([&format!("http://{address}"), "--", format, model])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let after = |label: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(label)).unwrap_or_else(|| panic!("{text}"));
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert!(!text.contains("Non-2xx"), "{text}");
    Measured { rate: after("Requests/sec:").parse().unwrap(), p50: after("50%"), p99: after("99%") }
}
