//! The life of the server: it accepts connections until it is asked to stop, and then drains.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use crate::server::batches;
use crate::server::router::active::ActiveRoutes;
use crate::server::socket::accept_loop::accept;
use crate::server::socket::connection::Connections;
use crate::server::socket::drain::Drain;
use crate::server::socket::listen::Listeners;
use crate::server::socket::systemd;
use crate::server::socket::threads::SocketThreads;

/// The longest time that the batches may take to save their progress after the last connection is closed.
const SAVING: Duration = Duration::from_secs(10);

/// Accepts connections on `listeners` until `shutdown` resolves, and for `server.drain_delay` after that, while /ready
/// answers 503. Then requests in flight may finish for at most `server.drain_timeout`. If `cut` resolves, both waits
/// end at once. Returns the number of requests that were cut off.
///
/// # Errors
/// If the system does not provide the threads for the connections.
pub async fn serve(
    listeners: impl Into<Listeners>,
    active: impl Into<ActiveRoutes>,
    shutdown: impl Future<Output = ()>,
    cut: impl Future<Output = ()>,
) -> std::io::Result<usize> {
    let (listeners, active) = (listeners.into(), active.into());
    let stop_batches = watch::Sender::new(false);
    let batches = tokio::spawn(batches::run(active.clone(), stop_batches.subscribe()));
    let cut = accept_and_drain(listeners, active, shutdown, cut, &stop_batches).await?;
    // Batches stop at the end of the requests that they are answering.
    stop_batches.send_replace(true);
    if tokio::time::timeout(SAVING, batches).await.is_err() {
        tracing::warn!(
            "the progress of the batches was not saved in time; some requests are answered again after the next start"
        );
    }
    Ok(cut)
}

async fn accept_and_drain(
    listeners: Listeners,
    active: ActiveRoutes,
    shutdown: impl Future<Output = ()>,
    cut: impl Future<Output = ()>,
    stop_batches: &watch::Sender<bool>,
) -> std::io::Result<usize> {
    let process = Arc::clone(&active.state().process);
    let (admission, workers) = (Arc::clone(&process.admission), Arc::downgrade(&process.workers));
    let wait_while_busy = move |limit| {
        if let Some(workers) = workers.upgrade() {
            workers.wait_while_busy(limit);
        }
    };
    let threads = SocketThreads::start(move || admission.batch_arrivals(&wait_while_busy))?;
    let drain = Drain::new();
    let connections = Connections::new(&active, &threads, &drain);
    let mut cut = std::pin::pin!(cut);
    accept(&listeners, &connections, shutdown).await;
    systemd::stopping();
    process.draining.store(true, Ordering::Relaxed);
    stop_batches.send_replace(true);
    let config = Arc::clone(&active.state().config);
    let (delay, deadline) = (config.server.drain_delay, config.server.drain_timeout);
    if !delay.0.is_zero() {
        tracing::info!(%delay, "shutting down: /ready answers 503, and requests are still accepted during \
                                server.drain_delay");
        tokio::select! {
            () = accept(&listeners, &connections, tokio::time::sleep(delay.0)) => {}
            () = cut.as_mut() => return Ok(cut_all(&drain, "a second stop signal arrived").await),
        }
    }
    drop((listeners, connections));
    tracing::info!(connections = drain.open(), %deadline, "draining");
    Ok(tokio::select! {
        () = drain.finish() => 0,
        () = tokio::time::sleep(deadline.0) => cut_all(&drain, "server.drain_timeout has passed").await,
        () = cut => cut_all(&drain, "a second stop signal arrived").await,
    })
}

async fn cut_all(drain: &Drain, why: &str) -> usize {
    let requests = drain.cut().await;
    tracing::warn!(requests, "{why}: closed all connections and cut off the requests in flight");
    requests
}

/// SIGTERM and SIGINT (Ctrl-C), both of which ask the server to stop.
pub struct StopSignals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignals {
    /// Installs the signal handlers.
    ///
    /// # Errors
    /// If the system refuses the signal handlers.
    pub fn listen() -> std::io::Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    /// Resolves when the next signal arrives.
    pub async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! { _ = self.terminate.recv() => {}, _ = self.interrupt.recv() => {} }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}
