//! API keys: which requests they allow, for which models, and that no key is ever shown.

use std::io::Write;
use std::sync::Arc;

use embedding_server::config::{Config, ModelConfig};
use embedding_server::keys::ApiKeys;
use embedding_server::server::ServerState;
use serde_json::{Value, json};

use crate::common::{Answer, TestApp, agent, checkpoint};
use crate::process::{Server, command};

const ALL: &str = "sk-all-0123456789abcdef";
const SOME: &str = "sk-some-0123456789abcdef";

fn app(change: impl FnOnce(&mut Config)) -> TestApp {
    TestApp::start(|c| {
        let aliases = vec!["org/b".to_owned()];
        c.models = vec![
            ModelConfig::new("a", checkpoint("llama")),
            ModelConfig { aliases, ..ModelConfig::new("b", checkpoint("gemma")) },
        ];
        c.server.api_keys = ApiKeys::new([ALL.to_owned(), format!("{SOME} org/b")]);
        change(c);
    })
}

fn ask(app: &TestApp, key: &str, model: Option<&str>) -> Answer {
    let mut body = json!({"input": "hello"});
    if let Some(model) = model {
        body["model"] = json!(model);
    }
    app.send("/v1/embeddings", &[("authorization", &format!("Bearer {key}"))], Some(&body))
}

#[test]
fn a_known_key_gives_access_to_every_path_and_no_other_key_does() {
    let app = app(|_| {});
    let body = json!({"input": "hello"});
    let paths: [(&str, Option<&Value>); 7] = [
        ("/v1/embeddings", Some(&body)),
        ("/v1/engines/a/embeddings", Some(&body)),
        ("/openai/deployments/a/embeddings?api-version=1", Some(&body)),
        ("/v1/tokenize", Some(&body)),
        ("/v1/similarity", Some(&body)),
        ("/v1/models", None),
        ("/v1/models/a", None),
    ];
    for (path, body) in paths {
        for key in [
            ("authorization", format!("Bearer {ALL}")),
            ("authorization", format!("bearer  {ALL}")),
            ("api-key", ALL.to_owned()),
        ] {
            assert_eq!(app.send(path, &[(key.0, &key.1)], body).status, 200, "{path} {key:?}");
        }
        let none = app.send(path, &[], body);
        assert_eq!((none.error().0, none.error().1, none.error().2), (401, "invalid_request_error", None), "{path}");
        assert_eq!(none.header("www-authenticate"), "Bearer");
        for wrong in ["sk-all-0123456789abcde", "sk-all-0123456789abcdef0", "SK-ALL-0123456789ABCDEF", "x"] {
            let answer = app.send(path, &[("authorization", &format!("Bearer {wrong}"))], body);
            let (status, kind, code, _, message) = answer.error();
            assert_eq!((status, kind, code), (401, "invalid_request_error", Some("invalid_api_key")), "{path} {wrong}");
            assert!(message.starts_with("Incorrect API key provided") && !message.contains(wrong), "{message}");
        }
        assert_eq!(app.send(path, &[("authorization", &format!("Basic {ALL}"))], body).status, 401);
    }
}

