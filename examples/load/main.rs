//! Load on a server of its own: `load soak REQUESTS` and `load overload SECONDS`, by `tests/soak/run` and `tests/overload/run`.
//! Sockets and threads alone, so that what the client costs is small and known.

// Says what must hold by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod client;
mod overload;
mod server;
mod soak;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = arguments.get(1).and_then(|n| n.parse().ok());
    match (arguments.first().map(String::as_str), number) {
        (Some("soak"), Some(requests)) => soak::run(requests),
        (Some("overload"), Some(seconds)) => overload::run(seconds),
        _ => println!("usage: load soak REQUESTS | load overload SECONDS"),
    }
}
