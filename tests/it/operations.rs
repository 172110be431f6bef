//! Compares the tables of docs/operations.md with the program.

use std::collections::BTreeSet;

use embedding_server::keys::ApiKeys;

use crate::common::{TestApp, agent};

fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Returns the words in `text` that begin with one of `prefixes` and consist of letters, digits and
/// underscores.
fn words<'a>(text: &'a str, prefixes: &[&str]) -> BTreeSet<&'a str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix) && word.len() > prefix.len()))
        .collect()
}

/// Returns the text between this heading and the next one of the same level.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let start = text.find(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    let rest = &text[start + 4..];
    &rest[..rest.find("\n## ").unwrap_or(rest.len())]
}

#[test]
fn every_environment_variable_has_its_row() {
    let (page, file) = (read("docs/operations.md"), read("config/embedding-server.toml"));
    let prefixes = ["EMBEDDING_SERVER_"];
    let mut variables = words(&file, &prefixes);
    variables.insert("EMBEDDING_SERVER_CONFIG");
    let documented = [section(&page, "Settings"), section(&page, "Environment variables")].concat();
    assert_eq!(words(&documented, &prefixes), variables);
}

#[test]
fn every_metric_has_its_row() {
    let page = read("docs/operations.md");
    // Without keys, /metrics has no line about keys.
    let app = TestApp::start(|c| c.server.api_keys = ApiKeys::new(["sk-one"]));
    // Before the first error, /metrics has no line about errors.
    assert_eq!(app.get("/nowhere").status, 404);
    let answer = agent().get(app.url("/metrics")).call().unwrap().body_mut().read_to_string().unwrap();
    // The TYPE lines of OpenMetrics leave out the suffixes of counters and of the info metric.
    let bare = |name: &str| name.trim_end_matches("_total").trim_end_matches("_info").to_owned();
    let served: BTreeSet<String> =
        answer.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(bare)).collect();
    let prefixes = ["embedding_server_", "process_"];
    let told: BTreeSet<String> = words(section(&page, "Metrics"), &prefixes).into_iter().map(bare).collect();
    assert_eq!(told, served);
}
