//! Configuration: the documented file, the layers and their origins, and mistakes with their remedies.

use std::io::Write;
use std::path::{Path, PathBuf};

use embedding_server::config::error::ConfigErrorKind;
use embedding_server::config::layers::{EffectiveConfig, Flags, effective};
use embedding_server::config::settings::{self, Setting};
use embedding_server::config::values::ValueKind;
use embedding_server::config::{Config, LogFormat};
use embedding_server::keys::ApiKeys;

fn shipped() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/embedding-server.toml")).unwrap()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn merge(text: &str, environment: &[(&str, &str)], flags: Flags) -> Result<EffectiveConfig, String> {
    let file = file(text);
    let flags = Flags { config: Some(file.path().to_owned()), ..flags };
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    effective(&flags, environment).map_err(|e| e.to_string())
}

#[cfg_attr(not(feature = "default-model"), ignore = "the file documents builds with the built-in model")]
#[test]
fn the_documented_file_has_the_defaults() {
    let text = shipped();
    assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
    assert_eq!(merge(&text, &[], Flags::default()).unwrap().config, Config::default());
}

#[test]
fn later_layers_override_earlier_ones_and_each_value_has_its_origin() {
    let text = "[server]\nport = 1\nhost = \"127.0.0.2\"\nmax_inputs = 3\n[[models]]\nid = \"a\"\npath = \"/a\"\nnormalize = false";
    let environment = [("EMBEDDING_SERVER_PORT", "2"), ("EMBEDDING_SERVER_HOST", "127.0.0.3"), ("OTHER", "x")];
    let flags = Flags {
        settings: vec![("--port", "3".to_owned())],
        models: vec!["a=/b".to_owned(), "/c".to_owned()],
        ..Flags::default()
    };
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

/// Returns a value of the setting, as it is written in a variable, that differs from the default.
fn other_value(setting: &Setting) -> String {
    let default = setting.default_value();
    match setting.check {
        ValueKind::Truth => (default != Some(true.into())).to_string(),
        ValueKind::Whole { most, .. } => most.to_string(),
        ValueKind::Number { most, .. } => most.to_string(),
        ValueKind::Size { most, .. } => most.to_string(),
        ValueKind::Time { most, .. } => format!("{most}ms"),
        ValueKind::Word(words) => words.iter().find(|word| default != Some((**word).into())).unwrap().to_string(),
        ValueKind::Path => "/a/path".to_owned(),
        ValueKind::Keys => "sk-one".to_owned(),
        ValueKind::List { example, .. } => example.to_owned(),
        ValueKind::Name => setting.example.unwrap().to_owned(),
        ValueKind::Form { .. } => match setting.name().as_str() {
            "server.host" => "::1".to_owned(),
            "server.device" => "auto".to_owned(),
            "server.path_prefix" => "/models/a".to_owned(),
            "server.tokenizer_cache" => "off".to_owned(),
            "log.level" => "debug".to_owned(),
            name => panic!("write a value of {name} here"),
        },
    }
}

#[test]
fn the_variable_of_each_setting_sets_its_value() {
    let of_server = || settings::of_server().filter_map(|setting| Some((setting, setting.variable?)));
    let variables = of_server().map(|(setting, variable)| (variable.to_owned(), other_value(setting)));
    // The default model is one of the models.
    let model = format!("{}=/a", settings::find("", "default_model").unwrap().example.unwrap());
    let variables = variables.chain([("EMBEDDING_SERVER_MODELS".to_owned(), model)]);
    let merged = effective(&Flags::default(), variables).unwrap();
    let printed = merged.to_string();
    for (setting, variable) in of_server() {
        let key = setting.name();
        let line = printed.lines().find(|line| line.starts_with(&format!("{key} = "))).expect(&key);
        assert!(line.ends_with(&format!("# environment {variable}")), "{line}");
        let default = setting.default_value().map(|default| format!("{key} = {default} "));
        assert!(default.is_none_or(|default| !line.starts_with(&default)), "{line}");
    }
}

#[test]
fn environment_variables_are_read_into_the_fields_of_the_same_names() {
    let values = [
        ("DEFAULT_MODEL", "b"),
        ("HOST", "::1"),
        ("PORT", "7"),
        ("THREADS", "3"),
        ("DEVICE", "auto"),
        ("TOKENIZER_CACHE", "/cache"),
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
        ("ALLOWED_HOSTS", "a.example, B.example"),
        ("PATH_PREFIX", "/models/a"),
        ("METRICS", "false"),
        ("METRICS_NEED_KEY", "true"),
        ("DOCS", "false"),
        ("PLAYGROUND", "false"),
        ("LOG_LEVEL", "debug"),
        ("LOG_FORMAT", "json"),
        ("LOG_ACCESS", "false"),
        ("MODELS", "a=/a,b=/b"),
    ];
    let environment = values.iter().map(|(name, value)| (format!("EMBEDDING_SERVER_{name}"), (*value).to_owned()));
    let merged = effective(&Flags::default(), environment).unwrap();
    // With API keys, requests may name any host.
    assert!(matches!(merged.warnings.as_slice(), [one] if one.contains("allowed_hosts")), "{:?}", merged.warnings);
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
    assert_eq!(server.allowed_hosts, ["a.example", "b.example"]);
    assert_eq!((server.path_prefix.as_str(), log.access), ("/models/a", false));
    assert_eq!((log.level.as_str(), format!("{:?}", log.format).as_str()), ("debug", "Json"));
    assert_eq!(server.tokenizer_cache.directory(), Some("/cache".into()));
    assert_eq!(models.iter().map(|m| m.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

/// A service named embedding-server causes Kubernetes to set these variables in every pod of its namespace.
#[test]
fn variables_that_kubernetes_sets_are_ignored() {
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
fn mistakes_in_the_file_are_reported_with_line_and_remedy() {
    let model = "[[models]]\nid = \"a\"\npath = \"/a\"\n";
    let cases: &[(&str, &[&str])] = &[
        ("[server]\nprot = 1", &["line 2", "prot", "[server]", "did you mean \"port\"?"]),
        ("[sever]\nport = 1", &["line 1", "unknown section [sever]", "did you mean [server]?"]),
        ("[metrics]\na = 1", &["line 1", "\"metrics\"", "belongs in [server]"]),
        ("[tuning]\na = 1", &["line 1", "unknown section [tuning]", "[[models]]"]),
        ("port = 1", &["line 1", "\"port\"", "belongs in [server]"]),
        ("[server]\ndefault_model = \"a\"", &["line 2", "above all sections"]),
        ("[server]\nlevel = \"info\"", &["line 2", "belongs in [log]"]),
        ("[models]\nid = \"a\"", &["line 1", "[[models]]"]),
        ("[[server]]\nport = 1", &["line 1", "write [server]"]),
        ("server = 1", &["line 1", "server is a section"]),
        ("[[models]]\nid = \"a\"\npth = \"b\"", &["line 3", "pth", "did you mean \"path\"?"]),
        ("[[models]]\npath = \"b\"", &["line 1", "has no id"]),
        ("\n[[models]]\nid = \"b\"", &["line 2", "has no path"]),
        ("[server]\nport = 99999", &["line 2", "server.port is 99999", "from 0 to 65535"]),
        ("[server]\nport = 99999999999999999999", &["line 2", "server.port is 9999", "from 0 to 65535"]),
        ("[server]\nport = \"abc\"", &["line 2", "server.port is \"abc\"", "a whole number from 0 to 65535"]),
        ("[server]\nport = \"5000\"", &["line 2", "write 5000 without quotation marks"]),
        ("[server]\nmetrics = \"yes\"", &["line 2", "server.metrics", "without quotation marks"]),
        ("[server]\nmetrics = 1", &["line 2", "server.metrics is 1", "true or false"]),
        ("[server]\nthreads = 100000", &["line 2", "server.threads", "from 0 to 1024"]),
        ("[server]\nmax_inputs = 0", &["line 2", "server.max_inputs", "from 1 to"]),
        ("[server]\nmax_body = \"big\"", &["line 2", "32 MiB"]),
        ("[server]\nmax_body = \"99999999999 GiB\"", &["line 2", "server.max_body", "to 4.0 GiB"]),
        ("[server]\ndrain_timeout = 30", &["line 2", "server.drain_timeout is 30", "\"30s\""]),
        ("[server]\nrequest_timeout = \"1e300s\"", &["line 2", "from 1ms to 1day"]),
        ("[server]\nreload_interval = \"1ns\"", &["line 2", "\"0s\", or"]),
        ("[server", &["line 1", "not valid TOML"]),
        ("[server]\nport = ", &["line 2", "not valid TOML"]),
        ("[server]\nport = 1\nport = 2", &["line 3", "duplicate key"]),
        ("[[models]]\nid = \"a\"\npath = \"b\"\ndevice = \"gpu\"", &["line 4", "gpu", "cuda"]),
        ("[server]\ndevice = \"cuda:one\"", &["line 2", "device number"]),
        ("[server]\ndevice = \"cuda:99999\"", &["line 2", "up to 255"]),
        ("[[models]]\nid = \"a\"\npath = \"b\"\ntoken_input = \"ids\"", &["line 4", "cl100k_base", "reject"]),
        ("[[models]]\nid = \"a\"\npath = \"b\"\nnorm = \"l2\"", &["line 4", "models.norm", "rms_plus_one"]),
        ("[[models]]\nid = \"a\"\npath = \"b\"\nnorm_eps = \"1e-5\"", &["line 4", "without quotation marks"]),
        ("[[models]]\nid = \"a\"\npath = \"b\"\nembedding_scale = 0", &["line 4", "from 0.000001"]),
        ("[[models]]\nid = \"a\"\npath = \"b\"\ndimensions = 0", &["line 4", "from 1 to 65536"]),
        ("[[models]]\nid = \"\"\npath = \"b\"", &["line 2", "not empty"]),
        ("[[models]]\nid = \"a\"\npath = \"\"", &["line 3", "write a path"]),
        ("[[models]]\nid = \"a\"\npath = \"b\"\naliases = [\"c\", \"\"]", &["line 4", "entry 2"]),
        ("[server]\ntls_cert = \"\"", &["line 2", "write a path"]),
        ("[server]\nhost = \"0.0.0.0:80\"", &["line 2", "server.host", "80 as the setting server.port"]),
        ("[server]\ncors_origins = [\"page.example\"]", &["line 2", "page.example", "https://"]),
        ("[server]\ncors_origins = [\"\"]", &["line 2", "entry 1"]),
        ("[server]\ncors_origins = \"*\"", &["line 2", "write a list"]),
        ("[server]\napi_keys = \"sk-secret\"", &["line 2", "a list of API keys"]),
        ("[server]\napi_keys = [\"sk-secret\", 1]", &["line 2", "a list of API keys"]),
        ("[server]\napi_keys = [\"sk-secret", &["line 2"]),
        ("[server]\ntls_cert = \"/c\"", &["tls_key", "together"]),
        ("[log]\nlevel = \"warnig\"", &["line 2", "did you mean warn?"]),
        ("[log]\nlevel = \"verbose\"", &["line 2", "did you mean debug?"]),
        ("[log]\nformat = \"xml\"", &["line 2", "text or json"]),
        ("models = []", &["--model NAME=PATH"]),
        (
            "[[models]]\nid = \"a\"\npath = \"b\"\n[[models]]\nid = \"c\"\npath = \"b\"\naliases = [\"a\"]",
            &["line 4", "\"a\"", "twice", "line 1"],
        ),
        (&format!("default_model = \"z\"\n{model}"), &["\"z\"", "the models are a"]),
    ];
    for (text, parts) in cases {
        let error = merge(text, &[], Flags::default()).expect_err(text);
        for part in *parts {
            assert!(error.contains(part), "{text}\nsays: {error}\nbut not: {part}");
        }
        assert!(!error.contains("sk-secret") && !error.contains('\n'), "{error}");
        for word in ["u16", "u64", "i64", "usize", "expected ident", "invalid type", "invalid value"] {
            assert!(!error.contains(word), "{error}");
        }
    }
    let merged = merge("", &[("EMBEDDING_SERVER_PROT", "1")], Flags::default()).unwrap();
    assert!(merged.warnings[0].contains("did you mean EMBEDDING_SERVER_PORT?"), "{:?}", merged.warnings);
}

#[test]
fn mistakes_in_variables_and_flags_are_reported_with_their_remedy() {
    for (name, value, part) in [
        ("PORT", "many", "server.port is \"many\": write a whole number from 0 to 65535"),
        ("PORT", "70000", "from 0 to 65535"),
        ("THREADS", "-1", "from 0 to 1024"),
        ("DEVICE", "gpu", "cuda:N"),
        ("METRICS", "maybe", "true or false"),
        ("LOG_FORMAT", "xml", "text or json"),
        ("LOG_LEVEL", "warnn", "did you mean warn?"),
        ("REQUEST_TIMEOUT", "30", "30s"),
        ("MAX_BODY", "1 PiB", "to 4.0 GiB"),
        ("HOST", "http://a.example", "such as a.example"),
        ("CORS_ORIGINS", "https://a.example/", "write https://a.example"),
        ("CORS_ORIGINS", " , ", "or none"),
        ("API_KEYS", " , ,", "no API key"),
        ("MODELS", ",", "NAME=PATH"),
        ("MODELS", "a=", "NAME=PATH"),
        ("MODELS", "=/a", "NAME=PATH"),
        ("MODELS", "a=/a,a=/b", "give each a name"),
        ("MODELS", "/a,/b", "give each a name"),
    ] {
        let name = format!("EMBEDDING_SERVER_{name}");
        let error = merge("", &[(&name, value)], Flags::default()).expect_err(value);
        assert!(error.contains(&name) && error.contains(part) && !error.contains('\n'), "{error}");
    }
    let flag = |flag, value: &str| Flags { settings: vec![(flag, value.to_owned())], ..Flags::default() };
    for (flags, parts) in [
        (flag("--host", "a b"), ["--host", "server.host is \"a b\""]),
        (flag("--host", ""), ["--host", "empty"]),
        (flag("--device", "gpu"), ["--device", "cuda:N"]),
        (
            Flags { models: vec!["./a".to_owned(), "./b".to_owned()], ..Flags::default() },
            ["--model", "give each a name: --model NAME=PATH"],
        ),
        (Flags { models: vec!["m=./a".to_owned(), "m=./b".to_owned()], ..Flags::default() }, ["--model", "\"m\""]),
        (Flags { models: vec![String::new()], ..Flags::default() }, ["--model", "NAME=PATH"]),
    ] {
        let error = merge("", &[], flags).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn every_variable_is_trimmed_and_an_empty_one_counts_as_unset() {
    let text = "[server]\nport = 1\nhost = \"127.0.0.2\"\napi_keys = [\"sk-file\"]\ncors_origins = []\n[log]\nformat = \"json\"";
    let file = file(text);
    let path = file.path().to_str().unwrap().to_owned();
    let merge = |variables: &[(&str, &str)]| {
        let variables = variables.iter().map(|(name, value)| (format!("EMBEDDING_SERVER_{name}"), (*value).to_owned()));
        let variables = variables.chain([("EMBEDDING_SERVER_CONFIG".to_owned(), format!(" \"{path}\" "))]);
        effective(&Flags::default(), variables).map_err(|e| e.to_string()).unwrap()
    };
    for empty in ["", " ", "\"\""] {
        let names = ["PORT", "HOST", "API_KEYS", "CORS_ORIGINS", "LOG_FORMAT", "MODELS", "METRICS", "API_KEY_FILE"];
        let merged = merge(&names.map(|name| (name, empty)));
        let Config { server, log, .. } = &merged.config;
        assert_eq!((server.port, server.host.to_string().as_str()), (1, "127.0.0.2"));
        assert_eq!((&server.api_keys, server.cors_origins.len()), (&ApiKeys::new(["sk-file"]), 0));
        assert_eq!((log.format, server.metrics, &server.api_key_file), (LogFormat::Json, true, &None));
        assert_eq!(merged.file.as_deref(), Some(file.path()));
        assert!(merged.warnings.iter().any(|w| w.contains("CORS_ORIGINS") && w.contains("none")));
    }
    let merged = merge(&[
        ("PORT", " \"8080\" "),
        ("API_KEYS", "'sk-one, sk-two'"),
        ("CORS_ORIGINS", "none"),
        ("LOG_FORMAT", "TEXT"),
        ("LOG_LEVEL", "WARNING"),
        ("METRICS", "Off"),
        ("DEVICE", "CPU"),
        ("MODELS", "\"a=/a\", 'b=/b'"),
    ]);
    let Config { server, log, models, .. } = &merged.config;
    assert_eq!((server.port, &server.api_keys), (8080, &ApiKeys::new(["sk-one", "sk-two"])));
    assert_eq!((server.cors_origins.len(), log.format, log.level.as_str()), (0, LogFormat::Text, "warn"));
    assert_eq!((server.metrics, models.len(), models[1].path.to_str()), (false, 2, Some("/b")));
}

#[test]
fn a_single_model_without_a_name_has_all_names_of_openais_models() {
    let names = |flags: &[&str], text: &str| {
        let flags = Flags { models: flags.iter().map(|f| (*f).to_owned()).collect(), ..Flags::default() };
        let models = merge(text, &[], flags).unwrap().config.models;
        models.into_iter().flat_map(|m| [vec![m.id], m.aliases].concat()).collect::<Vec<_>>()
    };
    let all = ["text-embedding-3-small", "text-embedding-ada-002", "text-embedding-3-large"];
    assert_eq!(names(&["./a"], ""), all);
    assert_eq!(names(&["m=./a"], ""), ["m"]);
    assert_eq!(names(&["text-embedding-3-small=./a"], ""), all[..1]);
    assert_eq!(names(&["./a", "text-embedding-ada-002=./b"], ""), all[..2]);
    let file = "[[models]]\nid = \"text-embedding-3-small\"\npath = \"/a\"";
    assert_eq!(names(&["./a"], file), all[..1]);
    assert_eq!(names(&["/data/run=3/model"], ""), all);
}

#[test]
fn other_encodings_are_reported_and_a_byte_order_mark_is_skipped() {
    let read = |bytes: &[u8]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let flags = Flags { config: Some(file.path().to_owned()), ..Flags::default() };
        effective(&flags, std::iter::empty::<(String, String)>()).map_err(|e| e.to_string())
    };
    assert_eq!(read(b"\xef\xbb\xbf[server]\nport = 7").unwrap().config.server.port, 7);
    assert!(read(b"\xff\xfe[\0s\0").unwrap_err().contains("UTF-16"));
    assert!(read(b"[server]\n# \xff").unwrap_err().contains("line 2 is not UTF-8"));
    let flags = Flags { config: Some("/nowhere.toml".into()), ..Flags::default() };
    let error = effective(&flags, std::iter::empty::<(String, String)>()).unwrap_err().to_string();
    assert_eq!(error, "/nowhere.toml: the file does not exist");
}

#[test]
fn a_mistake_has_the_kind_of_its_cause() {
    use ConfigErrorKind::{Conflict, File, Syntax, Unknown, Value};
    let model = "[[models]]\nid = \"a\"\npath = \"/a\"\n";
    for (text, name, kind) in [
        ("[server", "PORT", Syntax),
        ("[models]\nid = \"a\"", "PORT", Syntax),
        ("[server]\nprot = 1", "PORT", Unknown),
        ("[sever]\nport = 1", "PORT", Unknown),
        ("", "API_KEY", Unknown),
        ("[server]\nport = 99999", "HOST", Value),
        ("", "PORT", Value),
        ("[[models]]\npath = \"b\"", "HOST", Value),
        ("[server]\ntls_cert = \"/c\"", "HOST", Conflict),
        (&model.repeat(2), "HOST", Conflict),
        (&format!("default_model = \"z\"\n{model}"), "HOST", Conflict),
    ] {
        let file = file(text);
        let flags = Flags { config: Some(file.path().to_owned()), ..Flags::default() };
        let environment = [(format!("EMBEDDING_SERVER_{name}"), "127.0.0.1".to_owned())];
        assert_eq!(effective(&flags, environment.into_iter()).unwrap_err().kind(), kind, "{text:?} {name}");
    }
    let flags = Flags { config: Some("/nowhere.toml".into()), ..Flags::default() };
    assert_eq!(effective(&flags, std::iter::empty::<(String, String)>()).unwrap_err().kind(), File);
}
