//! What an operator can observe of a running server: /metrics, the dashboard, stage times and trace context.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use embedding_server::config::ModelConfig;
use embedding_server::keys::ApiKeys;
use serde_json::{Value, json};

use crate::common::{TestApp, agent, checkpoint};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Returns the content type and the text of /metrics for this `Accept` header.
fn metrics(app: &TestApp, accept: &str) -> (String, String) {
    let mut response = agent().get(app.url("/metrics")).header("accept", accept).call().unwrap();
    let vary: Vec<_> = response.headers().get_all("vary").iter().map(|value| value.to_str().unwrap()).collect();
    assert!(vary.iter().any(|value| value.eq_ignore_ascii_case("accept")), "{vary:?}");
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    (kind, response.body_mut().read_to_string().unwrap())
}

fn samples(text: &str) -> BTreeMap<String, f64> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// Returns the samples of /metrics, by name with labels.
fn scrape(app: &TestApp) -> BTreeMap<String, f64> {
    let (kind, text) = metrics(app, "application/openmetrics-text; version=1.0.0");
    assert_eq!(kind, OPENMETRICS);
    assert!(text.ends_with("# EOF\n"));
    samples(&text)
}

/// Scrapes until `what` holds. A request is counted when its response is sent, and the client may receive it before
/// that.
fn scrape_until(app: &TestApp, what: impl Fn(&BTreeMap<String, f64>) -> bool) -> BTreeMap<String, f64> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let samples = scrape(app);
        if what(&samples) {
            return samples;
        }
        assert!(Instant::now() < deadline, "{samples:#?}");
    }
}

fn two_models() -> TestApp {
    TestApp::start(|c| {
        c.models = vec![
            ModelConfig { aliases: vec!["alias".to_owned()], ..ModelConfig::new("a", checkpoint("llama")) },
            ModelConfig::new("b", checkpoint("gemma")),
        ];
    })
}

