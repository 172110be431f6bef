//! The document that is generated from the declarations of the settings: `config/embedding-server.toml`.
//! `UPDATE_GENERATED=1 cargo test --test it config_reference` rewrites it.

use std::fmt::Write;

use embedding_server::config::Config;
use embedding_server::config::layers::{Flags, effective};
use embedding_server::config::settings::{self, SECTIONS, Section, Setting, TOP};
use embedding_server::config::values::ValueKind;
use toml::Table;

const FILE: &str = "config/embedding-server.toml";

fn path(name: &str) -> String {
    format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap()
}

/// Asserts that the file has this content, or writes it if `UPDATE_GENERATED` is set.
fn assert_generated(name: &str, expected: &str) {
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        // Other tests may read the file at the same time, so it is replaced as a whole.
        let new = path(&format!("{name}.new"));
        std::fs::write(&new, expected).unwrap();
        return std::fs::rename(&new, path(name)).unwrap();
    }
    let found = read(name);
    let difference = expected.lines().zip(found.lines()).enumerate().find(|(_, (expected, found))| expected != found);
    if let Some((n, (expected, found))) = difference {
        panic!("{name}, line {}, is\n{found}\nand not\n{expected}\n{REMEDY}", n + 1);
    }
    assert_eq!(found.len(), expected.len(), "{name} has another number of lines. {REMEDY}");
}

const REMEDY: &str =
    "Change the declaration in src/config, and then run: UPDATE_GENERATED=1 cargo test --test it config_reference";

/// Returns the text of a section of the configuration file. `defaults` are the values that its keys have by default.
/// Other keys stand behind a comment sign, with the value of their example.
fn section(section: &Section, defaults: &Table) -> String {
    let mut text = comment(section.documentation);
    if section.header.is_empty() {
        text.push('\n');
    } else {
        let _ = writeln!(text, "{}", section.header);
    }
    for setting in section.settings {
        text += &comment(setting.documentation);
        let (sign, value) = match defaults.get(setting.key) {
            Some(value) => ("", value.to_string()),
            None => ("# ", example(setting)),
        };
        if let (None, Some(unset)) = (defaults.get(setting.key), setting.unset) {
            let _ = writeln!(text, "# Default: {unset}.");
        }
        if setting.restart {
            text += "# A change takes effect after a restart.\n";
        }
        let line = format!("{sign}{} = {value}", setting.key);
        let origins = origins(setting).join(", ");
        let list = match setting.check {
            ValueKind::List { .. } | ValueKind::Keys if setting.variable.is_some() => ", separated by commas",
            _ => "",
        };
        let line = if origins.is_empty() { line } else { format!("{line:<59}# {origins}{list}") };
        let _ = writeln!(text, "{line}");
    }
    text
}

/// Returns the example of a setting without a default value, as it is written in the configuration file.
fn example(setting: &Setting) -> String {
    let name = setting.name();
    let example = setting.example.unwrap_or_else(|| panic!("{name} has neither a default value nor an example"));
    let value = setting.check.from_text(example).unwrap_or_else(|advice| panic!("the example of {name}: {advice}"));
    if value.is_str() { value.to_string() } else { example.to_owned() }
}

fn comment(documentation: &[&str]) -> String {
    documentation.iter().map(|line| format!("#{line}\n")).collect()
}

/// Returns the environment variable and the flag of a setting.
fn origins(setting: &Setting) -> Vec<&'static str> {
    // The flags of models belong to commands that read no configuration file.
    let flag = setting.flag.filter(|_| setting.section != "models").map(|flag| flag.long);
    setting.variable.into_iter().chain(flag).collect()
}

fn file() -> String {
    let defaults = Table::try_from(Config::default()).unwrap();
    let mut sections = vec![section(&TOP, &defaults)];
    for of in &SECTIONS {
        let values = &defaults[of.name];
        let values = values.as_array().and_then(|models| models.first()).unwrap_or(values);
        sections.push(section(of, values.as_table().unwrap()));
    }
    sections.join("\n")
}

#[cfg(feature = "default-model")]
#[test]
fn the_configuration_file_is_generated_from_the_declarations() {
    assert_generated(FILE, &file());
}

#[test]
fn the_configuration_file_with_every_key_uncommented_is_accepted() {
    let (text, mut uncommented) = (read(FILE), 0);
    let mut all = String::new();
    for line in text.lines() {
        let key = line.strip_prefix("# ").and_then(|rest| rest.split_once(" = "));
        let is_key = key.is_some_and(|(key, _)| settings::all().any(|setting| setting.key == key));
        uncommented += usize::from(is_key);
        all += if is_key { &line[2..] } else { line };
        all.push('\n');
    }
    let optional = settings::all().filter(|setting| setting.example.is_some()).count();
    assert_eq!(uncommented, optional);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.toml");
    std::fs::write(&file, &all).unwrap();
    let flags = Flags { config: Some(file), ..Flags::default() };
    let merged = effective(&flags, std::iter::empty::<(String, String)>()).unwrap();
    // Every key has a value, and each comes from the file.
    let printed = merged.to_string();
    for setting in settings::all() {
        let key = match setting.section {
            "models" => format!("models.{}.{}", merged.config.models[0].id, setting.key),
            _ => setting.name(),
        };
        let line = printed.lines().find(|line| line.starts_with(&format!("{key} = "))).expect(&key);
        assert!(line.contains("# file "), "{line}");
    }
}

/// A word that the declaration does not list would be refused, although the type has it.
#[test]
fn the_words_of_a_setting_are_the_variants_of_its_type() {
    let mut checked = 0;
    for setting in settings::all() {
        let ValueKind::Word(words) = setting.check else { continue };
        let header = settings::section(setting.section).unwrap().header;
        let text = format!("{header}\n{} = \"not a word\"", setting.key);
        let error = toml::from_str::<Config>(&text).unwrap_err().to_string();
        let (_, expected) = error.split_once("expected ").expect(&error);
        let variants: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        assert_eq!(words, variants, "{}", setting.name());
        checked += 1;
    }
    assert_eq!(checked, 5);
}