/// A gateway adds its key next to whatever the client sent.
#[test]
fn one_known_key_among_several_is_enough() {
    let app = app(|_| {});
    let bearer = |key: &str| format!("Bearer {key}");
    let (right, wrong) = (bearer(ALL), bearer("wrong"));
    let (upper, tab) = (format!("BEARER {ALL}"), format!("bEaReR\t{ALL} "));
    let glued = format!("Bearer{ALL}");
    let cases: [(&[(&str, &str)], u16); 15] = [
        (&[("x-api-key", ALL)], 200),
        (&[("X-API-Key", ALL)], 200),
        (&[("authorization", &upper)], 200),
        (&[("authorization", &tab)], 200),
        (&[("authorization", &wrong), ("api-key", ALL)], 200),
        (&[("authorization", &wrong), ("x-api-key", ALL)], 200),
        (&[("authorization", &right), ("api-key", "wrong"), ("x-api-key", "wrong")], 200),
        (&[("api-key", "wrong"), ("x-api-key", ALL)], 200),
        (&[("authorization", "Basic d3Jvbmc="), ("api-key", ALL)], 200),
        (&[("authorization", &wrong), ("authorization", &right)], 200),
        (&[("x-api-key", "wrong"), ("x-api-key", "also wrong"), ("x-api-key", ALL)], 200),
        (&[("authorization", "Bearer "), ("api-key", ""), ("x-api-key", ALL)], 200),
        (&[("authorization", &glued)], 401),
        (&[("authorization", ALL), ("api-key", "wrong"), ("x-api-key", "")], 401),
        (&[("x-goog-api-key", ALL)], 401),
    ];
    for (headers, status) in cases {
        assert_eq!(app.send("/v1/embeddings", headers, Some(&json!({"input": "hello"}))).status, status, "{headers:?}");
        assert_eq!(app.send("/v1/models", headers, None).status, status, "{headers:?}");
    }
    // The key that is known decides which models are visible, and not the other key.
    let both = [("authorization", wrong.as_str()), ("api-key", SOME)];
    assert_eq!(app.send("/v1/models/a", &both, None).status, 404);
    assert_eq!(app.send("/v1/models/b", &both, None).status, 200);
}

#[test]
fn probes_and_pages_need_no_key_and_metrics_as_configured() {
    let preflight = |app: &TestApp| {
        let request = ureq::http::Request::builder()
            .method("OPTIONS")
            .uri(app.url("/v1/embeddings"))
            .header("origin", "https://page.example")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization");
        crate::common::agent().run(request.body(()).unwrap()).unwrap().status().as_u16()
    };
    for (need, status) in [(false, 200), (true, 401)] {
        let app = app(|c| c.server.metrics_need_key = need);
        for path in ["/health", "/ready", "/openapi.json"] {
            assert_eq!(app.get(path).status, 200, "{path}");
        }
        assert_eq!(app.get("/nowhere").status, 404);
        assert_eq!(preflight(&app), 200);
        let metrics = |key: &str| {
            crate::common::agent().get(app.url("/metrics")).header("api-key", key).call().unwrap().status().as_u16()
        };
        assert_eq!((metrics("wrong"), metrics(ALL)), (status, 200));
    }
}

#[test]
fn a_key_with_models_sees_only_these_models() {
    let app = app(|_| {});
    let ids = |key: &str| {
        let list = app.send("/v1/models", &[("api-key", key)], None).body;
        list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids(ALL), ["a", "b", "org/b"]);
    assert_eq!(ids(SOME), ["b", "org/b"]);
    for (model, status) in [(Some("b"), 200), (Some("org/b"), 200), (Some("a"), 404), (None, 404)] {
        let answer = ask(&app, SOME, model);
        assert_eq!(answer.status, status, "{model:?}");
        if status == 404 {
            let (_, _, code, param, message) = answer.error();
            assert_eq!((code, param), (Some("model_not_found"), Some("model")));
            assert!(message.contains("`a`"), "{message}");
        }
        assert_eq!(ask(&app, ALL, model).status, 200);
    }
    let body = json!({"input": "hello", "model": "a"});
    for path in ["/v1/tokenize", "/v1/similarity", "/v1/engines/a/embeddings", "/openai/deployments/a/embeddings"] {
        assert_eq!(app.send(path, &[("api-key", SOME)], Some(&body)).status, 404, "{path}");
    }
    assert_eq!(app.send("/v1/models/a", &[("api-key", SOME)], None).status, 404);
    assert_eq!(app.send("/v1/models/b", &[("api-key", SOME)], None).status, 200);
}

#[test]
fn a_key_for_an_unknown_model_is_refused_at_the_start() {
    let mut config = Config { models: vec![ModelConfig::new("a", checkpoint("llama"))], ..Config::default() };
    config.server.api_keys = ApiKeys::new([format!("{SOME} a nothing")]);
    let error = ServerState::new(config).err().unwrap().to_string();
    assert!(error.contains("\"nothing\"") && !error.contains(SOME), "{error}");
}

