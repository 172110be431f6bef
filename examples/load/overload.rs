//! Offers ten times the load that the server sustains, and measures its goodput, its latency and its memory.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;

use crate::client::Client;
use crate::server::Server;

/// The number of rounds. Each round measures the sustained rate and then the goodput, because the speed of a machine with other work
/// changes within seconds.
const ROUNDS: u32 = 20;
const OVER: f64 = 10.0;
/// The number of clients that keep the server busy when each sends its next request at once.
const BUSY: usize = 8;
/// The number of clients under overload. It exceeds the number of admitted requests, so no part of the load waits for the server.
const CONNECTIONS: usize = 200;
/// The number of inputs of all bodies together. They have more words than the cache of a tokenizer holds.
const INPUTS: usize = 4_096;
/// The in-flight budget per input of a request. It admits 28 requests.
const KIB_IN_FLIGHT_PER_INPUT: usize = 128;
const SLOWEST: Duration = Duration::from_secs(2);
const WARM_UP: Duration = Duration::from_secs(3);
/// The time until the number of requests in flight is steady. Responses before that are not counted.
const RAMP: Duration = Duration::from_millis(400);

#[derive(Default)]
struct Measured {
    statuses: BTreeMap<u16, u64>,
    answered: Vec<Duration>,
    /// The number of successful responses between the ramp and the end of the load.
    in_time: u64,
    /// The CPU time of the server's threads for connections, and of all its threads.
    cpu: (Duration, Duration),
}

impl Measured {
    fn add(&mut self, other: Self) {
        self.answered.extend(other.answered);
        other.statuses.into_iter().for_each(|(status, count)| *self.statuses.entry(status).or_default() += count);
        self.cpu = (self.cpu.0 + other.cpu.0, self.cpu.1 + other.cpu.1);
    }

    /// Returns the numbers of successful responses and of others.
    fn counts(&self) -> (f64, f64) {
        let answers = self.answered.len() as f64;
        (answers, self.statuses.values().sum::<u64>() as f64 - answers)
    }

    /// Returns the number of successful responses per second.
    fn rate(&self, length: Duration) -> f64 {
        self.in_time as f64 / (length - RAMP).as_secs_f64()
    }
}

