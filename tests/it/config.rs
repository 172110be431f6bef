//! Configuration: the shipped file, layers and their origins, mistakes and their remedies.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use embedding_server::config::Config;
use embedding_server::config::layers::{Effective, Flags, effective};
use embedding_server::keys::ApiKeys;

fn shipped() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/embedding-server.toml")).unwrap()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn merge(text: &str, environment: &[(&str, &str)], flags: Flags) -> Result<Effective, String> {
    let file = file(text);
    let flags = Flags { config: Some(file.path().to_owned()), ..flags };
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    effective(&flags, environment).map_err(|e| e.to_string())
}

#[test]
fn the_shipped_file_is_the_defaults_and_has_every_key() {
    let text = shipped();
    if cfg!(feature = "default-model") {
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
    }
    // Uncommented, each optional key must be one that the types take.
    let all: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest)
                if rest
                    .split_once(" = ")
                    .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_')) =>
            {
                rest
            }
            _ => line,
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let config: Config = toml::from_str(&all).unwrap();
    let keys: BTreeSet<String> = toml::Table::try_from(&config.models[0]).unwrap().keys().cloned().collect();
    // serde itself lists the fields when it meets another.
    let error =
        toml::from_str::<Config>("[[models]]\nid = \"a\"\npath = \"b\"\nnot_a_key = 1").unwrap_err().to_string();
    let fields: BTreeSet<String> = error.split('`').skip(3).step_by(2).map(str::to_owned).collect();
    assert_eq!(keys, fields, "{error}");
    assert!(config.default_model.is_some());
}

#[test]
fn file_environment_and_flags_override_in_this_order_and_are_named() {
    let text = "[server]\nport = 1\nhost = \"127.0.0.2\"\nmax_inputs = 3\n[[models]]\nid = \"a\"\npath = \"/a\"\nnormalize = false";
    let environment = [("EMBEDDING_SERVER_PORT", "2"), ("EMBEDDING_SERVER_HOST", "127.0.0.3"), ("OTHER", "x")];
    let flags = Flags { port: Some(3), models: vec!["a=/b".to_owned(), "/c".to_owned()], ..Flags::default() };
    let merged = merge(text, &environment, flags).unwrap();
    assert_eq!(merged.config.server.port, 3);
    assert_eq!(merged.config.server.host.to_string(), "127.0.0.3");
    assert_eq!(merged.config.server.max_inputs, 3);
    assert_eq!(merged.config.models.len(), 2);
    assert_eq!(merged.config.models[0].path, PathBuf::from("/b"));
    assert_eq!(
        merged.config.models[0].normalize,
        Some(false),
        "the flag moves the model, and leaves the rest as the file has it"
    );
    assert_eq!(merged.config.models[1].id, "text-embedding-3-small");
    let printed = merged.to_string();
    let origin =
        |key: &str| printed.lines().find(|l| l.starts_with(key)).unwrap().split("# ").last().unwrap().to_owned();
    assert_eq!(origin("server.port"), "flag --port");
    assert_eq!(origin("server.host"), "environment EMBEDDING_SERVER_HOST");
    assert!(origin("server.max_inputs").starts_with("file /"));
    assert_eq!(origin("server.drain_timeout"), "default");
    assert_eq!(origin("models.a.path"), "flag --model");
    assert!(origin("models.a.normalize").starts_with("file /"));
}

