//! The registry of configured models: their names, and whether they are loaded. It knows nothing of HTTP.

mod loading;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::builtin::{BUILTIN, open_checkpoint};
use crate::config::{Config, ModelConfig};
use crate::logged_progress::LoggedProgress;
use crate::model_error::ModelError;
use crate::stamp::Stamp;
use layer0::embedder::Embedder;
use layer0::location::Location;
use layer0::retrieval::sparse::SparseEncoder;

/// The configured models.
#[derive(Clone)]
pub struct Registry {
    models: Vec<Arc<RegisteredModel>>,
    by_name: HashMap<String, Arc<RegisteredModel>>,
    default: String,
}

/// One configured model, which may not be loaded yet.
pub struct RegisteredModel {
    index: usize,
    config: ModelConfig,
    embedder: OnceLock<Arc<Embedder>>,
    /// The text of the embedder's fingerprint.
    fingerprint: OnceLock<Bytes>,
    /// Created by the first request for sparse vectors.
    sparse: OnceLock<Arc<SparseEncoder<Arc<Embedder>>>>,
    /// When the model's files were last changed, in Unix seconds.
    created: u64,
    /// The state of the model's files before they were read.
    stamp: Stamp,
}

impl Registry {
    /// Creates the registry for a configuration, with no model loaded.
    pub fn new(config: &Config) -> Self {
        Self::reconfigured(&Self { models: Vec::new(), by_name: HashMap::new(), default: String::new() }, config)
    }

    /// Creates the registry for a new configuration. A model of this registry stays loaded in the new one if its
    /// files and settings are the same; its names may differ.
    pub fn reconfigured(&self, config: &Config) -> Self {
        let models = config.models.iter().enumerate().map(|(index, model)| {
            let entry = RegisteredModel::new(index, model.clone().on(&config.server));
            if let Some(embedder) =
                self.models.iter().find(|old| old.has_same_vectors_as(&entry)).and_then(|old| old.embedder())
            {
                entry.publish(Arc::clone(embedder));
            }
            Arc::new(entry)
        });
        Self::from_models(models.collect(), config.default_model().to_owned())
    }

    /// Returns a registry with only the models that have one of these names. It has a default model only if the
    /// default is among them.
    pub fn restricted_to(&self, names: &[String]) -> Self {
        let kept = self.models.iter().filter(|entry| entry.names().any(|name| names.iter().any(|n| n == name)));
        Self::from_models(kept.cloned().collect(), self.default.clone())
    }

    fn from_models(models: Vec<Arc<RegisteredModel>>, default: String) -> Self {
        let by_name =
            models.iter().flat_map(|entry| entry.names().map(|name| (name.to_owned(), Arc::clone(entry)))).collect();
        Self { models, by_name, default }
    }

    /// Returns the model with this ID or alias, or the default model for `None`.
    pub fn get(&self, name: Option<&str>) -> Option<&Arc<RegisteredModel>> {
        self.by_name.get(name.unwrap_or(&self.default))
    }

    /// Returns all models, in the order of the configuration.
    pub fn models(&self) -> &[Arc<RegisteredModel>] {
        &self.models
    }

    /// Returns the IDs of the models that are not loaded yet.
    pub fn loading(&self) -> Vec<&str> {
        self.models.iter().filter(|entry| entry.embedder().is_none()).map(|entry| entry.id()).collect()
    }
}

impl RegisteredModel {
    fn new(index: usize, config: ModelConfig) -> Self {
        let builtin = config.path == Path::new(BUILTIN);
        let file = if builtin { std::env::current_exe() } else { Ok(config.path.clone()) };
        let modified =
            file.and_then(std::fs::metadata).and_then(|m| m.modified()).unwrap_or_else(|_| SystemTime::now());
        let created = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let stamp = Stamp::new(files(&config));
        Self {
            index,
            config,
            embedder: OnceLock::new(),
            fingerprint: OnceLock::new(),
            sparse: OnceLock::new(),
            created,
            stamp,
        }
    }

