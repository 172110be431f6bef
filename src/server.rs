//! The HTTP server: binds first, answers while models load, drains before it stops.

mod accept;
mod access;
mod activity;
mod admission;
mod allowed_hosts;
mod authorize;
mod bind;
mod body;
#[cfg(feature = "tls")]
mod certificate;
mod clients;
mod coding;
mod connection;
mod descriptors;
mod docs;
mod drain;
mod embeddings;
mod error;
mod exposition;
mod health;
mod inputs;
mod json;
mod listen;
mod malformed;
mod metrics;
mod models;
mod paths;
mod playground;
pub mod preflight;
mod rates;
mod refuse;
pub mod reload;
mod request_body;
mod router;
mod similarity;
mod sockets;
mod stages;
mod stream;
pub mod systemd;
mod throttle;
mod tls;
mod tokenize;
pub mod trace;
mod transport;
mod write;

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
use crate::error::LoadError;
use crate::keys::{Key, Keys};
use crate::registry::{Entry, Registry};
use crate::tokenize::choose::{Choice, Search};
use crate::workers::Workers;
use admission::Admission;
pub use bind::bind;
use connection::Connections;
use descriptors::Reserve;
use drain::Drain;
pub use listen::{Listener, Listeners};
use metrics::Metrics;
use rates::{AllUsage, Limiter};
pub use router::{Routes, router};
use sockets::SocketThreads;
use throttle::Throttle;
use tls::Tls;

/// What every request may look at: a configuration and its models, and what outlives them when another takes their place
/// ([`State::next`]).
#[derive(Clone)]
pub struct State {
    pub registry: Registry,
    pub config: Arc<Config>,
    keys: Arc<Keys>,
    usage: AllUsage,
    /// Of the key that sees this state, where its tokens are limited.
    limiter: Option<Arc<Limiter>>,
    tls: Arc<Tls>,
    // From here on, what outlives them.
    pub workers: Arc<Workers>,
    metrics: Arc<Metrics>,
    admission: Arc<Admission>,
    draining: Arc<AtomicBool>,
    serving: Arc<ArcSwapOption<Serving>>,
    /// Held by the one search for a faster tokenizer that runs.
    searching: Arc<Mutex<()>>,
}

/// What new requests get.
struct Serving {
    state: Arc<State>,
    routes: Routes,
}

/// Models that answer, and could sooner: [`State::quicken`].
#[must_use]
pub struct Searches(Vec<(Arc<Entry>, Search)>);

