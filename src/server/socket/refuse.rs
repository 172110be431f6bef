//! Refuses connections and bytes that never become a request: connections over the limit, plain HTTP on an HTTPS port,
//! and bytes that are not HTTP.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::error::Error;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONNECTION, HOST};
use axum::http::{HeaderValue, Request, Response, Version};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::protocol;
use super::request_body::RequestBody;
use super::stream::SocketStream;
use super::transport::Transport;
use crate::server::error::ApiError;
use crate::server::observe::metrics::Metrics;
use crate::server::observe::peer::Peer;
use crate::server::observe::throttle::Throttle;
use crate::server::router::active::ActiveRoutes;

/// How long a refused connection may take, from its first byte to the end of the response.
pub const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a connection over the limit waits for a slot that another one is leaving.
const SLOT_WAIT: Duration = Duration::from_millis(500);

/// The last path segments that are answered even on a connection over the limit. An orchestrator that cannot reach them
/// would restart a working server.
const PROBES: [&str; 3] = ["health", "ready", "metrics"];

/// Counts and logs refused connections.
#[derive(Debug)]
pub struct Refusals {
    metrics: Arc<Metrics>,
    malformed: Throttle,
    over_limit: Throttle,
}

impl Refusals {
    pub fn new(metrics: &Arc<Metrics>) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            malformed: Throttle::new(Duration::from_secs(60)),
            over_limit: Throttle::new(Duration::from_secs(1)),
        }
    }

    /// Records that a connection did not speak HTTP, or not TLS on an HTTPS port.
    pub fn malformed(&self, peer: Peer, reason: &dyn Display) {
        self.metrics.failed(ApiError::BAD_HTTP);
        tracing::debug!(%peer, %reason, "a connection was refused: the client does not speak the protocol of this \
                                         server");
        if let Some(count) = self.malformed.event() {
            tracing::warn!(
                count,
                "connections were refused whose clients do not speak the protocol of this server; the reason of the last one: \
                 {reason}; log.level = \"debug\" shows each with its address"
            );
        }
    }

    /// Records that a connection ended with `error`, which counts as refused if the client violated the protocol.
    pub fn ended(&self, peer: Peer, error: &(dyn Error + Send + Sync + 'static)) {
        match protocol_error(error) {
            Some(reason) => self.malformed(peer, &reason),
            None => tracing::debug!(%peer, %error, "connection ended"),
        }
    }

    /// Records a connection over `server.max_connections`.
    pub fn over_limit(&self) {
        if let Some(count) = self.over_limit.event() {
            tracing::warn!(count, "connections are refused: server.max_connections are already open");
        }
    }
}

/// Returns how the client violated the protocol, if this is what `error` says.
fn protocol_error(error: &(dyn Error + Send + Sync + 'static)) -> Option<String> {
    let http = error.downcast_ref::<hyper::Error>()?;
    let cause = http.source();
    let http2 = cause.and_then(|cause| cause.downcast_ref::<h2::Error>());
    let broken = http.is_parse() || http2.is_some_and(|error| error.is_library() && !error.is_io());
    broken.then(|| cause.map_or_else(|| http.to_string(), |cause| format!("{http}: {cause}")))
}

/// Returns what is wrong with the `Host` of a request, of which HTTP/1.1 requires exactly one (RFC 9112, section 3.2).
pub fn bad_host<B>(request: &Request<B>) -> Option<&'static str> {
    if request.version() != Version::HTTP_11 {
        return None;
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => Some("a request without a `Host` header"),
        (_, Some(_)) => Some("a request with more than one `Host` header"),
        (Some(host), None) => {
            // This runs for every request, so each byte costs only a bit test.
            let fine = |byte: &u8| {
                let foreign = matches!(
                    byte,
                    b'"' | b'#' | b',' | b'/' | b'<' | b'>' | b'?' | b'@' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'
                );
                byte.is_ascii_graphic() && !foreign
            };
            (!host.as_bytes().iter().all(fine)).then_some("a request with an invalid `Host` header")
        }
    }
}

