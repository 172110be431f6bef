//! The settings as data: section and key, documentation, environment variable, flag, and allowed values of each.
//!
//! The configuration file, the environment variables and the command-line flags are all read and checked by these lists.
//! The declarations in `config.rs`, `server.rs`, `log.rs` and `models.rs` make them. `declare.rs` explains a declaration.

use toml::{Table, Value};

use super::values::ValueKind;
use super::{Config, LogConfig, ModelConfig, ServerConfig};

/// One key of the configuration.
pub struct Setting {
    /// The section of the key, or "" for keys above all sections.
    pub section: &'static str,
    pub key: &'static str,
    /// The lines of the documentation, each with a space before it.
    pub documentation: &'static [&'static str],
    pub check: ValueKind,
    /// The environment variable that sets the key.
    pub variable: Option<&'static str>,
    pub flag: Option<Flag>,
    /// What applies if the setting is not given and has no default value.
    pub unset: Option<&'static str>,
    /// A value to show in the configuration file, as it is written in a variable.
    pub example: Option<&'static str>,
    /// Whether a change takes effect only after a restart of the server.
    pub restart: bool,
}

/// A flag of the command line that sets a key.
#[derive(Clone, Copy)]
pub struct Flag {
    /// The flag with its dashes.
    pub long: &'static str,
    pub short: Option<char>,
    /// The name of the value in the help.
    pub value: &'static str,
}

/// The keys of one section, or those above all sections.
pub struct Section {
    /// The name of the section, or "" for the keys above all sections.
    pub name: &'static str,
    /// How the section is written in the configuration file.
    pub header: &'static str,
    /// The lines of the documentation, each with a space before it.
    pub documentation: &'static [&'static str],
    pub settings: &'static [Setting],
    /// Returns the values of the keys that have a default value.
    pub defaults: fn() -> Table,
}

/// The keys above all sections.
pub static TOP: Section = Config::SECTION;

/// All sections, in the order of the documentation.
pub static SECTIONS: [Section; 3] = [ServerConfig::SECTION, LogConfig::SECTION, ModelConfig::SECTION];

/// Returns all settings, in the order of the documentation.
pub fn all() -> impl Iterator<Item = &'static Setting> {
    TOP.settings.iter().chain(SECTIONS.iter().flat_map(|section| section.settings))
}

/// Returns the settings that are not of one model.
pub fn of_server() -> impl Iterator<Item = &'static Setting> {
    all().filter(|setting| setting.section != ModelConfig::SECTION.name)
}

/// Returns the section with this name.
pub fn section(name: &str) -> Option<&'static Section> {
    SECTIONS.iter().find(|section| section.name == name)
}

/// Returns the setting `key` of `section`.
pub fn find(section: &str, key: &str) -> Option<&'static Setting> {
    all().find(|setting| setting.section == section && setting.key == key)
}

/// Returns the keys of `section`.
pub fn keys(section: &str) -> impl Iterator<Item = &'static str> {
    all().filter(move |setting| setting.section == section).map(|setting| setting.key)
}

/// Returns the names of the settings that differ between `old` and `new`, and that take effect only after a restart.
pub fn needing_restart(old: &Config, new: &Config) -> Vec<String> {
    let [old, new] = [old, new].map(|config| Table::try_from(config).unwrap_or_default());
    let value = |config: &Table, setting: &Setting| config.get(setting.section)?.get(setting.key).cloned();
    let changed = all().filter(|setting| setting.restart && value(&old, setting) != value(&new, setting));
    changed.map(Setting::name).collect()
}

impl Flag {
    /// A flag with this name, such as `--port`, and with this name of its value in the help.
    pub const fn new(long: &'static str, value: &'static str) -> Self {
        Self { long, short: None, value }
    }

    /// Returns the flag with a short form.
    #[must_use]
    pub const fn short(self, short: char) -> Self {
        Self { short: Some(short), ..self }
    }
}

impl Setting {
    /// Returns the key with its section, such as `server.port`.
    pub fn name(&self) -> String {
        if self.section.is_empty() { self.key.to_owned() } else { format!("{}.{}", self.section, self.key) }
    }

    /// Returns the first sentence of the documentation, without its period.
    pub fn summary(&self) -> String {
        let text = self.documentation.concat();
        let text = text.trim();
        text.split_once(". ").map_or_else(|| text.trim_end_matches('.'), |(first, _)| first).to_owned()
    }

    /// Returns the default value, if the setting has one.
    pub fn default_value(&self) -> Option<Value> {
        let section = section(self.section).unwrap_or(&TOP);
        (section.defaults)().remove(self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_that_need_a_restart_are_found_by_their_declarations() {
        let (old, mut new) = (Config::default(), Config::default());
        assert_eq!(needing_restart(&old, &new), [""; 0]);
        new.server.port += 1;
        new.server.max_inputs += 1;
        new.log.level = "debug".to_owned();
        new.models.clear();
        assert_eq!(needing_restart(&old, &new), ["server.port", "log.level"]);
    }

    #[test]
    fn a_summary_is_the_first_sentence() {
        let summary = |section, key| find(section, key).unwrap().summary();
        assert_eq!(summary("server", "metrics_need_key"), "Whether GET /metrics needs an API key, too");
        assert_eq!(summary("models", "aliases"), "Further names for the same model");
    }

    #[test]
    fn names_variables_and_flags_are_unique() {
        let mut seen = std::collections::BTreeSet::new();
        for setting in all() {
            let flag = setting.flag.map(|flag| flag.long.to_owned());
            for name in [Some(setting.name()), setting.variable.map(str::to_owned), flag].into_iter().flatten() {
                assert!(seen.insert(name.clone()), "{name} is declared twice");
            }
            let documented = setting.documentation.iter().all(|line| line.starts_with(' '));
            assert!(documented && setting.documentation.concat().ends_with('.'), "{}", setting.name());
        }
    }
}
