//! The access log: gives every request an ID, counts it, and writes one log line for it.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, Response, Uri};

use super::accounting::{ErrorClass, ResponseAccounting};
use super::metrics::{GaugeGuard, KeyMetrics, Metrics, ModelMetrics, RouteMetrics};
use super::peer::Peer;
use super::stages::SERVER_TIMING;
use super::trace::{self, TRACE_PARENT, Trace};
use crate::registry::Registry;

/// The target of the log lines, by which a directive in `log.level` selects them.
const TARGET: &str = "embedding_server::server::access";

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

    /// Records that a request has arrived. The request gets an ID: the client's own if it sent one, otherwise a new one.
    ///
    /// `route` is the path that the request matched, if any, and `uri` is the URI that the client wrote.
    pub fn begin<'a, B>(
        &'a self,
        route: Option<&'a str>,
        request: &Request<B>,
        uri: &Uri,
        peer: Option<Peer>,
    ) -> LoggedRequest<'a> {
        let started = Instant::now();
        let in_flight = self.metrics.count_request();
        let (method, headers) = (request.method().clone(), request.headers());
        let route = route.unwrap_or(NO_ROUTE);
        let id = sent_id(headers).cloned().unwrap_or_else(new_id);
        let (span, trace) = trace::begin(headers, &method, route);
        let details =
            tracing::enabled!(tracing::Level::DEBUG).then(|| RequestDetails::from_request(headers, uri, peer));
        LoggedRequest { log: self, route, started, in_flight, method, id, span, trace, details }
    }
}

/// A request in the access log, from its arrival until its response begins.
pub struct LoggedRequest<'a> {
    log: &'a AccessLog,
    route: &'a str,
    started: Instant,
    in_flight: GaugeGuard,
    method: Method,
    id: HeaderValue,
    span: tracing::Span,
    trace: Option<Trace>,
    details: Option<RequestDetails>,
}

impl LoggedRequest<'_> {
    /// Returns the span in which the request is processed.
    pub fn span(&self) -> tracing::Span {
        self.span.clone()
    }

    /// Counts the request, logs it in one line without texts, vectors or keys, and adds its ID to the response.
    /// `key` is the API key that gave access to the route, if the route needs a key. The request counts as in flight
    /// until the returned guard is dropped.
    pub fn finish(self, response: &mut Response<Body>, key: Option<&KeyMetrics>) -> GaugeGuard {
        let Self { log, route, started, in_flight, method, id, span, trace, details } = self;
        let status = response.status();
        let request_id = id.to_str().unwrap_or_default();
        let elapsed = started.elapsed();
        log.route(route).answered(status.as_u16(), elapsed);
        let (mut code, mut model, mut inputs, mut tokens) = (None, "", 0, 0);
        match response.extensions().get() {
            Some(ResponseAccounting::Failed(ErrorClass(class))) => {
                log.metrics.failed(class);
                code = Some(*class);
            }
            Some(ResponseAccounting::Answered { entry, inputs: counted_inputs, tokens: counted_tokens }) => {
                (model, inputs, tokens) = (entry.id(), *counted_inputs, *counted_tokens);
                if let Some(of_model) = log.models.get(entry.index()) {
                    of_model.pooled(inputs, tokens);
                }
            }
            None => {}
        }
        if let Some(key) = key {
            key.answered(inputs, tokens);
        }
        let duration_ms = (elapsed.as_secs_f64() * 1e6).round() / 1e3;
        let key = key.and_then(KeyMetrics::name);
        if !span.is_disabled() {
            span.record("http.response.status_code", status.as_u16());
            span.record("model", model).record("inputs", inputs).record("tokens", tokens);
            span.record("stages", response.headers().get(SERVER_TIMING).and_then(|v| v.to_str().ok()));
        }
        let trace_id = trace.as_ref().map(Trace::id);
        let path = details.as_ref().map(|details| details.path.as_str());
        let client = details.as_ref().and_then(|details| details.client.as_deref());
        let forwarded_for = details.as_ref().and_then(|details| details.forwarded_for.as_deref());
        let method = beginning(method.as_str(), LONGEST_METHOD);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(target: TARGET, %method, route, status = status.as_u16(), code, path, client, forwarded_for, key, model, inputs, tokens, duration_ms, request_id, trace_id, "request")
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
        in_flight
    }
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
    fn from_request(headers: &HeaderMap, uri: &Uri, peer: Option<Peer>) -> Self {
        let forwarded_for = headers.get("x-forwarded-for");
        Self {
            path: beginning(uri.path(), LONGEST_PATH).to_owned(),
            client: peer.as_ref().map(Peer::to_string),
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
