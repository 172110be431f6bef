//! The description at /openapi.json, compared with OpenAI's own (tests/openapi/openai.json) and with the server.

use std::collections::BTreeSet;

use embedding_server::config::ModelConfig;
use layer0::embedder::TokenInput;
use serde_json::{Value, json};

use crate::common::{TestApp, agent, checkpoint};

fn description() -> Value {
    TestApp::start(|_| {}).get("/openapi.json").body
}

fn openais() -> Value {
    serde_json::from_str(include_str!("../openapi/openai.json")).unwrap()
}

fn resolve<'a>(api: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => resolve(api, api.pointer(reference.strip_prefix('#').unwrap()).unwrap()),
        None => schema,
    }
}

/// Returns the JSON shapes that a schema accepts as words: `integer`, `"list"` (of an enum), `[[integer]]`, `{}`.
fn shapes(api: &Value, schema: &Value) -> BTreeSet<String> {
    let schema = resolve(api, schema);
    for choice in ["oneOf", "anyOf"] {
        if let Some(choices) = schema[choice].as_array() {
            return choices.iter().flat_map(|choice| shapes(api, choice)).collect();
        }
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(Value::to_string).collect();
    }
    let of_type = |kind: &str| match kind {
        "array" => shapes(api, &schema["items"]).into_iter().map(|item| format!("[{item}]")).collect(),
        "object" => BTreeSet::from(["{}".to_owned()]),
        kind => BTreeSet::from([kind.to_owned()]),
    };
    match &schema["type"] {
        Value::String(kind) => of_type(kind),
        Value::Array(kinds) => kinds.iter().flat_map(|kind| of_type(kind.as_str().unwrap())).collect(),
        _ if schema["properties"].is_object() => of_type("object"),
        _ => BTreeSet::from(["any".to_owned()]),
    }
}

/// Returns whether `wide` accepts all that `narrow` does. A string includes the strings of an enum, and `{}` includes
/// all.
fn admits(wide: &BTreeSet<String>, narrow: &BTreeSet<String>) -> bool {
    let admitted = |shape: &String| {
        wide.contains(shape) || wide.contains("any") || (shape.starts_with('"') && wide.contains("string"))
    };
    narrow.iter().all(admitted)
}

fn names(value: &Value) -> BTreeSet<String> {
    match value {
        Value::Object(map) => map.keys().cloned().collect(),
        Value::Array(list) => list.iter().map(|name| name.as_str().unwrap().to_owned()).collect(),
        _ => BTreeSet::new(),
    }
}

fn schema<'a>(api: &'a Value, name: &str) -> &'a Value {
    let schema = &api["components"]["schemas"][name];
    assert!(schema.is_object(), "{name}");
    schema
}

#[test]
fn every_request_that_openais_description_allows_is_allowed() {
    let (theirs, ours) = (openais(), description());
    let (their, our) = (schema(&theirs, "CreateEmbeddingRequest"), schema(&ours, "CreateEmbeddingRequest"));
    // The type of the numbers is this server's own field, and so is one of the formats.
    let own = BTreeSet::from(["output_dtype".to_owned()]);
    assert_eq!(&names(&their["properties"]) | &own, names(&our["properties"]));
    for (name, property) in their["properties"].as_object().unwrap() {
        let (wide, narrow) = (shapes(&ours, &our["properties"][name]), shapes(&theirs, property));
        assert!(admits(&wide, &narrow), "{name}: they admit {narrow:?}, we {wide:?}");
        for key in ["default", "minimum"] {
            assert_eq!(property.get(key), our["properties"][name].get(key), "{key} of {name}");
        }
    }
    // The formats must be the same, and not only both be strings.
    let formats = shapes(&ours, &our["properties"]["encoding_format"]);
    assert_eq!(formats, ["\"base64\"", "\"bytes\"", "\"float\"", "null"].map(str::to_owned).into());
    assert!(names(&our["required"]).is_subset(&names(&their["required"])));

    let limits = |api: &Value, schema: &Value| -> Vec<(Value, Value)> {
        let of = |shape: &Value| (shape["minItems"].clone(), shape["maxItems"].clone());
        resolve(api, schema)["oneOf"].as_array().unwrap().iter().map(of).collect()
    };
    let (their, our) = (limits(&theirs, &their["properties"]["input"]), limits(&ours, &our["properties"]["input"]));
    // The shapes are text, [text], [id] and [[id]]. An input of token IDs may be longer than OpenAI allows.
    let at_most = json!(2048);
    assert_eq!(their[1..], [(json!(1), at_most.clone()), (json!(1), at_most.clone()), (json!(1), at_most.clone())]);
    assert_eq!(our[1..], [(json!(1), at_most.clone()), (json!(1), Value::Null), (json!(1), at_most)]);
}

