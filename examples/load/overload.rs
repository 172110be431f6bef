//! Ten times what the server sustains: what it still answers, how fast, and what that costs.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::Client;
use crate::server::Server;

/// Answers in a second, by connections that ask again at once.
const BEST: [usize; 3] = [2, 4, 8];
const OVER: f64 = 10.0;
/// More than fit into `MAX_IN_FLIGHT`, so that no part of the load waits for the server.
const CONNECTIONS: usize = 200;
/// 28 requests of 64 inputs.
/// More words than a tokenizer remembers.
const BODIES: usize = 512;
const MAX_IN_FLIGHT: &str = "8 MiB";
const SLOWEST: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Measured {
    statuses: BTreeMap<u16, u64>,
    answered: Vec<Duration>,
}

pub fn run(seconds: u64) {
    // Words that no cache has met: a refusal must cost little beside an answer, since the client shares the machine.
    let mut rng = fastrand::Rng::with_seed(1);
    let mut word = || (0..rng.usize(3..10)).map(|_| rng.lowercase()).chain([' ']).collect::<String>();
    let mut texts = || (0..64).map(|_| (0..80).map(|_| word()).collect::<String>()).collect::<Vec<_>>();
    let bodies: Vec<Vec<u8>> =
        (0..BODIES).map(|_| json!({"input": texts(), "encoding_format": "base64"}).to_string().into_bytes()).collect();
    let mut server = Server::start(&[("EMBEDDING_SERVER_MAX_IN_FLIGHT", MAX_IN_FLIGHT)]);
    let length = Duration::from_secs(seconds);
    load(&server, &bodies, 2, None, length / 4);

    let mut best = 0.0f64;
    for connections in BEST {
        let measured = load(&server, &bodies, connections, None, length / 2);
        let rate = rate(&measured, length / 2);
        println!("{connections:>4} connections, at once again: {rate:.0} answers/s, {}", times(&measured));
        best = best.max(rate);
    }
    let before = server.memory();
    let measured = load(&server, &bodies, CONNECTIONS, Some(OVER * best), length);
    let goodput = rate(&measured, length);
    let sent: u64 = measured.statuses.values().sum();
    let offered = sent as f64 / length.as_secs_f64();
    let after = server.memory();
    println!(
        "{CONNECTIONS:>4} connections, {offered:.0} requests/s, {:.1} x the best: {goodput:.0} answers/s, {:.0} % of it, {}",
        offered / best,
        100.0 * goodput / best,
        times(&measured)
    );
    println!("statuses: {:?}; MiB of memory before and after: {}, {}", measured.statuses, before >> 20, after >> 20);

    assert!(server.lives());
    assert!(measured.statuses.keys().all(|status| [200, 429, 503].contains(status)), "other statuses");
    assert!(offered >= 0.8 * OVER * best, "the client could not offer enough");
    assert!(goodput >= 0.9 * best, "goodput falls under load");
    assert!(quantile(&measured.answered, 0.99) <= SLOWEST, "what is admitted waits too long");
    assert!(after <= before + before / 10 + (32 << 20), "memory grows");
}

/// `connections` clients for `length`: at `rate` requests a second in all, or as fast as answers come.
fn load(server: &Server, bodies: &[Vec<u8>], connections: usize, rate: Option<f64>, length: Duration) -> Measured {
    let (all, ticket, next) = (Mutex::new(Measured::default()), AtomicU64::new(0), AtomicUsize::new(0));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                let (mut client, mut own) = (Client::connect(&server.address), Measured::default());
                loop {
                    // Whoever is free sends the next one when it is due.
                    let due = rate.map_or(Duration::ZERO, |rate| {
                        Duration::from_secs_f64(ticket.fetch_add(1, Ordering::Relaxed) as f64 / rate)
                    });
                    std::thread::sleep(due.saturating_sub(started.elapsed()));
                    if started.elapsed() >= length {
                        break;
                    }
                    let body = &bodies[next.fetch_add(1, Ordering::Relaxed) % bodies.len()];
                    let sent = Instant::now();
                    let status = client.post("/v1/embeddings", body).expect("no connection is cut");
                    *own.statuses.entry(status).or_default() += 1;
                    if status == 200 {
                        own.answered.push(sent.elapsed());
                    }
                }
                let mut all = all.lock().unwrap();
                all.answered.extend(own.answered);
                own.statuses.into_iter().for_each(|(status, count)| *all.statuses.entry(status).or_default() += count);
            });
        }
    });
    let mut measured = all.into_inner().unwrap();
    measured.answered.sort();
    measured
}

fn rate(measured: &Measured, length: Duration) -> f64 {
    measured.answered.len() as f64 / length.as_secs_f64()
}

fn quantile(sorted: &[Duration], q: f64) -> Duration {
    sorted.get(((sorted.len() as f64 - 1.0) * q) as usize).copied().unwrap_or_default()
}

fn times(measured: &Measured) -> String {
    let ms = |q| quantile(&measured.answered, q).as_secs_f64() * 1e3;
    format!("p50 {:.1} ms, p99 {:.1} ms", ms(0.5), ms(0.99))
}