#[test]
fn metrics_need_key_requires_a_configured_key() {
    let mut config = Config { models: vec![ModelConfig::new("a", checkpoint("llama"))], ..Config::default() };
    config.server.metrics_need_key = true;
    let error = ServerState::new(config.clone()).err().unwrap().to_string();
    assert!(error.contains("metrics_need_key") && error.contains("server.api_keys"), "{error}");
    config.server.metrics = false;
    assert!(ServerState::new(config).is_ok());
}

#[test]
fn check_refuses_keys_and_certificates_that_serve_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let path = checkpoint("llama");
    for (setting, content, part) in [
        ("api_keys = [\"\"]", None, "entry 1 of server.api_keys is empty"),
        ("api_keys = [\"sk-one x\"]", None, "\"x\", which is not configured"),
        ("api_keys = [\"m\"]", None, "where the key should be"),
        ("api_keys = [\"sk-one name=\"]", None, "entry 1 of server.api_keys has an invalid name"),
        ("api_keys = [\"sk-one sk_x=sk-two\"]", None, "entry 1 of server.api_keys has an unknown option"),
        ("api_keys = [\"name=a sk-one\"]", None, "entry 1 of server.api_keys begins with an option"),
        ("api_keys = [\"sk-one name=a\", \"sk-two name=a\"]", None, "same name to different keys"),
        ("api_keys = [\"sk-one name=sk-one\"]", None, "entry 1 of server.api_keys has a key"),
        (
            "api_key_file = \"FILE\"",
            Some(&b"# x\nsk-one m requests_per_minute=0\n"[..]),
            "line 2 of server.api_key_file",
        ),
        (
            "api_key_file = \"FILE\"",
            Some(&b"sk-one tokens_per_minute=1000000001\n"[..]),
            "has an invalid tokens_per_minute",
        ),
        ("api_keys = [\"sk-one\", \"sk-one m\"]", None, "entry 2 of server.api_keys"),
        ("api_key_file = \"FILE\"", None, "does not exist"),
        ("api_key_file = \"FILE\"", Some(&b"# none\n"[..]), "contains no key"),
        ("api_key_file = \"FILE\"", Some(b"sk-\xff"), "not UTF-8"),
        ("api_key_file = \"DIR\"", None, "directory"),
        ("metrics_need_key = true", None, "metrics_need_key"),
        ("tls_cert = \"FILE\"\ntls_key = \"FILE\"", None, "server.tls_cert"),
    ] {
        let (config, file) = (dir.path().join("c.toml"), dir.path().join("file"));
        let _ = std::fs::remove_file(&file);
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let setting = setting.replace("FILE", file.to_str().unwrap()).replace("DIR", dir.path().to_str().unwrap());
        let text = format!("[server]\nport = 0\n{setting}\n[[models]]\nid = \"m\"\npath = {path:?}");
        std::fs::write(&config, text).unwrap();
        for subcommand in ["check", "serve"] {
            let output = command(&[subcommand, "--config", config.to_str().unwrap()]).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.code() == Some(78) && said.contains(part), "{subcommand}: {setting}: {said}");
            assert!(!said.contains("sk-"), "{said}");
        }
    }
}

#[test]
fn a_local_server_without_keys_refuses_dns_rebinding() {
    let ask = |app: &TestApp, host: &str| {
        let body = json!({"input": "hello", "model": "a"});
        ["/v1/embeddings", "/v1/tokenize"].map(|path| app.send(path, &[("host", host)], Some(&body)))
    };
    let open = app(|c| c.server.api_keys = ApiKeys::default());
    for host in ["localhost:5000", "127.0.0.1", "[::1]:80", "embedding-server"] {
        assert_eq!(ask(&open, host).map(|answer| answer.status), [200, 200], "{host}");
    }
    for answer in ask(&open, "evil.example:5000") {
        let (status, _, code, _, message) = answer.error();
        assert_eq!((status, code), (403, Some("host_not_allowed")));
        assert!(message.contains("'evil.example:5000'") && message.contains("server.allowed_hosts"), "{message}");
    }
    let listed = app(|c| {
        c.server.api_keys = ApiKeys::default();
        c.server.allowed_hosts = vec!["mine.example".to_owned()];
    });
    assert_eq!(ask(&listed, "Mine.Example:80").map(|answer| answer.status), [200, 200]);
    assert_eq!(ask(&listed, "evil.example").map(|answer| answer.status), [403, 403]);
    for exempt in [app(|_| {}), app(|c| c.server.host = std::net::IpAddr::from([0, 0, 0, 0]).into())] {
        assert!(ask(&exempt, "evil.example").iter().all(|answer| answer.status != 403));
    }
}

