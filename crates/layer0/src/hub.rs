//! Fetches models from the Hugging Face Hub into the Hub's cache. Only the parts that layer 0 needs are downloaded, and
//! only once.
//!
//! The cache is shared with Python's huggingface_hub (`cache`), and its file names come from the crate hf-hub. The
//! transfers are implemented here (`client`), because hf-hub 0.5 does not use the system's certificates, and hf-hub
//! 1.0 stores the body of a 403 response as the file.

mod address;
mod cache;
mod client;
mod remote;
mod settings;

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::checkpoint::Overrides;
use crate::checkpoint::family::{self, ModelConfig, overridden};
use crate::checkpoint::weights::{self, INDEX, SINGLE};
use crate::error::{FileError, FileErrorKind, HubError, RequestError, RequestErrorKind};
use crate::extract::card::Origin;
use crate::extract::source::{GivenNames, LocalSource, Selection};
use crate::extract::staging::Existing;
use crate::extract::{self, Options};
use crate::location::HubId;
use crate::progress::Progress;
use cache::{ModelCache, is_commit};
use client::Client;
use remote::RemoteSource;
pub use settings::Settings;

/// Access to the Hub, and to its cache on this machine. No file is opened and no request is sent before a model is
/// requested.
///
/// # Examples
///
/// ```no_run
/// use layer0::hub::Hub;
/// use layer0::location::HubId;
/// use layer0::progress::Silent;
/// use layer0::{Embedder, Overrides};
///
/// let id = HubId::parse("google/gemma-3-270m").ok_or("this is not the ID of a model")?;
/// let cached = Hub::from_env().cached_or_fetched(&id, &Overrides::default(), &Silent)?;
/// let embedder = Embedder::open(cached.dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Hub {
    settings: Settings,
}

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// The layer-0 directory, or the snapshot of the whole model.
    pub dir: PathBuf,
    /// The model and the commit that the files come from.
    pub origin: Origin,
}

