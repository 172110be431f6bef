//! The HTTP server: it binds its port before any model is loaded, and drains before it stops.
//!
//! [`ServerState`] holds one configuration with its models. A reload makes another `ServerState`
//! ([`ServerState::with_config`]), loads the models that are new, and then activates it ([`ServerState::activate`]);
//! requests in flight finish with the `ServerState` that they began with. [`serve`] accepts connections until the
//! server is asked to stop.

mod error;
mod observe;
pub mod preflight;
pub mod reload;
mod request;
mod response;
mod router;
mod routes;
mod socket;
mod state;

use std::collections::HashMap;
use std::future::Future;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::config::layers::ConfigError;
use crate::keys::{Key, Keys};
use crate::registry::{RegisteredModel, Registry};
use crate::workers::Workers;
use layer0::error::LoadError;
use layer0_tokenizers::choose::{Choice, Search};
use observe::metrics::Metrics;
use observe::throttle::Throttle;
pub use observe::trace;
pub use router::{Routes, router};
pub use socket::bind::bind;
use socket::connection::Connections;
use socket::descriptors::SpareDescriptor;
use socket::drain::Drain;
pub use socket::listen::{Listener, Listeners};
pub use socket::systemd;
use socket::threads::SocketThreads;
use socket::tls::Tls;
use state::admission::Admission;
use state::rates::{KeyLimiter, KeyUsage};

/// One configuration with its models, and what is shared by all configurations of the process (see
/// [`ServerState::with_config`]). Every request handler receives it.
#[derive(Clone)]
pub struct ServerState {
    pub registry: Registry,
    pub config: Arc<Config>,
    keys: Arc<Keys>,
    usage: KeyUsage,
    /// The limiter of the API key that this state is restricted to, if the key's tokens are limited.
    limiter: Option<Arc<KeyLimiter>>,
    tls: Arc<Tls>,
    // The fields from here on are shared with the states of later configurations.
    pub workers: Arc<Workers>,
    metrics: Arc<Metrics>,
    admission: Arc<Admission>,
    draining: Arc<AtomicBool>,
    active: Arc<ArcSwapOption<ActiveConfiguration>>,
    /// Held while a thread loads a faster tokenizer, so that only one such thread runs at a time.
    tokenizer_load: Arc<Mutex<()>>,
}

/// The state that answers new requests, and its routes.
struct ActiveConfiguration {
    state: Arc<ServerState>,
    routes: Routes,
}

/// Models that are being served while a faster tokenizer for them can still be loaded. See
/// [`ServerState::load_faster_tokenizers`].
#[must_use]
pub struct PendingTokenizers(Vec<(Arc<RegisteredModel>, Search)>);

