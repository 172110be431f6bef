//! The HTTP API against OpenAI's contract, over a socket.

use std::io::{Read, Write};
use std::net::TcpStream;

use embedding_server::config::ModelConfig;
use embedding_server::config::units::ByteCount;
use layer0::embedder::{EmptyInput, TokenInput};
use serde_json::json;

use crate::common::{Answer, TestApp, agent, checkpoint, difference, length};

fn app() -> TestApp {
    TestApp::start(|_| {})
}

#[test]
fn the_documented_request_gets_a_response_in_openais_format() {
    let answer = app().embed(&json!({"input": "hello", "model": "text-embedding-3-small"}));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "application/json");
    let body = answer.body.as_object().unwrap();
    assert_eq!(body["object"], "list");
    assert_eq!(body["model"], "text-embedding-3-small");
    assert_eq!(body["usage"]["prompt_tokens"], body["usage"]["total_tokens"]);
    assert!(body["usage"]["prompt_tokens"].as_u64().unwrap() > 0);
    let vectors = answer.vectors();
    assert_eq!((vectors.len(), vectors[0].len()), (1, 16));
    assert!((length(&vectors[0]) - 1.0).abs() < 1e-6);
}

#[test]
fn all_four_shapes_of_input_are_accepted() {
    let app = app();
    for (input, count) in
        [(json!("a"), 1), (json!(["a", "b"]), 2), (json!([15339, 1917]), 1), (json!([[15339], [1917, 220]]), 2)]
    {
        assert_eq!(app.vectors(&json!({"input": input})).len(), count, "{input}");
    }
}

#[test]
fn cl100k_token_ids_get_the_vector_of_their_text() {
    let app = app();
    let ids = app.embed(&json!({"input": [[15339, 1917], [9080, 22656, 91416]]}));
    let texts = app.embed(&json!({"input": ["hello world", "日本 😀"]}));
    assert_eq!(ids.vectors(), texts.vectors());
    assert_eq!(ids.body["usage"], texts.body["usage"]);
}

#[test]
fn token_ids_for_more_text_than_max_body_are_refused_before_they_are_decoded() {
    let app = TestApp::start(|c| {
        c.server.max_body = ByteCount(100_000);
        c.server.max_in_flight = ByteCount(100_000);
        let own = ModelConfig { token_input: TokenInput::Model, ..ModelConfig::new("own", checkpoint("llama")) };
        let capped = ModelConfig { max_input_tokens: Some(100), ..ModelConfig::new("capped", checkpoint("llama")) };
        c.models.extend([own, capped]);
    });
    // Each token ID stands for 128 spaces.
    for (path, field) in [("/v1/embeddings", "input"), ("/v1/tokenize", "input"), ("/v1/similarity", "queries")] {
        let mut body = json!({"input": "a"});
        for ids in [json!(vec![58_040; 800]), json!(vec![vec![58_040; 80]; 10])] {
            body[field] = ids;
            let answer = app.post(path, "application/json", body.to_string().as_bytes());
            let (status, kind, code, param, message) = answer.error();
            assert_eq!((status, kind, code), (413, "invalid_request_error", Some("request_too_large")), "{message}");
            assert_eq!(param, Some(field));
            assert!(message.contains("stand for a text of") && message.contains("max_body"), "{message}");
        }
    }
    assert_eq!(app.embed(&json!({"input": vec![58_040; 700]})).status, 200);
    assert_eq!(app.embed(&json!({"input": vec![7; 10_000], "model": "own"})).status, 200);
    // The text is just within the limit, and is known to have too many tokens before all of them are made.
    let answer = app.embed(&json!({"input": ["", "a b ".repeat(20_000)], "model": "capped"}));
    let (status, _, _, param, message) = answer.error();
    assert_eq!((status, param), (400, Some("input")));
    assert!(message.contains("maximum input length is 100 tokens, and input 1 has more;"), "{message}");
}

