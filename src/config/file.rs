//! Reads the configuration file, with the line of each key for error messages.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::error::{ConfigError, ConfigErrorKind};
use super::layers::nearest;
use super::settings::{self, SECTIONS, Setting};
use crate::text_file;

/// The contents of a configuration file.
#[derive(Default)]
pub struct ConfigFile {
    pub settings: Vec<(&'static Setting, Value)>,
    /// The models, or `None` if the file has no `[[models]]` section.
    pub models: Option<Vec<Table>>,
}

/// Reads the configuration file at `path`.
///
/// # Errors
/// A sentence with the path and the line. It never quotes an API key.
pub fn read(path: &Path) -> Result<ConfigFile, ConfigError> {
    let failed = |kind, e: String| ConfigError::new(kind, format!("{}{e}", path.display()));
    let text = text_file::read(path).map_err(|e| failed(ConfigErrorKind::File, format!(": {e}")))?;
    parse(&text).map_err(|Problem { kind, line, message }| {
        let line = line.map_or_else(String::new, |line| format!(", line {line}"));
        failed(kind, format!("{line}: {message}"))
    })
}

/// A mistake in the file.
struct Problem {
    kind: ConfigErrorKind,
    /// The line of the mistake, if it is known.
    line: Option<usize>,
    message: String,
}

impl Problem {
    fn new(kind: ConfigErrorKind, line: usize, message: impl Into<String>) -> Self {
        Self { kind, line: Some(line), message: message.into() }
    }

    fn syntax(line: usize, message: impl Into<String>) -> Self {
        Self::new(ConfigErrorKind::Syntax, line, message)
    }
}

fn parse(text: &str) -> Result<ConfigFile, Problem> {
    let text = &Lines { text };
    let table = DeTable::parse(text.text).map_err(|error| {
        // The text of the line is not quoted, because it may be a secret.
        Problem {
            kind: ConfigErrorKind::Syntax,
            line: error.span().map(|span| text.line(&span)),
            message: format!("this is not valid TOML: {}", syntax(error.message())),
        }
    })?;
    let mut file = ConfigFile::default();
    for (key, value) in table.get_ref() {
        let (name, at) = (key.get_ref().as_ref(), text.line(&key.span()));
        match (settings::find("", name), name, value.get_ref()) {
            (Some(setting), ..) => file.settings.push((setting, text.value(setting, value)?)),
            (None, "models", DeValue::Array(models)) => {
                let mut tables = Vec::new();
                let mut names = BTreeMap::new();
                for model in models {
                    let DeValue::Table(keys) = model.get_ref() else {
                        return Err(Problem::syntax(
                            text.line(&model.span()),
                            "write each model as a section [[models]]",
                        ));
                    };
                    tables.push(text.model(keys, text.line(&model.span()), &mut names)?);
                }
                file.models = Some(tables);
            }
            (None, "models", _) => {
                return Err(Problem::syntax(at, "write [[models]], with two brackets on each side"));
            }
            (None, section, DeValue::Table(keys)) if settings::section(section).is_some() => {
                for (setting, value) in text.section(section, keys)? {
                    file.settings.push((setting, value));
                }
            }
            (None, section, DeValue::Array(_)) if settings::section(section).is_some() => {
                return Err(Problem::syntax(at, format!("write [{section}], with one bracket on each side")));
            }
            (None, section, _) if settings::section(section).is_some() => {
                return Err(Problem::syntax(
                    at,
                    format!("{section} is a section: write [{section}], and its keys below it"),
                ));
            }
            (None, name, DeValue::Table(_) | DeValue::Array(_)) if !is_key_of_a_section(name) => {
                return Err(Problem::new(
                    ConfigErrorKind::Unknown,
                    at,
                    format!("unknown section [{name}]{}", section_like(name)),
                ));
            }
            (None, name, _) => return Err(Problem::new(ConfigErrorKind::Unknown, at, unknown_key("", name))),
        }
    }
    Ok(file)
}

/// The text of a file, for finding line numbers.
struct Lines<'a> {
    text: &'a str,
}