impl ServerState {
    /// Reads the API keys and the certificate that `config` names. No model is loaded yet.
    ///
    /// # Errors
    /// If the keys or the certificate cannot be read, or the worker threads cannot be started.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let threads = |e: std::io::Error| ConfigError(format!("cannot start the worker threads (server.threads): {e}"));
        let keys = keys(&config)?;
        if let Some(warning) = keys.warning() {
            tracing::warn!("{warning}");
        }
        Ok(Self {
            registry: Registry::new(&config),
            usage: KeyUsage::default().for_keys(&keys, Instant::now()),
            limiter: None,
            keys: Arc::new(keys),
            tls: Arc::new(Tls::read(&config.server).map_err(ConfigError)?),
            workers: Arc::new(Workers::start(config.server.threads).map_err(threads)?),
            metrics: Arc::default(),
            admission: Arc::default(),
            draining: Arc::default(),
            active: Arc::default(),
            tokenizer_load: Arc::default(),
            config: Arc::new(config),
        })
    }

    /// Returns the state for another configuration. Call [`ServerState::load`] and then [`ServerState::activate`] on
    /// it.
    ///
    /// # Errors
    /// If the keys or the certificate that `config` names cannot be read, or the key file may be only half written.
    pub fn with_config(&self, config: Config) -> Result<Self, ConfigError> {
        let keys = keys(&config)?;
        keys.may_replace(&self.keys).map_err(ConfigError)?;
        Ok(Self {
            registry: self.registry.reconfigured(&config),
            usage: self.usage.for_keys(&keys, Instant::now()),
            keys: Arc::new(keys),
            tls: Arc::new(Tls::read(&config.server).map_err(ConfigError)?),
            config: Arc::new(config),
            ..self.clone()
        })
    }

    /// Makes this state the one that answers new requests. Requests in flight finish with the state that they began
    /// with.
    pub fn activate(self: &Arc<Self>) {
        self.warn_if_no_keys();
        let routes = router(self);
        self.active.store(Some(Arc::new(ActiveConfiguration { state: Arc::clone(self), routes })));
    }

    fn warn_if_no_keys(&self) {
        let host = &self.config.server.host;
        if !host.is_loopback() && self.keys.is_empty() {
            tracing::warn!(
                "NO API KEYS: everyone who can reach {host} may use this server; set server.api_keys or \
                 server.api_key_file"
            );
        }
    }

    /// Returns this state restricted to what `key` may use, or `None` if the key has no restriction.
    fn restricted_to_key(&self, key: &Key, limiter: Option<&Arc<KeyLimiter>>) -> Option<Self> {
        let limiter = limiter.filter(|limiter| limiter.limits_tokens()).cloned();
        match key.models() {
            [] if limiter.is_none() => None,
            [] => Some(Self { limiter, ..self.clone() }),
            models => Some(Self { registry: self.registry.restricted_to(models), limiter, ..self.clone() }),
        }
    }

    /// Loads the models that are not loaded yet, each on its own thread. A model is published once the worker threads
    /// have warmed up its tokenizer. Pass the result to [`ServerState::load_faster_tokenizers`], which loads faster
    /// tokenizers in the background.
    ///
    /// # Errors
    /// The error of the first model that cannot be loaded.
    pub async fn load(&self) -> Result<PendingTokenizers, LoadError> {
        let mut pending_tokenizers = Vec::new();
        let mut loads = JoinSet::new();
        let mut ids = HashMap::new();
        for entry in self.registry.models().iter().filter(|entry| entry.embedder().is_none()) {
            let loading = Arc::clone(entry);
            let task = loads.spawn_blocking(move || loading.load().map(|loaded| (loading, loaded)));
            ids.insert(task.id(), entry.id());
        }
        while let Some(loaded) = loads.join_next().await {
            let (entry, (embedder, search)) = loaded.unwrap_or_else(|panic| {
                let id = ids.get(&panic.id()).copied().unwrap_or_default();
                Err(LoadError::new(id, format!("failed to load: {panic}")).at_run_time())
            })?;
            self.warm_up_tokenizer(embedder.choice()).await;
            pending_tokenizers.extend(search.map(|search| (Arc::clone(&entry), search)));
            entry.publish(embedder);
        }
        Ok(PendingTokenizers(pending_tokenizers))
    }

    /// Replaces the tokenizers of models by faster ones that take longer to load: one model after the other, on one
    /// background thread. A model that a reload has replaced in the meantime is skipped.
    pub async fn load_faster_tokenizers(&self, pending_tokenizers: PendingTokenizers) {
        for (entry, search) in pending_tokenizers.0 {
            let turn = Arc::clone(&self.tokenizer_load).lock_owned().await;
            let Some(embedder) = entry.embedder() else { continue };
            let (active, wanted) = (Arc::clone(&self.active), Arc::downgrade(embedder));
            let is_wanted = move || active.load().as_ref().is_none_or(|now| now.state.registry.contains(&wanted));
            let (found, choice) = oneshot::channel();
            // This is not a thread of the runtime, because the runtime's shutdown would wait for it.
            let thread = std::thread::Builder::new().name("tokenizer".to_owned());
            let started = thread.spawn(move || {
                let _turn = turn;
                found.send(search.run_while(is_wanted).map(Arc::new))
            });
            let (Ok(_), Ok(Some(choice))) = (started, choice.await) else { continue };
            self.warm_up_tokenizer(Arc::clone(&choice)).await;
            let replaced = embedder.adopt(Arc::clone(&choice));
            let before = replaced.implementation.name();
            // The reference tokenizer's hash maps take a while to free, so they are freed off this thread.
            tokio::task::spawn_blocking(move || drop(replaced));
            let name = choice.implementation.name();
            match choice.remark() {
                None if name == before => {}
                None => tracing::info!(model = entry.id(), tokenizer = name, "tokenizer replaced by a faster one"),
                Some(remark) => tracing::info!(model = entry.id(), tokenizer = name, "{remark}"),
            }
        }
    }

    /// Calls the tokenizer once on each worker thread, because a thread's first call is slow. Only as many threads are
    /// warmed up as can run at the same time: the others would only delay the first response.
    async fn warm_up_tokenizer(&self, choice: Arc<Choice>) {
        let mut warming = self.workers.on_each_thread(move |_| choice.warm());
        while warming.next().await.is_some() {}
    }
}

