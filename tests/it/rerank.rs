//! POST /v1/rerank: the shapes of its requests and responses, and what it refuses.

use embedding_server::config::ModelConfig;
use embedding_server::keys::ApiKeys;
use embedding_server::openai::{CreateRerankResponse, CreateSimilarityResponse};
use serde_json::{Value, json};

use crate::common::{TestApp, agent, checkpoint};

const DOCUMENTS: [&str; 4] = ["a b c", "hello world", "hello", "x y z"];

fn builtin() -> TestApp {
    TestApp::start(|c| c.models = vec![ModelConfig::new("m", "builtin:default")])
}

fn post(app: &TestApp, path: &str, body: &Value) -> (u16, Value) {
    let response = app.post(path, "application/json", body.to_string().as_bytes());
    (response.status, response.body)
}

fn rerank(app: &TestApp, body: &Value) -> CreateRerankResponse {
    let (status, answer) = post(app, "/v1/rerank", body);
    assert_eq!(status, 200, "{body}: {answer}");
    serde_json::from_value(answer).unwrap()
}

#[test]
fn results_are_sorted_and_name_the_documents_by_their_position() {
    let app = builtin();
    let answer = rerank(&app, &json!({"query": "hello", "documents": DOCUMENTS, "model": "m"}));
    let order: Vec<usize> = answer.results.iter().map(|result| result.index).collect();
    assert_eq!(order[..2], [2, 1], "{answer:?}");
    assert!(answer.results.is_sorted_by(|a, b| a.relevance_score >= b.relevance_score));
    assert!(answer.results.iter().all(|result| (0.0..=1.0).contains(&result.relevance_score)));
    assert_eq!(answer.results.len(), DOCUMENTS.len());
    assert_eq!((answer.model.as_str(), answer.meta.billed_units.search_units), ("m", 1));
    let texts = [&["hello"][..], &DOCUMENTS].concat();
    let embedded = app.embed(&json!({"input": texts}));
    assert_eq!(answer.usage.total_tokens, embedded.body["usage"]["total_tokens"]);
    assert!(answer.id.starts_with("rerank-"));
}

#[test]
fn documents_are_repeated_only_if_asked_for_and_top_n_cuts_the_rest() {
    let app = builtin();
    let (_, plain) = post(&app, "/v1/rerank", &json!({"query": "hello", "documents": DOCUMENTS}));
    assert!(plain["results"][0].get("document").is_none(), "{plain}");
    let objects: Vec<Value> = DOCUMENTS.iter().map(|text| json!({"text": text, "id": 7})).collect();
    let body = json!({"query": "hello", "documents": objects, "top_n": 2, "return_documents": true});
    let answer = rerank(&app, &body);
    assert_eq!(answer.results.len(), 2);
    for result in &answer.results {
        assert_eq!(result.document.as_ref().unwrap().text, DOCUMENTS[result.index]);
    }
    let all = rerank(&app, &json!({"query": "hello", "documents": DOCUMENTS, "top_n": 0}));
    assert_eq!(all.results.len(), DOCUMENTS.len());
    for (a, b) in answer.results.iter().zip(&all.results) {
        assert_eq!((a.index, a.relevance_score), (b.index, b.relevance_score));
    }
}

#[test]
fn every_path_answers_and_texts_get_the_shape_of_text_embeddings_inference() {
    let app = builtin();
    let body = json!({"query": "hello", "documents": DOCUMENTS});
    for path in ["/v1/rerank", "/v2/rerank", "/rerank", "/v1/rerank/"] {
        assert_eq!(post(&app, path, &body).0, 200, "{path}");
    }
    let (status, ranks) = post(&app, "/rerank", &json!({"query": "hello", "texts": DOCUMENTS, "raw_scores": false}));
    assert_eq!(status, 200, "{ranks}");
    let cohere = rerank(&app, &body);
    assert_eq!(ranks.as_array().unwrap().len(), DOCUMENTS.len());
    for (rank, result) in ranks.as_array().unwrap().iter().zip(&cohere.results) {
        assert_eq!(rank["index"], result.index);
        assert!((rank["score"].as_f64().unwrap() - f64::from(result.relevance_score)).abs() < 1e-7);
        assert!(rank.get("text").is_none());
    }
    let (_, ranks) = post(&app, "/rerank", &json!({"query": "hello", "texts": DOCUMENTS, "return_text": true}));
    assert_eq!(ranks[0]["text"], "hello");
}

