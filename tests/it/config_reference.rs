//! The documents that are generated from the declarations of the settings: `config/embedding-server.toml`, and the table
//! of settings in `docs/operations.md`. `UPDATE_GENERATED=1 cargo test --test it config_reference` rewrites them.

use std::fmt::Write;

use embedding_server::config::layers::{Flags, effective};
use embedding_server::config::settings::{self, SECTIONS, Section, Setting, TOP};
use embedding_server::config::values::ValueKind;
use embedding_server::config::{Config, ModelConfig};
use toml::Table;

const FILE: &str = "config/embedding-server.toml";
const PAGE: &str = "docs/operations.md";
const BEGIN: &str = "<!-- Generated from src/config by tests/it/config_reference.rs: begin -->\n";
const END: &str = "<!-- Generated from src/config by tests/it/config_reference.rs: end -->\n";

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

/// Returns the number with commas between its thousands.
fn grouped(number: &impl ToString) -> String {
    let text = number.to_string();
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), String::new()), |(w, f)| (w, format!(".{f}")));
    let groups: Vec<&str> =
        whole.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join(",") + &fraction
}

/// Returns which values a setting accepts.
fn values(setting: &Setting) -> String {
    use embedding_server::config::units::{ByteCount, Seconds};
    let time = |milliseconds| Seconds(std::time::Duration::from_millis(milliseconds));
    match &setting.check {
        ValueKind::Name => "a name".to_owned(),
        ValueKind::Path => "a path".to_owned(),
        ValueKind::Truth => "`true`, `false`".to_owned(),
        ValueKind::Whole { least, most } => format!("{} to {}", grouped(least), grouped(most)),
        ValueKind::Number { least, most } => format!("{} to {}", grouped(least), grouped(most)),
        ValueKind::Size { least, most } => format!("{} to {}", ByteCount(*least), ByteCount(*most)),
        ValueKind::Time { zero, least, most } => {
            format!("{}{} to {}", if *zero { "0s, or " } else { "" }, time(*least), time(*most))
        }
        ValueKind::Word(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        ValueKind::Form { values, .. } => (*values).to_owned(),
        ValueKind::List { example, .. } => format!("a list such as `[{example:?}]`"),
        ValueKind::Keys => "a list of [keys](#keys)".to_owned(),
    }
}

/// Returns a table with one row for each setting of the server.
fn server_table() -> String {
    let mut rows = "| setting | meaning | default | values | variable, flag |\n|---|---|---|---|---|\n".to_owned();
    for setting in settings::of_server() {
        let (name, restart) = (setting.name(), if setting.restart { " (restart)" } else { "" });
        let origins: Vec<String> = origins(setting).iter().map(|origin| format!("`{origin}`")).collect();
        let _ = writeln!(rows, "| `{name}`{restart} | {} | {} |", meaning(setting), origins.join(", "));
    }
    rows
}

/// Returns a table with one row for each setting of a model. These have no environment variables.
fn models_table() -> String {
    let mut rows = "| setting | meaning | default | values |\n|---|---|---|---|\n".to_owned();
    for setting in ModelConfig::SECTION.settings {
        let _ = writeln!(rows, "| `{}` | {} |", setting.key, meaning(setting));
    }
    rows
}

/// Returns the cells that both tables have.
fn meaning(setting: &Setting) -> String {
    let default = match (setting.unset, setting.default_value()) {
        (Some(unset), _) => unset.to_owned(),
        (None, Some(value)) => format!("`{value}`"),
        (None, None) => panic!("{} has neither a default value nor `unset`", setting.name()),
    };
    [setting.summary(), default, values(setting)].join(" | ")
}

fn page() -> String {
    let page = read(PAGE);
    let (before, rest) = page.split_once(BEGIN).expect(BEGIN);
    let (_, after) = rest.split_once(END).expect(END);
    let tables = [server_table(), models_table()].join("\nThe settings of a section `[[models]]`:\n\n");
    format!("{before}{BEGIN}\n{tables}\n{END}{after}")
}

#[cfg_attr(not(feature = "default-model"), ignore = "the file documents builds with the built-in model")]
#[test]
fn the_configuration_file_is_generated_from_the_declarations() {
    assert_generated(FILE, &file());
}

#[test]
fn the_table_of_settings_is_generated_from_the_declarations() {
    assert_generated(PAGE, &page());
}

#[test]
fn the_configuration_file_with_every_key_uncommented_is_accepted() {
    let (mut all, mut uncommented) = (String::new(), 0);
    for line in file().lines() {
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