#[test]
fn unpaired_surrogates_and_a_byte_order_mark_are_accepted() {
    let app = app();
    let post = |body: &[u8]| app.post("/v1/embeddings", "application/json", body);
    let answer = post(br#"{"input":["ok","bad \ud83d"],"model":"","encoding_format":null,"user":"\udc00"}"#);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.vectors(), app.vectors(&json!({"input": ["ok", "bad \u{fffd}"]})));
    let long = format!("\u{feff}{{\"input\":\"{}\"}}", "a \\ud83d ".repeat(10_000));
    assert_eq!(post(long.as_bytes()).vectors(), app.vectors(&json!({"input": "a \u{fffd} ".repeat(10_000)})));
    for (body, param, begin) in [
        (&br#"{"model":"text-embedding-3-small"}"#[..], Some("input"), "'input' is missing: it must be a string,"),
        (br#"{"input":["a",null]}"#, Some("input"), "input[1] is null"),
        (br#"{"input":"a""#, None, "We could not parse the JSON body of your request: it ends"),
        (b"", None, "We could not parse the JSON body of your request: it is empty."),
    ] {
        let answer = post(body);
        let (status, kind, _, found, message) = answer.error();
        assert_eq!((status, kind, found), (400, "invalid_request_error", param), "{message}");
        assert!(message.starts_with(begin), "{message}");
    }
    let answer = app.embed(&json!({"input": "a", "model": "m".repeat(1 << 20)}));
    let (status, .., message) = answer.error();
    assert!(status == 404 && message.len() < 300, "{}", message.len());
}

#[test]
fn a_list_over_the_limit_is_refused_for_its_length_before_its_items_are_checked() {
    let app = TestApp::start(|c| c.server.max_inputs = 10);
    for item in [json!(""), json!([]), json!("a"), json!([1])] {
        let answer = app.embed(&json!({"input": vec![item; 10_000]}));
        let (status, _, _, param, message) = answer.error();
        assert_eq!((status, param), (400, Some("input")));
        assert!(message.contains("holds 10000 inputs"), "{message}");
    }
    let body = json!({"input": "a", "queries": vec![""; 11]}).to_string();
    let answer = app.post("/v1/similarity", "application/json", body.as_bytes());
    assert_eq!((answer.status, answer.error().3), (400, Some("queries")));
}

#[test]
fn base64_has_the_same_bits_as_the_floats() {
    let app = app();
    let input = json!(["a", "안녕하세요", "a longer text with more tokens in it", ""]);
    let floats = app.vectors(&json!({"input": input}));
    let explicit = app.vectors(&json!({"input": input, "encoding_format": "float"}));
    let base64 = app.embed(&json!({"input": input, "encoding_format": "base64"}));
    assert!(base64.body["data"][0]["embedding"].is_string());
    let bits = |vectors: &[Vec<f32>]| vectors.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&floats), bits(&base64.vectors()));
    assert_eq!(bits(&floats), bits(&explicit));
}

#[test]
fn dimensions_are_a_renormalized_prefix() {
    let app = app();
    let whole = &app.vectors(&json!({"input": "some text"}))[0];
    for k in [1, 5, 16] {
        let prefix = &app.vectors(&json!({"input": "some text", "dimensions": k}))[0];
        let expected: Vec<f32> = whole[..k].iter().map(|x| (f64::from(*x) / length(&whole[..k])) as f32).collect();
        assert!(difference(prefix, &expected) < 1e-6);
    }
    for k in [json!(0), json!(17), json!(u64::MAX), json!(-1), json!(1.5), json!("3")] {
        let answer = app.embed(&json!({"input": "a", "dimensions": k}));
        let (status, kind, _, param, _) = answer.error();
        assert_eq!((status, kind, param), (400, "invalid_request_error", Some("dimensions")), "{k}");
    }
}

#[test]
fn a_text_without_tokens_gets_the_first_unit_vector_and_zero_usage() {
    // Qwen's tokenizer adds no BOS token.
    let app = TestApp::start(|c| c.models = vec![ModelConfig::new("m", checkpoint("qwen"))]);
    let answer = app.embed(&json!({"input": ["", "a"], "dimensions": 3}));
    assert_eq!(answer.vectors()[0], [1.0, 0.0, 0.0]);
    let one = app.embed(&json!({"input": "a"}));
    assert_eq!(answer.body["usage"], one.body["usage"]);
}

#[test]
fn empty_inputs_can_be_refused() {
    // The first model's tokenizer adds a BOS token to every text, and the second one's does not.
    for name in ["llama", "qwen"] {
        let app = TestApp::start(|c| {
            let strict =
                |id: &str| ModelConfig { empty_input: EmptyInput::Reject, ..ModelConfig::new(id, checkpoint(name)) };
            c.models = vec![strict("m"), ModelConfig { token_input: TokenInput::Model, ..strict("own") }];
        });
        for (model, input) in [("m", json!(["a", ""])), ("m", json!([[15339], []])), ("own", json!([[1], []]))] {
            let answer = app.embed(&json!({"input": input, "model": model}));
            let (status, kind, _, param, message) = answer.error();
            assert_eq!((status, kind, param), (400, "invalid_request_error", Some("input")), "{input}");
            assert!(message.starts_with("input 1 is empty") && message.contains("empty_input"), "{message}");
        }
        let body = json!({"input": "a", "queries": ["b", ""]}).to_string();
        let answer = app.post("/v1/similarity", "application/json", body.as_bytes());
        assert_eq!((answer.status, answer.error().3), (400, Some("queries")));
        assert_eq!(app.embed(&json!({"input": ["a", " b"]})).status, 200);
    }
}

#[test]
fn model_settings_change_the_vectors_as_documented() {
    let app = TestApp::start(|c| {
        let model = |id: &str| ModelConfig::new(id, checkpoint("llama"));
        c.models = vec![
            model("plain"),
            ModelConfig { normalize: Some(false), ..model("raw") },
            ModelConfig { special_tokens: Some(false), ..model("bare") },
            ModelConfig { dimensions: Some(4), ..model("short") },
            ModelConfig { max_input_tokens: Some(4), ..model("capped") },
        ];
    });
    let of = |model: &str| app.embed(&json!({"input": "hello", "model": model}));
    let (plain, raw, bare, short) = (of("plain"), of("raw"), of("bare"), of("short"));
    let tokens = |a: &crate::common::Answer| a.body["usage"]["total_tokens"].as_u64().unwrap();
    assert_eq!(tokens(&plain), tokens(&bare) + 1, "the BOS");
    assert!(difference(&plain.vectors()[0], &bare.vectors()[0]) > 1e-3);
    let raw = &raw.vectors()[0];
    assert!((length(raw) - 1.0).abs() > 1e-3);
    let scaled: Vec<f32> = raw.iter().map(|x| (f64::from(*x) / length(raw)) as f32).collect();
    assert!(difference(&scaled, &plain.vectors()[0]) < 1e-6);
    assert_eq!(short.vectors()[0].len(), 4);
    assert_eq!(app.vectors(&json!({"input": "hello", "model": "short", "dimensions": 16})), plain.vectors());
    let capped = app.embed(&json!({"input": ["", "hello hello hello hello"], "model": "capped"}));
    let (status, _, _, param, message) = capped.error();
    assert_eq!((status, param), (400, Some("input")));
    assert!(message.contains("max_input_tokens") && message.contains("input 1"), "{message}");
}

#[test]
fn token_ids_of_the_models_vocabulary_are_range_checked_and_can_be_refused() {
    let app = TestApp::start(|c| {
        let model = |id: &str| ModelConfig::new(id, checkpoint("llama"));
        c.models = vec![
            ModelConfig { token_input: TokenInput::Model, ..model("own") },
            ModelConfig { token_input: TokenInput::Reject, ..model("none") },
        ];
    });
    assert_eq!(app.embed(&json!({"input": [1, 5, 7], "model": "own"})).body["usage"]["total_tokens"], 3);
    let answer = app.embed(&json!({"input": [[1], [2, 100_000]], "model": "own"}));
    let (status, _, _, param, message) = answer.error();
    assert_eq!((status, param), (400, Some("input")));
    assert!(message.contains("100000") && message.contains("position 1 of input 1"), "{message}");
    let answer = app.embed(&json!({"input": [1], "model": "none"}));
    assert!(answer.error().4.contains("check_embedding_ctx_length=False"), "{:?}", answer.error());
    assert_eq!(answer.status, 400);
    assert_eq!(app.embed(&json!({"input": "text", "model": "none"})).status, 200);
}

#[test]
fn a_token_without_a_row_is_neither_pooled_nor_counted() {
    let app = TestApp::start(|c| c.models = vec![ModelConfig::new("m", checkpoint("gemma3-added-token"))]);
    let tokenizer: serde_json::Value =
        serde_json::from_slice(&std::fs::read(checkpoint("gemma3-added-token").join("tokenizer.json")).unwrap())
            .unwrap();
    let added = tokenizer["added_tokens"].as_array().unwrap().iter().max_by_key(|t| t["id"].as_u64()).unwrap();
    let content = added["content"].as_str().unwrap();
    let with = app.embed(&json!({"input": format!("hello{content}")}));
    let without = app.embed(&json!({"input": "hello"}));
    assert_eq!(with.body["usage"], without.body["usage"]);
    assert_eq!(with.vectors(), without.vectors());
}

#[test]
fn models_are_listed_and_found_under_every_name_and_url_encoding() {
    let app = TestApp::start(|c| {
        c.models = vec![ModelConfig {
            aliases: vec!["org/other name".to_owned()],
            ..ModelConfig::new("org/name", checkpoint("llama"))
        }];
    });
    let list = app.get("/v1/models");
    let ids: Vec<_> = list.body["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["org/name", "org/other name"]);
    for path in ["/v1/models/org/name", "/v1/models/org%2Fname"] {
        let answer = app.get(path);
        assert_eq!((answer.status, answer.body["id"].as_str()), (200, Some("org/name")), "{path}");
        assert_eq!(answer.body["object"], "model");
        assert!(answer.body["created"].as_u64().unwrap() > 1_700_000_000);
        assert!(answer.body["owned_by"].is_string());
    }
    assert_eq!(app.get("/v1/models/org%2Fother%20name").status, 200);
    assert_eq!(app.embed(&json!({"input": "a", "model": "org/other name"})).body["model"], "org/other name");
    assert_eq!(app.get("/v1/models/other").error().2, Some("model_not_found"));
}

#[test]
fn a_request_without_model_gets_the_default_and_an_unknown_model_is_404() {
    let app = TestApp::start(|c| {
        c.models = vec![ModelConfig::new("a", checkpoint("llama")), ModelConfig::new("b", checkpoint("gemma"))];
        c.default_model = Some("b".to_owned());
    });
    assert_eq!(app.embed(&json!({"input": "x"})).body["model"], "b");
    assert_eq!(app.vectors(&json!({"input": "x"})), app.vectors(&json!({"input": "x", "model": "b"})));
    assert_ne!(app.vectors(&json!({"input": "x"})), app.vectors(&json!({"input": "x", "model": "a"})));
    let answer = app.embed(&json!({"input": "x", "model": "gpt-9"}));
    let (status, kind, code, param, message) = answer.error();
    assert_eq!((status, kind, code, param), (404, "invalid_request_error", Some("model_not_found"), Some("model")));
    assert!(message.contains("gpt-9"));
}

#[test]
fn every_invalid_request_gets_an_openai_error() {
    let app = app();
    let json = "application/json";
    /// A path, content type and body, and the status, code and param of the response.
    type Case = (&'static str, &'static str, &'static [u8], u16, Option<&'static str>, Option<&'static str>);
    let cases: [Case; 14] = [
        ("/v1/embeddings", json, b"{\"input\":", 400, None, None),
        ("/v1/embeddings", json, b"", 400, None, None),
        ("/v1/embeddings", json, b"[]", 400, None, None),
        ("/v1/embeddings", json, b"{}", 400, None, None),
        ("/v1/embeddings", json, b"{\"input\":\"\xff\"}", 400, None, None),
        ("/v1/embeddings", json, b"{\"input\":[]}", 400, None, Some("input")),
        ("/v1/embeddings", json, b"{\"input\":null}", 400, None, Some("input")),
        ("/v1/embeddings", json, b"{\"input\":[[1.5]]}", 400, None, Some("input")),
        ("/v1/embeddings", json, b"{\"input\":[100256]}", 400, None, Some("input")),
        ("/v1/embeddings", json, b"{\"input\":\"a\",\"encoding_format\":\"hex\"}", 400, None, Some("encoding_format")),
        ("/v1/embeddings", "text/plain", b"{\"input\":\"a\"}", 415, Some("unsupported_content_type"), None),
        (
            "/v1/embeddings",
            "application/x-www-form-urlencoded",
            b"{\"input\":\"a\"}",
            415,
            Some("unsupported_content_type"),
            None,
        ),
        ("/v1/completions", json, b"{}", 404, Some("unknown_url"), None),
        ("/v1/models", json, b"{}", 405, Some("method_not_supported"), None),
    ];
    for (path, content_type, body, status, code, param) in cases {
        let answer = app.post(path, content_type, body);
        let what = format!("{path} {}", String::from_utf8_lossy(body));
        let found = answer.error();
        assert_eq!((found.0, found.1, found.2), (status, "invalid_request_error", code), "{what}: {}", found.4);
        if param.is_some() {
            assert_eq!(found.3, param, "{what}: {}", found.4);
        }
        assert!(answer.header("x-request-id").starts_with("req_"), "{what}");
    }
    assert_eq!(app.get("/v1/embeddings").error().0, 405);
    assert!(app.get("/v1/embeddings").header("allow").contains("POST"));
    // A content type of another JSON dialect, and no content type at all, also count as JSON.
    for content_type in ["application/json; charset=utf-8", "application/vnd.api+json", "APPLICATION/JSON"] {
        assert_eq!(app.post("/v1/embeddings", content_type, b"{\"input\":\"a\"}").status, 200, "{content_type}");
    }
}

#[test]
fn too_many_inputs_are_refused_with_the_name_of_the_setting() {
    let app = TestApp::start(|c| c.server.max_inputs = 3);
    assert_eq!(app.embed(&json!({"input": ["a", "b", "c"]})).status, 200);
    let answer = app.embed(&json!({"input": ["a", "b", "c", "d"]}));
    let (status, _, _, param, message) = answer.error();
    assert_eq!((status, param), (400, Some("input")));
    assert!(message.contains("max_inputs"), "{message}");
}

/// The client writes its whole body before it reads, as HTTP libraries do, and must still receive the response.
#[test]
fn a_client_can_read_the_response_to_a_body_over_the_limit() {
    let app = TestApp::start(|c| c.server.max_body = ByteCount(1 << 20));
    let body = vec![b' '; 24 << 20];
    for framing in ["announced", "chunked"] {
        let mut stream = TcpStream::connect(&app.address).unwrap();
        let head = "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n";
        if framing == "announced" {
            write!(stream, "{head}content-length: {}\r\n\r\n", body.len()).unwrap();
            stream.write_all(&body).unwrap();
        } else {
            write!(stream, "{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n", body.len()).unwrap();
            stream.write_all(&body).unwrap();
            stream.write_all(b"\r\n0\r\n\r\n").unwrap();
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 413"), "{framing}: {answer}");
        assert!(answer.contains("max_body") && answer.contains("1.0 MiB"), "{framing}: {answer}");
        assert!(answer.contains("content-type: application/json"), "{framing}: {answer}");
    }
    let exact = format!("{{\"input\":\"a\"}}{}", " ".repeat((1 << 20) - 13));
    assert_eq!(app.post("/v1/embeddings", "application/json", exact.as_bytes()).status, 200);
}

#[test]
fn a_large_batch_is_streamed_completely_and_in_order() {
    let app = app();
    let texts: Vec<String> = (0..2048).map(|i| format!("text number {i} {}", "word ".repeat(i % 40))).collect();
    let answer = app.embed(&json!({"input": texts}));
    let vectors = answer.vectors();
    assert_eq!(vectors.len(), 2048);
    for i in [0, 1, 777, 2047] {
        assert_eq!(app.vectors(&json!({"input": texts[i]}))[0], vectors[i], "{i}");
    }
    let tokens = answer.body["usage"]["total_tokens"].as_u64().unwrap();
    assert!(tokens > 2048 * 10);
}

#[test]
fn a_request_id_is_returned_or_generated() {
    let app = app();
    let first = app.get("/v1/models").header("x-request-id").to_owned();
    assert!(first.starts_with("req_") && first.len() == 36);
    assert_ne!(app.get("/v1/models").header("x-request-id"), first);
    let with = |name: &str, id: &str| {
        let response = agent().get(app.url("/nowhere")).header(name, id).call().unwrap();
        response.headers()["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(with("x-request-id", "mine-1"), "mine-1");
    assert_eq!(with("x-client-request-id", "mine-2"), "mine-2");
    assert!(with("x-request-id", &"x".repeat(129)).starts_with("req_"));
}

#[test]
fn a_browser_may_send_the_headers_of_the_sdks() {
    let app = app();
    let preflight = |app: &TestApp, origin: &str| {
        let request = ureq::http::Request::builder()
            .method("OPTIONS")
            .uri(app.url("/v1/embeddings"))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type,x-stainless-lang")
            .body(())
            .unwrap();
        agent().run(request).unwrap()
    };
    // The headers must also be on the response to the request itself, and on errors.
    for (body, status) in [(r#"{"input":"a"}"#, 200), ("{}", 400)] {
        let request = ureq::post(app.url("/v1/embeddings")).header("origin", "https://page.example");
        let request = request.header("content-type", "application/json").config().http_status_as_error(false).build();
        let answer = request.send(body).unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["access-control-allow-origin"]),
            (status, &"*".parse().unwrap())
        );
    }
    let answer = preflight(&app, "https://page.example");
    assert_eq!(answer.status(), 200);
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("access-control-allow-origin"), "*");
    assert_eq!(header("access-control-allow-headers"), "authorization,content-type,x-stainless-lang");
    assert_eq!(header("access-control-allow-methods"), "POST");

    let strict = TestApp::start(|c| c.server.cors_origins = vec!["https://ours.example".to_owned()]);
    assert_eq!(
        preflight(&strict, "https://ours.example").headers()["access-control-allow-origin"],
        "https://ours.example"
    );
    assert!(preflight(&strict, "https://other.example").headers().get("access-control-allow-origin").is_none());
    let off = TestApp::start(|c| c.server.cors_origins.clear());
    assert!(off.get("/v1/models").headers.get("access-control-allow-origin").is_none());
}

#[test]
fn health_and_ready_answer_200() {
    let app = app();
    assert_eq!((app.get("/health").status, app.get("/ready").status), (200, 200));
}

/// If a batch were processed in one piece, the small requests that are sent meanwhile would all wait for its end.
#[test]
fn small_requests_are_answered_while_a_batch_is_processed() {
    let app = TestApp::start(|c| c.server.threads = 1);
    let texts: Vec<String> = (0..2048).map(|i| format!("{i} {}", "some words of a document ".repeat(20))).collect();
    let batch = json!({"input": texts});
    let answered = std::thread::scope(|scope| {
        let batch = scope.spawn(|| app.embed(&batch).status);
        let mut answered = 0;
        while !batch.is_finished() {
            assert_eq!(app.embed(&json!({"input": "one line"})).status, 200);
            answered += 1;
        }
        assert_eq!(batch.join().unwrap(), 200);
        answered
    });
    assert!(answered >= 10, "{answered} one-line requests were answered during a batch of 2048 documents");
}

/// A compressed body must give the same response as the uncompressed one.
#[test]
fn compressed_bodies_are_decoded_and_refusals_list_the_supported_codings() {
    let app = TestApp::start(|c| c.server.max_body = ByteCount(100_000));
    let text = json!({"input": "hello"}).to_string();
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let send = |coding: &str, body: &[u8]| {
        let request = agent().post(app.url("/v1/embeddings")).header("content-type", "application/json");
        Answer::read(request.header("content-encoding", coding).send(body).unwrap())
    };
    let plain = app.embed(&json!({"input": "hello"}));
    let twice = zstd::encode_all(&gzip(&text)[..], 3).unwrap();
    for (coding, body) in
        [("gzip", gzip(&text)), ("X-GZip", gzip(&text)), ("identity", text.clone().into()), ("gzip, zstd", twice)]
    {
        let answer = send(coding, &body);
        assert_eq!((answer.status, &answer.body), (200, &plain.body), "{coding}");
    }
    let bomb = json!({"input": " ".repeat(1_000_000)}).to_string();
    for (coding, body, expected) in [
        ("gzip", text.clone().into_bytes(), (400, Some("invalid_content_encoding"))),
        ("deflate", gzip(&text), (400, Some("invalid_content_encoding"))),
        ("gzip", gzip(&bomb), (413, Some("request_too_large"))),
        ("br", gzip(&text), (415, Some("unsupported_content_encoding"))),
    ] {
        let answer = send(coding, &body);
        let (status, _, code, ..) = answer.error();
        assert_eq!((status, code), expected, "{coding}: {}", answer.body);
        let accepted = if status == 415 { "gzip, deflate, zstd" } else { "" };
        assert_eq!(answer.header("accept-encoding"), accepted);
    }
}