impl State {
    /// Reads the keys and certificates that `config` names. No model is loaded yet.
    ///
    /// # Errors
    /// When they cannot be read, or no worker threads can be started.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let threads = |e: std::io::Error| ConfigError(format!("cannot start the threads of server.threads: {e}"));
        let keys = keys(&config)?;
        if let Some(warning) = keys.warning() {
            tracing::warn!("{warning}");
        }
        Ok(Self {
            registry: Registry::new(&config),
            usage: AllUsage::default().of_keys(&keys, Instant::now()),
            limiter: None,
            keys: Arc::new(keys),
            tls: Arc::new(Tls::read(&config.server).map_err(ConfigError)?),
            workers: Arc::new(Workers::start(config.server.threads).map_err(threads)?),
            metrics: Arc::default(),
            admission: Arc::default(),
            draining: Arc::default(),
            serving: Arc::default(),
            searching: Arc::default(),
            config: Arc::new(config),
        })
    }

    /// The state of another configuration, to take this one's place: [`State::load`] it, then [`State::take_over`].
    ///
    /// # Errors
    /// When the keys or certificates that `config` names cannot be read, or the key file may be half written.
    pub fn next(&self, config: Config) -> Result<Self, ConfigError> {
        let keys = keys(&config)?;
        keys.may_replace(&self.keys).map_err(ConfigError)?;
        Ok(Self {
            registry: self.registry.replacing(&config),
            usage: self.usage.of_keys(&keys, Instant::now()),
            keys: Arc::new(keys),
            tls: Arc::new(Tls::read(&config.server).map_err(ConfigError)?),
            config: Arc::new(config),
            ..self.clone()
        })
    }

    /// New requests get this state from here on; those in flight finish on the one that they have.
    pub fn take_over(self: &Arc<Self>) {
        self.warn_without_keys();
        let routes = router(self);
        self.serving.store(Some(Arc::new(Serving { state: Arc::clone(self), routes })));
    }

    fn warn_without_keys(&self) {
        let host = &self.config.server.host;
        if !host.is_loopback() && self.keys.is_empty() {
            tracing::warn!(
                "NO API KEYS: everybody who can reach {host} may use this server; set server.api_keys or server.api_key_file"
            );
        }
    }

    /// This state as somebody sees it who has this key, if that is another than without keys.
    fn seen_by(&self, key: &Key, limiter: Option<&Arc<Limiter>>) -> Option<Self> {
        let limiter = limiter.filter(|limiter| limiter.limits_tokens()).cloned();
        match key.models() {
            [] if limiter.is_none() => None,
            [] => Some(Self { limiter, ..self.clone() }),
            models => Some(Self { registry: self.registry.only(models), limiter, ..self.clone() }),
        }
    }

    /// Loads the models that are not loaded yet, each on a thread of its own. A model answers when as many workers as can
    /// run at the same time have used its tokenizer once. What is left to do, while they answer, is for [`State::quicken`].
    ///
    /// # Errors
    /// The first model that cannot be loaded.
    pub async fn load(&self) -> Result<Searches, LoadError> {
        let mut searches = Vec::new();
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
            self.warm(embedder.choice()).await;
            searches.extend(search.map(|search| (Arc::clone(&entry), search)));
            entry.publish(embedder);
        }
        Ok(Searches(searches))
    }

    /// Gives the models their fastest tokenizers, one model after the other, on one thread beside the requests. A model that
    /// a reload has replaced meanwhile is left out.
    pub async fn quicken(&self, searches: Searches) {
        for (entry, search) in searches.0 {
            let turn = Arc::clone(&self.searching).lock_owned().await;
            let Some(embedder) = entry.embedder() else { continue };
            let (serving, wanted) = (Arc::clone(&self.serving), Arc::downgrade(embedder));
            let is_wanted = move || serving.load().as_ref().is_none_or(|now| now.state.registry.has(&wanted));
            let (found, choice) = oneshot::channel();
            // Not one of the runtime's threads, which a shutdown would wait for.
            let thread = std::thread::Builder::new().name("tokenizer".to_owned());
            let started = thread.spawn(move || {
                let _turn = turn;
                found.send(search.run_while(is_wanted).map(Arc::new))
            });
            let (Ok(_), Ok(Some(choice))) = (started, choice.await) else { continue };
            self.warm(Arc::clone(&choice)).await;
            let replaced = embedder.adopt(Arc::clone(&choice));
            let before = replaced.implementation.name();
            // The reference's maps take a while to free.
            tokio::task::spawn_blocking(move || drop(replaced));
            let name = choice.implementation.name();
            match choice.remark() {
                None if name == before => {}
                None => tracing::info!(model = entry.id(), tokenizer = name, "tokenizer replaced by a faster one"),
                Some(remark) => tracing::info!(model = entry.id(), tokenizer = name, "{remark}"),
            }
        }
    }

    /// Lets as many workers use the tokenizer once as can run at the same time: with many more threads than CPUs, the
    /// rest would only delay the first answer.
    async fn warm(&self, choice: Arc<Choice>) {
        let mut warming = self.workers.on_each_running_thread(move |_| choice.warm());
        while warming.next().await.is_some() {}
    }
}

/// After how long it is tried again to take connections where the system does not give them.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Ends what a state and its routes hold of each other.
struct Served(Arc<ArcSwapOption<Serving>>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.store(None);
    }
}