/// Returns the response to a refused request. It is the last response of its connection.
pub fn answer(error: ApiError, request: Request<Body>) -> Response<Body> {
    // The body is received and discarded in the background.
    drop(request);
    let mut response = error.into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Answers the first request of a connection over the limit, and closes the connection. Probes are answered as always,
/// every other request with an error.
pub async fn over_limit(active: ActiveRoutes, metrics: Arc<Metrics>, stream: Box<dyn SocketStream>) {
    serve_once(stream, move |request| {
        let routes = active.routes();
        let metrics = Arc::clone(&metrics);
        async move {
            let probe = request.uri().path().rsplit('/').find(|part| !part.is_empty());
            if probe.is_some_and(|path| PROBES.contains(&path)) {
                return routes.answer(request, None).await;
            }
            metrics.failed("too_many_connections");
            answer(ApiError::too_many_connections(), request)
        }
    })
    .await;
}

/// Answers plain HTTP on an HTTPS port, and closes the connection.
pub async fn plain_http(stream: Box<dyn SocketStream>) {
    serve_once(stream, |request| std::future::ready(answer(ApiError::plain_http(), request))).await;
}

async fn serve_once<F: Future<Output = Response<Body>> + Send + 'static>(
    stream: Box<dyn SocketStream>,
    answer: impl Fn(Request<Body>) -> F,
) {
    let stream = Transport::new(stream, REFUSAL_TIMEOUT, Arc::default());
    let received = stream.received();
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(RequestBody::wrap(request, &received));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = protocol::builder(REFUSAL_TIMEOUT);
    builder.http1().keep_alive(false);
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, builder.serve_connection(TokioIo::new(stream), service)).await;
}

/// The connections over the limit that are open until they have been answered with an error. If more of them arrive
/// than there are slots, the oldest are closed first, because the newest may be a probe.
#[derive(Debug)]
pub struct ExcessConnections {
    places: Arc<Semaphore>,
    /// How many connections may be open before the oldest one is closed for a new one. It is less than the number of
    /// slots, because a closed connection frees its slot a little later.
    wanted: usize,
    open: Mutex<VecDeque<oneshot::Sender<()>>>,
}

/// The slot of one connection over the limit.
#[derive(Debug)]
pub struct ExcessSlot {
    _place: OwnedSemaphorePermit,
    closed: oneshot::Receiver<()>,
}

impl ExcessConnections {
    /// Allows at most `most` connections over the limit.
    pub fn new(most: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(most)), wanted: most.div_ceil(2), open: Mutex::default() }
    }

    /// Returns a slot for one more connection, or `None` if it must be closed at once.
    pub async fn enter(&self) -> Option<ExcessSlot> {
        let (close, closed) = oneshot::channel();
        {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.retain(|connection| !connection.is_closed());
            while open.len() >= self.wanted {
                let Some(first) = open.pop_front() else { break };
                let _ = first.send(());
            }
            open.push_back(close);
        }
        // The connections that were told to close do so soon.
        let place = tokio::time::timeout(SLOT_WAIT, Arc::clone(&self.places).acquire_owned()).await;
        Some(ExcessSlot { _place: place.ok()?.ok()?, closed })
    }
}

impl ExcessSlot {
    /// Runs `connection` until it ends, or until another connection needs its slot.
    pub async fn keep(self, connection: impl Future<Output = ()>) {
        tokio::select! {
            () = connection => {}
            _ = self.closed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_connections_over_the_limit_are_closed_for_new_ones() {
        let excess = ExcessConnections::new(4);
        let (first, second) = (excess.enter().await.unwrap(), excess.enter().await.unwrap());
        assert_eq!(excess.places.available_permits(), 2);
        let third = excess.enter().await.unwrap();
        first.keep(std::future::pending()).await;
        let fourth = excess.enter().await.unwrap();
        second.keep(std::future::pending()).await;
        let (fifth, sixth) = (excess.enter().await.unwrap(), excess.enter().await.unwrap());
        assert!(excess.enter().await.is_none(), "nobody closes");
        let closing = tokio::spawn(third.keep(std::future::pending()));
        assert!(excess.enter().await.is_some());
        closing.await.unwrap();
        drop((fourth, fifth, sixth));
    }

    #[test]
    fn an_http_1_1_request_needs_exactly_one_valid_host() {
        let hosts = |version, hosts: &[&str]| {
            let request = hosts.iter().fold(Request::builder().version(version), |r, host| r.header(HOST, *host));
            bad_host(&request.body(()).unwrap())
        };
        for fine in ["", "localhost", "127.0.0.1:5000", "[::1]:80", "my_host.example"] {
            assert_eq!(hosts(Version::HTTP_11, &[fine]), None, "{fine}");
        }
        for bad in [&[][..], &["a", "a"], &["a b"], &["a/b"], &["user@a"], &["a,b"]] {
            assert!(hosts(Version::HTTP_11, bad).is_some(), "{bad:?}");
            assert_eq!(hosts(Version::HTTP_10, bad), None);
            assert_eq!(hosts(Version::HTTP_2, bad), None);
        }
    }
}
