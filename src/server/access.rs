//! Around every request: its id, and its one line in the log.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderValue, Response};
use axum::middleware::Next;

/// On every response; taken from the request where it has one.
pub const REQUEST_ID: &str = "x-request-id";

const CLIENT_REQUEST_ID: &str = "x-client-request-id";
const LONGEST_ID: usize = 128;

/// What the log says of a request beyond its head; handlers put it into their response.
#[derive(Debug, Clone, Default)]
pub struct Accounting {
    /// A configured name, never a client's text.
    pub model: String,
    pub inputs: usize,
    pub tokens: usize,
}

/// Gives every request an id, the client's own if it sent one, and logs it when its answer begins: one line, without
/// texts, vectors or keys.
pub async fn log(request: Request, next: Next) -> Response<axum::body::Body> {
    let started = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let id = sent_id(request.headers()).cloned().unwrap_or_else(new_id);
    let mut response = next.run(request).await;

    let status = response.status();
    let route = route.as_ref().map_or("-", MatchedPath::as_str);
    let request_id = id.to_str().unwrap_or_default();
    let duration_ms = (started.elapsed().as_secs_f64() * 1e6).round() / 1e3;
    let none = Accounting::default();
    let Accounting { model, inputs, tokens } = response.extensions().get().unwrap_or(&none);
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(%method, route, status = status.as_u16(), model, inputs, tokens, duration_ms, request_id, "request")
        };
    }
    if status.is_server_error() && route != "/ready" {
        line!(warn);
    } else if matches!(route, "/health" | "/ready") {
        line!(debug);
    } else {
        line!(info);
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The client's own id, if it is short and printable.
fn sent_id(headers: &HeaderMap) -> Option<&HeaderValue> {
    [REQUEST_ID, CLIENT_REQUEST_ID].iter().find_map(|name| headers.get(*name)).filter(|id| {
        let id = id.as_bytes();
        (1..=LONGEST_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
    })
}

fn new_id() -> HeaderValue {
    let id = format!("req_{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
    HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("req"))
}
