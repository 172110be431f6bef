//! The ways in which clients write the same path, and the advice for paths that do not exist.

use embedding_server::config::{Config, ModelConfig};
use serde_json::{Value, json};

use crate::common::{Answer, TestApp, agent, checkpoint};

fn start(change: impl FnOnce(&mut Config)) -> TestApp {
    TestApp::start(|c| {
        c.models = vec![ModelConfig::new("org/a", checkpoint("llama")), ModelConfig::new("b", checkpoint("gemma"))];
        change(c);
    })
}

fn post(app: &TestApp, path: &str) -> Answer {
    app.post(path, "application/json", br#"{"input": "hello", "queries": null}"#)
}

/// Returns the routes for which the metrics have counted a response.
fn routes(app: &TestApp) -> Vec<String> {
    let text = agent().get(app.url("/metrics")).call().unwrap().body_mut().read_to_string().unwrap();
    let counted = text.lines().filter_map(|line| line.strip_prefix("embedding_server_requests_total{route=\""));
    let counted = counted.filter(|line| !line.ends_with(" 0")).map(|line| line.split('"').next().unwrap().to_owned());
    let mut routes: Vec<String> = counted.collect();
    routes.dedup();
    routes
}

#[test]
fn paths_may_lack_v1_begin_with_openai_or_end_in_a_slash() {
    let app = start(|_| {});
    let expected = post(&app, "/v1/embeddings").body;
    for path in [
        "/embeddings",
        "/embeddings/",
        "/v1/embeddings/",
        "/v1/embeddings//",
        "/openai/v1/embeddings",
        "/openai/v1/embeddings/?api-version=preview",
        "/engines/org%2Fa/embeddings/",
        "/v1/engines/org%2Fa/embeddings/",
        "/openai/deployments/org%2Fa/embeddings/?api-version=1",
    ] {
        assert_eq!(post(&app, path).body, expected, "{path}");
    }
    for path in ["/models", "/v1/models/", "/openai/v1/models", "/openai/models/?api-version=1"] {
        assert_eq!(app.get(path).body, app.get("/v1/models").body, "{path}");
    }
    for path in ["/models/org/a", "/models/org%2Fa", "/v1/models/org/a/", "/openai/v1/models/org/a/"] {
        assert_eq!((app.get(path).status, &app.get(path).body["id"]), (200, &json!("org/a")), "{path}");
    }
    for path in ["/tokenize", "/v1/tokenize/", "/similarity/", "/v1/similarity/"] {
        assert_eq!(post(&app, path).status, 200, "{path}");
    }
    for path in ["/health/", "/ready/", "/openapi.json/"] {
        assert_eq!(app.get(path).status, 200, "{path}");
    }
    // The metrics know only routes, and not the paths as clients write them.
    let known = [
        "/v1/embeddings",
        "/v1/engines/{id}/embeddings",
        "/openai/deployments/{id}/embeddings",
        "/v1/models",
        "/v1/models/{*id}",
        "/v1/tokenize",
        "/v1/similarity",
        "/health",
        "/ready",
        "/openapi.json",
    ];
    let counted = routes(&app);
    assert!(known.iter().all(|route| counted.iter().any(|c| c == route)), "{counted:?}");
    assert!(counted.iter().all(|route| known.contains(&route.as_str()) || route == "/metrics"), "{counted:?}");
}

/// What a description lists, clients may also call without `/v1`, and the documentation lists it too.
#[test]
fn every_described_path_works_without_v1_and_is_documented() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(|config| config.server.batch_directory = Some(dir.path().to_owned()));
    let described = app.get("/openapi.json").body;
    let paths = described["paths"].as_object().unwrap();
    let documentation = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md")).unwrap();
    assert!(paths.len() > 10);
    for (path, operations) in paths {
        let segment = path.trim_start_matches("/v1").split('{').next().unwrap().trim_end_matches('/');
        assert!(documentation.contains(segment), "docs/api.md does not mention {path}");
        let Some(short) = path.strip_prefix("/v1").filter(|path| !path.contains('{')) else { continue };
        let method = operations.as_object().unwrap().keys().next().unwrap();
        let status = if method == "post" { post(&app, short).status } else { app.get(short).status };
        assert!(![404, 405].contains(&status), "{short} answers {status}, and {path} is described");
    }
}

#[test]
fn cors_applies_to_every_spelling_of_a_path() {
    let app = start(|_| {});
    for path in ["/embeddings", "/v1/embeddings/", "/openai/v1/embeddings"] {
        let answer = app.send(path, &[("origin", "https://page.example")], Some(&json!({"input": "hello"})));
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, "*"), "{path}");
    }
}

