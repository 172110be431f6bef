//! Merges the layers of the configuration key by key, and records which layer each value came from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::error::{ConfigError, ConfigErrorKind};
use super::settings::{self, Setting};
use super::variables::Variables;
use super::{Config, DEFAULT_MODEL_ID, ModelConfig, OPENAI_MODELS, file};

/// The layer that a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    File(PathBuf),
    /// The name of the variable.
    Environment(String),
    /// The flag, including its dashes.
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

/// The command-line flags that were given.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    pub config: Option<PathBuf>,
    /// The flags that set a key, with their dashes, and the values.
    pub settings: Vec<(&'static str, String)>,
    /// `NAME=PATH`, or `PATH` for the default name.
    pub models: Vec<String>,
}

/// A merged configuration, with the origin of each value.
#[derive(Debug, Clone)]
pub struct EffectiveConfig {
    pub config: Config,
    /// The origin of each key. The keys of models contain the ID: `models.text-embedding-3-small.path`.
    pub origins: BTreeMap<String, Origin>,
    /// The configuration file that was read.
    pub file: Option<PathBuf>,
    /// Warnings about settings that are valid, but probably not intended.
    pub warnings: Vec<String>,
}

/// Merges the defaults, the configuration file, the environment and the flags, in this order.
///
/// # Errors
/// If a layer cannot be read or has an unknown key, or if the result is not valid.
pub fn effective(
    flags: &Flags,
    environment: impl Iterator<Item = (impl Into<OsString>, impl Into<OsString>)>,
) -> Result<EffectiveConfig, ConfigError> {
    let variables = Variables::read(environment)?;
    let mut layers = Layers::defaults()?;

    let file = flags.config.clone().or_else(|| variables.config_file.clone());
    if let Some(path) = &file {
        layers.file(path)?;
    }
    for (setting, name, text) in &variables.settings {
        layers.text(setting, text, &Origin::Environment(name.clone()))?;
    }
    layers.models(&variables.models, &Origin::Environment(super::variables::MODELS.to_owned()))?;
    for (flag, text) in &flags.settings {
        let setting = settings::of_server().find(|setting| setting.flag.is_some_and(|declared| declared.long == *flag));
        let setting = setting
            .ok_or_else(|| ConfigError::new(ConfigErrorKind::Unknown, format!("no setting has the flag {flag}")))?;
        layers.text(setting, text.trim(), &Origin::Flag(flag))?;
    }
    layers.models(&flags.models, &Origin::Flag("--model"))?;
    layers.finish(file, variables.warnings)
}

struct Layers {
    table: Table,
    models: Vec<Table>,
    origins: BTreeMap<String, Origin>,
    /// Whether the only model is the default one, which the first configured model replaces.
    default_models: bool,
    /// Whether a model has the default name because no name was given.
    unnamed: bool,
}

impl Layers {
    fn defaults() -> Result<Self, ConfigError> {
        let mut table = Table::try_from(Config::default()).map_err(|e| ConfigError::value(e.to_string()))?;
        table.remove("models");
        let mut layers =
            Self { table, models: Vec::new(), origins: BTreeMap::new(), default_models: true, unnamed: false };
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
        let origin = Origin::File(path.to_owned());
        let file = file::read(path)?;
        for (setting, value) in file.settings {
            self.set(setting, value, &origin);
        }
        if let Some(models) = file.models {
            self.forget_default_models();
            for model in models {
                self.add_model(model, &origin);
            }
        }
        Ok(())
    }

    /// Sets the value of an environment variable or a flag.
    fn text(&mut self, setting: &'static Setting, text: &str, origin: &Origin) -> Result<(), ConfigError> {
        let value = if text.is_empty() {
            Err("it is empty: write a value, or leave it out".into())
        } else {
            setting.check.from_text(text)
        };
        let value = value.map_err(|advice| {
            let shown = if setting.check.is_secret() { String::new() } else { format!(" is {}", shown(text)) };
            ConfigError::value(format!("{origin}: {}{shown}: {advice}", setting.name()))
        })?;
        self.set(setting, value, origin);
        Ok(())
    }

    fn set(&mut self, setting: &Setting, value: Value, origin: &Origin) {
        self.origins.insert(setting.name(), origin.clone());
        let section = if setting.section.is_empty() {
            Some(&mut self.table)
        } else {
            let section = self.table.entry(setting.section).or_insert_with(|| Value::Table(Table::new()));
            section.as_table_mut()
        };
        if let Some(section) = section {
            section.insert(setting.key.to_owned(), value);
        }
    }

