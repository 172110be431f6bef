//! The life of one connection: TLS handshake, HTTP/1.1 or HTTP/2, and the reasons for which the connection is closed.
//!
//! # Example
//!
//! With the default settings (`header_timeout` 75 s, `request_timeout` 60 s, `drain_timeout` 30 s):
//!
//! 1. At 0 s a connection is accepted and assigned to the socket thread that has the fewest connections.
//! 2. The TLS handshake must end by 10 s, and the head of the first request must have arrived 75 s after that.
//! 3. A request arrives at 1 s and its response is sent at 3 s. From 1 s to 3 s the connection has one request in
//!    flight.
//! 4. No further request arrives. At about 78 s the connection has been idle for `header_timeout`, so the server
//!    announces that it will close it (GOAWAY on HTTP/2). One second later, if still nothing is in flight, it closes
//!    the connection.
//! 5. If instead the client had stopped reading at 2 s, with part of the response unsent, the connection would have
//!    been closed once the client had stayed below the minimum rate ([`crate::server::state::clients`]; only for streamed responses
//!    and for HTTP/2), or after 75 s in which no byte moved in either direction ([`Transport`]).
//! 6. If the server had been stopped at 2 s, it would have sent the response with `connection: close`, and closed the
//!    connection at 3 s, or cut it off at 32 s if the response had not been sent by then.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;

use super::activity::{Activity, TrackedBody};
use super::descriptors;
use super::drain::{Drain, Watcher};
use super::early_refusal::EarlyRefusal;
use super::listen::Socket;
use super::protocol;
use super::refuse::{self, ExcessConnections, REFUSAL_TIMEOUT, Refusals};
use super::request_body::{RequestBody, close_if_unread};
use super::stream::SocketStream;
use super::threads::SocketThreads;
use super::tls::{self, HandshakeOutcome};
use super::transport::Transport;
use crate::server::error::ApiError;
use crate::server::observe::metrics::Metrics;
use crate::server::observe::peer::Peer;
use crate::server::router::active::ActiveRoutes;
use crate::server::state::clients::abortable;
use crate::server::state::tls::TlsConfig;

/// The time limit of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves the connections of one server.
pub struct Connections<'a> {
    threads: &'a SocketThreads,
    drain: &'a Drain,
    active: ActiveRoutes,
    metrics: Arc<Metrics>,
    refusals: Arc<Refusals>,
    free: Arc<Semaphore>,
    excess: ExcessConnections,
}

impl<'a> Connections<'a> {
    /// Serves connections on `threads`. The active state itself is not kept, because a reload replaces it and it must
    /// then be freed.
    pub fn new(active: &ActiveRoutes, threads: &'a SocketThreads, drain: &'a Drain) -> Self {
        let state = active.state();
        let metrics = &state.process.metrics;
        let limit = descriptors::ConnectionLimits::new(state.config.server.max_connections);
        Self {
            threads,
            drain,
            active: active.clone(),
            metrics: Arc::clone(metrics),
            refusals: Arc::new(Refusals::new(metrics)),
            free: Arc::new(Semaphore::new(limit.served.min(Semaphore::MAX_PERMITS))),
            excess: ExcessConnections::new(limit.excess),
        }
    }

