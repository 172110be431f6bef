//! Tests the endpoints of Ollama, text-embeddings-inference and Cohere: their vectors are those of `/v1/embeddings`, and their errors have
//! the form of each system. tests/clients tests them with the clients of these systems.

use embedding_server::config::ModelConfig;
use embedding_server::keys::ApiKeys;
use serde_json::{Value, json};

use crate::common::{TestApp, checkpoint, from_base64, same};

const TEXTS: [&str; 3] = ["hello world", "a second text", ""];

fn vectors(list: &Value) -> Vec<Vec<f32>> {
    serde_json::from_value(list.clone()).unwrap()
}

fn assert_same(found: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(expected).all(|(a, b)| same(a, b)), "{found:?} {expected:?}");
}

fn post(app: &TestApp, path: &str, body: &Value) -> crate::common::Answer {
    app.post(path, "application/json", body.to_string().as_bytes())
}

/// Texts that are embedded inline, and so many that the response is written by the workers in several slices.
fn batches() -> [Vec<String>; 2] {
    [TEXTS.map(str::to_owned).to_vec(), (0..2000).map(|n| format!("text number {n}")).collect()]
}

#[test]
fn every_system_gets_the_vectors_of_openais_api() {
    let app = TestApp::start(|_| {});
    for texts in batches() {
        for dimensions in [None, Some(5)] {
            let with = |mut body: Value, name: &str| {
                if let Some(dimensions) = dimensions {
                    body[name] = json!(dimensions);
                }
                body
            };
            let expected = app.embed(&with(json!({"input": texts}), "dimensions"));
            let tokens = &expected.body["usage"]["prompt_tokens"];
            let fingerprint = expected.header("embedding-fingerprint");
            let expected = expected.vectors();

            let ollama = post(
                &app,
                "/api/embed",
                &with(json!({"model": "text-embedding-3-small:latest", "input": texts}), "dimensions"),
            );
            assert_same(&vectors(&ollama.body["embeddings"]), &expected);
            assert_eq!(&ollama.body["prompt_eval_count"], tokens);
            assert!(ollama.body["total_duration"].as_u64().unwrap() > 0);

            for path in ["/embed", "/"] {
                let tei = post(&app, path, &with(json!({"inputs": texts, "normalize": false}), "dimensions"));
                assert_same(&vectors(&tei.body), &expected);
                assert_eq!(tei.header("embedding-fingerprint"), fingerprint);
            }

            for path in ["/v1/embed", "/v2/embed"] {
                let types = ["base64", "int8", "float"];
                let body = with(json!({"texts": texts, "embedding_types": types}), "output_dimension");
                let cohere = post(&app, path, &body).body;
                assert_same(&vectors(&cohere["embeddings"]["float"]), &expected);
                let base64 = cohere["embeddings"]["base64"].as_array().unwrap();
                let base64: Vec<_> = base64.iter().map(|text| from_base64(text.as_str().unwrap())).collect();
                assert_same(&base64, &expected);
                assert_eq!(cohere["embeddings"]["int8"][0].as_array().unwrap().len(), expected[0].len());
                assert_eq!(cohere["embeddings"].as_object().unwrap().len(), 3);
                assert_eq!(cohere["texts"], json!(texts));
                assert_eq!(&cohere["meta"]["billed_units"]["input_tokens"], tokens);
            }
            let plain = post(&app, "/v1/embed", &with(json!({"texts": texts}), "output_dimension")).body;
            assert_same(&vectors(&plain["embeddings"]), &expected);
            assert_eq!(plain["response_type"], "embeddings_floats");
            let plain = post(&app, "/v2/embed", &with(json!({"texts": texts}), "output_dimension")).body;
            assert_same(&vectors(&plain["embeddings"]["float"]), &expected);
        }
    }
    // The examples in Ollama's documentation have no content type but curl's own.
    let form = app.post("/api/embed", "application/x-www-form-urlencoded", br#"{"input": "hello world"}"#);
    assert_eq!(form.status, 200, "{}", form.body);
    let one = post(&app, "/api/embeddings", &json!({"prompt": TEXTS[1]}));
    assert_same(
        &[serde_json::from_value(one.body["embedding"].clone()).unwrap()],
        &app.vectors(&json!({"input": TEXTS[1]})),
    );
}

#[test]
fn sentences_are_compared_as_by_text_embeddings_inference() {
    let app = TestApp::start(|_| {});
    let expected = app.post(
        "/v1/similarity",
        "application/json",
        json!({"input": TEXTS, "queries": TEXTS[0]}).to_string().as_bytes(),
    );
    let body = json!({"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS}, "parameters": {}});
    for path in ["/similarity", "/v1/similarity", "/embed", "/"] {
        assert_eq!(post(&app, path, &body).body, expected.body["data"][0]["similarity"], "{path}");
    }
}

#[test]
fn models_are_listed_and_described() {
    let app = TestApp::start(|config| {
        config.models[0].aliases = vec!["alias".to_owned()];
        config.models.push(ModelConfig::new("tagged:latest", checkpoint("gemma3-text")));
    });
    let fingerprint = |id: &str| app.get(&format!("/v1/models/{id}")).body["fingerprint"].clone();
    let tags = app.get("/api/tags").body;
    let models = tags["models"].as_array().unwrap();
    let names: Vec<_> = models.iter().map(|model| model["model"].as_str().unwrap()).collect();
    assert_eq!(names, ["text-embedding-3-small", "alias", "tagged:latest"]);
    assert_eq!(models[0]["digest"], fingerprint("text-embedding-3-small"));
    assert!(models[0]["size"].as_u64().unwrap() > 0);
    // A name with the tag means the model with that name, if there is one.
    for (asked, id) in [("alias:latest", "text-embedding-3-small"), ("tagged:latest", "tagged:latest")] {
        let shown = post(&app, "/api/show", &json!({"model": asked})).body;
        assert_eq!(shown["model_info"]["layer0.fingerprint"], fingerprint(id), "{asked}");
        assert_eq!(shown["capabilities"], json!(["embedding"]));
    }
    assert_eq!(app.get("/api/version").body["version"], env!("CARGO_PKG_VERSION"));
    let info = app.get("/info").body;
    assert_eq!(info["model_id"], "text-embedding-3-small");
    assert_eq!(info["model_sha"], fingerprint("text-embedding-3-small"));
    assert_eq!(info["max_client_batch_size"], 2048);
}

#[test]
fn errors_have_the_form_of_each_system() {
    let app = TestApp::start(|config| config.server.api_keys = ApiKeys::new(["sk-secret".to_owned()]));
    let send = |path: &str, key: &str, body: Value| {
        app.send(path, &[("authorization", &format!("Bearer {key}"))], Some(&body))
    };
    for (path, field, keys) in [
        ("/api/embed", "input", &["error"][..]),
        ("/api/embeddings", "prompt", &["error"]),
        ("/embed", "inputs", &["error", "error_type"]),
        ("/", "inputs", &["error", "error_type"]),
        ("/v1/embed", "texts", &["message"]),
        ("/v2/embed", "texts", &["message"]),
    ] {
        for (key, body, status, word) in [
            ("sk-wrong", json!({field: "a"}), 401, "Incorrect API key"),
            ("sk-secret", json!({field: "a", "model": "none"}), 404, "`none`"),
            ("sk-secret", json!({}), 400, field),
            ("sk-secret", json!([]), 400, "JSON object"),
        ] {
            let answer = send(path, key, body);
            assert_eq!(answer.status, status, "{path}: {}", answer.body);
            assert_eq!(answer.header("content-type"), "application/json");
            let found: Vec<_> = answer.body.as_object().unwrap().keys().cloned().collect();
            assert_eq!(found, keys, "{path}");
            assert!(answer.body[keys[0]].as_str().unwrap().contains(word), "{path}: {}", answer.body);
            assert!(!answer.header("x-request-id").is_empty());
        }
    }
    // Every path but these needs a key, and those of OpenAI's API keep their form.
    assert_eq!(app.get("/api/tags").status, 401);
    assert_eq!(app.get("/info").status, 401);
    assert_eq!(send("/v1/embeddings", "sk-wrong", json!({"input": "a"})).error().0, 401);
}

#[test]
fn requests_are_counted_under_their_own_paths() {
    let app = TestApp::start(|_| {});
    for (path, body) in [
        ("/api/embed", json!({"input": "a"})),
        ("/embed", json!({"inputs": "a"})),
        ("/", json!({"inputs": "a"})),
        ("/v2/embed", json!({"texts": ["a"]})),
    ] {
        assert_eq!(post(&app, path, &body).status, 200, "{path}");
    }
    for (route, count) in [("/api/embed", 1.0), ("/embed", 2.0), ("/v2/embed", 1.0)] {
        let name = format!("embedding_server_requests_total{{route=\"{route}\",status=\"2xx\"}}");
        assert_eq!(app.metric(&name), count, "{route}");
    }
}