/// The delay before accepting connections again after the system refused to accept one.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Clears the active configuration when dropped. The state and its routes hold references to each other, so they would
/// otherwise never be freed.
struct ClearActiveOnDrop(Arc<ArcSwapOption<ActiveConfiguration>>);

impl Drop for ClearActiveOnDrop {
    fn drop(&mut self) {
        self.0.store(None);
    }
}

/// Reads the API keys and checks that they name only configured models.
fn keys(config: &Config) -> Result<Keys, ConfigError> {
    let server = &config.server;
    let keys = Keys::read(&server.api_keys, server.api_key_file.as_deref()).map_err(ConfigError)?;
    let names = config.models.iter().flat_map(|m| std::iter::once(&m.id).chain(&m.aliases)).map(String::as_str);
    keys.check_models(names).map_err(ConfigError)?;
    if server.metrics && server.metrics_need_key && keys.is_empty() {
        let message = "server.metrics_need_key is true, but no API key is configured: set server.api_keys or \
                       server.api_key_file, or set server.metrics_need_key to false";
        return Err(ConfigError(message.to_owned()));
    }
    Ok(keys)
}

/// Accepts connections on `listeners` until `shutdown` resolves, and for `server.drain_delay` after that, while /ready
/// answers 503. Then requests in flight may finish for at most `server.drain_timeout`. If `cut` resolves, both waits
/// end at once. Returns the number of requests that were cut off.
///
/// # Errors
/// If the system does not provide the threads for the connections.
pub async fn serve(
    listeners: impl Into<Listeners>,
    state: Arc<ServerState>,
    shutdown: impl Future<Output = ()>,
    cut: impl Future<Output = ()>,
) -> std::io::Result<usize> {
    let (admission, workers) = (Arc::clone(&state.admission), Arc::downgrade(&state.workers));
    let wait_while_busy = move |limit| {
        if let Some(workers) = workers.upgrade() {
            workers.wait_while_busy(limit);
        }
    };
    let threads = SocketThreads::start(move || admission.batch_arrivals(&wait_while_busy))?;
    state.activate();
    let drain = Drain::new();
    let connections = Connections::new(&state, &threads, &drain);
    let (draining, active) = (Arc::clone(&state.draining), ClearActiveOnDrop(Arc::clone(&state.active)));
    let first = Arc::clone(&state.config);
    // A reload may free this state while the server runs.
    drop(state);
    let listeners = listeners.into();
    let mut cut = std::pin::pin!(cut);
    accept(&listeners, &connections, shutdown).await;
    systemd::stopping();
    draining.store(true, Ordering::Relaxed);
    let config = active.0.load().as_ref().map_or(first, |now| Arc::clone(&now.state.config));
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

/// Accepts connections until `until` resolves.
async fn accept(listeners: &Listeners, connections: &Connections<'_>, until: impl Future<Output = ()>) {
    let mut until = std::pin::pin!(until);
    let (mut spare, failures) = (SpareDescriptor::new(), Throttle::new(Duration::from_secs(1)));
    loop {
        let accepted = tokio::select! {
            accepted = listeners.accept() => accepted,
            () = &mut until => break,
        };
        let error = match accepted {
            Ok((socket, peer)) => {
                connections.serve(socket, peer).await;
                continue;
            }
            Err(error) => error,
        };
        // The client closed the connection before it was accepted, or a signal interrupted the call.
        if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted) {
            tracing::debug!(%error, "a connection was lost before it was accepted");
            continue;
        }
        if let Some(count) = failures.event() {
            tracing::error!(%error, count, "cannot accept connections");
        }
        // The process is most likely out of file descriptors. The spare one is used to accept a connection and to
        // answer it with an error.
        if spare.close()
            && let Ok(Ok((socket, _))) = tokio::time::timeout(ACCEPT_RETRY_DELAY, listeners.accept()).await
        {
            connections.refuse(socket).await;
        }
        // Connections that are already open need time to finish.
        tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
        spare.reopen();
    }
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
