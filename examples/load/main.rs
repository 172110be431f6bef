//! Starts a server and puts load on it: `load soak REQUESTS`, `load mixed MINUTES` and `load overload SECONDS INPUTS`. `tests/soak/run`,
//! `tests/soak/mixed` and `tests/overload/run` start this program. All its sockets are on one thread, so that the cost of the client is
//! small and known.

// A load test reports a failure by a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod client;
mod mixed;
mod overload;
mod server;
mod soak;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<u64> = arguments.iter().skip(1).filter_map(|n| n.parse().ok()).collect();
    match (arguments.first().map(String::as_str), &numbers[..]) {
        (Some("soak"), &[requests]) => soak::run(requests).await,
        (Some("mixed"), &[minutes @ 1..=1440]) => mixed::run(minutes).await,
        (Some("overload"), &[seconds @ 4..=3600, batch @ 1..=2048]) => overload::run(seconds, batch as usize).await,
        _ => println!(
            "usage: load soak REQUESTS | load mixed MINUTES (1 to 1440) | load overload SECONDS (4 to 3600) INPUTS (1 to 2048)"
        ),
    }
}