    /// Serves a connection in the background, or refuses it if `server.max_connections` are open.
    pub async fn serve(&self, socket: Socket, peer: Peer) {
        let (active, refusals) = (self.active.clone(), Arc::clone(&self.refusals));
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            let open = (permit, self.metrics.count_connection());
            let watcher = self.drain.watcher();
            self.threads.spawn(socket, async move |socket| {
                let _open = open;
                if let Err(error) = serve(active, socket, peer, &refusals, watcher).await {
                    refusals.ended(peer, &*error);
                }
            });
            return;
        }
        self.refuse(socket).await;
    }

    /// Answers a connection over the limit with an error, if there is room for that, and closes it.
    pub async fn refuse(&self, socket: Socket) {
        self.refusals.over_limit();
        let Some(place) = self.excess.enter().await else { return };
        let (active, metrics) = (self.active.clone(), Arc::clone(&self.metrics));
        self.threads.spawn(socket, async move |socket| {
            let refusal = async {
                let tls = Arc::clone(&active.state().tls);
                match tokio::time::timeout(REFUSAL_TIMEOUT, tls::accept(&tls, socket)).await {
                    Ok(Ok(HandshakeOutcome::Stream(stream))) => refuse::over_limit(active, metrics, stream).await,
                    Ok(Ok(HandshakeOutcome::PlainHttp(stream))) => refuse::plain_http(stream).await,
                    _ => {}
                }
            };
            place.keep(refusal).await;
        });
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

async fn serve(
    active: ActiveRoutes,
    socket: Socket,
    peer: Peer,
    refusals: &Arc<Refusals>,
    mut watcher: Watcher,
) -> Result<(), Error> {
    let (tls, header_timeout, request_timeout) = {
        let state = active.state();
        let server = &state.config.server;
        (Arc::clone(&state.tls), server.header_timeout.0, server.request_timeout.0)
    };
    let activity = Arc::new(Activity::default());
    let handshake = handshake(&tls, socket, peer, refusals, HANDSHAKE_TIMEOUT.min(header_timeout));
    let stream = tokio::select! {
        biased;
        stream = handshake => stream?,
        () = give_up(&mut watcher, &activity) => None,
    };
    let Some(stream) = stream else { return Ok(()) };
    // HTTP closes a connection on which it has seen no request for `header_timeout`.
    let early = Box::new(EarlyRefusal::new(active.clone(), peer));
    let stream = Transport::new(stream, header_timeout.max(request_timeout), Arc::clone(&activity))
        .refuse_early(early, header_timeout / 2);
    let received = stream.received();
    let (requests, refusals) = (Arc::clone(&activity), Arc::clone(refusals));
    let service = service_fn(move |request: Request<Incoming>| {
        let (version, in_flight) = (request.version(), requests.begin());
        let bad_host = refuse::bad_host(&request).inspect(|reason| refusals.malformed(peer, reason));
        let received = received.clone();
        let request = RequestBody::wrap(request, &received);
        let routes = active.routes();
        async move {
            let mut response = match bad_host {
                None => routes.answer(request, Some(peer)).await,
                Some(reason) => refuse::answer(ApiError::bad_host(reason), request),
            };
            close_if_unread(&mut response, &received);
            Ok::<_, Infallible>(response.map(|body| TrackedBody::new(body, in_flight, version)))
        }
    });
    let builder = protocol::builder(header_timeout);
    let connection = async {
        let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
        tokio::select! {
            biased;
            result = connection.as_mut() => return result,
            () = watcher.draining() => {}
                        // This also ends clients that answer every PING, and clients whose first request never ends.
            () = activity.idle_for(header_timeout) => {}
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            biased;
            result = connection => result,
            () = watcher.given_up(&activity) => Ok(()),
        }
    };
    abortable(connection).await.unwrap_or_else(|_| Err("the client receives its response too slowly".into()))
}

/// Returns the connection's byte stream, decrypted if the server uses TLS, or `None` if the handshake ended the
/// connection.
async fn handshake(
    tls: &TlsConfig,
    socket: Socket,
    peer: Peer,
    refusals: &Refusals,
    limit: Duration,
) -> Result<Option<Box<dyn SocketStream>>, Error> {
    match tokio::time::timeout(limit, tls::accept(tls, socket)).await? {
        Ok(HandshakeOutcome::Stream(stream)) => Ok(Some(stream)),
        Ok(HandshakeOutcome::Closed) => Ok(None),
        Ok(HandshakeOutcome::PlainHttp(stream)) => {
            refusals.malformed(peer, &"plain HTTP on an HTTPS port");
            refuse::plain_http(stream).await;
            Ok(None)
        }
        Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
            refusals.malformed(peer, &format_args!("the TLS handshake failed: {error}"));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Resolves when the server stops while a connection is still in its handshake.
async fn give_up(watcher: &mut Watcher, activity: &Activity) {
    watcher.draining().await;
    watcher.given_up(activity).await;
}
