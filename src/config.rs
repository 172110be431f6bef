//! The server's configuration: the type of each section, with its defaults and units.
//!
//! A configuration is merged from four layers: defaults, configuration file, environment, and command-line flags.
//! [`layers`] merges them and records where each value came from. This module knows neither clap nor axum nor tensors.

pub mod cors;
mod file;
pub mod host;
pub mod layers;
pub mod log_level;
pub mod settings;
pub mod units;
pub mod values;
pub mod variables;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::checkpoint::Overrides;
use crate::embedder::{EmptyInput, Memory, Settings, TokenInput};
use crate::keys::ApiKeys;
use crate::norm::NormKind;
use crate::pooling::place::DeviceChoice;
use host::Host;
use units::{ByteCount, Seconds};

/// The model name that this server's predecessor used, and that its clients ask for.
pub const DEFAULT_MODEL_ID: &str = "text-embedding-3-small";

/// The names of OpenAI's models, which existing client code asks for.
const OPENAI_MODELS: [&str; 3] = [DEFAULT_MODEL_ID, "text-embedding-ada-002", "text-embedding-3-large"];

/// The whole configuration. `config/embedding-server.toml` documents each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_model: Option<String>,
    pub server: ServerConfig,
    pub log: LogConfig,
    pub models: Vec<ModelConfig>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    pub host: Host,
    pub port: u16,
    pub threads: usize,
    pub device: DeviceChoice,
    pub max_body: ByteCount,
    pub max_inputs: usize,
    pub max_in_flight: ByteCount,
    pub max_connections: usize,
    pub header_timeout: Seconds,
    pub request_timeout: Seconds,
    pub drain_delay: Seconds,
    pub drain_timeout: Seconds,
    pub reload_interval: Seconds,
    pub api_keys: ApiKeys,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    pub cors_origins: Vec<String>,
    pub allowed_hosts: Vec<String>,
    pub path_prefix: String,
    pub metrics: bool,
    pub metrics_need_key: bool,
    pub docs: bool,
    pub playground: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    pub level: String,
    pub format: LogFormat,
    pub access: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// The configuration of one served model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    pub id: String,
    pub path: PathBuf,
    #[serde(default)]
    pub aliases: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub special_tokens: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<usize>,
    #[serde(default)]
    pub token_input: TokenInput,
    #[serde(default)]
    pub empty_input: EmptyInput,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_input_tokens: Option<usize>,
    /// The device of this model, or `None` to use `server.device`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_min_tokens: Option<usize>,
    #[serde(default)]
    pub memory: Memory,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm: Option<NormKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_eps: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_scale: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_tensor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_tensor: Option<String>,
}

impl Default for Config {
    /// Returns a configuration with one model: the built-in one under OpenAI's names, or, in a build without it,
    /// the output directory of mergekit's documented command.
    fn default() -> Self {
        #[cfg(feature = "default-model")]
        let model = ModelConfig {
            aliases: OPENAI_MODELS.map(str::to_owned).to_vec(),
            ..ModelConfig::new(crate::checkpoint::builtin::ID, crate::checkpoint::BUILTIN)
        };
        #[cfg(not(feature = "default-model"))]
        let model = ModelConfig::new(DEFAULT_MODEL_ID, "./test");
        Self { default_model: None, server: ServerConfig::default(), log: LogConfig::default(), models: vec![model] }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: Host::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            port: 5000,
            threads: 0,
            device: DeviceChoice::default(),
            max_body: ByteCount(32 << 20),
            max_inputs: 2048,
            max_in_flight: ByteCount(64 << 20),
            max_connections: 10_000,
            header_timeout: Seconds(Duration::from_secs(75)),
            request_timeout: Seconds(Duration::from_secs(60)),
            drain_delay: Seconds(Duration::ZERO),
            drain_timeout: Seconds(Duration::from_secs(30)),
            reload_interval: Seconds(Duration::ZERO),
            api_keys: ApiKeys::default(),
            api_key_file: None,
            tls_cert: None,
            tls_key: None,
            cors_origins: vec!["*".to_owned()],
            allowed_hosts: Vec::new(),
            path_prefix: String::new(),
            metrics: true,
            metrics_need_key: false,
            docs: true,
            playground: true,
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text, access: true }
    }
}

impl ModelConfig {
    pub fn new(id: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            id: id.into(),
            path: path.into(),
            aliases: Vec::new(),
            normalize: None,
            special_tokens: None,
            dimensions: None,
            token_input: TokenInput::default(),
            empty_input: EmptyInput::default(),
            max_input_tokens: None,
            device: None,
            device_min_tokens: None,
            memory: Memory::default(),
            tokenizer: None,
            config: None,
            norm: None,
            norm_eps: None,
            embedding_scale: None,
            embedding_tensor: None,
            norm_tensor: None,
        }
    }

    /// Returns the model with the server's device, if the model has no device of its own.
    #[must_use]
    pub fn on(self, server: &ServerConfig) -> Self {
        Self { device: self.device.or(Some(server.device)), ..self }
    }

    /// Returns the settings that determine how the model's vectors are computed.
    pub fn settings(&self) -> Settings {
        Settings {
            normalize: self.normalize,
            special_tokens: self.special_tokens,
            dimensions: self.dimensions,
            token_input: self.token_input,
            empty_input: self.empty_input,
            max_input_tokens: self.max_input_tokens,
            device: self.device.unwrap_or_default(),
            device_min_tokens: self.device_min_tokens,
            memory: self.memory,
            ..Settings::default()
        }
    }

    /// Returns the settings that replace values of the checkpoint.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            config: self.config.clone(),
            tokenizer: self.tokenizer.clone(),
            norm: self.norm,
            norm_eps: self.norm_eps,
            embedding_scale: self.embedding_scale,
            embedding_tensor: self.embedding_tensor.clone(),
            norm_tensor: self.norm_tensor.clone(),
        }
    }
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
    pub fn validate(&self) -> Result<(), String> {
        if self.models.is_empty() {
            return Err("no model is configured: add a [[models]] section, or --model NAME=PATH".to_owned());
        }
        self.validate_values()?;
        let mut names = BTreeSet::new();
        for model in &self.models {
            for name in std::iter::once(&model.id).chain(&model.aliases) {
                if !names.insert(name.as_str()) {
                    return Err(format!("the model name {name:?} is given twice; ids and aliases must differ"));
                }
            }
        }
        if !names.contains(self.default_model()) {
            return Err(format!(
                "default_model is {:?}, but no model has this name; the models are {}",
                self.default_model(),
                names.into_iter().collect::<Vec<_>>().join(", ")
            ));
        }
        if self.server.tls_cert.is_some() != self.server.tls_key.is_some() {
            return Err("server.tls_cert and server.tls_key must be set together".to_owned());
        }
        Ok(())
    }

    /// Checks that every value is in the range of its setting.
    fn validate_values(&self) -> Result<(), String> {
        let table = Table::try_from(self).map_err(|e| e.to_string())?;
        let check = |section: &str, place: &str, keys: &Table| {
            for (key, value) in keys {
                if let Some(setting) = settings::find(section, key) {
                    setting.kind.from_value(value).map_err(|advice| format!("{place}{key} is {value}: {advice}"))?;
                }
            }
            Ok::<_, String>(())
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