#[test]
fn every_environment_variable_that_the_file_names_is_taken() {
    let values = [
        ("DEFAULT_MODEL", "b"),
        ("HOST", "::1"),
        ("PORT", "7"),
        ("THREADS", "3"),
        ("DEVICE", "auto"),
        ("MAX_BODY", "1 MiB"),
        ("MAX_INPUTS", "5"),
        ("MAX_IN_FLIGHT", "2 MiB"),
        ("MAX_CONNECTIONS", "9"),
        ("HEADER_TIMEOUT", "2s"),
        ("REQUEST_TIMEOUT", "3s"),
        ("DRAIN_DELAY", "5s"),
        ("DRAIN_TIMEOUT", "1s"),
        ("RELOAD_INTERVAL", "4s"),
        ("API_KEYS", "sk-one, sk-two a b"),
        ("API_KEY_FILE", "/keys"),
        ("TLS_CERT", "/cert"),
        ("TLS_KEY", "/key"),
        ("CORS_ORIGINS", "https://a.example, https://b.example"),
        ("METRICS", "false"),
        ("METRICS_NEED_KEY", "true"),
        ("DOCS", "false"),
        ("PLAYGROUND", "false"),
        ("LOG_LEVEL", "debug"),
        ("LOG_FORMAT", "json"),
        ("MODELS", "a=/a,b=/b"),
    ];
    let text = shipped();
    let named: BTreeSet<&str> = text
        .split(|c: char| !c.is_ascii_uppercase() && c != '_')
        .filter_map(|word| word.strip_prefix("EMBEDDING_SERVER_"))
        .collect();
    assert_eq!(named, values.iter().map(|(name, _)| *name).collect());
    let environment = values.iter().map(|(name, value)| (format!("EMBEDDING_SERVER_{name}"), (*value).to_owned()));
    let merged = effective(&Flags::default(), environment).unwrap();
    assert!(merged.warnings.is_empty(), "{:?}", merged.warnings);
    let Config { server, log, models, .. } = &merged.config;
    assert!(!server.metrics && !server.docs && !server.playground);
    assert_eq!((server.max_in_flight.0, server.max_connections, server.metrics_need_key), (2 << 20, 9, true));
    let times = [&server.header_timeout, &server.request_timeout, &server.reload_interval, &server.drain_delay];
    assert_eq!(times.map(|time| time.0.as_secs()), [2, 3, 4, 5]);
    assert_eq!(server.api_keys, ApiKeys::new(["sk-one", "sk-two a b"]));
    let files = [&server.api_key_file, &server.tls_cert, &server.tls_key];
    assert_eq!(files.map(|file| file.as_deref().and_then(Path::to_str)), [Some("/keys"), Some("/cert"), Some("/key")]);
    assert!(!merged.to_string().contains("sk-"), "a key is printed");
    assert_eq!(merged.config.default_model(), "b");
    assert_eq!((server.host.to_string().as_str(), server.port, server.threads), ("::1", 7, 3));
    assert_eq!((server.max_body.0, server.max_inputs, server.drain_timeout.0.as_secs()), (1 << 20, 5, 1));
    assert_eq!(server.cors_origins, ["https://a.example", "https://b.example"]);
    assert_eq!((log.level.as_str(), format!("{:?}", log.format).as_str()), ("debug", "Json"));
    assert_eq!(models.iter().map(|m| m.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

/// A service named embedding-server puts these into every pod of its namespace.
#[test]
fn what_kubernetes_sets_is_not_taken_for_configuration() {
    let environment = [
        ("EMBEDDING_SERVER_PORT", "tcp://10.0.0.7:5000"),
        ("EMBEDDING_SERVER_PORT_5000_TCP_ADDR", "10.0.0.7"),
        ("EMBEDDING_SERVER_SERVICE_HOST", "10.0.0.7"),
        ("EMBEDDING_SERVER_SERVICE_PORT", "5000"),
    ];
    let merged = merge("", &environment, Flags::default()).unwrap();
    assert_eq!(merged.config.server.port, 5000);
    assert!(merged.warnings.is_empty());
}

#[test]
fn mistakes_are_named_with_their_place_and_their_remedy() {
    let model = "[[models]]\nid = \"a\"\npath = \"/a\"\n";
    let cases: [(&str, &[&str]); 18] = [
        ("[server]\nprot = 1", &["prot", "[server]", "did you mean \"port\""]),
        ("[sever]\nport = 1", &["sever", "did you mean \"server\""]),
        ("[[models]]\nid = \"a\"\npth = \"b\"", &["pth", "did you mean \"path\""]),
        ("[server]\nport = 99999", &["line 2", "99999"]),
        ("[server]\nmax_body = \"big\"", &["32 MiB"]),
        ("[server]\ndrain_timeout = 30", &["line 2"]),
        ("[server", &["line 1"]),
        ("[[models]]\nid = \"a\"\npath = \"b\"\ndevice = \"gpu\"", &["gpu", "cuda"]),
        ("[server]\ndevice = \"cuda:one\"", &["line 2", "no device number"]),
        ("[[models]]\nid = \"a\"\npath = \"b\"\ntoken_input = \"ids\"", &["cl100k_base", "reject"]),
        ("[server]\ncors_origins = [\"page.example\"]", &["page.example", "https://"]),
        ("[server]\napi_keys = \"sk-secret\"", &["line 2", "a list of API keys"]),
        ("[server]\napi_keys = [\"sk-secret\", 1]", &["line 2", "a list of API keys"]),
        ("[server]\napi_keys = [\"sk-secret", &["line 2"]),
        ("[server]\ntls_cert = \"/c\"", &["tls_key", "together"]),
        ("models = []", &["--model NAME=PATH"]),
        (
            "[[models]]\nid = \"a\"\npath = \"b\"\n[[models]]\nid = \"c\"\npath = \"b\"\naliases = [\"a\"]",
            &["\"a\"", "twice"],
        ),
        (&format!("default_model = \"z\"\n{model}"), &["\"z\"", "there is a"]),
    ];
    for (text, parts) in cases {
        let error = merge(text, &[], Flags::default()).expect_err(text);
        for part in parts {
            assert!(error.contains(part), "{text}\nsays: {error}\nbut not: {part}");
        }
        assert!(!error.contains("sk-secret"), "{error}");
    }
    let error = merge("", &[("EMBEDDING_SERVER_PORT", "many")], Flags::default()).unwrap_err();
    assert!(error.contains("EMBEDDING_SERVER_PORT"), "{error}");
    let error = merge("", &[("EMBEDDING_SERVER_DEVICE", "gpu")], Flags::default()).unwrap_err();
    assert!(error.contains("EMBEDDING_SERVER_DEVICE") && error.contains("\"cuda:N\""), "{error}");
    let merged = merge("", &[("EMBEDDING_SERVER_PROT", "1")], Flags::default()).unwrap();
    assert!(merged.warnings[0].contains("did you mean \"PORT\""), "{:?}", merged.warnings);
}