#[test]
fn requests_inputs_tokens_and_errors_are_counted() {
    let app = two_models();
    let mut tokens = BTreeMap::from([("a", 0.0), ("b", 0.0)]);
    let many: Vec<String> = (0..300).map(|i| format!("text {i} of many")).collect();
    for (model, id, input) in
        [("a", "a", json!("one")), ("alias", "a", json!(["two", "three"])), ("b", "b", json!(many))]
    {
        let answer = app.embed(&json!({"input": input, "model": model}));
        *tokens.get_mut(id).unwrap() += answer.body["usage"]["total_tokens"].as_f64().unwrap();
    }
    assert_eq!(app.embed(&json!({"input": "x", "model": "client's own text"})).status, 404);
    assert_eq!(app.embed(&json!({"input": 1})).status, 400);
    assert_eq!(app.get("/client/s/own/path").status, 404);

    let samples = scrape_until(&app, |s| s[r#"embedding_server_stage_duration_seconds_count{stage="queue"}"#] == 3.0);
    let expected = [
        (r#"embedding_server_requests_total{route="/v1/embeddings",status="2xx"}"#, 3.0),
        (r#"embedding_server_requests_total{route="/v1/embeddings",status="4xx"}"#, 2.0),
        (r#"embedding_server_requests_total{route="/v1/embeddings",status="5xx"}"#, 0.0),
        (r#"embedding_server_requests_total{route="-",status="4xx"}"#, 1.0),
        (r#"embedding_server_request_duration_seconds_count{route="/v1/embeddings"}"#, 5.0),
        (r#"embedding_server_request_duration_seconds_bucket{le="+Inf",route="/v1/embeddings"}"#, 5.0),
        (r#"embedding_server_errors_total{code="model_not_found"}"#, 1.0),
        (r#"embedding_server_errors_total{code="invalid_request"}"#, 1.0),
        (r#"embedding_server_errors_total{code="unknown_url"}"#, 1.0),
        (r#"embedding_server_inputs_total{model="a"}"#, 3.0),
        (r#"embedding_server_inputs_total{model="b"}"#, 300.0),
        (r#"embedding_server_tokens_total{model="a"}"#, tokens["a"]),
        (r#"embedding_server_tokens_total{model="b"}"#, tokens["b"]),
        (r#"embedding_server_stage_duration_seconds_count{stage="tokenize"}"#, 3.0),
        (r#"embedding_server_stage_duration_seconds_count{stage="pool"}"#, 3.0),
        (r#"embedding_server_stage_duration_seconds_count{stage="serialize"}"#, 3.0),
        (r#"embedding_server_model_loaded{model="b"}"#, 1.0),
        ("embedding_server_queue_depth", 0.0),
        // The scrape counts itself.
        ("embedding_server_requests_in_flight", 1.0),
    ];
    for (name, value) in expected {
        assert_eq!(samples.get(name), Some(&value), "{name} in {samples:#?}");
    }
    let labels = samples.keys().filter(|name| name.contains("client")).collect::<Vec<_>>();
    assert!(labels.is_empty(), "a client's text is a label: {labels:?}");
    // The table has 355 rows of 16 numbers in bf16.
    assert_eq!(samples[r#"embedding_server_table_bytes{model="a"}"#], 355.0 * 16.0 * 2.0);
    assert!(samples["process_resident_memory_bytes"] > 1e6);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - samples["process_start_time_seconds"]).abs() < 600.0);
    let version = format!(r#"embedding_server_build_info{{version="{}""#, env!("CARGO_PKG_VERSION"));
    assert!(samples.keys().any(|name| name.starts_with(&version)));
}

/// What a reader of the text format relies on: one TYPE line with a type of the format, before the samples with its
/// name.
#[test]
fn metrics_are_in_the_text_format_unless_openmetrics_is_asked_for() {
    const SUFFIXES: [&str; 3] = ["_bucket", "_sum", "_count"];
    let app = two_models();
    app.embed(&json!({"input": "a"}));
    for accept in ["text/plain;version=0.0.4", "*/*", "text/html", "application/openmetrics-text;q=0.1, text/*"] {
        let (kind, text) = metrics(&app, accept);
        assert_eq!(kind, TEXT, "{accept}");
        let (mut types, mut current) = (BTreeMap::new(), String::new());
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["#", "HELP", name, ..] => assert!(!types.contains_key(name), "HELP after TYPE: {line}"),
                ["#", "TYPE", name, kind] => {
                    assert!(["counter", "gauge", "histogram", "summary", "untyped"].contains(&kind), "{line}");
                    assert_eq!(types.insert(name.to_owned(), kind.to_owned()), None, "typed twice: {line}");
                    current = name.to_owned();
                }
                ["#", ..] => panic!("not of the text format: {line}"),
                _ => {
                    let name = line.split(['{', ' ']).next().unwrap();
                    let of_histogram = types[&current] == "histogram"
                        && SUFFIXES.iter().any(|suffix| name.strip_suffix(suffix) == Some(&current));
                    assert!(name == current || of_histogram, "a sample of no type: {line}");
                    assert_eq!(types[&current] == "counter", name.ends_with("_total"), "{line}");
                }
            }
        }
        assert_eq!(types["embedding_server_requests_total"], "counter");
        assert_eq!(types["embedding_server_build_info"], "gauge");
        let names = |text: &str| samples(text).into_keys().collect::<BTreeSet<_>>();
        assert_eq!(names(&text), scrape(&app).into_keys().collect(), "the formats have the same samples");
    }
}

/// Bucket counts are cumulative, and the bounds are the same for every histogram.
#[test]
fn histogram_buckets_are_fixed_and_cumulative() {
    let app = two_models();
    app.embed(&json!({"input": "a"}));
    let samples = scrape(&app);
    let mut bounds: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for (name, value) in &samples {
        if let Some((head, rest)) = name.split_once("_bucket{le=\"") {
            let (bound, labels) = rest.split_once('"').unwrap();
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
            let key = if labels.contains("embeddings\"") || head.contains("stage") { labels } else { continue };
            bounds.entry(key).or_default().push((bound, *value));
        }
    }
    assert!(bounds.len() >= 5, "{bounds:?}");
    let first: Vec<f64> = {
        let mut all: Vec<f64> = bounds.values().next().unwrap().iter().map(|b| b.0).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    for buckets in bounds.values_mut() {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{buckets:?}");
        assert_eq!(buckets.iter().map(|b| b.0).collect::<Vec<_>>(), first);
    }
}

/// Returns the names of metrics in a query: the words before a selector.
fn names_in(query: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    query
        .split(|c| !is_name(c))
        .filter(|word| word.starts_with("embedding_server_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_dashboard_uses_exactly_the_metrics_that_exist() {
    let dashboard: Value = serde_json::from_str(include_str!("../../grafana/dashboard.json")).unwrap();
    let targets =
        dashboard["panels"].as_array().unwrap().iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let shown: BTreeSet<String> = targets.flat_map(|target| names_in(target["expr"].as_str().unwrap())).collect();
    let app = TestApp::start(|c| c.server.api_keys = ApiKeys::new(["sk-one"]));
    app.get("/nowhere");
    let served: BTreeSet<String> =
        scrape(&app).into_keys().map(|name| name.split('{').next().unwrap().to_owned()).collect();
    let missing: Vec<_> = shown.difference(&served).collect();
    assert!(missing.is_empty(), "the dashboard shows what is not served: {missing:?}");
    let hidden: Vec<_> = served.difference(&shown).filter(|name| !name.ends_with("_count")).collect();
    assert!(hidden.is_empty(), "the dashboard does not show {hidden:?}");
}

#[test]
fn metrics_can_be_switched_off() {
    let app = TestApp::start(|c| c.server.metrics = false);
    assert_eq!(app.get("/metrics").error().2, Some("unknown_url"));
    assert!(app.get("/openapi.json").body["paths"]["/metrics"].is_null());
}

#[test]
fn responses_report_the_time_of_each_stage() {
    let app = two_models();
    for path in ["/v1/embeddings", "/v1/tokenize", "/v1/similarity"] {
        let answer = app.post(path, "application/json", br#"{"input": ["hello", "world"]}"#);
        let stages: Vec<(&str, f64)> = answer
            .header("server-timing")
            .split(", ")
            .map(|stage| stage.split_once(";dur=").map(|(name, ms)| (name, ms.parse().unwrap())).unwrap())
            .collect();
        assert_eq!(
            stages.iter().map(|s| s.0).collect::<Vec<_>>(),
            ["queue", "tokenize", "pool", "serialize"],
            "{path}"
        );
        assert!(stages[1].1 > 0.0 && stages.iter().all(|s| s.1 < 10_000.0), "{path}: {stages:?}");
    }
    assert_eq!(app.get("/health").header("server-timing"), "");
}

#[test]
fn only_a_valid_traceparent_is_returned() {
    let app = two_models();
    let send = |value: &str| {
        let response = agent().get(app.url("/health")).header("traceparent", value).call().unwrap();
        response.headers().get("traceparent").map(|v| v.to_str().unwrap().to_owned())
    };
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let back = send(parent).unwrap();
    assert_eq!(back[..35], parent[..35], "the same trace");
    assert_eq!(send("00-nonsense"), None);
    assert_eq!(app.get("/health").header("traceparent"), "");
}