impl Lines<'_> {
    /// Returns the line number of `span`, counted from 1.
    fn line(&self, span: &Range<usize>) -> usize {
        1 + self.text.bytes().take(span.start).filter(|b| *b == b'\n').count()
    }

    fn section(&self, section: &str, keys: &DeTable<'_>) -> Result<Vec<(&'static Setting, Value)>, Problem> {
        let mut found = Vec::new();
        for (key, value) in keys {
            let name = key.get_ref().as_ref();
            let setting = settings::find(section, name).ok_or_else(|| {
                Problem::new(ConfigErrorKind::Unknown, self.line(&key.span()), unknown_key(section, name))
            })?;
            found.push((setting, self.value(setting, value)?));
        }
        Ok(found)
    }

    /// Reads one `[[models]]` section, which begins at `line`. `names` are the names of the models before it, with
    /// their lines.
    fn model(&self, keys: &DeTable<'_>, line: usize, names: &mut BTreeMap<String, usize>) -> Result<Table, Problem> {
        let model: Table =
            self.section("models", keys)?.into_iter().map(|(setting, value)| (setting.key.to_owned(), value)).collect();
        for key in ["id", "path"] {
            if !model.contains_key(key) {
                return Err(Problem::new(
                    ConfigErrorKind::Value,
                    line,
                    format!("this [[models]] section has no {key}: write {key} = \"...\""),
                ));
            }
        }
        let aliases = model.get("aliases").and_then(Value::as_array).into_iter().flatten();
        for name in model.get("id").into_iter().chain(aliases).filter_map(Value::as_str) {
            if let Some(before) = names.insert(name.to_owned(), line) {
                return Err(Problem::new(
                    ConfigErrorKind::Conflict,
                    line,
                    format!(
                        "the model name {name:?} is given twice, here and in the section of line {before}; ids and aliases \
                         must differ"
                    ),
                ));
            }
        }
        Ok(model)
    }

    fn value(&self, setting: &Setting, value: &Spanned<DeValue<'_>>) -> Result<Value, Problem> {
        setting.check.from_value(&plain(value.get_ref())).map_err(|advice| {
            let written = self.text.get(value.span()).unwrap_or_default();
            let is = match () {
                () if setting.check.is_secret() => String::new(),
                () if written.len() > 80 || written.contains('\n') => " has an invalid value".to_owned(),
                () => format!(" is {written}"),
            };
            Problem::new(ConfigErrorKind::Value, self.line(&value.span()), format!("{}{is}: {advice}", setting.name()))
        })
    }
}

/// Returns the value without its position in the file. An integer that is out of range becomes an infinite float, which
/// no setting accepts.
fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Float(f64::INFINITY),
        },
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(truth) => Value::Boolean(*truth),
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::Array(items) => Value::Array(items.iter().map(|item| plain(item.get_ref())).collect()),
        DeValue::Table(keys) => {
            Value::Table(keys.iter().map(|(key, value)| (key.get_ref().to_string(), plain(value.get_ref()))).collect())
        }
    }
}

/// Returns the first line of the parser's message.
fn syntax(message: &str) -> String {
    let message = message.lines().next().unwrap_or_default();
    match message {
        "" => "it cannot be read".to_owned(),
        message => message.to_owned(),
    }
}

fn is_key_of_a_section(name: &str) -> bool {
    SECTIONS.iter().any(|section| settings::find(section.name, name).is_some())
}

fn section_like(name: &str) -> String {
    match nearest(name, SECTIONS.iter().map(|section| section.name)).and_then(settings::section) {
        Some(section) => format!("; did you mean {}?", section.header),
        None => format!("; the sections are {}", SECTIONS.each_ref().map(|section| section.header).join(", ")),
    }
}

fn unknown_key(section: &str, key: &str) -> String {
    let place = match settings::section(section) {
        Some(section) => format!(" in {}", section.header),
        None => " above all sections".to_owned(),
    };
    let elsewhere = SECTIONS.iter().find(|other| settings::find(other.name, key).is_some());
    let advice = match (elsewhere, nearest(key, settings::keys(section))) {
        (Some(other), _) => format!("; it belongs in {}", other.header),
        (None, Some(meant)) => format!("; did you mean {meant:?}?"),
        (None, None) if settings::find("", key).is_some() => "; it belongs above all sections".to_owned(),
        (None, None) => format!("; the known keys are {}", settings::keys(section).collect::<Vec<_>>().join(", ")),
    };
    format!("unknown key {key:?}{place}{advice}")
}
