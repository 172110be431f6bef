//! Which models there are, under which names, and whether they are loaded. No HTTP.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::checkpoint::{BUILTIN, Checkpoint};
use crate::config::{Config, Model};
use crate::embedder::Embedder;
use crate::error::LoadError;
use crate::location::Location;
use crate::progress::Logged;
use crate::stamp::Stamp;
use crate::tokenize::choose::Search;

/// The configured models.
#[derive(Clone)]
pub struct Registry {
    models: Vec<Arc<Entry>>,
    by_name: HashMap<String, Arc<Entry>>,
    default: String,
}

/// One configured model, loaded or not yet.
pub struct Entry {
    index: usize,
    config: Model,
    embedder: OnceLock<Arc<Embedder>>,
    /// When its files were last changed, in Unix seconds.
    created: u64,
    /// Its files as they were before they were read.
    stamp: Stamp,
}

impl Registry {
    /// Nothing is loaded yet.
    pub fn new(config: &Config) -> Self {
        Self::replacing(&Self { models: Vec::new(), by_name: HashMap::new(), default: String::new() }, config)
    }

    /// The registry of another configuration. A model of this one that is loaded, with the same files and settings, stays
    /// loaded, whatever its names are now.
    pub fn replacing(&self, config: &Config) -> Self {
        let models = config.models.iter().enumerate().map(|(index, model)| {
            let entry = Entry::new(index, model.clone().on(&config.server));
            if let Some(embedder) =
                self.models.iter().find(|old| old.is_as_good_as(&entry)).and_then(|old| old.embedder())
            {
                entry.publish(Arc::clone(embedder));
            }
            Arc::new(entry)
        });
        Self::of(models.collect(), config.default_model().to_owned())
    }

    /// The same models, but for those that have none of these names. The default stays only where it is among them.
    pub fn only(&self, names: &[String]) -> Self {
        let kept = self.models.iter().filter(|entry| entry.names().any(|name| names.iter().any(|n| n == name)));
        Self::of(kept.cloned().collect(), self.default.clone())
    }

    fn of(models: Vec<Arc<Entry>>, default: String) -> Self {
        let by_name =
            models.iter().flat_map(|entry| entry.names().map(|name| (name.to_owned(), Arc::clone(entry)))).collect();
        Self { models, by_name, default }
    }

    /// The model of that id or alias; for `None` the default one.
    pub fn get(&self, name: Option<&str>) -> Option<&Arc<Entry>> {
        self.by_name.get(name.unwrap_or(&self.default))
    }

    /// All models, in the order of the configuration.
    pub fn models(&self) -> &[Arc<Entry>] {
        &self.models
    }

    /// Whether one of the models is this one.
    pub fn has(&self, embedder: &Weak<Embedder>) -> bool {
        let is_it =
            |entry: &Arc<Entry>| entry.embedder().is_some_and(|own| std::ptr::eq(Arc::as_ptr(own), embedder.as_ptr()));
        self.models.iter().any(is_it)
    }

    /// The ids that are not loaded yet.
    pub fn loading(&self) -> Vec<&str> {
        self.models.iter().filter(|entry| entry.embedder().is_none()).map(|entry| entry.id()).collect()
    }
}

impl Entry {
    fn new(index: usize, config: Model) -> Self {
        let builtin = config.path == Path::new(BUILTIN);
        let file = if builtin { std::env::current_exe() } else { Ok(config.path.clone()) };
        let modified =
            file.and_then(std::fs::metadata).and_then(|m| m.modified()).unwrap_or_else(|_| SystemTime::now());
        let created = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let stamp = Stamp::of(files(&config));
        Self { index, config, embedder: OnceLock::new(), created, stamp }
    }

    /// Whether this one's vectors are what `other`'s would be once it is loaded.
    fn is_as_good_as(&self, other: &Self) -> bool {
        let settings = |model: &Model| Model { id: String::new(), aliases: Vec::new(), ..model.clone() };
        let intact = self.embedder().is_some_and(|embedder| embedder.damage().is_none());
        intact && settings(&self.config) == settings(&other.config) && self.stamp == other.stamp
    }

    /// Its place in the configuration.
    pub fn index(&self) -> usize {
        self.index
    }

    pub fn id(&self) -> &str {
        &self.config.id
    }

    /// Its id, then its aliases.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.config.id).chain(&self.config.aliases).map(String::as_str)
    }

    pub fn created(&self) -> u64 {
        self.created
    }

    /// `None` while it loads.
    pub fn embedder(&self) -> Option<&Arc<Embedder>> {
        self.embedder.get()
    }

    /// Opens the checkpoint, fetched if it is a Hub id, and reads its table once. [`Entry::publish`] makes it served. The
    /// search, if any, is for a faster tokenizer: [`Embedder::start`].
    ///
    /// # Errors
    /// When it cannot be served as configured.
    pub fn load(&self) -> Result<(Arc<Embedder>, Option<Search>), LoadError> {
        let started = std::time::Instant::now();
        let overrides = self.config.overrides();
        let path = Location::of(&self.config.path).directory(&overrides, &Logged).map_err(LoadError::at_run_time)?;
        let checkpoint = Checkpoint::open(&path, &overrides)?;
        for warning in &checkpoint.warnings {
            tracing::warn!(model = self.id(), "{warning}");
        }
        for remark in &checkpoint.remarks {
            tracing::info!(model = self.id(), "{remark}");
        }
        let (model_type, dtype, rows) =
            (checkpoint.model_type.clone(), checkpoint.table.dtype().name(), checkpoint.table.rows());
        let (embedder, search) = Embedder::start(checkpoint, self.config.settings())?;
        tracing::info!(
            model = self.id(),
            path = %path.display(),
            model_type,
            dtype,
            rows,
            dimensions = embedder.dimensions(),
            tokenizer = embedder.tokenizer(),
            device = embedder.device(),
            duration_ms = started.elapsed().as_millis() as u64,
            "model loaded"
        );
        if let Some(reason) = embedder.why_cpu() {
            tracing::warn!(model = self.id(), reason, "device = \"auto\" is the CPU");
        }
        if let (None, Some(remark)) = (&search, embedder.choice().remark()) {
            tracing::info!(model = self.id(), "{remark}");
        }
        Ok((Arc::new(embedder), search))
    }

    /// From here on it answers.
    pub fn publish(&self, embedder: Arc<Embedder>) {
        // Already set only if two threads load the same entry: either is good.
        let _ = self.embedder.set(embedder);
    }
}

/// Where a model's files are, if they are local: a Hub id stays what it was resolved to.
pub fn files(model: &Model) -> impl Iterator<Item = &Path> {
    std::iter::once(&model.path).chain(&model.tokenizer).chain(&model.config).map(PathBuf::as_path)
}