#[test]
fn an_unknown_path_gets_advice_about_the_probable_one() {
    let app = start(|_| {});
    let base = format!("base_url to {}", app.url("/v1"));
    for path in [
        "/v1/embeddings/embeddings",
        "/v1/embeddings/v1/embeddings",
        "/v1/v1/embeddings",
        "/api/v1/embeddings/",
        "/v1/chat/completions",
        "/chat/completions",
        "/V1/EMBEDDINGS",
        "/v1/",
    ] {
        let answer = post(&app, path);
        let (status, kind, code, param, message) = answer.error();
        assert_eq!((status, kind, code, param), (404, "invalid_request_error", Some("unknown_url"), None), "{path}");
        assert!(message.starts_with(&format!("Invalid URL (POST {path}). ")), "{message}");
        assert!(message.contains(&base), "{message}");
    }
    let message = |path: &str| post(&app, path).error().4.to_owned();
    assert_eq!(message("/v1/embedings"), "Invalid URL (POST /v1/embedings). Did you mean /v1/embeddings?");
    assert_eq!(message("/nowhere/"), "Invalid URL (POST /nowhere/).");
    let long = format!("/{}", "x".repeat(5000));
    assert!(message(&long).len() < 300 && message(&long).contains("xxx..."));
}

/// The host comes from the client, so a value that is not a host is not repeated.
#[test]
fn the_advised_base_url_has_the_clients_scheme_and_host() {
    let app = start(|c| c.server.allowed_hosts = vec!["*".to_owned()]);
    for (host, proto, base) in [
        ("embed.example", "https", "https://embed.example/v1"),
        ("embed.example:8443", "http", "http://embed.example:8443/v1"),
        ("[::1]:5000", "", "http://[::1]:5000/v1"),
        ("a'b", "", "http://HOST:PORT/v1"),
    ] {
        let answer =
            app.send("/api/v1/embeddings", &[("host", host), ("x-forwarded-proto", proto)], Some(&Value::Null));
        let (status, _, _, _, message) = answer.error();
        assert_eq!(status, 404);
        assert!(message.contains(&format!("base_url to {base}:")), "{host}: {message}");
    }
}

#[test]
fn a_wrong_method_gets_the_allowed_methods() {
    let app = start(|_| {});
    for (path, allowed) in [("/v1/embeddings/", "POST"), ("/embeddings", "POST"), ("/openai/v1/embeddings", "POST")] {
        let answer = app.get(path);
        assert_eq!((answer.error().0, answer.error().2), (405, Some("method_not_supported")), "{path}");
        assert_eq!(answer.header("allow"), allowed, "{path}");
    }
    assert_eq!(post(&app, "/models/").header("allow"), "GET,HEAD");
}

/// An ingress passes on the whole path; a kubelet and Prometheus call the pod directly.
#[test]
fn all_paths_are_below_the_prefix_and_probes_also_without_it() {
    let app = start(|c| c.server.path_prefix = "/models/a".to_owned());
    for path in ["/models/a/v1/embeddings", "/models/a/embeddings/", "/models/a/openai/deployments/b/embeddings"] {
        assert_eq!(post(&app, path).status, 200, "{path}");
    }
    assert_eq!(app.get("/models/a/v1/models/org%2Fa").body["id"], "org/a");
    let status = |path: &str| agent().get(app.url(path)).call().unwrap().status().as_u16();
    for path in
        ["/health", "/ready/", "/metrics", "/docs", "/docs/rapidoc-min.js", "/playground.js", "/model-card", "/"]
    {
        assert_eq!(status(&format!("/models/a{path}")), 200, "{path}");
        let expected = if ["/health", "/ready/", "/metrics"].contains(&path) { 200 } else { 404 };
        assert_eq!(status(path), expected, "{path}");
    }
    for path in ["/v1/embeddings", "/models/ab/v1/embeddings", "/embeddings"] {
        let answer = post(&app, path);
        let expected = format!(
            "Invalid URL (POST {path}). All paths of this server begin with /models/a: set base_url to {}.",
            app.url("/models/a/v1")
        );
        assert_eq!((answer.error().0, answer.error().4), (404, expected.as_str()));
    }
    assert!(post(&app, "/models/a/v1/embedings").error().4.ends_with("Did you mean /models/a/v1/embeddings?"));
    assert!(routes(&app).iter().all(|route| !route.starts_with("/models")), "{:?}", routes(&app));
    let preflight = agent().options(app.url("/models/a/v1/embeddings")).header("origin", "https://page.example");
    let preflight = preflight.header("access-control-request-method", "POST").call().unwrap();
    assert_eq!(
        (preflight.status().as_u16(), preflight.headers().contains_key("access-control-allow-origin")),
        (200, true)
    );
}

#[test]
fn browsers_are_redirected_so_that_relative_links_work() {
    let no_redirects = ureq::Agent::from(ureq::Agent::config_builder().max_redirects(0).build());
    for (prefix, redirected) in [
        ("", &[("/docs/", "../docs"), ("/docs//", "../../docs")] as &[_]),
        ("/models/a", &[("/models/a", "a/"), ("/models/a/docs/", "../docs")]),
    ] {
        let app = start(|c| c.server.path_prefix = prefix.to_owned());
        for (path, location) in redirected {
            let answer = no_redirects.get(app.url(path)).call().unwrap();
            assert_eq!(
                (answer.status().as_u16(), answer.headers()["location"].to_str().unwrap()),
                (307, *location),
                "{path}"
            );
            assert_eq!(agent().get(app.url(path)).call().unwrap().status().as_u16(), 200, "{path}");
        }
    }
    let app = start(|c| {
        c.server.path_prefix = "/models/a".to_owned();
        c.server.playground = false;
    });
    assert_eq!(app.get("/models/a").error().0, 404);
}