#[test]
fn the_cosine_method_is_the_similarity_of_the_embeddings_endpoint() {
    let app = builtin();
    let answer = rerank(&app, &json!({"query": "hello", "documents": DOCUMENTS, "method": "cosine"}));
    let (_, matrix) = post(&app, "/v1/similarity", &json!({"queries": ["hello"], "input": DOCUMENTS}));
    let matrix: CreateSimilarityResponse = serde_json::from_value(matrix).unwrap();
    for result in answer.results {
        let expected = matrix.data[0].similarity[result.index].max(0.0);
        assert!((result.relevance_score - expected).abs() < 1e-6, "{result:?} {expected}");
    }
    for (method, other) in [("soft", "lexical"), ("lexical", "combined"), ("combined", "soft")] {
        let scores =
            |method| rerank(&app, &json!({"query": "hello", "documents": DOCUMENTS, "method": method})).results;
        assert_ne!(scores(method), scores(other), "{method}");
    }
}

#[test]
fn requests_that_cannot_be_ranked_are_refused_with_the_field_at_fault() {
    let app = TestApp::start(|c| {
        c.server.max_inputs = 3;
        c.models = vec![
            ModelConfig::new("m", "builtin:default"),
            ModelConfig { max_input_tokens: Some(4), ..ModelConfig::new("short", "builtin:default") },
        ];
    });
    for (body, status, param) in [
        (json!({"documents": ["a"]}), 400, "query"),
        (json!({"query": "a"}), 400, "documents"),
        (json!({"query": "a", "documents": []}), 400, "documents"),
        (json!({"query": "a", "documents": ["a", null]}), 400, "documents"),
        (json!({"query": "a", "documents": ["a", "b", "c", "d"]}), 400, "documents"),
        (json!({"query": "a", "documents": ["a"], "method": "best"}), 400, "method"),
        (json!({"query": "a", "documents": ["a"], "model": "none"}), 404, "model"),
        (json!({"query": "a", "documents": ["one two three four five six"], "model": "short"}), 400, "documents"),
    ] {
        let (found, answer) = post(&app, "/v1/rerank", &body);
        assert_eq!((found, answer["error"]["param"].as_str()), (status, Some(param)), "{body}: {answer}");
    }
}

#[test]
fn every_kind_of_table_ranks() {
    for name in ["llama", "gemma", "gpt-neox", "bloom"] {
        let app = TestApp::start(|c| c.models = vec![ModelConfig::new("m", checkpoint(name))]);
        for method in ["combined", "soft", "lexical", "cosine"] {
            let answer = rerank(&app, &json!({"query": "hello", "documents": DOCUMENTS, "method": method}));
            assert_eq!(answer.results.len(), DOCUMENTS.len(), "{name} {method}");
            assert_eq!(answer.results[0].index, 2, "{name} {method}: {answer:?}");
        }
    }
}

#[test]
fn keys_limit_models_and_tokens_as_for_embeddings() {
    let app = TestApp::start(|c| {
        c.models = vec![ModelConfig::new("a", "builtin:default"), ModelConfig::new("b", checkpoint("llama"))];
        c.server.api_keys = ApiKeys::new(["sk-b b", "sk-few tokens_per_minute=3 a"].map(str::to_owned));
    });
    let send = |key: &str, body: &Value| app.send("/v1/rerank", &[("x-api-key", key)], Some(body));
    let body = json!({"query": "hello", "documents": DOCUMENTS, "model": "a"});
    assert_eq!(send("wrong", &body).status, 401);
    assert_eq!(send("sk-b", &body).status, 404);
    assert_eq!(send("sk-b", &json!({"query": "hello", "documents": DOCUMENTS, "model": "b"})).status, 200);
    let answer = send("sk-few", &body);
    let (status, _, code, param, _) = answer.error();
    assert_eq!((status, code, param), (413, Some("request_too_large"), Some("documents")));
}

