//! The access log: gives every request an ID, counts it, and writes one log line for it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Response};
use bytes::Bytes;
use hyper::body::{Body as _, Frame, SizeHint};
use tracing::Instrument;

use super::metrics::{Metrics, ModelMetrics, RouteMetrics};
use super::stages::SERVER_TIMING;
use super::trace::{self, TRACE_PARENT};
use crate::registry::{RegisteredModel, Registry};
use crate::server::error::ErrorClass;
use crate::server::request::authorize::Caller;
use crate::server::router::paths::Original;
use crate::server::socket::listen::Peer;

/// The header with the ID of a request. It is on every response; a request may bring its own ID.
pub const REQUEST_ID: &str = "x-request-id";

const CLIENT_REQUEST_ID: &str = "x-client-request-id";
const LONGEST_ID: usize = 128;

/// The longest texts from a client that the log repeats, in bytes.
const LONGEST_METHOD: usize = 32;
const LONGEST_PATH: usize = 256;
const LONGEST_FORWARDED_FOR: usize = 256;

/// The route of requests that match no route, in the log and in the metrics.
const NO_ROUTE: &str = "-";

/// What a handler reports to the access log and the metrics, as an extension of its response.
#[derive(Clone)]
pub struct Accounting {
    pub entry: Arc<RegisteredModel>,
    pub inputs: usize,
    pub tokens: usize,
}

/// The access log, and the counters of each route and model.
pub struct AccessLog {
    /// Whether every request gets a line (`log.access`), and not only requests that fail with a 5xx status.
    all_requests: bool,
    metrics: Arc<Metrics>,
    routes: Vec<(String, RouteMetrics)>,
    others: RouteMetrics,
    /// The counters of the models, in the order of the configuration.
    models: Vec<ModelMetrics>,
}

impl AccessLog {
    /// Returns the log for a router with these paths and these models.
    pub fn new(metrics: Arc<Metrics>, paths: &[String], registry: &Registry, all_requests: bool) -> Self {
        let routes = paths.iter().map(|path| (path.clone(), metrics.route(path))).collect();
        let models = registry.models().iter().map(|entry| metrics.model(entry.id())).collect();
        Self { all_requests, others: metrics.route(NO_ROUTE), routes, models, metrics }
    }

    fn route(&self, path: &str) -> &RouteMetrics {
        self.routes.iter().find(|(known, _)| known == path).map_or(&self.others, |(_, route)| route)
    }
}

