//! The server's state: one configuration with its models, and what all configurations of the process share.
//!
//! A reload makes another [`ServerState`] ([`ServerState::with_config`]) and loads the models that are new. Requests in
//! flight finish with the state that they began with. What outlives a configuration is in [`ProcessState`]: the worker
//! threads, the metrics, and the in-flight budget.

pub mod admission;
#[cfg(feature = "tls")]
pub mod certificate;
pub mod clients;
pub mod rates;
pub mod tls;
pub mod tls_error;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::batches::{BatchStore, Owner};
use crate::config::Config;
use crate::config::error::{ConfigError, ConfigErrorKind};
use crate::keys::{Key, Keys};
use crate::model_error::ModelError;
use crate::registry::Registry;
use crate::server::observe::metrics::{KeyMetrics, Metrics};
use crate::workers::Workers;
use admission::Admission;
use rates::{KeyLimiter, KeyUsage};
use tls::TlsConfig;

/// One configuration with its models. Every request handler receives it.
#[derive(Clone)]
pub struct ServerState {
    /// The models of the configuration, or those that the API key of a request may use.
    pub registry: Registry,
    /// The configuration as it was read.
    pub config: Arc<Config>,
    /// The API keys that the configuration names.
    pub(in crate::server) keys: Arc<Keys>,
    /// The requests and tokens that each API key has used. A reload keeps them.
    pub(in crate::server) usage: KeyUsage,
    /// The limiter of the API key that this state is restricted to, if the key's tokens are limited.
    pub(in crate::server) limiter: Option<Arc<KeyLimiter>>,
    /// The certificate and the private key that the configuration names.
    pub(in crate::server) tls: Arc<TlsConfig>,
    /// What this state shares with the states of all other configurations of the process.
    pub(in crate::server) process: Arc<ProcessState>,
}

/// What the states of all configurations of the process share.
pub struct ProcessState {
    /// The compute threads.
    pub workers: Arc<Workers>,
    /// The counters of everything that the process has done.
    pub metrics: Arc<Metrics>,
    /// The in-flight budget.
    pub admission: Arc<Admission>,
    /// The files and batches, if the configuration names a directory for them.
    pub batches: Option<Arc<BatchStore>>,
    /// Whether the server was asked to stop.
    pub draining: AtomicBool,
}

impl ServerState {
    /// Reads the API keys and the certificate that `config` names. No model is loaded yet.
    ///
    /// # Errors
    /// If the keys or the certificate cannot be read, or the worker threads cannot be started.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let threads = |e: std::io::Error| {
            ConfigError::new(ConfigErrorKind::System, format!("cannot start the worker threads (server.threads): {e}"))
        };
        let keys = read_keys(&config)?;
        if let Some(warning) = keys.warning() {
            tracing::warn!("{warning}");
        }
        let tls = Arc::new(TlsConfig::read(&config.server)?);
        let process = ProcessState {
            workers: Arc::new(Workers::start(config.server.threads).map_err(threads)?),
            metrics: Arc::default(),
            admission: Arc::default(),
            batches: open_batches(&config)?,
            draining: AtomicBool::new(false),
        };
        Ok(Self {
            registry: Registry::new(&config),
            usage: KeyUsage::default().for_keys(&keys, Instant::now()),
            limiter: None,
            keys: Arc::new(keys),
            tls,
            process: Arc::new(process),
            config: Arc::new(config),
        })
    }

    /// Returns the state for another configuration. It answers no request before [`ServerState::load`] has loaded its
    /// models and the router has activated it.
    ///
    /// # Errors
    /// If the keys or the certificate that `config` names cannot be read, or the key file may be only half written.
    pub fn with_config(&self, config: Config) -> Result<Self, ConfigError> {
        let keys = read_keys(&config)?;
        keys.may_replace(&self.keys)?;
        Ok(Self {
            registry: self.registry.reconfigured(&config),
            usage: self.usage.for_keys(&keys, Instant::now()),
            limiter: None,
            keys: Arc::new(keys),
            tls: Arc::new(TlsConfig::read(&config.server)?),
            process: Arc::clone(&self.process),
            config: Arc::new(config),
        })
    }

    /// Returns the compute threads. Tests occupy them to decide when the work of a request begins.
    pub fn workers(&self) -> &Arc<Workers> {
        &self.process.workers
    }

    /// Loads the models that are not loaded yet.
    ///
    /// # Errors
    /// The error of the first model that cannot be loaded.
    pub async fn load(&self) -> Result<(), ModelError> {
        self.registry.load(&self.process.workers).await
    }

    /// Warns if this state, which answers new requests from now on, lets everybody in.
    pub(in crate::server) fn activated(&self) {
        let host = &self.config.server.host;
        if !host.is_loopback() && self.keys.is_empty() {
            tracing::warn!(
                "NO API KEYS: everyone who can reach {host} may use this server; set server.api_keys or \
                 server.api_key_file"
            );
        }
    }

    /// Returns the models that the owner of a batch may use and the counters of its key, or `None` if its API key is gone.
    pub(in crate::server) fn of_owner(&self, owner: &Owner) -> Option<(Registry, Option<KeyMetrics>)> {
        let Some(name) = &owner.0 else { return self.keys.is_empty().then(|| (self.registry.clone(), None)) };
        let key = self.keys.iter().find(|key| key.owner() == *name)?;
        let registry = match key.models() {
            [] => self.registry.clone(),
            models => self.registry.restricted_to(models),
        };
        Some((registry, Some(self.process.metrics.key(key.name()))))
    }

    /// Returns this state restricted to what `key` may use, or `None` if the key has no restriction.
    pub(in crate::server) fn restricted_to_key(&self, key: &Key, limiter: Option<&Arc<KeyLimiter>>) -> Option<Self> {
        let limiter = limiter.filter(|limiter| limiter.limits_tokens()).cloned();
        match key.models() {
            [] if limiter.is_none() => None,
            [] => Some(Self { limiter, ..self.clone() }),
            models => Some(Self { registry: self.registry.restricted_to(models), limiter, ..self.clone() }),
        }
    }
}

/// Opens the directory of files and batches that `config` names.
fn open_batches(config: &Config) -> Result<Option<Arc<BatchStore>>, ConfigError> {
    let Some(path) = &config.server.batch_directory else { return Ok(None) };
    let store = BatchStore::open(path).map_err(|error| {
        ConfigError::new(ConfigErrorKind::System, format!("server.batch_directory cannot be used: {error}"))
    })?;
    Ok(Some(Arc::new(store)))
}

/// Reads the API keys and checks that they name only configured models.
pub(in crate::server) fn read_keys(config: &Config) -> Result<Keys, ConfigError> {
    let server = &config.server;
    let keys = Keys::read(&server.api_keys, server.api_key_file.as_deref())?;
    let names = config.models.iter().flat_map(|m| std::iter::once(&m.id).chain(&m.aliases)).map(String::as_str);
    keys.check_models(names)?;
    if server.metrics && server.metrics_need_key && keys.is_empty() {
        let message = "server.metrics_need_key is true, but no API key is configured: set server.api_keys or \
                       server.api_key_file, or set server.metrics_need_key to false";
        return Err(ConfigError::conflict(message));
    }
    Ok(keys)
}