/// The part of the Hub's description of a model that is needed here.
#[derive(Deserialize)]
struct Description {
    sha: String,
    siblings: Vec<Sibling>,
    #[serde(default, rename = "cardData")]
    card: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Hub {
    /// Returns access to the Hub that `settings` name.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// Returns a `Hub` that is configured by the environment variables.
    pub fn from_env() -> Self {
        Self::new(Settings::from_env())
    }

    /// Returns the model from the cache without any request, or fetches it if the cache does not hold it.
    ///
    /// # Errors
    /// Returns the errors of [`Hub::fetch`].
    pub fn cached_or_fetched(
        &self,
        id: &HubId,
        overrides: &Overrides,
        progress: &dyn Progress,
    ) -> Result<Cached, HubError> {
        let cache = ModelCache::new(&self.settings.cache, id);
        let cached = cache.commit().and_then(|commit| self.cached(&cache, id, &commit, overrides));
        cached.map_or_else(|| self.fetch(id, overrides, progress), Ok)
    }

    /// Returns the model at the commit to which its revision now refers on the Hub, and fetches the parts that the
    /// cache lacks. If the settings are offline, the model is taken from the cache.
    ///
    /// # Errors
    /// Returns an error if the cache lacks the model and it cannot be fetched, or if it is not a model that can be
    /// served.
    pub fn fetch(&self, id: &HubId, overrides: &Overrides, progress: &dyn Progress) -> Result<Cached, HubError> {
        let cache = ModelCache::new(&self.settings.cache, id);
        if self.settings.offline || is_commit(&id.revision) {
            let cached = cache.commit().and_then(|commit| self.cached(&cache, id, &commit, overrides));
            if let Some(cached) = cached {
                return Ok(cached);
            }
        }
        if self.settings.offline {
            let cache = self.settings.cache.display();
            let problem = format!("is not in the cache {cache}, and HF_HUB_OFFLINE is set");
            let remedy =
                format!("run `embedding-server fetch {id}` where there is a network, and bring that cache here");
            return Err(RequestError::new(RequestErrorKind::Offline, id.to_string(), problem)
                .expected("a model that was fetched before, or an existing directory")
                .remedy(remedy)
                .into());
        }
        let client = Client::new(&self.settings, id);
        let description: Description = client.describe()?;
        let commit = description.sha.as_str();
        if !is_commit(commit) {
            let problem = format!("is at the commit {commit:?}");
            let error = RequestError::new(RequestErrorKind::WrongAnswer, client.page(), problem);
            return Err(error.expected("40 hexadecimal digits").into());
        }
        if let Some(cached) = self.cached(&cache, id, commit, overrides) {
            cache.remember(commit)?;
            return Ok(cached);
        }
        self.fetch_commit(&cache, &client, id, &description, overrides, progress)?;
        cache.remember(commit)?;
        self.cached(&cache, id, commit, overrides).ok_or_else(|| {
            let error = FileError::new(FileErrorKind::Io, cache.layer0(commit), "was fetched and is not there");
            error.remedy("run the same again").into()
        })
    }

    fn fetch_commit(
        &self,
        cache: &ModelCache,
        client: &Client<'_>,
        id: &HubId,
        description: &Description,
        overrides: &Overrides,
        progress: &dyn Progress,
    ) -> Result<(), HubError> {
        let commit = description.sha.as_str();
        let has = |name: &str| description.siblings.iter().any(|sibling| sibling.rfilename == name);
        let no_weights = || {
            RequestError::new(RequestErrorKind::NoWeights, client.page(), "holds no weights that can be read in parts")
                .expected(format!("{SINGLE}, or shards with {INDEX}"))
                .remedy("look for a repository of the same model with safetensors files")
        };
        if !description.siblings.iter().any(|sibling| sibling.rfilename.ends_with(".safetensors")) {
            return Err(no_weights().into());
        }
        let small = description.siblings.iter().map(|sibling| sibling.rfilename.as_str());
        for file in small.filter(|&name| name == "config.json" || extract::is_tokenizer_file(name)) {
            cache.file(client, commit, file, progress)?;
        }
        let snapshot = cache.snapshot(commit);
        let entry = weights::entry_file(&snapshot, |name| Ok(has(name)))?.ok_or_else(no_weights)?;
        if weights::is_index(&entry) {
            cache.file(client, commit, &entry, progress)?;
        }
        let origin = Origin { ranges: true, license: license(description), ..self.origin(id, commit) };
        let source = RemoteSource::open(client, commit, snapshot.clone(), origin, entry)?;

        // If the repository consists almost entirely of layer 0, whole files are downloaded, because the Hub states a
        // digest for them.
        let config = ModelConfig::open(&overrides.config.clone().unwrap_or_else(|| snapshot.join("config.json")))?;
        let overrides = &overridden::read(&config, overrides)?;
        let family = family::resolve(&config, overrides)?;
        let selection = Selection::find(&source, &config, &family, overrides, GivenNames::Kept)?;
        let shares = source.share(selection.tensors())?;
        if shares.iter().all(|(_, size, wanted)| size - size / 100 <= *wanted) {
            for (file, ..) in &shares {
                cache.file(client, commit, file, progress)?;
            }
            return Ok(());
        }
        // A directory that exists and is not complete lacks tensors that these overrides name, or is damaged.
        let existing = if cache.layer0(commit).exists() { Existing::Replace } else { Existing::Keep };
        let options = Options { existing, overrides: overrides.clone(), ..Options::default() };
        extract::extract(&source, &cache.layer0(commit), &options, progress)?;
        Ok(())
    }

    /// Returns the layer-0 directory of the commit, or the snapshot if it holds everything that layer 0 needs.
    fn cached(&self, cache: &ModelCache, id: &HubId, commit: &str, overrides: &Overrides) -> Option<Cached> {
        let layer0 = cache.layer0(commit);
        let snapshot = cache.snapshot(commit);
        let whole = |dir: &Path| complete(dir, overrides).then(|| dir.to_owned());
        let dir = whole(&snapshot).or_else(|| whole(&layer0))?;
        let license = Origin::local(&dir).license;
        let ranges = dir == layer0;
        Some(Cached { dir, origin: Origin { license, ranges, ..self.origin(id, commit) } })
    }

    fn origin(&self, id: &HubId, commit: &str) -> Origin {
        Origin {
            name: id.name.clone(),
            commit: Some(commit.to_owned()),
            url: Some(format!("{}/{}", self.settings.endpoint, id.name)),
            ..Origin::default()
        }
    }
}

/// Returns whether a directory holds everything that layer 0 needs. Its links always lead to complete files, because a
/// download is renamed to its final name only at its end.
fn complete(dir: &Path, overrides: &Overrides) -> bool {
    let found = || {
        let config = ModelConfig::open(&overrides.config.clone().unwrap_or_else(|| dir.join("config.json")))?;
        let source = LocalSource::open(dir, Origin::default())?;
        let overrides = &overridden::read(&config, overrides)?;
        let family = family::resolve(&config, overrides)?;
        Selection::find(&source, &config, &family, overrides, GivenNames::Kept).map_err(HubError::from)
    };
    (overrides.tokenizer.is_some() || dir.join("tokenizer.json").exists()) && found().is_ok()
}

/// Returns the entries about the license from the card in the model's description, as far as they are plain text.
fn license(description: &Description) -> Vec<(String, String)> {
    let plain = |s: &&str| (1..200).contains(&s.len()) && s.chars().all(|c| c.is_ascii_graphic() || c == ' ');
    let card = description.card.iter().flatten();
    let known = card.filter(|(key, _)| ["license", "license_name", "license_link"].contains(&key.as_str()));
    known.filter_map(|(key, value)| Some((key.clone(), value.as_str().filter(plain)?.to_owned()))).collect()
}
