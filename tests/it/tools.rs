//! The endpoints that OpenAI's API does not have: tokens, similarities, models in the path, repeated slashes, and their
//! errors.

use embedding_server::config::ModelConfig;
use embedding_server::openai::{CreateEmbeddingResponse, CreateSimilarityResponse, CreateTokensResponse};
use layer0::embedder::TokenInput;
use serde_json::{Value, json};

use crate::common::{TestApp, checkpoint, difference, fixtures, length, same};

fn tokens(app: &TestApp, body: &Value) -> CreateTokensResponse {
    let answer = app.post("/v1/tokenize", "application/json", body.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{body}: {}", answer.body);
    serde_json::from_value(answer.body).unwrap()
}

fn similarity(app: &TestApp, body: &Value) -> CreateSimilarityResponse {
    let answer = app.post("/v1/similarity", "application/json", body.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{body}: {}", answer.body);
    serde_json::from_value(answer.body).unwrap()
}

/// For every tokenizer family, the IDs are those that are pooled, and the pieces join to the text.
#[test]
fn tokenize_returns_the_pooled_tokens_and_their_pieces_join_to_the_text() {
    let text = "Hello, wörld  안녕\n🦀 end";
    for name in ["llama", "gemma", "qwen2", "gpt-neox", "bloom", "mistral3"] {
        let app = TestApp::start(|c| {
            let own = ModelConfig { token_input: TokenInput::Model, ..ModelConfig::new("own", checkpoint(name)) };
            let bare = ModelConfig { special_tokens: Some(false), ..ModelConfig::new("bare", checkpoint(name)) };
            c.models = vec![ModelConfig::new("m", checkpoint(name)), own, bare];
        });
        let answer = tokens(&app, &json!({"input": [text, ""]}));
        let [first, empty] = &answer.data[..] else { panic!("{answer:?}") };
        assert_eq!((first.index, empty.index, answer.model.as_str()), (0, 1, "m"));
        for entry in &answer.data {
            assert_eq!((entry.ids.len(), entry.pieces.len()), (entry.count, entry.count), "{name}");
        }
        assert_eq!(answer.usage.total_tokens, first.count + empty.count);
        let embedded = app.embed(&json!({"input": [text, ""]}));
        assert_eq!(embedded.body["usage"]["total_tokens"], answer.usage.total_tokens, "{name}");
        let by_ids = app.vectors(&json!({"input": [first.ids], "model": "own"}));
        assert_eq!(by_ids[0], embedded.vectors()[0], "{name}");

        let bare = &tokens(&app, &json!({"input": text, "model": "bare"})).data[0];
        assert!(first.ids.ends_with(&bare.ids) || first.ids.starts_with(&bare.ids), "{name}");
        let spelled = joined(&bare.pieces);
        // Llama's tokenizers put a space before a text.
        let spelled = spelled.strip_prefix(' ').unwrap_or(&spelled);
        assert_eq!(spelled, text, "{name}: {:?}", bare.pieces);
    }
}

/// Joins pieces to a text, with pieces such as `<0xEC>` as single bytes.
fn joined(pieces: &[String]) -> String {
    let pieces = pieces.concat();
    let mut parts = pieces.split("<0x");
    let mut bytes = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend_from_slice(part[2..].strip_prefix('>').unwrap().as_bytes());
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn cl100k_token_ids_are_returned_as_the_models_own() {
    let app = TestApp::start(|_| {});
    let by_ids = tokens(&app, &json!({"input": [15339, 1917]}));
    assert_eq!(by_ids, tokens(&app, &json!({"input": "hello world"})));
}

/// Model2Vec leaves the unknown token out of its mean, so /v1/tokenize leaves it out too.
#[test]
fn a_token_that_is_not_pooled_is_not_returned() {
    let app = TestApp::start(|c| c.models = vec![ModelConfig::new("m", fixtures("static").join("model2vec"))]);
    for text in ["hello \u{10FFFD}", "the"] {
        let answer = tokens(&app, &json!({"input": text}));
        assert_eq!(app.embed(&json!({"input": text})).body["usage"]["total_tokens"], answer.data[0].count);
    }
}

/// One input has more tokens than a run of the response, and is written in several slices.
#[test]
fn all_tokens_of_long_inputs_are_returned() {
    let app = TestApp::start(|_| {});
    let long = "many tokens in one text, ".repeat(3000);
    let answer = tokens(&app, &json!({"input": ["a", long, "", "b"]}));
    let single = tokens(&app, &json!({"input": "a"}));
    assert_eq!(answer.data[0], single.data[0]);
    assert!(answer.data[1].count > 3 * 4096);
    assert_eq!(joined(&answer.data[1].pieces[1..]).trim_start(), long);
    assert_eq!(answer.data.iter().map(|entry| entry.count).sum::<usize>(), answer.usage.total_tokens);
    assert_eq!(answer.data.iter().map(|entry| entry.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn similarities_are_the_cosine_similarities_of_the_vectors() {
    let texts: Vec<String> = (0..40).map(|i| format!("text {i} {}", "word ".repeat(i * 20))).collect();
    // Vectors whose length is not 1 must have the same cosine similarities.
    let app = TestApp::start(|c| {
        let raw = ModelConfig { normalize: Some(false), ..ModelConfig::new("raw", checkpoint("llama")) };
        c.models = vec![ModelConfig::new("m", checkpoint("llama")), raw];
    });
    for dimensions in [16, 5] {
        let vectors = app.vectors(&json!({"input": texts, "dimensions": dimensions}));
        let cosine = |a: &[f32], b: &[f32]| {
            let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            (dot / length(a) / length(b)) as f32
        };
        for model in ["m", "raw"] {
            let body = json!({"input": texts, "dimensions": dimensions, "model": model});
            let answer = similarity(&app, &body);
            assert_eq!(answer.data.len(), texts.len());
            for (i, row) in answer.data.iter().enumerate() {
                let expected: Vec<f32> = vectors.iter().map(|v| cosine(&vectors[i], v)).collect();
                assert_eq!(row.index, i);
                assert!(difference(&row.similarity, &expected) < 1e-5, "{model} {i}");
                assert!(row.similarity.iter().all(|x| (-1.0..=1.0).contains(x)));
            }
            assert_eq!(answer.usage.total_tokens, app.embed(&json!({"input": texts})).body["usage"]["total_tokens"]);
        }
    }
    let all = similarity(&app, &json!({"input": texts}));
    let some = similarity(&app, &json!({"input": texts, "queries": [texts[7], texts[3]]}));
    assert_eq!(some.data.len(), 2);
    assert!(same(&some.data[0].similarity, &all.data[7].similarity));
    assert!(same(&some.data[1].similarity, &all.data[3].similarity));
}

#[test]
fn a_model_in_the_path_overrides_the_one_in_the_body() {
    let app = TestApp::start(|c| {
        c.models = vec![ModelConfig::new("a", checkpoint("llama")), ModelConfig::new("org/b c", checkpoint("gemma"))];
    });
    let body = json!({"input": "hello", "model": "a"});
    let expected = app.vectors(&json!({"input": "hello", "model": "org/b c"}));
    for path in [
        "/v1/engines/org%2Fb%20c/embeddings",
        "/openai/deployments/org%2Fb%20c/embeddings?api-version=2024-10-21",
        "/openai/deployments/org%2Fb%20c/embeddings",
    ] {
        let answer = app.post(path, "application/json", body.to_string().as_bytes());
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        assert_eq!(answer.body["model"], "org/b c");
        assert_eq!(answer.vectors(), expected);
        serde_json::from_value::<CreateEmbeddingResponse>(answer.body).unwrap();
    }
    for path in ["/v1/engines/none/embeddings", "/openai/deployments/none/embeddings?api-version=1"] {
        let answer = app.post(path, "application/json", body.to_string().as_bytes());
        let (status, _, code, param, _) = answer.error();
        assert_eq!((status, code, param), (404, Some("model_not_found"), Some("model")), "{path}");
    }
    for path in ["/v1/models/%FF", "/v1/engines/%FF/embeddings"] {
        let answer = if path.contains("engines") {
            app.post(path, "application/json", body.to_string().as_bytes())
        } else {
            app.get(path)
        };
        assert_eq!(answer.error().0, 400, "{path}");
    }
}

/// Open WebUI appends `/embeddings` to a base URL that ends in a slash.
#[test]
fn repeated_slashes_count_as_one() {
    let app = TestApp::start(|_| {});
    let body = br#"{"input":"hello"}"#;
    let expected = app.vectors(&json!({"input": "hello"}));
    for path in ["/v1//embeddings", "//v1/embeddings", "///v1///embeddings", "/v1//embeddings?a=//b"] {
        assert_eq!(app.post(path, "application/json", body).vectors(), expected, "{path}");
    }
    assert_eq!(app.get("//v1//models//text-embedding-3-small").status, 200);
    assert_eq!(app.get("//v1//").error().2, Some("unknown_url"));
}

#[test]
fn invalid_requests_are_refused_in_openais_format() {
    let app = TestApp::start(|c| {
        c.server.max_inputs = 3;
        c.models[0].max_input_tokens = Some(20);
    });
    let many = json!(["a", "b", "c", "d"]);
    let long = "word ".repeat(50);
    for (body, param) in [
        (json!({}), None),
        (json!({"input": []}), Some("input")),
        (json!({"input": [[], {}]}), Some("input")),
        (json!({"input": null}), Some("input")),
        (json!({"input": many}), Some("input")),
        (json!({"input": long}), Some("input")),
        (json!({"input": [4_000_000_000u32]}), Some("input")),
        (json!({"input": "a", "model": 1}), Some("model")),
    ] {
        for path in ["/v1/tokenize", "/v1/similarity", "/v1/engines/text-embedding-3-small/embeddings"] {
            let answer = app.post(path, "application/json", body.to_string().as_bytes());
            let (status, kind, _, found, message) = answer.error();
            assert_eq!((status, kind), (400, "invalid_request_error"), "{path} {body}: {message}");
            assert!(param.is_none() || path.contains("engines") || found == param, "{path} {body}: {found:?}");
        }
    }
    for (body, param) in [
        (json!({"input": "a", "queries": []}), "queries"),
        (json!({"input": "a", "queries": {}}), "queries"),
        (json!({"input": "a", "queries": many}), "queries"),
        (json!({"input": "a", "queries": ["b", long]}), "queries"),
        (json!({"input": ["b", long], "queries": "a"}), "input"),
        (json!({"input": "a", "dimensions": 17}), "dimensions"),
        (json!({"input": "a", "dimensions": 0}), "dimensions"),
    ] {
        let answer = app.post("/v1/similarity", "application/json", body.to_string().as_bytes());
        let (status, _, _, found, message) = answer.error();
        assert_eq!((status, found), (400, Some(param)), "{body}: {message}");
    }
    for path in ["/v1/tokenize", "/v1/similarity"] {
        let not_found = app.post(path, "application/json", br#"{"input":"a","model":"none"}"#);
        assert_eq!(not_found.error().2, Some("model_not_found"), "{path}");
        assert_eq!(app.post(path, "text/plain", b"{}").error().0, 415, "{path}");
        assert_eq!(app.post(path, "application/json", b"{").error().0, 400, "{path}");
        assert_eq!(app.get(path).error().2, Some("method_not_supported"), "{path}");
    }
}