/// Runs `next`, counts the request, and logs it when its response begins, in one line without texts, vectors or keys.
/// The request gets an ID: the client's own if it sent one, otherwise a new one.
///
/// `route` is the path that the request matched, if any. `next` also returns the API key that gave access to the route,
/// if the route needs a key.
pub async fn log<'a, F: Future<Output = (Response<Body>, Option<&'a Caller>)>>(
    log: &AccessLog,
    route: Option<&str>,
    request: Request,
    next: impl FnOnce(Request) -> F,
) -> Response<Body> {
    let started = Instant::now();
    let in_flight = log.metrics.count_request();
    let method = request.method().clone();
    let route = route.unwrap_or(NO_ROUTE);
    let id = sent_id(request.headers()).cloned().unwrap_or_else(new_id);
    let (span, trace) = trace::begin(request.headers(), &method, route);
    let details = tracing::enabled!(tracing::Level::DEBUG).then(|| RequestDetails::from_request(&request));
    let (mut response, caller) = next(request).instrument(span.clone()).await;

    let status = response.status();
    let request_id = id.to_str().unwrap_or_default();
    let elapsed = started.elapsed();
    log.route(route).answered(status.as_u16(), elapsed);
    let code = response.extensions().get().map(|ErrorClass(code)| *code);
    if let Some(code) = code {
        log.metrics.failed(code);
    }
    let duration_ms = (elapsed.as_secs_f64() * 1e6).round() / 1e3;
    let accounting = response.extensions().get::<Accounting>();
    let (model, inputs, tokens) = accounting.map_or(("", 0, 0), |a| (a.entry.id(), a.inputs, a.tokens));
    if let Some(of_model) = accounting.and_then(|accounting| log.models.get(accounting.entry.index())) {
        of_model.pooled(inputs, tokens);
    }
    if let Some(caller) = caller {
        caller.counts.answered(inputs, tokens);
    }
    let key = caller.and_then(Caller::name);
    if !span.is_disabled() {
        span.record("http.response.status_code", status.as_u16());
        span.record("model", model).record("inputs", inputs).record("tokens", tokens);
        span.record("stages", response.headers().get(SERVER_TIMING).and_then(|v| v.to_str().ok()));
    }
    let trace_id = trace.as_ref().map(trace::Trace::id);
    let path = details.as_ref().map(|details| details.path.as_str());
    let client = details.as_ref().and_then(|details| details.client.as_deref());
    let forwarded_for = details.as_ref().and_then(|details| details.forwarded_for.as_deref());
    let method = beginning(method.as_str(), LONGEST_METHOD);
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(%method, route, status = status.as_u16(), code, path, client, forwarded_for, key, model, inputs, tokens, duration_ms, request_id, trace_id, "request")
        };
    }
    if status.is_server_error() && route != "/ready" {
        line!(warn);
    } else if !log.all_requests {
        // The setting log.access is false.
    } else if matches!(route, "/health" | "/ready" | "/metrics") {
        line!(debug);
    } else {
        line!(info);
    }
    response.headers_mut().insert(REQUEST_ID, id);
    if let Some(trace) = trace {
        response.headers_mut().insert(TRACE_PARENT, trace.into_header());
    }
    // A complete body counts as sent: it is written to the socket at once.
    if response.body().size_hint().exact().is_none() {
        return response.map(|body| Body::new(GuardedBody::new(body, in_flight)));
    }
    response
}

/// Further fields of the log line at level debug: texts from the client, cut to a maximum length. The log escapes them.
struct RequestDetails {
    /// The path without the query, which may hold secrets.
    path: String,
    client: Option<String>,
    /// The value of `x-forwarded-for`, as a proxy, or the client itself, claims it.
    forwarded_for: Option<String>,
}

impl RequestDetails {
    fn from_request(request: &Request) -> Self {
        let uri = request.extensions().get::<Original>().map_or(request.uri(), |Original(uri)| uri);
        let forwarded_for = request.headers().get("x-forwarded-for");
        Self {
            path: beginning(uri.path(), LONGEST_PATH).to_owned(),
            client: request.extensions().get::<Peer>().map(Peer::to_string),
            forwarded_for: forwarded_for.map(|value| {
                let value = value.as_bytes().get(..LONGEST_FORWARDED_FOR).unwrap_or(value.as_bytes());
                String::from_utf8_lossy(value).into_owned()
            }),
        }
    }
}

/// Returns the beginning of `text`: whole characters, at most `max` bytes.
fn beginning(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or_default();
    text.get(..end).unwrap_or_default()
}

/// A response body that is produced while it is sent, and a value that must live until all of it is sent.
pub struct GuardedBody<T> {
    body: Body,
    _until_sent: T,
}

impl<T> GuardedBody<T> {
    pub fn new(body: Body, until_sent: T) -> Self {
        Self { body, _until_sent: until_sent }
    }
}

impl<T: Unpin> hyper::body::Body for GuardedBody<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Returns the ID that the client sent, if it is short and printable.
fn sent_id(headers: &HeaderMap) -> Option<&HeaderValue> {
    [REQUEST_ID, CLIENT_REQUEST_ID].iter().find_map(|name| headers.get(*name)).filter(|id| {
        let id = id.as_bytes();
        (1..=LONGEST_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
    })
}

fn new_id() -> HeaderValue {
    let random = fastrand::u128(..);
    let mut id = *b"req_00000000000000000000000000000000";
    for (i, byte) in id.iter_mut().skip(4).enumerate() {
        let digit = (random >> (4 * i)) as u8 & 0xf;
        *byte = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
    }
    HeaderValue::from_bytes(&id).unwrap_or_else(|_| HeaderValue::from_static("req"))
}