#[test]
fn every_response_that_the_description_allows_is_allowed_by_openais() {
    let (theirs, ours) = (openais(), description());
    for name in ["CreateEmbeddingResponse", "Embedding", "Model", "ListModelsResponse", "ErrorResponse", "Error"] {
        let (their, our) = (schema(&theirs, name), schema(&ours, name));
        assert!(names(&their["required"]).is_subset(&names(&our["required"])), "{name}");
        let unknown: BTreeSet<_> =
            names(&our["properties"]).difference(&names(&their["properties"])).cloned().collect();
        let own = if name == "Model" { BTreeSet::from(["fingerprint".to_owned()]) } else { BTreeSet::new() };
        assert_eq!(unknown, own, "{name} has {unknown:?}, which OpenAI's has not");
        for (field, property) in our["properties"].as_object().unwrap() {
            if own.contains(field) {
                continue;
            }
            let mut narrow = shapes(&ours, property);
            if (name, field.as_str()) == ("Embedding", "embedding") {
                // OpenAI's description does not say what base64 returns. OpenAI's SDKs expect a string.
                assert!(narrow.remove("string"));
            }
            let wide = shapes(&theirs, &their["properties"][field]);
            assert!(admits(&wide, &narrow), "{field} of {name}: we answer {narrow:?}, they {wide:?}");
        }
    }
    let usage = |api: &Value| {
        let usage = resolve(api, &schema(api, "CreateEmbeddingResponse")["properties"]["usage"]);
        (names(&usage["required"]), names(&usage["properties"]))
    };
    assert_eq!(usage(&theirs), usage(&ours));
}

#[test]
fn openais_operations_have_the_same_ids_under_v1() {
    let (theirs, ours) = (openais(), description());
    for (path, operations) in theirs["paths"].as_object().unwrap() {
        let path = format!("/v1{}", path.replace("{model}", "{id}"));
        for (method, their) in operations.as_object().unwrap() {
            let our = &ours["paths"][&path][method];
            assert_eq!(our["operationId"], their["operationId"], "{method} {path}");
            let body = |operation: &Value| operation["content"]["application/json"]["schema"]["$ref"].clone();
            assert_eq!(body(&our["requestBody"]), body(&their["requestBody"]), "{method} {path}");
            assert_eq!(body(&our["responses"]["200"]), body(&their["responses"]["200"]), "{method} {path}");
        }
    }
}

