//! One connection: the handshake, HTTP/1.1 or HTTP/2 on it, and when it is given up.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use axum::body::Body;
use axum::http::{Request, Response};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::clients::{Streams, abortable};
use super::error::ApiError;
use super::metrics::Metrics;
use super::request_body::{RequestBody, close_if_unread};
use super::sockets::SocketThreads;
use super::transport::{Transport, limit_unsent};
use super::{Serving, State};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Connections over the limit that are told so at the same time; more are closed unanswered.
const REFUSED: usize = 256;
/// How long one of those may take to read it.
const REFUSAL: Duration = Duration::from_secs(2);

/// Serves the connections of one listener.
pub struct Connections<'a> {
    serving: Arc<ArcSwapOption<Serving>>,
    metrics: Arc<Metrics>,
    graceful: &'a GracefulShutdown,
    free: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    threads: &'a SocketThreads,
}

impl<'a> Connections<'a> {
    /// Of this server, on `threads`. The state itself is not kept: another may take its place, and it must be free to go.
    pub fn new(state: &State, threads: &'a SocketThreads, graceful: &'a GracefulShutdown) -> Self {
        Self {
            threads,
            serving: Arc::clone(&state.serving),
            metrics: Arc::clone(&state.metrics),
            graceful,
            free: Arc::new(Semaphore::new(state.config.server.max_connections.min(Semaphore::MAX_PERMITS))),
            refusals: Arc::new(Semaphore::new(REFUSED)),
        }
    }

    /// Serves `stream` in the background, or refuses it if there are too many.
    pub fn serve(&self, stream: TcpStream) {
        // Answers are single writes; waiting to fill a packet only delays them.
        let _ = stream.set_nodelay(true);
        limit_unsent(&stream);
        let (serving, watcher) = (Arc::clone(&self.serving), self.graceful.watcher());
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            let open = (permit, self.metrics.connect());
            self.threads.spawn(stream, async move |stream| {
                let _open = open;
                if let Err(error) = serve(serving, stream, watcher).await {
                    tracing::debug!(%error, "connection ended");
                }
            });
        } else if let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() {
            tracing::warn!("connections are refused: server.max_connections are open");
            self.threads.spawn(stream, async move |stream| {
                let _refusing = permit;
                let _ = tokio::time::timeout(REFUSAL, refuse(&serving, stream)).await;
            });
        }
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

async fn serve(serving: Arc<ArcSwapOption<Serving>>, stream: TcpStream, watcher: Watcher) -> Result<(), Error> {
    let Some((tls, header_timeout, request_timeout)) = serving.load().as_ref().map(|serving| {
        let server = &serving.state.config.server;
        (Arc::clone(&serving.state.tls), server.header_timeout.0, server.request_timeout.0)
    }) else {
        return Ok(());
    };
    let stream = tokio::time::timeout(HANDSHAKE.min(header_timeout), tls.accept(stream)).await??;
    let stream = Transport::new(stream, header_timeout.max(request_timeout));
    let received = stream.received();
    let service = service_fn(move |request: Request<Incoming>| {
        let received = received.clone();
        let request = RequestBody::of(request, &received);
        let routes = serving.load().as_ref().map(|serving| serving.routes.clone());
        async move {
            let mut response = match routes {
                Some(routes) => routes.answer(request).await,
                None => {
                    drop(request);
                    ApiError::draining().into_response()
                }
            };
            close_if_unread(&mut response, &received);
            Ok::<_, Infallible>(response)
        }
    });
    let builder = protocol(header_timeout);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    abortable(watcher.watch(connection)).await.unwrap_or_else(|_| Err("its client takes its answer too slowly".into()))
}

/// Answers the first request with the reason, and closes.
async fn refuse(serving: &ArcSwapOption<Serving>, stream: TcpStream) -> Result<(), Error> {
    let Some(tls) = serving.load().as_ref().map(|serving| Arc::clone(&serving.state.tls)) else { return Ok(()) };
    let stream = Transport::new(tls.accept(stream).await?, REFUSAL);
    let received = stream.received();
    // Not an async closure: rustc 1.95 cannot compile one here incrementally.
    let service = service_fn(move |request: Request<Incoming>| {
        drop(RequestBody::of(request, &received));
        ready(Ok::<Response<Body>, Infallible>(ApiError::too_many_connections().into_response()))
    });
    let mut builder = protocol(REFUSAL);
    builder.http1().keep_alive(false);
    builder.serve_connection(TokioIo::new(stream), service).await
}

fn protocol(header_timeout: Duration) -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(Streams);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(header_timeout);
    // A client that is gone without a word, and has no request that would find out.
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(header_timeout);
    builder
}
