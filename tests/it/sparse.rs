//! POST /v1/sparse-embeddings and POST /embed_sparse: their vectors, their forms, and what they refuse.

use std::collections::{BTreeMap, BTreeSet};

use embedding_server::config::ModelConfig;
use embedding_server::keys::ApiKeys;
use embedding_server::openai::{CreateSparseEmbeddingResponse, SparseEmbedding};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::common::{TestApp, agent, checkpoint, fixtures};

fn builtin() -> TestApp {
    TestApp::start(|c| c.models = vec![ModelConfig::new("m", "builtin:default")])
}

fn post(app: &TestApp, path: &str, body: &Value) -> (u16, Value) {
    let answer = app.post(path, "application/json", body.to_string().as_bytes());
    (answer.status, answer.body)
}

fn sparse(app: &TestApp, body: &Value) -> Vec<SparseEmbedding> {
    let (status, answer) = post(app, "/v1/sparse-embeddings", body);
    assert_eq!(status, 200, "{body}: {answer}");
    serde_json::from_value::<CreateSparseEmbeddingResponse>(answer).unwrap().data
}

fn dot(a: &SparseEmbedding, b: &SparseEmbedding) -> f32 {
    let value = |id: &u32| b.indices.binary_search(id).ok().map_or(0.0, |place| b.values[place]);
    a.indices.iter().zip(&a.values).map(|(id, x)| x * value(id)).sum()
}

#[derive(Deserialize)]
struct Vector {
    indices: Vec<u32>,
    values: Vec<f32>,
}

#[derive(Deserialize)]
struct Golden {
    text: String,
    document: Vector,
    queries: BTreeMap<String, Vector>,
}

/// tests/fixtures/make_retrieval.py computes the vectors by their formulas. Equally similar tokens may be told apart by rounding.
#[test]
fn the_vectors_are_numpys() {
    let app = builtin();
    let golden = std::fs::read(fixtures("retrieval").join("sparse.json")).unwrap();
    let golden: Vec<Golden> = serde_json::from_slice(&golden).unwrap();
    let check = |body: Value, expected: &Vector| {
        let [found] = <[_; 1]>::try_from(sparse(&app, &body)).unwrap();
        assert_eq!(found.indices, expected.indices, "{body}");
        let largest = expected.values.iter().copied().fold(0.0, f32::max);
        for (found, expected) in found.values.iter().zip(&expected.values) {
            assert!((found - expected).abs() < 1e-6 * largest, "{body}: {found} {expected}");
        }
    };
    for case in &golden {
        check(json!({"input": case.text}), &case.document);
        for (expand, expected) in &case.queries {
            let expand: u32 = expand.parse().unwrap();
            check(json!({"input": case.text, "input_type": "query", "expand": expand}), expected);
        }
        check(json!({"input": case.text, "input_type": "query"}), &case.queries["16"]);
    }
}

#[test]
fn a_query_finds_documents_in_its_language_and_in_another_by_the_dot_product() {
    let app = builtin();
    let texts = ["The stock market fell on Monday.", "Der Hund schläft im Garten.", "A dog sleeps in the garden."];
    let documents = sparse(&app, &json!({"input": texts, "input_type": "document", "model": "m"}));
    assert_eq!(documents.iter().map(|document| document.index).collect::<Vec<_>>(), [0, 1, 2]);
    let scores = |expand: u32| {
        let query = sparse(&app, &json!({"input": "the sleeping dog", "input_type": "query", "expand": expand}));
        documents.iter().map(|document| dot(&query[0], document)).collect::<Vec<f32>>()
    };
    let (plain, expanded) = (scores(0), scores(16));
    assert!(expanded[2] > expanded[1] && expanded[1] > 2.0 * expanded[0], "{expanded:?}");
    assert!(plain[1] < 0.5 * expanded[1], "{plain:?} {expanded:?}");
    // The score of a document with all tokens of a query is near 1, and is that of the query twice over.
    for query in ["A dog sleeps in the garden.", "A dog sleeps in the garden. A dog sleeps in the garden."] {
        let query = sparse(&app, &json!({"input": query, "input_type": "query", "expand": 0}));
        let score = dot(&query[0], &documents[2]);
        assert!((0.6..1.0).contains(&score), "{score}");
    }
    for document in &documents {
        assert!(document.indices.is_sorted_by(|a, b| a < b) && document.values.iter().all(|value| *value > 0.0));
    }
}

#[test]
fn embed_sparse_has_the_same_vectors_in_the_form_of_text_embeddings_inference() {
    let app = builtin();
    let texts = ["a dog", "", "ein Hund"];
    for (tei, own) in [(json!(null), "document"), (json!("query"), "query")] {
        let body = json!({"inputs": texts, "prompt_name": tei, "truncate": true});
        let (status, found) = post(&app, "/embed_sparse", &body);
        assert_eq!(status, 200, "{found}");
        let expected = sparse(&app, &json!({"input": texts, "input_type": own}));
        let found = found.as_array().unwrap();
        assert_eq!(found.len(), texts.len());
        for (found, expected) in found.iter().zip(&expected) {
            let entries: Vec<(u32, f32)> = found
                .as_array()
                .unwrap()
                .iter()
                .map(|entry| (entry["index"].as_u64().unwrap() as u32, entry["value"].as_f64().unwrap() as f32))
                .collect();
            let expected: Vec<(u32, f32)> =
                expected.indices.iter().copied().zip(expected.values.iter().copied()).collect();
            assert_eq!(entries, expected);
        }
    }
    let (_, one) = post(&app, "/embed_sparse", &json!({"inputs": "a dog"}));
    assert_eq!(one.as_array().unwrap().len(), 1);
    assert_eq!(post(&app, "/sparse-embeddings", &json!({"input": "a"})).0, 200);
}

