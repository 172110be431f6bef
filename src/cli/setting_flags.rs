//! The flags that set keys of the configuration. They follow from the declarations of the settings: their names, their
//! help, and the values that they accept.

use clap::builder::{PossibleValuesParser, TypedValueParser, ValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, value_parser};
use toml::{Table, Value};

use crate::config::ModelConfig;
use crate::config::settings::{self, Flag, Setting};
use crate::config::values::ValueKind;
use layer0::checkpoint::Overrides;

/// The flags of `serve` and `check` that set keys of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingFlags(Vec<(&'static str, String)>);

/// The flags of commands that open one checkpoint. They set keys of a model, and replace what the checkpoint says.
#[derive(Default)]
pub struct OverrideFlags(Overrides);

impl SettingFlags {
    /// Returns the flags that have a value.
    pub fn new(flags: impl IntoIterator<Item = (&'static str, Option<String>)>) -> Self {
        Self(flags.into_iter().filter_map(|(flag, value)| Some((flag, value?))).collect())
    }

    /// Returns the flags that were given, with their values.
    pub fn given(&self) -> Vec<(&'static str, String)> {
        self.0.clone()
    }
}

impl OverrideFlags {
    /// Returns what replaces the values of the checkpoint.
    pub fn overrides(&self) -> Overrides {
        self.0.clone()
    }
}

/// Returns the settings that have a flag.
fn with_flag(settings: impl Iterator<Item = &'static Setting>) -> impl Iterator<Item = (&'static Setting, Flag)> {
    settings.filter_map(|setting| Some((setting, setting.flag?)))
}

/// Returns the definition of a flag without the parser of its value.
fn argument(setting: &Setting, flag: Flag) -> Arg {
    let mut help = setting.summary().replace('`', "");
    let default = setting.default_value().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    if let Some(default) = default.as_deref().or(setting.unset) {
        help += &format!(" [default: {default}]");
    }
    if let Some(variable) = setting.variable {
        help += &format!(" [env: {variable}]");
    }
    let name = flag.long.trim_start_matches('-');
    let argument = Arg::new(name).long(name).value_name(flag.value).help(help);
    match flag.short {
        Some(short) => argument.short(short),
        None => argument,
    }
}

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        command.args(with_flag(settings::of_server()).map(|(setting, flag)| {
            let argument = argument(setting, flag);
            // The layers of the configuration check values of all other kinds.
            match setting.check {
                ValueKind::Word(words) => argument.value_parser(PossibleValuesParser::new(words)).ignore_case(true),
                ValueKind::Whole { least, most } => {
                    argument.value_parser(value_parser!(u64).range(least..=most).map(|number| number.to_string()))
                }
                _ => argument.value_parser(value_parser!(String)),
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let value = |flag: Flag| matches.get_one::<String>(flag.long.trim_start_matches('-')).cloned();
        Ok(Self::new(with_flag(settings::of_server()).map(|(_, flag)| (flag.long, value(flag)))))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for OverrideFlags {
    fn augment_args(command: Command) -> Command {
        command.args(with_flag(ModelConfig::SECTION.settings.iter()).map(|(setting, flag)| {
            let parse = |text: &str| setting.check.from_text(text);
            argument(setting, flag).value_parser(ValueParser::new(parse))
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OverrideFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut model = Table::new();
        for (setting, flag) in with_flag(ModelConfig::SECTION.settings.iter()) {
            if let Some(value) = matches.get_one::<Value>(flag.long.trim_start_matches('-')) {
                model.insert(setting.key.to_owned(), value.clone());
            }
        }
        let model: Result<ModelConfig, toml::de::Error> = model.try_into();
        let model = model.map_err(|error| clap::Error::raw(ErrorKind::ValueValidation, error))?;
        Ok(Self(model.overrides()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use layer0::norm::NormKind;

    fn parse<T: Args>(words: &[&str]) -> Result<T, String> {
        let command = T::augment_args(Command::new("test").no_binary_name(true));
        let matches = command.try_get_matches_from(words).map_err(|e| e.to_string())?;
        T::from_arg_matches(&matches).map_err(|e| e.to_string())
    }

    #[test]
    fn given_flags_are_returned_with_their_declared_names() {
        let flags = parse::<SettingFlags>(&["-p", "8080", "--log-format", "JSON", "--host="]).unwrap();
        let given = [("--host", ""), ("--port", "8080"), ("--log-format", "JSON")];
        assert_eq!(flags.given(), given.map(|(flag, value)| (flag, value.to_owned())));
        for (flag, remedy) in
            [("--port=70000", "0..=65535"), ("--port=many", "many"), ("--log-format=xml", "text, json")]
        {
            let error = parse::<SettingFlags>(&[flag]).unwrap_err();
            assert!(error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn the_help_of_a_flag_has_its_default_and_its_variable() {
        let help = SettingFlags::augment_args(Command::new("test")).render_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "-p, --port <PORT> The port to listen on",
            "[default: 5000] [env: EMBEDDING_SERVER_PORT]",
            "[default: 127.0.0.1] [env: EMBEDDING_SERVER_HOST]",
            "[default: text] [env: EMBEDDING_SERVER_LOG_FORMAT] [possible values: text, json]",
        ] {
            assert!(help.contains(part), "{part} is not in {help}");
        }
    }

    #[test]
    fn override_flags_set_the_override_of_the_same_name() {
        let words = ["--tokenizer=/t", "--config=/c", "--norm=layer", "--norm-eps=1e-5", "--embedding-scale=2"];
        let overrides = parse::<OverrideFlags>(&words).unwrap().overrides();
        assert_eq!(overrides.tokenizer.as_deref(), Some(Path::new("/t")));
        assert_eq!(overrides.config.as_deref(), Some(Path::new("/c")));
        assert_eq!((overrides.norm, overrides.norm_eps), (Some(NormKind::Layer), Some(1e-5)));
        assert_eq!((overrides.embedding_scale, overrides.embedding_tensor), (Some(2.0), None));
        let overrides = parse::<OverrideFlags>(&["--embedding-tensor", "a", "--norm-tensor", "b"]).unwrap().overrides();
        assert_eq!((overrides.embedding_tensor.as_deref(), overrides.norm_tensor.as_deref()), (Some("a"), Some("b")));
        let overrides = parse::<OverrideFlags>(&["--tokenizer", " a b "]).unwrap().overrides();
        assert_eq!(overrides.tokenizer.as_deref(), Some(Path::new(" a b ")));
    }

    /// A flag of a setting that does not override the checkpoint would be accepted and ignored.
    #[test]
    fn every_flag_of_a_model_overrides_the_checkpoint() {
        let none = format!("{:?}", Overrides::default());
        for (setting, flag) in with_flag(ModelConfig::SECTION.settings.iter()) {
            let flags = parse::<OverrideFlags>(&[flag.long, setting.example.unwrap()]).unwrap();
            assert_ne!(format!("{:?}", flags.overrides()), none, "{}", flag.long);
        }
    }
}
