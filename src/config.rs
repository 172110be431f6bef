//! The server's configuration: the keys above all sections, and the checks that concern several keys.
//!
//! A configuration is merged from four layers: defaults, configuration file, environment, and command-line flags.
//! [`layers`] merges them and records where each value came from. Each setting is declared once: `server`, `log` and
//! `models` declare those of the sections, and `declare.rs` explains a declaration. This module knows neither clap nor
//! axum nor tensors.

pub mod cors;
mod declare;
pub mod error;
mod file;
pub mod host;
pub mod layers;
mod log;
pub mod log_level;
mod models;
mod server;
pub mod settings;
pub mod units;
pub mod values;
pub mod variables;

use std::collections::BTreeSet;

use toml::{Table, Value};

use declare::declare_settings;
use error::ConfigError;
use host::Host;
pub use log::{LogConfig, LogFormat};
pub use models::ModelConfig;
pub use server::ServerConfig;
use values::ValueKind::Name;

/// The model name that this server's predecessor used, and that its clients ask for.
pub const DEFAULT_MODEL_ID: &str = "text-embedding-3-small";

/// The names of OpenAI's models, which existing client code asks for.
const OPENAI_MODELS: [&str; 3] = [DEFAULT_MODEL_ID, "text-embedding-ada-002", "text-embedding-3-large"];

declare_settings! {
    /// All keys with their defaults. Flags override environment variables, which override the file (`--config`), which
    /// overrides these defaults. `embedding-server check --config FILE` prints the effective configuration and the
    /// origin of each value.
    pub struct Config in "", "" {
        /// The model for requests that name none.
        default_model: Option<String> {
            check: Name,
            variable: "EMBEDDING_SERVER_DEFAULT_MODEL",
            unset: "the first of `[[models]]`",
            example: "text-embedding-3-small",
        }
    }
    sections {
        server: ServerConfig { default: ServerConfig::default(), }
        log: LogConfig { default: LogConfig::default(), }
        models: Vec<ModelConfig> { default: vec![default_model()], }
    }
}

/// Returns the model that is served if none is configured: the built-in one under OpenAI's names.
#[cfg(feature = "default-model")]
fn default_model() -> ModelConfig {
    ModelConfig {
        aliases: OPENAI_MODELS.map(str::to_owned).to_vec(),
        ..ModelConfig::new(crate::builtin::ID, crate::builtin::BUILTIN)
    }
}

/// Returns the model that is served if none is configured: in a build without a built-in model, the output directory of
/// mergekit's documented command.
#[cfg(not(feature = "default-model"))]
fn default_model() -> ModelConfig {
    ModelConfig::new(DEFAULT_MODEL_ID, "./test")
}

impl Config {
    /// Returns the ID of the model for requests that do not name one.
    pub fn default_model(&self) -> &str {
        let first = || self.models.first().map_or("", |model| model.id.as_str());
        self.default_model.as_deref().unwrap_or_else(first)
    }

    /// Checks what the types do not: value ranges, duplicate names, and settings that depend on each other.
    ///
    /// # Errors
    /// A sentence about the first mistake.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.models.is_empty() {
            return Err(ConfigError::value("no model is configured: add a [[models]] section, or --model NAME=PATH"));
        }
        self.validate_values()?;
        let mut names = BTreeSet::new();
        for model in &self.models {
            for name in std::iter::once(&model.id).chain(&model.aliases) {
                if !names.insert(name.as_str()) {
                    return Err(ConfigError::conflict(format!(
                        "the model name {name:?} is given twice; ids and aliases must differ"
                    )));
                }
            }
        }
        if !names.contains(self.default_model()) {
            return Err(ConfigError::conflict(format!(
                "default_model is {:?}, but no model has this name; the models are {}",
                self.default_model(),
                names.into_iter().collect::<Vec<_>>().join(", ")
            )));
        }
        if self.server.tls_cert.is_some() != self.server.tls_key.is_some() {
            return Err(ConfigError::conflict("server.tls_cert and server.tls_key must be set together"));
        }
        Ok(())
    }

    /// Checks that every value is in the range of its setting.
    fn validate_values(&self) -> Result<(), ConfigError> {
        let table = Table::try_from(self).map_err(|e| ConfigError::value(e.to_string()))?;
        let check = |section: &str, place: &str, keys: &Table| {
            for (key, value) in keys {
                if let Some(setting) = settings::find(section, key) {
                    setting
                        .check
                        .from_value(value)
                        .map_err(|advice| ConfigError::value(format!("{place}{key} is {value}: {advice}")))?;
                }
            }
            Ok::<_, ConfigError>(())
        };
        check("", "", &table)?;
        for (section, value) in &table {
            match value {
                Value::Table(keys) => check(section, &format!("{section}."), keys)?,
                Value::Array(models) => {
                    for model in models.iter().filter_map(Value::as_table) {
                        let id = model.get("id").and_then(Value::as_str).unwrap_or_default();
                        check(section, &format!("models.{id}."), model)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns warnings about settings that are valid, but probably not intended.
    fn warnings(&self) -> Vec<String> {
        let ServerConfig { max_body, max_in_flight, cors_origins, .. } = &self.server;
        let mut warnings = Vec::new();
        if max_body.0 > max_in_flight.0 {
            warnings.push(format!(
                "server.max_body ({max_body}) is larger than server.max_in_flight ({max_in_flight}): a body that large \
                 is admitted only while no other request is in flight"
            ));
        }
        if cors_origins.len() > 1 && cors_origins.iter().any(|origin| origin == cors::ANY) {
            warnings.push("server.cors_origins holds \"*\", so its other entries have no effect".to_owned());
        }
        let keyed = !self.server.api_keys.is_empty() || self.server.api_key_file.is_some();
        let on_unix_socket = matches!(self.server.host, Host::Unix(_));
        if on_unix_socket && self.server.port != ServerConfig::default().port {
            warnings.push("server.port has no effect: server.host is a Unix socket".to_owned());
        }
        if !self.server.allowed_hosts.is_empty() && (keyed || on_unix_socket || !self.server.host.is_loopback()) {
            let message = "server.allowed_hosts has no effect: requests may name any host if API keys are configured or \
                                       server.host is not a loopback address";
            warnings.push(message.to_owned());
        }
        warnings
    }
}