    /// Returns whether this model is loaded and gives the same vectors as `other` will once it is loaded.
    fn has_same_vectors_as(&self, other: &Self) -> bool {
        let settings = |model: &ModelConfig| ModelConfig { id: String::new(), aliases: Vec::new(), ..model.clone() };
        let intact = self.embedder().is_some_and(|embedder| embedder.damage().is_none());
        intact && settings(&self.config) == settings(&other.config) && self.stamp == other.stamp
    }

    /// Returns the position of the model in the configuration.
    pub fn index(&self) -> usize {
        self.index
    }

    pub fn id(&self) -> &str {
        &self.config.id
    }

    /// Returns the ID, then the aliases.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.config.id).chain(&self.config.aliases).map(String::as_str)
    }

    pub fn created(&self) -> u64 {
        self.created
    }

    /// Returns the loaded model, or `None` while it is loading.
    pub fn embedder(&self) -> Option<&Arc<Embedder>> {
        self.embedder.get()
    }

    /// Returns the text of the loaded model's fingerprint, 32 hexadecimal digits, or nothing while it is loading.
    pub fn fingerprint(&self) -> Bytes {
        self.fingerprint.get().cloned().unwrap_or_default()
    }

    /// Returns the encoder of sparse vectors, or `None` while the model is loading.
    pub fn sparse(&self) -> Option<&Arc<SparseEncoder<Arc<Embedder>>>> {
        let embedder = self.embedder()?;
        Some(self.sparse.get_or_init(|| Arc::new(SparseEncoder::new(Arc::clone(embedder)))))
    }

    /// Downloads the checkpoint if it is a Hub ID, opens it, and reads its table once. The result is not served before
    /// [`RegisteredModel::publish`].
    ///
    /// # Errors
    /// If the model cannot be served as configured.
    pub fn load(&self) -> Result<Arc<Embedder>, ModelError> {
        let started = std::time::Instant::now();
        let overrides = self.config.overrides();
        let path = Location::of(&self.config.path).directory(&overrides, &LoggedProgress)?;
        let checkpoint = open_checkpoint(&path, &overrides)?;
        for warning in &checkpoint.warnings {
            tracing::warn!(model = self.id(), "{warning}");
        }
        for remark in &checkpoint.remarks {
            tracing::info!(model = self.id(), "{remark}");
        }
        let (model_type, dtype, rows) =
            (checkpoint.model_type.clone(), checkpoint.table.dtype().name(), checkpoint.table.rows());
        let embedder = Embedder::new(checkpoint, self.config.settings())?;
        tracing::info!(
            model = self.id(),
            path = %path.display(),
            model_type,
            dtype,
            rows,
            dimensions = embedder.dimensions(),
            tokenizer = embedder.tokenizer(),
            device = embedder.device(),
            fingerprint = %embedder.fingerprint(),
            duration_ms = started.elapsed().as_millis() as u64,
            "model loaded"
        );
        if let Some(reason) = embedder.why_cpu() {
            tracing::warn!(model = self.id(), reason, "device = \"auto\" has chosen the CPU");
        }
        if let Some(remark) = embedder.choice().remark() {
            tracing::info!(model = self.id(), "{remark}");
        }
        Ok(Arc::new(embedder))
    }

    /// Makes the loaded model available to requests.
    pub fn publish(&self, embedder: Arc<Embedder>) {
        let fingerprint = Bytes::from(embedder.fingerprint().to_string());
        // The embedder is already set only if two threads have loaded the same entry. Then either of them can
        // be used.
        let _ = self.fingerprint.set(fingerprint);
        let _ = self.embedder.set(embedder);
    }
}

/// Returns the files and directories of a model. A Hub ID is not a file, and its revision does not change while the
/// server runs.
pub fn files(model: &ModelConfig) -> impl Iterator<Item = &Path> {
    std::iter::once(&model.path).chain(&model.tokenizer).chain(&model.config).map(PathBuf::as_path)
}
