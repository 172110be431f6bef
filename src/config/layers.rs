//! Layers of configuration, merged key by key; each value remembers the layer it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Config, DEFAULT_MODEL_ID, Model};

/// The prefix of environment variables.
pub const ENV_PREFIX: &str = "EMBEDDING_SERVER_";

/// The one that names the file.
pub const CONFIG_VARIABLE: &str = "EMBEDDING_SERVER_CONFIG";

/// Environment variables, without the prefix, and the keys that they set. `MODELS` and `CONFIG` are apart.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("DEFAULT_MODEL", "default_model"),
    ("HOST", "server.host"),
    ("PORT", "server.port"),
    ("THREADS", "server.threads"),
    ("DEVICE", "server.device"),
    ("MAX_BODY", "server.max_body"),
    ("MAX_INPUTS", "server.max_inputs"),
    ("MAX_IN_FLIGHT", "server.max_in_flight"),
    ("MAX_CONNECTIONS", "server.max_connections"),
    ("HEADER_TIMEOUT", "server.header_timeout"),
    ("REQUEST_TIMEOUT", "server.request_timeout"),
    ("DRAIN_DELAY", "server.drain_delay"),
    ("DRAIN_TIMEOUT", "server.drain_timeout"),
    ("RELOAD_INTERVAL", "server.reload_interval"),
    ("API_KEYS", "server.api_keys"),
    ("API_KEY_FILE", "server.api_key_file"),
    ("TLS_CERT", "server.tls_cert"),
    ("TLS_KEY", "server.tls_key"),
    ("CORS_ORIGINS", "server.cors_origins"),
    ("METRICS", "server.metrics"),
    ("METRICS_NEED_KEY", "server.metrics_need_key"),
    ("DOCS", "server.docs"),
    ("PLAYGROUND", "server.playground"),
    ("LOG_LEVEL", "log.level"),
    ("LOG_FORMAT", "log.format"),
];

/// All keys, for "did you mean"; a test holds them against the types.
const KEYS: &[(&str, &[&str])] = &[
    ("", &["default_model", "server", "log", "models"]),
    (
        "server",
        &[
            "host",
            "port",
            "threads",
            "device",
            "max_body",
            "max_inputs",
            "max_in_flight",
            "max_connections",
            "header_timeout",
            "request_timeout",
            "drain_delay",
            "drain_timeout",
            "reload_interval",
            "api_keys",
            "api_key_file",
            "tls_cert",
            "tls_key",
            "cors_origins",
            "metrics",
            "metrics_need_key",
            "docs",
            "playground",
        ],
    ),
    ("log", &["level", "format"]),
    (
        "models",
        &[
            "id",
            "path",
            "aliases",
            "normalize",
            "special_tokens",
            "dimensions",
            "token_input",
            "max_input_tokens",
            "device",
            "device_min_tokens",
            "memory",
            "tokenizer",
            "config",
            "norm",
            "norm_eps",
            "embedding_scale",
            "embedding_tensor",
            "norm_tensor",
        ],
    ),
];

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    File(PathBuf),
    /// The variable's name.
    Environment(String),
    /// The flag with its dashes.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// What the command line says. `None`: nothing.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    pub config: Option<PathBuf>,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub log_format: Option<String>,
    pub device: Option<String>,
    /// `NAME=PATH`, or `PATH` for the default name.
    pub models: Vec<String>,
}

/// A merged configuration and where each value came from.
#[derive(Debug, Clone)]
pub struct Effective {
    pub config: Config,
    /// By dotted key; models by id: `models.text-embedding-3-small.path`.
    pub origins: BTreeMap<String, Origin>,
    /// Things in the environment that look meant and are not taken.
    pub warnings: Vec<String>,
}

/// Merges defaults, the file, the environment and the flags, in this order.
///
/// # Errors
/// When a layer cannot be read, names an unknown key, or the result is not valid.
pub fn effective(flags: &Flags, environment: impl Iterator<Item = (String, String)>) -> Result<Effective, ConfigError> {
    let environment: BTreeMap<String, String> =
        environment.filter_map(|(name, value)| Some((name.strip_prefix(ENV_PREFIX)?.to_owned(), value))).collect();
    let mut layers = Layers::defaults()?;

    let file = flags.config.clone().or_else(|| environment.get("CONFIG").map(PathBuf::from));
    if let Some(path) = &file {
        layers.file(path)?;
    }
    let mut warnings = Vec::new();
    for (name, value) in &environment {
        layers.variable(name, value, &mut warnings)?;
    }
    let set = [
        ("--host", "server.host", flags.host.clone().map(Value::from)),
        ("--port", "server.port", flags.port.map(|port| Value::from(i64::from(port)))),
        ("--device", "server.device", flags.device.clone().map(Value::from)),
        ("--log-format", "log.format", flags.log_format.clone().map(Value::from)),
    ];
    for (flag, key, value) in set {
        if let Some(value) = value {
            layers.set(key, value, Origin::Flag(flag))?;
        }
    }
    for model in &flags.models {
        layers.model(model, Origin::Flag("--model"))?;
    }
    layers.finish(warnings)
}

