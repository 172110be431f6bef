//! The HTTP server: binds first, answers while models load, drains before it stops.

mod access;
mod docs;
mod embeddings;
mod error;
mod health;
mod inputs;
mod json;
mod metrics;
mod models;
mod playground;
mod router;
mod similarity;
mod stages;
mod stream;
mod tokenize;
pub mod trace;
mod write;

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::error::LoadError;
use crate::registry::{Entry, Registry};
use crate::tokenize::choose::{Choice, Search};
use crate::workers::Workers;
use metrics::Metrics;
pub use router::router;

/// What every request may look at.
pub struct State {
    pub registry: Registry,
    pub workers: Workers,
    pub config: Config,
    metrics: Arc<Metrics>,
    draining: AtomicBool,
}

/// Models that answer, and could sooner: [`State::quicken`].
#[must_use]
pub struct Searches(Vec<(Arc<Entry>, Search)>);

impl State {
    /// # Errors
    /// When no worker threads can be started.
    pub fn new(config: Config) -> std::io::Result<Self> {
        let registry = Registry::new(&config);
        Ok(Self {
            metrics: Arc::new(Metrics::new(&registry)),
            registry,
            workers: Workers::start(config.server.threads)?,
            draining: AtomicBool::new(false),
            config,
        })
    }

    /// Loads all models, each on a thread of its own. A model answers when each worker has used its tokenizer once.
    /// What is left to do, while they answer, is for [`State::quicken`].
    ///
    /// # Errors
    /// The first model that cannot be loaded.
    pub async fn load(&self) -> Result<Searches, LoadError> {
        let mut searches = Vec::new();
        let mut loads = JoinSet::new();
        let mut ids = HashMap::new();
        for entry in self.registry.models() {
            let loading = Arc::clone(entry);
            let task = loads.spawn_blocking(move || loading.load().map(|loaded| (loading, loaded)));
            ids.insert(task.id(), entry.id());
        }
        while let Some(loaded) = loads.join_next().await {
            let (entry, (embedder, search)) = loaded.unwrap_or_else(|panic| {
                let id = ids.get(&panic.id()).copied().unwrap_or_default();
                Err(LoadError::new(id, format!("failed to load: {panic}")))
            })?;
            self.warm(embedder.choice()).await;
            searches.extend(search.map(|search| (Arc::clone(&entry), search)));
            entry.publish(embedder);
        }
        Ok(Searches(searches))
    }

    /// Gives the models their fastest tokenizers, one model after the other, on one thread beside the requests.
    pub async fn quicken(&self, searches: Searches) {
        for (entry, search) in searches.0 {
            let (found, choice) = oneshot::channel();
            // Not one of the runtime's threads, which a shutdown would wait for.
            let thread = std::thread::Builder::new().name("tokenizer".to_owned());
            let started = thread.spawn(move || found.send(Arc::new(search.run())));
            let (Ok(_), Ok(choice), Some(embedder)) = (started, choice.await, entry.embedder()) else { continue };
            self.warm(Arc::clone(&choice)).await;
            let replaced = embedder.adopt(Arc::clone(&choice));
            // The reference's maps take a while to free.
            tokio::task::spawn_blocking(move || drop(replaced));
            let name = choice.implementation.name();
            match choice.remark() {
                None => tracing::info!(model = entry.id(), tokenizer = name, "tokenizer replaced by a faster one"),
                Some(remark) => tracing::info!(model = entry.id(), tokenizer = name, "{remark}"),
            }
        }
    }

    async fn warm(&self, choice: Arc<Choice>) {
        let mut warming = self.workers.on_each_thread(move |_| choice.warm());
        while warming.next().await.is_some() {}
    }
}

/// Serves on `listener` until `shutdown`, then lets requests in flight finish for at most `server.drain_timeout`.
/// Returns how many connections were cut at that deadline.
pub async fn serve(listener: TcpListener, state: Arc<State>, shutdown: impl Future<Output = ()>) -> usize {
    let routes = TowerToHyperService::new(router(Arc::clone(&state)));
    let service = service_fn(move |mut request| {
        router::single_slashes(&mut request);
        routes.call(request)
    });
    let graceful = GracefulShutdown::new();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: what is open must be able to finish first.
                    tracing::error!(%error, "cannot accept connections");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = &mut shutdown => break,
        };
        // Answers are single writes; waiting to fill a packet only delays them.
        let _ = stream.set_nodelay(true);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service.clone()).into_owned();
        let watched = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = watched.await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
    state.draining.store(true, Ordering::Relaxed);
    drop(listener);
    let open = graceful.count();
    tracing::info!(connections = open, deadline = %state.config.server.drain_timeout, "draining");
    tokio::select! {
        () = graceful.shutdown() => 0,
        () = tokio::time::sleep(state.config.server.drain_timeout.0) => {
            tracing::warn!("the drain deadline is over: cutting what is still open");
            open
        }
    }
}

/// Resolves at SIGTERM or ctrl-c.
///
/// # Errors
/// When the system refuses signal handlers.
pub fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        })
    }
    #[cfg(not(unix))]
    Ok(async {
        let _ = tokio::signal::ctrl_c().await;
    })
}

/// Binds the configured address.
///
/// # Errors
/// With the address, and the setting that changes it.
pub async fn bind(config: &Config) -> Result<TcpListener, String> {
    let address = SocketAddr::new(config.server.host, config.server.port);
    TcpListener::bind(address)
        .await
        .map_err(|e| format!("cannot listen on {address}: {e} (set server.port or --port to a free one; 0 takes any)"))
}