/// Reads the keys, which may name only models that are configured.
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

/// Serves on `listeners` until `shutdown` and for `server.drain_delay` more, in which /ready says that it ends; then lets
/// requests in flight finish for at most `server.drain_timeout`. `cut` ends both at once.
/// Returns how many requests were cut.
///
/// # Errors
/// When the system gives no threads for the connections.
pub async fn serve(
    listeners: impl Into<Listeners>,
    state: Arc<State>,
    shutdown: impl Future<Output = ()>,
    cut: impl Future<Output = ()>,
) -> std::io::Result<usize> {
    let (admission, workers) = (Arc::clone(&state.admission), Arc::downgrade(&state.workers));
    let wait_while_busy = move |limit| {
        if let Some(workers) = workers.upgrade() {
            workers.wait_while_busy(limit);
        }
    };
    let threads = SocketThreads::start(move || admission.gather(&wait_while_busy))?;
    state.take_over();
    let drain = Drain::new();
    let connections = Connections::new(&state, &threads, &drain);
    let (draining, serving) = (Arc::clone(&state.draining), Served(Arc::clone(&state.serving)));
    let first = Arc::clone(&state.config);
    // A reload may let it go.
    drop(state);
    let listeners = listeners.into();
    let mut cut = std::pin::pin!(cut);
    accept(&listeners, &connections, shutdown).await;
    systemd::stopping();
    draining.store(true, Ordering::Relaxed);
    let config = serving.0.load().as_ref().map_or(first, |now| Arc::clone(&now.state.config));
    let (delay, deadline) = (config.server.drain_delay, config.server.drain_timeout);
    if !delay.0.is_zero() {
        tracing::info!(%delay, "no longer ready; requests are answered until nobody sends any");
        tokio::select! {
            () = accept(&listeners, &connections, tokio::time::sleep(delay.0)) => {}
            () = cut.as_mut() => return Ok(cut_all(&drain, "a second signal came").await),
        }
    }
    drop((listeners, connections));
    tracing::info!(connections = drain.open(), %deadline, "draining");
    Ok(tokio::select! {
        () = drain.finish() => 0,
        () = tokio::time::sleep(deadline.0) => cut_all(&drain, "the drain deadline has passed").await,
        () = cut => cut_all(&drain, "a second signal came").await,
    })
}

async fn cut_all(drain: &Drain, why: &str) -> usize {
    let requests = drain.cut().await;
    tracing::warn!(requests, "{why}: closed all connections, and cut the requests that were in flight");
    requests
}

/// Takes connections until `until`.
async fn accept(listeners: &Listeners, connections: &Connections<'_>, until: impl Future<Output = ()>) {
    let mut until = std::pin::pin!(until);
    let (mut reserve, failures) = (Reserve::new(), Throttle::new(Duration::from_secs(1)));
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
        // The client of this one is gone, or there is none.
        if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted) {
            tracing::debug!(%error, "a connection was lost before it was taken");
            continue;
        }
        if let Some(count) = failures.event() {
            tracing::error!(%error, count, "cannot accept connections");
        }
        // Out of descriptors, most likely. The one in reserve takes a connection, which is told so.
        if reserve.give_up()
            && let Ok(Ok((socket, _))) = tokio::time::timeout(ACCEPT_AGAIN, listeners.accept()).await
        {
            connections.refuse(socket).await;
        }
        // What is open must be able to finish first.
        tokio::time::sleep(ACCEPT_AGAIN).await;
        reserve.refill();
    }
}

/// SIGTERM and SIGINT (ctrl-c), which both ask the server to stop.
pub struct StopSignals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignals {
    /// Takes the signals from here on.
    ///
    /// # Errors
    /// When the system refuses signal handlers.
    pub fn listen() -> std::io::Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    /// Resolves at the next of them.
    pub async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! { _ = self.terminate.recv() => {}, _ = self.interrupt.recv() => {} }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}