#[test]
fn every_kind_of_table_has_sparse_vectors_without_the_tokens_of_its_template() {
    for name in ["llama", "gemma", "gpt-neox", "bloom"] {
        let app = TestApp::start(|c| c.models = vec![ModelConfig::new("m", checkpoint(name))]);
        let (_, tokens) = post(&app, "/v1/tokenize", &json!({"input": ["hello", ""]}));
        let ids = |index: usize| tokens["data"][index]["ids"].as_array().unwrap().clone();
        let own: BTreeSet<u64> =
            ids(0).iter().filter(|id| !ids(1).contains(id)).map(|id| id.as_u64().unwrap()).collect();
        for input_type in ["query", "document"] {
            let vectors = sparse(&app, &json!({"input": ["hello", ""], "input_type": input_type, "expand": 0}));
            let found: BTreeSet<u64> = vectors[0].indices.iter().map(|id| u64::from(*id)).collect();
            assert_eq!(found, own, "{name} {input_type}");
            assert!(vectors[1].indices.is_empty());
            let expanded = sparse(&app, &json!({"input": "hello", "input_type": "query", "expand": 5}));
            assert!(expanded[0].indices.len() >= own.len(), "{name}");
        }
    }
}

#[test]
fn requests_are_refused_with_the_field_at_fault() {
    let app = TestApp::start(|c| {
        c.server.max_inputs = 3;
        c.models = vec![
            ModelConfig::new("m", "builtin:default"),
            ModelConfig { max_input_tokens: Some(4), ..ModelConfig::new("short", "builtin:default") },
        ];
    });
    for (path, body, status, param) in [
        ("/v1/sparse-embeddings", json!({}), 400, "input"),
        ("/v1/sparse-embeddings", json!({"input": ["a", "b", "c", "d"]}), 400, "input"),
        ("/v1/sparse-embeddings", json!({"input": "a", "expand": 1000}), 400, "expand"),
        ("/v1/sparse-embeddings", json!({"input": "a", "model": "none"}), 404, "model"),
        ("/v1/sparse-embeddings", json!({"input": "one two three four five six", "model": "short"}), 400, "input"),
        ("/embed_sparse", json!({"input": "a"}), 400, "inputs"),
        ("/embed_sparse", json!({"inputs": ["a", 7]}), 400, "inputs"),
        ("/embed_sparse", json!({"inputs": "one two three four five six", "model": "short"}), 400, "inputs"),
    ] {
        let (found, answer) = post(&app, path, &body);
        assert_eq!((found, answer["error"]["param"].as_str()), (status, Some(param)), "{body}: {answer}");
    }
}

#[test]
fn keys_limit_models_and_tokens_and_the_metrics_count() {
    let app = TestApp::start(|c| {
        c.models = vec![ModelConfig::new("a", "builtin:default"), ModelConfig::new("b", checkpoint("llama"))];
        c.server.api_keys = ApiKeys::new(["sk-b b", "sk-few tokens_per_minute=3 a"].map(str::to_owned));
    });
    let send = |key: &str, body: &Value| app.send("/v1/sparse-embeddings", &[("x-api-key", key)], Some(body));
    assert_eq!(send("wrong", &json!({"input": "a"})).status, 401);
    assert_eq!(send("sk-b", &json!({"input": "a", "model": "a"})).status, 404);
    let answer = send("sk-b", &json!({"input": ["hello world", "hello"], "model": "b"}));
    assert_eq!(answer.status, 200);
    for stage in ["tokenize", "pool", "serialize"] {
        assert!(answer.header("server-timing").contains(stage), "{}", answer.header("server-timing"));
    }
    let refused = send("sk-few", &json!({"input": "one two three four five", "model": "a"}));
    let (status, _, code, param, _) = refused.error();
    assert_eq!((status, code, param), (413, Some("request_too_large"), Some("input")));
    let metrics = agent().get(app.url("/metrics")).call().unwrap().body_mut().read_to_string().unwrap();
    let counted = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name) && line.contains("model=\"b\""));
        line.unwrap().rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(counted("embedding_server_inputs_total{"), 2.0);
    let tokens = answer.body["usage"]["total_tokens"].as_f64().unwrap();
    assert_eq!(counted("embedding_server_tokens_total{"), tokens);
}

/// Each query needs passes over the table. A small request does not wait for them, and they end when their clients disconnect.
#[test]
fn a_large_request_yields_to_small_ones_and_ends_with_its_client() {
    let app = TestApp::start(|c| {
        c.server.threads = 2;
        c.models = vec![ModelConfig::new("m", "builtin:default")];
    });
    // Token IDs of all kinds, so that no query's neighbors are known from another.
    let query = |i: u32| (0..200).map(|j| format!(" {}", (i * 200 + j) * 7919 % 1_000_003)).collect::<String>();
    let queries: Vec<String> = (0..1000).map(query).collect();
    let body = json!({"input": queries, "input_type": "query"}).to_string();
    app.assert_that_large_requests_yield("/v1/sparse-embeddings", &body, 1e6);
}