#[test]
fn a_response_reports_its_stages_and_metrics_count_its_tokens() {
    let app = builtin();
    let answer = app.post(
        "/v1/rerank",
        "application/json",
        json!({"query": "a", "documents": DOCUMENTS}).to_string().as_bytes(),
    );
    for stage in ["tokenize", "pool", "serialize"] {
        assert!(answer.header("server-timing").contains(stage), "{}", answer.header("server-timing"));
    }
    let tokens = answer.body["usage"]["total_tokens"].as_u64().unwrap();
    let metrics = agent().get(app.url("/metrics")).call().unwrap().body_mut().read_to_string().unwrap();
    let line = metrics.lines().find(|line| line.starts_with("embedding_server_tokens_total{")).unwrap();
    assert!(line.ends_with(&format!(" {tokens}")), "{line}");
}

/// Two threads each rank documents of 8 MB. A small request does not wait for them, and their work ends when their clients disconnect.
#[test]
fn a_large_request_yields_to_small_ones_and_ends_with_its_client() {
    let app = TestApp::start(|c| {
        c.server.threads = 2;
        c.models = vec![ModelConfig::new("m", checkpoint("llama"))];
    });
    let document = "hello world a b c ".repeat(1 << 15);
    let long = json!({"query": document, "documents": vec![&document; 16]}).to_string();
    app.assert_that_large_requests_yield("/v1/rerank", &long, (16 << 20) as f64);
}

#[test]
fn the_best_span_of_a_long_document_is_where_the_query_is_answered() {
    let app = builtin();
    let filler = "The council discussed the budget of the harbor at length. ".repeat(40);
    let answer = "Die Pflanze erzeugt Zucker aus Licht";
    let long = format!("{filler}🌱 {answer}. {filler}");
    let documents = [long.as_str(), "xyzzy", "", "Plants make food from light."];
    let body = json!({"query": "How do plants make sugar from light?", "documents": documents, "return_spans": true});
    for method in ["combined", "soft", "lexical", "cosine"] {
        let mut body = body.clone();
        body["method"] = json!(method);
        let results = rerank(&app, &body).results;
        let span = |index: usize| results.iter().find(|result| result.index == index).unwrap().span;
        let of = |index: usize| {
            let span = span(index).unwrap();
            documents[index].chars().skip(span.start).take(span.end - span.start).collect::<String>()
        };
        assert!(of(0).contains(answer) && of(0).len() < 300, "{method}: {:?}", of(0));
        assert_eq!(of(3), documents[3], "{method}");
        assert_eq!(span(2), None, "{method}");
    }
    let body = json!({"query": "sugar from light", "documents": [long], "top_n": 1, "return_spans": true});
    assert!(rerank(&app, &body).results[0].span.is_some());
    let body = json!({"query": "sugar from light", "texts": [long], "return_spans": true});
    let (_, ranks) = post(&app, "/rerank", &body);
    assert!(ranks[0]["span"]["end"].as_u64() > ranks[0]["span"]["start"].as_u64(), "{ranks}");
    let body = json!({"query": "sugar from light", "documents": [long]});
    assert!(post(&app, "/v1/rerank", &body).1["results"][0].get("span").is_none());
}

#[test]
fn tokens_have_their_shares_of_the_score() {
    let app = builtin();
    let documents = ["Der Hund schläft im Garten.", "The market fell.", ""];
    let body = json!({"query": "a sleeping dog", "documents": documents, "return_tokens": true});
    for method in ["combined", "cosine"] {
        let mut body = body.clone();
        body["method"] = json!(method);
        let results = rerank(&app, &body).results;
        let tokens = |index: usize| {
            let result = results.iter().find(|result| result.index == index).unwrap();
            result.tokens.clone().unwrap()
        };
        let found = tokens(0);
        assert_eq!(found.iter().map(|token| token.text.as_str()).collect::<String>().trim(), documents[0]);
        assert!((found.iter().map(|token| token.share).sum::<f32>() - 1.0).abs() < 1e-4, "{found:?}");
        let best = found.iter().max_by(|a, b| a.share.total_cmp(&b.share)).unwrap();
        assert!([" Hund", " schläft", " schl"].contains(&best.text.as_str()), "{found:?}");
        assert!(tokens(2).is_empty());
    }
    let plain = post(&app, "/v1/rerank", &json!({"query": "a", "documents": documents})).1;
    assert!(plain["results"][0].get("tokens").is_none());
}
