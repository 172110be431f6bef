//! One connection: the handshake, HTTP/1.1 or HTTP/2 on it, and when it is given up.

use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use axum::body::Body;
use axum::http::{Request, Response};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};

use super::error::ApiError;
use super::metrics::Metrics;
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
}

impl<'a> Connections<'a> {
    /// Of this server. The state itself is not kept: another may take its place, and it must be free to go.
    pub fn new(state: &State, graceful: &'a GracefulShutdown) -> Self {
        Self {
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
        let (serving, watcher) = (Arc::clone(&self.serving), self.graceful.watcher());
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            let open = (permit, self.metrics.connect());
            tokio::spawn(async move {
                let _open = open;
                if let Err(error) = serve(serving, stream, watcher).await {
                    tracing::debug!(%error, "connection ended");
                }
            });
        } else if let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() {
            tracing::warn!("connections are refused: server.max_connections are open");
            tokio::spawn(async move {
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
    let stream = Moving::new(stream, header_timeout.max(request_timeout));
    let service = service_fn(move |request: Request<Incoming>| {
        let routes = serving.load().as_ref().map(|serving| serving.routes.clone());
        async move {
            Ok::<_, Infallible>(match routes {
                Some(routes) => routes.answer(request.map(Body::new)).await,
                None => ApiError::draining().into_response(),
            })
        }
    });
    let builder = protocol(header_timeout);
    watcher.watch(builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned()).await
}

/// Answers the first request with the reason, and closes.
async fn refuse(serving: &ArcSwapOption<Serving>, stream: TcpStream) -> Result<(), Error> {
    let Some(tls) = serving.load().as_ref().map(|serving| Arc::clone(&serving.state.tls)) else { return Ok(()) };
    let stream = tls.accept(stream).await?;
    // Not an async closure: rustc 1.95 cannot compile one here incrementally.
    let service = service_fn(|_: Request<Incoming>| {
        ready(Ok::<Response<Body>, Infallible>(ApiError::too_many_connections().into_response()))
    });
    let mut builder = protocol(REFUSAL);
    builder.http1().keep_alive(false);
    builder.serve_connection(TokioIo::new(stream), service).await
}

fn protocol(header_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(header_timeout);
    // A client that is gone without a word, and has no request that would find out.
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(header_timeout);
    builder
}

/// A stream on which something has to move, in either direction: where nothing does for `limit`, it fails. That ends
/// connections that never send a request, and those whose client does not read the answer.
struct Moving<S> {
    stream: S,
    limit: Duration,
    moved: Instant,
    alarm: Pin<Box<Sleep>>,
}

impl<S> Moving<S> {
    fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, moved: Instant::now(), alarm: Box::pin(tokio::time::sleep(limit)) }
    }

    /// What a transfer came to. Pending: the task is woken when it is too late.
    fn check<T>(&mut self, context: &mut Context<'_>, transfer: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if transfer.is_ready() {
            self.moved = Instant::now();
            return transfer;
        }
        loop {
            ready!(self.alarm.as_mut().poll(context));
            let end = self.moved + self.limit;
            if end <= Instant::now() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.alarm.as_mut().reset(end);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Moving<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.check(context, read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Moving<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.check(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.check(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.check(context, shut)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_stream_on_which_nothing_moves_fails_and_whatever_moves_puts_that_off() {
        const LIMIT: Duration = Duration::from_millis(200);
        let (ours, mut theirs) = tokio::io::duplex(64);
        let started = Instant::now();
        let mut stream = Moving::new(ours, LIMIT);
        for byte in 0..3 {
            tokio::time::sleep(LIMIT / 2).await;
            theirs.write_all(&[byte]).await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), byte);
        }
        // The other end no longer reads.
        let error = loop {
            if let Err(error) = stream.write_all(&[0; 16]).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= LIMIT / 2 * 3 + LIMIT);
    }
}