    /// Adds the models of one layer. `NAME=PATH` sets the path of a model from a lower layer, or adds a model.
    fn models(&mut self, texts: &[String], origin: &Origin) -> Result<(), ConfigError> {
        let mut named = BTreeMap::new();
        for text in texts {
            let (id, path) = name_and_path(text);
            let wrong =
                |advice: String| ConfigError::value(format!("{origin}: the model is {}: {advice}", shown(text)));
            let unnamed = id.is_none();
            let id = match id {
                Some(id) => super::values::name(id).map_err(|advice| wrong(format!("{advice}: NAME=PATH")))?,
                None => DEFAULT_MODEL_ID.to_owned(),
            };
            if path.is_empty() {
                return Err(wrong("write NAME=PATH, or PATH alone".to_owned()));
            }
            if let Some(other) = named.insert(id.clone(), path) {
                return Err(ConfigError::conflict(format!(
                    "{origin}: two models have the name {id:?}, {other} and {path}; give each a name: --model NAME=PATH, or \
                                         EMBEDDING_SERVER_MODELS=\"NAME=PATH,NAME=PATH\""
                )));
            }
            self.model(&id, path, origin, unnamed)?;
        }
        Ok(())
    }

    fn model(&mut self, id: &str, path: &str, origin: &Origin, unnamed: bool) -> Result<(), ConfigError> {
        let same = |model: &&mut Table| model.get("id").and_then(Value::as_str) == Some(id);
        if !self.default_models
            && let Some(model) = self.models.iter_mut().find(same)
        {
            model.insert("path".to_owned(), Value::from(path));
            self.origins.insert(format!("models.{id}.path"), origin.clone());
            return Ok(());
        }
        self.add_model(model_table(&ModelConfig::new(id, path))?, origin);
        self.unnamed |= unnamed;
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

    /// Removes the default model when the first layer configures models.
    fn forget_default_models(&mut self) {
        if std::mem::take(&mut self.default_models) {
            self.models.clear();
            self.origins.retain(|key, _| !key.starts_with("models."));
        }
    }

    fn finish(mut self, file: Option<PathBuf>, mut warnings: Vec<String>) -> Result<EffectiveConfig, ConfigError> {
        // A model without a name replaces OpenAI's models, so it also gets their other names.
        if let (true, [model]) = (self.unnamed, self.models.as_mut_slice()) {
            let others = OPENAI_MODELS.into_iter().filter(|name| *name != DEFAULT_MODEL_ID);
            model.entry("aliases").or_insert_with(|| Value::Array(others.map(Value::from).collect()));
        }
        self.table.insert("models".to_owned(), Value::Array(self.models.into_iter().map(Value::Table).collect()));
        let config: Config = self.table.try_into().map_err(|e: toml::de::Error| ConfigError::value(e.message()))?;
        config.validate()?;
        warnings.extend(config.warnings());
        Ok(EffectiveConfig { config, origins: self.origins, file, warnings })
    }
}

/// Returns the table of a model that has only an ID and a path.
fn model_table(model: &ModelConfig) -> Result<Table, ConfigError> {
    let mut table = Table::try_from(model).map_err(|e| ConfigError::value(e.to_string()))?;
    table.retain(|key, _| key == "id" || key == "path");
    Ok(table)
}

/// Splits `NAME=PATH`. A text that begins like a path, or that is an existing path, is a path alone even if it contains
/// `=`.
fn name_and_path(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, path)) if !name.starts_with(['/', '.', '~']) && !Path::new(text).exists() => {
            (Some(name.trim()), path.trim())
        }
        _ => (None, text),
    }
}

/// Formats a value for an error message, on one line and cut to a maximum length.
pub fn shown(text: &str) -> String {
    const LONGEST: usize = 80;
    if text.chars().count() <= LONGEST {
        return format!("{text:?}");
    }
    format!("{:?}...", text.chars().take(LONGEST).collect::<String>())
}

/// Returns the known name that is most similar to `name`, if one is similar enough.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let rated = known.map(|k| (strsim::jaro_winkler(&name, &k.to_lowercase()), k));
    rated.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(likeness, _)| *likeness > 0.75).map(|(_, key)| key)
}

impl fmt::Display for EffectiveConfig {
    /// Writes each key with its value and origin, as the command `check` prints them.
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