#[test]
fn keys_are_never_shown_and_a_server_without_keys_warns() {
    let dir = tempfile::tempdir().unwrap();
    let (config, keys) = (dir.path().join("c.toml"), dir.path().join("keys"));
    std::fs::File::create(&keys).unwrap().write_all(format!("{ALL}\n{SOME} m\n").as_bytes()).unwrap();
    let path = checkpoint("llama");
    for with_keys in [true, false] {
        let file =
            if with_keys { format!("api_key_file = {keys:?}\napi_keys = [{:?}]", "sk-inline") } else { String::new() };
        let text = format!(
            "[server]\nhost = \"0.0.0.0\"\n{file}\n[log]\nlevel = \"trace\"\n[[models]]\nid = \"m\"\npath = {path:?}"
        );
        std::fs::write(&config, text).unwrap();
        let server = Server::start(&["--config", config.to_str().unwrap()]);
        server.wait_until_ready();
        let port = server.address.rsplit(':').next().unwrap();
        for key in [ALL, "sk-inline", "sk-wrong-0123456789"] {
            let url = format!("http://127.0.0.1:{port}/v1/models");
            let answer =
                crate::common::agent().get(url).header("authorization", format!("Bearer {key}")).call().unwrap();
            assert_eq!(answer.status() == 200, !with_keys || key != "sk-wrong-0123456789", "{key}");
        }
        server.signal("TERM");
        let (code, log) = server.end();
        assert_eq!(code, Some(0), "{log}");
        assert!(!log.contains("sk-"), "a key is in the log: {log}");
        assert_eq!(log.contains("NO API KEYS"), !with_keys, "{log}");
    }
}

/// A server whose models never finish loading, so that /ready always names them.
#[test]
fn ready_and_the_description_name_models_only_to_requests_with_a_key() {
    let ask = |state: &Arc<ServerState>, path: &str, key: Option<&str>| {
        let request = axum::http::Request::builder().uri(path);
        let request = match key {
            Some(key) => request.header("x-api-key", key),
            None => request,
        };
        let routes = embedding_server::server::router(state);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let response = routes.answer(request.body(axum::body::Body::empty()).unwrap(), None).await;
            let body = axum::body::to_bytes(response.into_body(), 1 << 24).await.unwrap();
            String::from_utf8(body.to_vec()).unwrap()
        })
    };
    for with_keys in [true, false] {
        let mut config =
            Config { models: vec![ModelConfig::new("secret/model", checkpoint("llama"))], ..Config::default() };
        if with_keys {
            config.server.api_keys = ApiKeys::new([ALL]);
        }
        let state = Arc::new(ServerState::new(config).unwrap());
        for path in ["/ready", "/openapi.json"] {
            for (key, knows) in [(None, !with_keys), (Some("wrong"), !with_keys), (Some(ALL), true)] {
                let text = ask(&state, path, key);
                assert_eq!(text.contains("secret/model"), knows, "{path} {key:?}: {text}");
                assert!(!text.contains("checkpoints/llama"), "{text}");
            }
        }
    }
}