/// Runs the test with requests of `batch` inputs each.
pub async fn run(seconds: u64, batch: usize) {
    // The words are in no cache, so that the cost of an answered request is realistic.
    let mut rng = fastrand::Rng::with_seed(1);
    let mut word = || (0..rng.usize(3..10)).map(|_| rng.lowercase()).chain([' ']).collect::<String>();
    let mut texts = || (0..batch).map(|_| (0..80).map(|_| word()).collect::<String>()).collect::<Vec<_>>();
    let bodies: Vec<Vec<u8>> = (0..INPUTS / batch)
        .map(|_| json!({"input": texts(), "encoding_format": "base64"}).to_string().into_bytes())
        .collect();
    let in_flight = format!("{} KiB", KIB_IN_FLIGHT_PER_INPUT * batch);
    let mut server = Server::start(&[("EMBEDDING_SERVER_MAX_IN_FLIGHT", &in_flight)]).await;
    let idle = server.memory();
    let length = Duration::from_secs(seconds) / (2 * ROUNDS);
    let warm = load(&server, &bodies, BUSY, None, WARM_UP).await.rate(WARM_UP);
    load(&server, &bodies, CONNECTIONS, Some(OVER * warm), WARM_UP).await;
    let before = server.memory();

    let (mut shares, mut rates) = (Vec::new(), Vec::new());
    let (mut all_sustained, mut all_over) = (Measured::default(), Measured::default());
    for _ in 0..ROUNDS {
        let measured = load(&server, &bodies, BUSY, None, length).await;
        let sustained = measured.rate(length);
        all_sustained.add(measured);
        let over = load(&server, &bodies, CONNECTIONS, Some(OVER * sustained), length).await;
        let offered = over.statuses.values().sum::<u64>() as f64 / length.as_secs_f64();
        assert!(offered >= 0.8 * OVER * sustained, "the client could not offer enough: {offered:.0} requests/s");
        shares.push(over.rate(length) / sustained);
        rates.push(sustained);
        all_over.add(over);
    }
    // What the threads for connections need for the answers alone is known from the sustained load.
    let (answers, _) = all_sustained.counts();
    let (answers_over, refusals) = all_over.counts();
    let of_answers = all_sustained.cpu.0.mul_f64(answers_over / answers);
    let [answer, answer_over, refusal] = [
        all_sustained.cpu.1.div_f64(answers),
        (all_over.cpu.1 - all_over.cpu.0 + of_answers).div_f64(answers_over),
        all_over.cpu.0.saturating_sub(of_answers).div_f64(refusals.max(1.0)),
    ]
    .map(|time| time.as_secs_f64() * 1e6);
    let Measured { mut answered, statuses, .. } = all_over;
    answered.sort();
    rates.sort_by(f64::total_cmp);
    shares.sort_by(f64::total_cmp);
    let [least, share, most] = [0.25, 0.5, 0.75].map(|q| 100.0 * quantile(&shares, q));
    let (slowest, after) = (quantile(&answered, 0.99), server.memory());
    println!("sustained: {:.0} answers/s of {batch} inputs (median of {ROUNDS} rounds)", quantile(&rates, 0.5));
    println!("goodput under {OVER} times that: {share:.1} % of it (median; quartiles {least:.1}, {most:.1})");
    println!(
        "CPU of the server: {answer:.0} us per answer, {answer_over:.0} us under overload, {refusal:.1} us per refusal"
    );
    println!("p99 of answers: {:.0} ms; {statuses:?}", slowest.as_secs_f64() * 1e3);
    println!("MiB of memory idle, before and after: {}, {}, {}", idle >> 20, before >> 20, after >> 20);

    assert!(server.lives());
    assert!(statuses.keys().all(|status| [200, 429, 503].contains(status)), "other statuses");
    assert!(share >= 90.0, "goodput falls under load");
    assert!(slowest <= SLOWEST, "what is admitted waits too long");
    assert!(after <= before + before / 10 + (4 << 20), "memory grows");
}

/// Runs `connections` clients for `length`. Together they send `rate` requests per second, or each sends as soon as it has a response.
async fn load(
    server: &Server,
    bodies: &[Vec<u8>],
    connections: usize,
    rate: Option<f64>,
    length: Duration,
) -> Measured {
    let (measured, ticket, next) = (RefCell::new(Measured::default()), Cell::new(0), Cell::new(0));
    let cpu = server.cpu();
    let started = Instant::now();
    let clients = join_all((0..connections).map(async |_| {
        let mut client = Client::connect(&server.address).await;
        loop {
            // Any free client sends the next request when it is due.
            let due = rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(f64::from(ticket.get()) / rate));
            ticket.update(|n| n + 1);
            while started.elapsed() < due {
                tokio::task::yield_now().await;
            }
            if started.elapsed() >= length {
                break;
            }
            let body = &bodies[next.get() % bodies.len()];
            next.update(|n| n + 1);
            let sent = Instant::now();
            let status = client.post("/v1/embeddings", body).await.expect("no connection is cut");
            let mut measured = measured.borrow_mut();
            *measured.statuses.entry(status).or_default() += 1;
            if status == 200 {
                measured.answered.push(sent.elapsed());
                measured.in_time += u64::from((RAMP..=length).contains(&started.elapsed()));
            }
        }
    }));
    // The client never sleeps. Otherwise the server would pay for waking it up, and more often in one measurement than in the other.
    let polling = async {
        loop {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = clients => {}
        () = polling => {}
    }
    let mut measured = measured.into_inner();
    let (sockets, all) = server.cpu();
    measured.cpu = (sockets - cpu.0, all - cpu.1);
    measured.answered.sort();
    measured
}

fn quantile<T: Copy + Default>(sorted: &[T], q: f64) -> T {
    sorted.get(((sorted.len() as f64 - 1.0) * q).round() as usize).copied().unwrap_or_default()
}