#[test]
fn every_path_exists_and_every_reference_resolves() {
    let dir = tempfile::tempdir().unwrap();
    let app = TestApp::start(|config| config.server.batch_directory = Some(dir.path().to_owned()));
    let api = app.get("/openapi.json").body;
    for (path, operations) in api["paths"].as_object().unwrap() {
        assert!(!path.contains('*'), "{path}");
        let path =
            path.replace("{id}", "no-such-model").replace("{file_id}", "file-1").replace("{batch_id}", "batch_1");
        for method in operations.as_object().unwrap().keys() {
            let code = match method.as_str() {
                "post" => app.post(&path, "application/json", b"{}").body["error"]["param"].clone(),
                "get" if path == "/metrics" => continue,
                _ => app.get(&path).body["error"]["code"].clone(),
            };
            let known = ["input", "inputs", "query", "model_not_found", "endpoint", "id"];
            let is_known = code.as_str().is_none_or(|code| known.contains(&code));
            assert!(is_known, "{method} {path}: {code}");
        }
    }
    let tags = |tagged: &Value| tagged["tags"].as_array().unwrap().clone();
    let used = api["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values());
    let used: BTreeSet<String> = used.flat_map(tags).map(|tag| tag.as_str().unwrap().to_owned()).collect();
    let told: BTreeSet<String> = tags(&api).iter().map(|tag| tag["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(used, told);
    let text = api.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        schema(&api, reference);
    }
}

#[test]
fn the_examples_match_real_responses() {
    let app = TestApp::start(|c| c.models = vec![ModelConfig::new("org/the-model", checkpoint("llama"))]);
    let api = app.get("/openapi.json").body;
    /// Returns the field names of an example, at all depths; for a list those of its first element.
    fn fields(example: &Value) -> Value {
        match example {
            Value::Object(map) => map.iter().map(|(name, value)| (name.clone(), fields(value))).collect(),
            Value::Array(list) => json!([list.first().map(fields)]),
            other => json!(matches!(other, Value::Number(_))),
        }
    }
    for (path, request, response) in [
        ("/v1/embeddings", "CreateEmbeddingRequest", "CreateEmbeddingResponse"),
        ("/v1/tokenize", "CreateTokensRequest", "CreateTokensResponse"),
        ("/v1/similarity", "CreateSimilarityRequest", "CreateSimilarityResponse"),
        ("/v1/rerank", "CreateRerankRequest", "CreateRerankResponse"),
        ("/v1/sparse-embeddings", "CreateSparseEmbeddingRequest", "CreateSparseEmbeddingResponse"),
    ] {
        let [request, response] = [request, response].map(|name| schema(&api, name)["example"].clone());
        assert_eq!((&request["model"], &response["model"]), (&json!("org/the-model"), &json!("org/the-model")));
        let answer = app.post(path, "application/json", request.to_string().as_bytes());
        assert_eq!((answer.status, fields(&answer.body)), (200, fields(&response)), "{path}");
    }
    assert_eq!(schema(&api, "CreateEmbeddingRequest")["example"]["input"], "hello");
    let models = &schema(&api, "ListModelsResponse")["example"];
    assert_eq!(fields(&app.get("/v1/models").body), fields(models));
    assert_eq!(
        (&models["data"][0]["id"], &schema(&api, "Model")["example"]["id"]),
        (&json!("org/the-model"), &json!("org/the-model"))
    );
    for (path, item) in api["paths"].as_object().unwrap().iter().filter(|(path, _)| path.contains("{id}")) {
        for operation in item.as_object().unwrap().values() {
            let ids = operation["parameters"].as_array().unwrap().iter().filter(|it| it["name"] == "id");
            assert_eq!(ids.map(|id| &id["example"]).collect::<Vec<_>>(), [&json!("org/the-model")], "{path}");
        }
    }
}

#[test]
fn the_description_has_the_limits_of_this_server() {
    let dimensions = |api: &Value| schema(api, "CreateEmbeddingRequest")["properties"]["dimensions"]["maximum"].clone();
    let api = description();
    let ids = |api: &Value, shape: &str| schema(api, "Inputs").pointer(shape).unwrap().clone();
    assert_eq!((dimensions(&api), ids(&api, "/oneOf/2/items/maximum")), (json!(16), json!(100_255)));
    let app = TestApp::start(|c| {
        c.server.max_inputs = 3;
        c.models = vec![ModelConfig { token_input: TokenInput::Model, ..ModelConfig::new("m", checkpoint("llama")) }];
    });
    let api = app.get("/openapi.json").body;
    assert_eq!(ids(&api, "/oneOf/1/maxItems"), 3);
    assert_eq!(app.embed(&schema(&api, "CreateEmbeddingRequest")["example"]).status, 200);
    let last = ids(&api, "/oneOf/3/items/items/maximum");
    assert_eq!(app.embed(&json!({"input": [last]})).status, 200);
    assert_eq!(app.embed(&json!({"input": [last.as_u64().unwrap() + 1]})).status, 400);
}

#[test]
fn the_docs_page_loads_only_from_the_server_and_can_be_switched_off() {
    let app = TestApp::start(|_| {});
    let get = |path: &str| agent().get(app.url(path)).call().unwrap();
    let page = get("/docs").body_mut().read_to_string().unwrap();
    assert!(!page.contains("://") && page.contains("docs/rapidoc-min.js") && page.contains("openapi.json"), "{page}");
    let policy = get("/docs").headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'self' 'sha256-"), "{policy}");
    assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("*"), "{policy}");
    for path in ["/docs", "/docs/rapidoc-min.js"] {
        assert_eq!(get(path).headers()["x-content-type-options"], "nosniff");
        assert_eq!(get(path).headers()["referrer-policy"], "no-referrer");
    }
    let mut script = get("/docs/rapidoc-min.js");
    assert_eq!(script.headers()["content-encoding"], "gzip");
    assert!(script.body_mut().read_to_vec().unwrap().starts_with(&[0x1f, 0x8b]));
    assert!(page.contains("<a href=\"./\">Playground</a>"), "{page}");
    let app = TestApp::start(|c| c.server.playground = false);
    let page = agent().get(app.url("/docs")).call().unwrap().body_mut().read_to_string().unwrap();
    assert!(!page.contains("Playground"), "{page}");
    let app = TestApp::start(|c| c.server.docs = false);
    for path in ["/docs", "/docs/rapidoc-min.js", "/openapi.json"] {
        assert_eq!(app.get(path).error().0, 404, "{path}");
    }
}

#[test]
fn the_description_names_the_path_prefix_as_its_server() {
    let servers = |prefix: &str| {
        let app = TestApp::start(|c| c.server.path_prefix = prefix.to_owned());
        app.get(&format!("{prefix}/openapi.json")).body["servers"].clone()
    };
    assert_eq!(servers("/models/a"), json!([{"url": "/models/a"}]));
    assert_eq!(servers(""), Value::Null);
}