#[test]
fn the_description_of_a_server_with_keys_says_how_to_send_them() {
    const PUBLIC: [&str; 3] = ["/health", "/ready", "/metrics"];
    let api = app(|_| {}).get("/openapi.json").body;
    let schemes = &api["components"]["securitySchemes"];
    assert_eq!(schemes["bearer"], json!({"type": "http", "scheme": "bearer"}));
    for name in ["api-key", "x-api-key"] {
        assert_eq!(schemes[name], json!({"type": "apiKey", "in": "header", "name": name}));
    }
    for (path, operations) in api["paths"].as_object().unwrap() {
        for operation in operations.as_object().unwrap().values() {
            let any = json!([{"bearer": []}, {"api-key": []}, {"x-api-key": []}]);
            let expected = if PUBLIC.contains(&path.as_str()) { Value::Null } else { any };
            assert_eq!(operation["security"], expected, "{path}");
        }
    }
    let api = app(|c| c.server.api_keys = ApiKeys::default()).get("/openapi.json").body;
    assert!(!api.to_string().contains("\"security"), "{api}");
}

#[test]
fn a_server_with_keys_names_a_damaged_file_only_in_its_log() {
    let (table, dir) = (crate::models::layer0(), tempfile::tempdir().unwrap());
    let (config, path) = (dir.path().join("c.toml"), table.path());
    let settings = "[server]\napi_keys = [\"sk-all\", \"sk-one m\"]\n[log]\nformat = \"json\"\naccess = false";
    std::fs::write(&config, format!("{settings}\n[[models]]\nid = \"m\"\npath = {path:?}")).unwrap();
    let server = Server::start(&["--config", config.to_str().unwrap()]);
    server.wait_until_ready();
    let ask = |path: &str, key: &str| {
        let url = format!("http://{}{path}", server.address);
        let answer = if path == "/ready" {
            agent().get(url).header("x-api-key", key).call()
        } else {
            let request = agent().post(url).header("x-api-key", key).header("content-type", "application/json");
            request.send(r#"{"input": ["hello world"]}"#)
        };
        Answer::read(answer.unwrap())
    };
    assert_eq!(ask("/v1/embeddings", "sk-all").status, 200);
    let file = std::fs::OpenOptions::new().write(true).open(path.join("model.safetensors")).unwrap();
    file.set_len(4096).unwrap();
    for (path, key) in [
        ("/v1/embeddings", "sk-all"),
        ("/v1/embeddings", "sk-one"),
        ("/v1/engines/m/embeddings", "sk-one"),
        ("/v1/similarity", "sk-one"),
        ("/ready", "sk-all"),
        ("/ready", "sk-one"),
        ("/ready", "wrong"),
    ] {
        let answer = ask(path, key);
        let (status, _, code, _, message) = answer.error();
        assert_eq!((status, code), (503, Some("model_damaged")), "{path}: {message}");
        assert!(!message.contains("safetensors") && !message.contains('/'), "{path}: {message}");
        assert!(answer.header("retry-after").parse::<u32>().is_ok(), "{path}");
    }
    server.signal("TERM");
    let (_, log) = server.end();
    assert!(log.contains("model.safetensors"), "{log}");
    // Requests that fail with a 5xx status are logged although others are not.
    let requests: Vec<&str> = log.lines().filter(|line| line.contains("\"message\":\"request\"")).collect();
    assert!(requests.len() == 4 && requests.iter().all(|line| line.contains("\"status\":503")), "{log}");
}

fn send_with(app: &TestApp, key: &str, path: &str, input: &str) -> Answer {
    app.send(path, &[("x-api-key", key)], Some(&json!({"input": input, "model": "a"})))
}

#[test]
fn a_key_over_its_request_rate_gets_429_and_the_rate_headers() {
    let keys = ["sk-slow requests_per_minute=2", "sk-other requests_per_minute=2", "sk-free"];
    let app = app(|c| c.server.api_keys = ApiKeys::new(keys));
    let limits = |answer: &Answer| {
        ["limit", "remaining", "reset"].map(|what| answer.header(&format!("x-ratelimit-{what}-requests")).to_owned())
    };
    // These routes need no key.
    for path in ["/health", "/ready", "/metrics", "/openapi.json", "/nowhere"] {
        for _ in 0..3 {
            let answer = agent().get(app.url(path)).header("x-api-key", "sk-slow").call().unwrap();
            assert!(!answer.headers().contains_key("x-ratelimit-limit-requests"), "{path}");
        }
    }
    let first = send_with(&app, "sk-slow", "/v1/embeddings", "hello");
    let [limit, remaining, reset] = limits(&first);
    assert_eq!((first.status, limit.as_str(), remaining.as_str()), (200, "2", "1"));
    assert!(reset.ends_with('s') && first.header("x-ratelimit-limit-tokens").is_empty(), "{reset}");
    // A failing request counts too, and has the headers.
    let second = app.send("/v1/models/nothing", &[("authorization", "Bearer sk-slow")], None);
    assert_eq!((second.status, limits(&second)[1].as_str()), (404, "0"));
    for path in ["/v1/embeddings", "/v1/tokenize", "/v1/engines/a/embeddings"] {
        let refused = send_with(&app, "sk-slow", path, "hello");
        let (status, kind, code, param, message) = refused.error();
        assert_eq!((status, kind, code, param), (429, "requests", Some("rate_limit_exceeded"), None));
        assert!(
            message.contains("requests per min (RPM): Limit 2, Used 2, Requested 1. Please try again in "),
            "{message}"
        );
        let seconds: u64 = refused.header("retry-after").parse().unwrap();
        assert!((1..=30).contains(&seconds) && limits(&refused)[..2] == ["2", "0"], "{seconds}");
        assert!(!refused.body.to_string().contains("sk-"));
    }
    assert_eq!(limits(&send_with(&app, "sk-other", "/v1/embeddings", "hello"))[1], "1", "each key has its own");
    for _ in 0..5 {
        let free = send_with(&app, "sk-free", "/v1/embeddings", "hello");
        assert_eq!((free.status, free.header("x-ratelimit-limit-requests")), (200, ""));
    }
}

#[test]
fn tokens_are_charged_to_the_key_and_delay_its_next_request() {
    let count = {
        let app = app(|c| c.server.api_keys = ApiKeys::default());
        send_with(&app, "", "/v1/embeddings", "hello").body["usage"]["total_tokens"].as_u64().unwrap()
    };
    // The limit is enough for one request and not for two.
    let limit = count + 1;
    let entry = |n: usize| format!("sk-{n} tokens_per_minute={limit} a");
    let app = app(|c| c.server.api_keys = ApiKeys::new((0..3).map(entry)));
    for (n, path) in ["/v1/embeddings", "/v1/tokenize", "/v1/similarity"].into_iter().enumerate() {
        let key = format!("sk-{n}");
        let large = send_with(&app, &key, path, &"hello ".repeat(50));
        let (status, kind, code, param, message) = large.error();
        assert_eq!(
            (status, kind, code, param),
            (413, "invalid_request_error", Some("request_too_large"), Some("input"))
        );
        assert!(
            message.contains(&format!("Limit {limit}, Requested ")) && message.contains("Retrying does not help"),
            "{message}"
        );
        assert_eq!(large.header("x-ratelimit-remaining-tokens"), limit.to_string(), "nothing is charged");
        let fine = send_with(&app, &key, path, "hello");
        assert_eq!((fine.status, fine.header("x-ratelimit-limit-tokens")), (200, limit.to_string().as_str()), "{path}");
        assert_eq!(fine.header("x-ratelimit-remaining-tokens"), "1");
        assert!(fine.header("x-ratelimit-limit-requests").is_empty());
        // One token is left, so this request is accepted, and the level falls below zero.
        let last = send_with(&app, &key, path, "hello");
        assert_eq!((last.status, last.header("x-ratelimit-remaining-tokens")), (200, "0"), "{path}");
        let refused = send_with(&app, &key, path, "hello");
        let (status, kind, code, _, message) = refused.error();
        assert_eq!((status, kind, code), (429, "tokens", Some("rate_limit_exceeded")), "{path}");
        assert!(message.contains(&format!("tokens per min (TPM): Limit {limit}, Used ")), "{message}");
        assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
}

#[test]
fn named_keys_are_counted_and_logged_and_a_reload_keeps_their_usage() {
    let dir = tempfile::tempdir().unwrap();
    let (config, keys, path) = (dir.path().join("c.toml"), dir.path().join("keys"), checkpoint("llama"));
    let digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let write = |name: &str| {
        let text = format!("sk-one name={name} requests_per_minute=2\nsha256:{digest} m name=hashed\nsk-x\nsk-y m\n");
        std::fs::write(&keys, text).unwrap();
    };
    write("alice");
    let text = format!(
        "[server]\nport = 0\napi_key_file = {keys:?}\n[log]\nlevel = \"trace\"\nformat = \"json\"\n[[models]]\nid = \"m\"\npath = {path:?}"
    );
    std::fs::write(&config, text).unwrap();
    let checked = command(&["check", "--config", config.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && !said.contains("sk-") && !said.contains(digest), "{said}");
    let server = Server::start(&["--config", config.to_str().unwrap()]);
    server.wait_until_ready();
    let ask = |key: &str| {
        let request = agent().post(format!("http://{}/v1/embeddings", server.address)).header("x-api-key", key);
        Answer::read(request.header("content-type", "application/json").send(r#"{"input": ["a", "b"]}"#).unwrap())
    };
    let scrape = || {
        let answer = agent().get(format!("http://{}/metrics", server.address)).call().unwrap();
        answer.into_body().read_to_string().unwrap()
    };
    let tokens = ask("hello").body["usage"]["total_tokens"].as_u64().unwrap();
    let statuses = ["sk-one", "sk-one", "sk-one", "sk-x", "sk-y", "wrong"].map(|key| ask(key).status);
    assert_eq!(statuses, [200, 200, 429, 200, 200, 401]);
    write("bob");
    server.signal("HUP");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !scrape().contains("embedding_server_reloads_total{result=\"reloaded\"} 1") {
        assert!(std::time::Instant::now() < deadline);
    }
    assert_eq!(ask("sk-one").status, 429, "what is used stays used");
    let metrics = scrape();
    for (what, key, value) in [
        ("requests", "alice", 3),
        ("inputs", "alice", 4),
        ("tokens", "alice", 2 * tokens),
        ("requests", "bob", 1),
        ("inputs", "bob", 0),
        ("requests", "hashed", 1),
        ("tokens", "hashed", tokens),
        ("requests", "unnamed", 2),
        ("inputs", "unnamed", 4),
    ] {
        let line = format!("embedding_server_key_{what}_total{{key=\"{key}\"}} {value}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    assert!(metrics.contains("embedding_server_errors_total{code=\"key_rate_limit_exceeded\"} 2\n"), "{metrics}");
    assert!(!metrics.contains("sk-") && !metrics.contains(digest), "{metrics}");
    server.signal("TERM");
    let (_, log) = server.end();
    assert!(!log.contains("sk-") && !log.contains(digest), "{log}");
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let named: Vec<_> = lines
        .filter(|line| line["message"] == "request" && line["route"] == "/v1/embeddings")
        .map(|line| (line["status"].as_u64().unwrap(), line["key"].as_str().map(str::to_owned)))
        .collect();
    let name = |name: &str| Some(name.to_owned());
    let (alice, bob) = (name("alice"), name("bob"));
    let expected = [
        (200, name("hashed")),
        (200, alice.clone()),
        (200, alice.clone()),
        (429, alice),
        (200, None),
        (200, None),
        (401, None),
        (429, bob),
    ];
    assert_eq!(named, expected);
}

#[test]
fn without_keys_there_are_no_key_metrics() {
    let app = app(|c| c.server.api_keys = ApiKeys::default());
    assert_eq!(send_with(&app, "any", "/v1/embeddings", "hello").status, 200);
    let metrics = agent().get(app.url("/metrics")).call().unwrap().into_body().read_to_string().unwrap();
    assert!(!metrics.contains("embedding_server_key_"), "{metrics}");
}