struct Layers {
    table: Table,
    models: Vec<Table>,
    origins: BTreeMap<String, Origin>,
    /// The only model is the default one, which the first configured model replaces.
    default_models: bool,
}

impl Layers {
    fn defaults() -> Result<Self, ConfigError> {
        let mut table = Table::try_from(Config::default()).map_err(|e| ConfigError(e.to_string()))?;
        table.remove("models");
        let mut layers = Self { table, models: Vec::new(), origins: BTreeMap::new(), default_models: true };
        for (section, value) in &layers.table {
            for key in value.as_table().into_iter().flat_map(Table::keys) {
                layers.origins.insert(format!("{section}.{key}"), Origin::Default);
            }
        }
        for model in Config::default().models {
            let mut table = model_table(&model)?;
            if !model.aliases.is_empty() {
                table.insert("aliases".to_owned(), Value::from(model.aliases));
            }
            layers.add_model(table, &Origin::Default);
        }
        Ok(layers)
    }

    fn file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let failed = |e: &dyn fmt::Display| ConfigError(format!("{}: {e}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| failed(&e))?;
        let mut file: Table = text.parse().map_err(|e| failed(&at_line(&text, &e)))?;
        if let Some(unknown) = unknown_key(&file) {
            return Err(failed(&unknown));
        }
        // Read on its own first: its errors then point at a line.
        toml::from_str::<Config>(&text).map_err(|e| failed(&at_line(&text, &e)))?;

        let origin = Origin::File(path.to_owned());
        if let Some(Value::Array(models)) = file.remove("models") {
            self.forget_default_models();
            for model in models {
                if let Value::Table(model) = model {
                    self.add_model(model, &origin);
                }
            }
        }
        for (section, value) in file {
            match value {
                Value::Table(keys) => {
                    for (key, value) in keys {
                        self.set(&format!("{section}.{key}"), value, origin.clone())?;
                    }
                }
                value => self.set(&section, value, origin.clone())?,
            }
        }
        Ok(())
    }

    fn variable(&mut self, name: &str, value: &str, warnings: &mut Vec<String>) -> Result<(), ConfigError> {
        // A Kubernetes service named embedding-server sets EMBEDDING_SERVER_PORT=tcp://..., and more of the kind, in every pod.
        if value.starts_with("tcp://") || name.starts_with("SERVICE_") || name.starts_with("PORT_") || name == "CONFIG"
        {
            return Ok(());
        }
        let origin = Origin::Environment(format!("{ENV_PREFIX}{name}"));
        if name == "MODELS" {
            for model in value.split(',').filter(|m| !m.trim().is_empty()) {
                self.model(model.trim(), origin.clone())?;
            }
            return Ok(());
        }
        let Some((_, key)) = ENVIRONMENT.iter().find(|(known, _)| *known == name) else {
            let known = ENVIRONMENT.iter().map(|(known, _)| *known).chain(["MODELS", "CONFIG"]);
            warnings.push(format!("{ENV_PREFIX}{name} is set and means nothing here{}", did_you_mean(name, known)));
            return Ok(());
        };
        let value = match *key {
            "server.port" | "server.threads" | "server.max_inputs" | "server.max_connections" => value
                .parse::<i64>()
                .map(Value::from)
                .map_err(|_| ConfigError(format!("{ENV_PREFIX}{name} is {value:?}; expected a whole number")))?,
            "server.metrics" | "server.metrics_need_key" | "server.docs" | "server.playground" => value
                .parse::<bool>()
                .map(Value::from)
                .map_err(|_| ConfigError(format!("{ENV_PREFIX}{name} is {value:?}; expected true or false")))?,
            "server.cors_origins" | "server.api_keys" => {
                Value::Array(value.split(',').map(str::trim).filter(|o| !o.is_empty()).map(Value::from).collect())
            }
            _ => Value::from(value),
        };
        self.set(key, value, origin)
    }

    fn set(&mut self, key: &str, value: Value, origin: Origin) -> Result<(), ConfigError> {
        let mut table = self.table.clone();
        match key.split_once('.') {
            Some((section, key)) => {
                if let Some(Value::Table(section)) = table.get_mut(section) {
                    section.insert(key.to_owned(), value);
                }
            }
            None => {
                table.insert(key.to_owned(), value);
            }
        }
        // Tried at once, so that the error names the layer.
        Config::deserialize_table(table.clone()).map_err(|e| ConfigError(format!("{key}, from the {origin}: {e}")))?;
        self.table = table;
        self.origins.insert(key.to_owned(), origin);
        Ok(())
    }

    /// `NAME=PATH` sets the path of a model that a lower layer names, or adds one.
    fn model(&mut self, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let (id, path) = text.split_once('=').unwrap_or((DEFAULT_MODEL_ID, text));
        if id.is_empty() || path.is_empty() {
            return Err(ConfigError(format!("{text:?}, from the {origin}: expected NAME=PATH")));
        }
        let same = |model: &&mut Table| model.get("id").and_then(Value::as_str) == Some(id);
        if !self.default_models
            && let Some(model) = self.models.iter_mut().find(same)
        {
            model.insert("path".to_owned(), Value::from(path));
            self.origins.insert(format!("models.{id}.path"), origin);
            return Ok(());
        }
        self.add_model(model_table(&Model::new(id, path))?, &origin);
        Ok(())
    }

    fn add_model(&mut self, model: Table, origin: &Origin) {
        if *origin != Origin::Default {
            self.forget_default_models();
        }
        let id = model.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        for key in model.keys() {
            self.origins.insert(format!("models.{id}.{key}"), origin.clone());
        }
        self.models.push(model);
    }

    /// The first layer that speaks of models replaces the default one.
    fn forget_default_models(&mut self) {
        if std::mem::take(&mut self.default_models) {
            self.models.clear();
            self.origins.retain(|key, _| !key.starts_with("models."));
        }
    }

    fn finish(mut self, warnings: Vec<String>) -> Result<Effective, ConfigError> {
        self.table.insert("models".to_owned(), Value::Array(self.models.into_iter().map(Value::Table).collect()));
        let config = Config::deserialize_table(self.table).map_err(|e| ConfigError(e.to_string()))?;
        config.validate().map_err(ConfigError)?;
        Ok(Effective { config, origins: self.origins, warnings })
    }
}

/// What a flag says of a model: its id and path alone, the rest stays default.
fn model_table(model: &Model) -> Result<Table, ConfigError> {
    let mut table = Table::try_from(model).map_err(|e| ConfigError(e.to_string()))?;
    table.retain(|key, _| key == "id" || key == "path");
    Ok(table)
}

impl Config {
    fn deserialize_table(table: Table) -> Result<Self, toml::de::Error> {
        table.try_into()
    }
}

/// The error with its line, but not the line's text, as toml would have it: that may be a secret.
fn at_line(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or_else(String::new, |before| format!("line {}: ", before.matches('\n').count() + 1));
    format!("{line}{}", error.message())
}

/// The first key that no type has, with the nearest that one does.
fn unknown_key(file: &Table) -> Option<String> {
    let mut sections = vec![(String::new(), file)];
    for (name, value) in file {
        match value {
            Value::Table(keys) => sections.push((name.clone(), keys)),
            Value::Array(items) => sections.extend(items.iter().filter_map(|i| Some((name.clone(), i.as_table()?)))),
            _ => {}
        }
    }
    for (section, keys) in sections {
        let Some((_, known)) = KEYS.iter().find(|(name, _)| *name == section) else { continue };
        if let Some(key) = keys.keys().find(|key| !known.contains(&key.as_str())) {
            let place = if section.is_empty() { String::new() } else { format!(" in [{section}]") };
            return Some(format!("unknown key {key:?}{place}{}", did_you_mean(key, known.iter().copied())));
        }
    }
    None
}

fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let nearest = known.clone().map(|k| (strsim::jaro_winkler(name, k), k)).max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, key)) if likeness > 0.75 => format!("; did you mean {key:?}?"),
        _ => format!("; known are {}", known.collect::<Vec<_>>().join(", ")),
    }
}

impl fmt::Display for Effective {
    /// Each key with its value and origin, as `check` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = vec![("default_model".to_owned(), Value::from(self.config.default_model()))];
        for (section, value) in Table::try_from(&self.config).unwrap_or_default() {
            match value {
                Value::Table(keys) => lines.extend(keys.into_iter().map(|(key, v)| (format!("{section}.{key}"), v))),
                Value::Array(models) => {
                    for model in models.iter().filter_map(Value::as_table) {
                        let id = model.get("id").and_then(Value::as_str).unwrap_or_default();
                        lines.extend(model.iter().map(|(key, v)| (format!("models.{id}.{key}"), v.clone())));
                    }
                }
                _ => {}
            }
        }
        let written: Vec<(String, String)> = lines.into_iter().map(|(k, v)| (format!("{k} = {v}"), k)).collect();
        let width = written.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0);
        for (line, key) in written {
            writeln!(f, "{line:width$}  # {}", self.origins.get(&key).unwrap_or(&Origin::Default))?;
        }
        Ok(())
    }
}
