//! Files and batches: the answers, their order and counts, what survives a restart, who sees what, and hostile input.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use embedding_server::config::Config;
use embedding_server::config::units::{ByteCount, Seconds};
use embedding_server::keys::ApiKeys;
use serde_json::{Value, json};

use crate::common::{Answer, TestApp, agent};
use crate::process::Server;

const BOUNDARY: &str = "----boundary";
const MODEL: &str = "text-embedding-3-small";

/// A client of the files and batches of a server.
struct Client {
    url: String,
    key: &'static str,
}

impl Client {
    fn of(app: &TestApp) -> Self {
        Self { url: app.url(""), key: "none" }
    }

    fn of_process(server: &Server) -> Self {
        Self { url: format!("http://{}", server.address), key: "none" }
    }

    fn with_key(app: &TestApp, key: &'static str) -> Self {
        Self { url: app.url(""), key }
    }

    fn send(&self, method: &str, path: &str, content_type: &str, body: Vec<u8>) -> Answer {
        let request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        let request =
            request.header("content-type", content_type).header("authorization", format!("Bearer {}", self.key));
        Answer::read(agent().run(request.body(body).unwrap()).unwrap())
    }

    fn get(&self, path: &str) -> Answer {
        let request =
            agent().get(format!("{}{path}", self.url)).header("authorization", format!("Bearer {}", self.key));
        Answer::read(request.call().unwrap())
    }

    fn delete(&self, path: &str) -> Answer {
        let request =
            agent().delete(format!("{}{path}", self.url)).header("authorization", format!("Bearer {}", self.key));
        Answer::read(request.call().unwrap())
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, "application/json", body.to_string().into_bytes())
    }

    fn send_form(&self, form: Vec<u8>) -> Answer {
        self.send("POST", "/v1/files", &format!("multipart/form-data; boundary={BOUNDARY}"), form)
    }

    /// Uploads an input file and returns its ID.
    fn upload(&self, content: &[u8]) -> String {
        let answer = self.send_form(form(content, &[("purpose", "batch")]));
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body["id"].as_str().unwrap().to_owned()
    }

    fn create(&self, file: &str) -> Answer {
        let body = json!({"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"});
        self.post("/v1/batches", &body)
    }

    /// Uploads the content, and returns the ID of a batch over it.
    fn begin(&self, content: &[u8]) -> String {
        let answer = self.create(&self.upload(content));
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body["id"].as_str().unwrap().to_owned()
    }

    fn batch(&self, id: &str) -> Value {
        let answer = self.get(&format!("/v1/batches/{id}"));
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// Asks for the batch until `reached` is true of it.
    fn wait(&self, id: &str, reached: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let batch = self.batch(id);
            if reached(&batch) {
                return batch;
            }
            assert!(Instant::now() < deadline, "{batch}");
            std::thread::yield_now();
        }
    }

    fn ended(&self, id: &str) -> Value {
        let is_final = |batch: &Value| {
            matches!(batch["status"].as_str().unwrap(), "completed" | "failed" | "expired" | "cancelled")
        };
        self.wait(id, is_final)
    }

    fn content(&self, file: &Value) -> Vec<u8> {
        let path = format!("{}/v1/files/{}/content", self.url, file.as_str().unwrap());
        let mut response = agent().get(path).header("authorization", format!("Bearer {}", self.key)).call().unwrap();
        assert_eq!(response.status(), 200);
        response.body_mut().with_config().limit(1 << 30).read_to_vec().unwrap()
    }

    /// Returns the lines of a file by their `custom_id`, each of which must be there once.
    fn answers(&self, file: &Value) -> BTreeMap<String, Value> {
        let content = String::from_utf8(self.content(file)).unwrap();
        let mut answers = BTreeMap::new();
        for line in content.lines() {
            let line: Value = serde_json::from_str(line).expect(line);
            let id = line["custom_id"].as_str().unwrap().to_owned();
            assert!(answers.insert(id, line).is_none(), "a request is answered twice");
        }
        answers
    }
}

/// Returns the form of an upload: the file, and then the other fields.
fn form(content: &[u8], fields: &[(&str, &str)]) -> Vec<u8> {
    let mut form = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"requests.jsonl\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    )
    .into_bytes();
    form.extend_from_slice(content);
    for (name, value) in fields {
        let field = format!("\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}");
        form.extend_from_slice(field.as_bytes());
    }
    form.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    form
}

fn line(id: &str, body: &Value) -> String {
    json!({"custom_id": id, "method": "POST", "url": "/v1/embeddings", "body": body}).to_string()
}

fn lines(count: usize, text: &str) -> Vec<u8> {
    let lines = (0..count).map(|n| line(&format!("id-{n}"), &json!({"model": MODEL, "input": format!("{n} {text}")})));
    lines.collect::<Vec<_>>().join("\n").into_bytes()
}

/// A server with a directory for batches.
fn start(dir: &Path, change: impl FnOnce(&mut Config)) -> TestApp {
    TestApp::start(|config| {
        config.server.batch_directory = Some(dir.join("batches"));
        change(config);
    })
}

fn process(dir: &Path, settings: &str) -> Server {
    let settings = format!("[server]\nbatch_directory = {:?}\n{settings}", dir.join("batches"));
    let server = Server::configured(dir, &settings, &[]);
    server.wait_until_ready();
    server
}

/// Stops a server that has answered some of the 4000 requests of a batch, and returns the ID of the batch.
fn stopped_in_progress(dir: &Path) -> String {
    let server = process(dir, "threads = 1");
    let client = Client::of_process(&server);
    let id = client.begin(&process_lines(4000));
    client.wait(&id, |batch| batch["request_counts"]["completed"].as_u64().unwrap() > 0);
    server.signal("TERM");
    server.end();
    id
}

/// Lines for the model of [`process`].
fn process_lines(count: usize) -> Vec<u8> {
    String::from_utf8(lines(count, &"word ".repeat(200))).unwrap().replace(MODEL, "m").into_bytes()
}

#[test]
fn a_batch_has_the_answers_of_the_api_by_custom_id() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path(), |_| {});
    let client = Client::of(&app);
    let bodies = [
        ("first", json!({"model": MODEL, "input": "hello world"})),
        ("second", json!({"model": MODEL, "input": ["a", "b", ""], "dimensions": 5, "encoding_format": "base64"})),
        ("ids", json!({"model": MODEL, "input": [15339, 1917], "output_dtype": "int8"})),
        ("many", json!({"model": MODEL, "input": vec!["text"; 300]})),
        ("with \"quotes\"", json!({"model": MODEL, "input": []})),
        ("", json!({"model": MODEL, "input": "a", "dimensions": 100_000})),
        ("too many", json!({"model": MODEL, "input": vec!["a"; 2049]})),
    ];
    let input: Vec<String> = bodies.iter().map(|(id, body)| line(id, body)).collect();
    let file = client.upload(input.join("\n").as_bytes());
    let described = client.get(&format!("/v1/files/{file}")).body;
    assert_eq!((&described["filename"], &described["purpose"]), (&json!("requests.jsonl"), &json!("batch")));
    assert_eq!(described["bytes"], input.join("\n").len());
    assert_eq!(client.content(&json!(file)), input.join("\n").as_bytes());

    let created = client.post(
        "/v1/batches",
        &json!({
            "input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h", "metadata": {"a": "b"},
            "output_expires_after": {"anchor": "created_at", "seconds": 3600},
        }),
    );
    assert_eq!((created.status, &created.body["object"]), (200, &json!("batch")), "{}", created.body);
    assert_eq!(created.body["output_file_id"], Value::Null);
    let batch = client.ended(created.body["id"].as_str().unwrap());
    assert_eq!(batch["status"], "completed", "{batch}");
    assert_eq!(batch["request_counts"], json!({"total": 7, "completed": 4, "failed": 3}));
    assert_eq!(
        (&batch["metadata"], &batch["model"], &batch["errors"]),
        (&json!({"a": "b"}), &json!(MODEL), &Value::Null)
    );
    for time in ["created_at", "in_progress_at", "finalizing_at", "completed_at", "expires_at"] {
        assert!(batch[time].as_u64().unwrap() > 1_700_000_000, "{time}: {batch}");
    }
    let (output, errors) = (client.answers(&batch["output_file_id"]), client.answers(&batch["error_file_id"]));
    assert_eq!((output.len(), errors.len()), (4, 3));
    let mut tokens = 0;
    for (id, body) in &bodies {
        let expected = app.embed(body);
        let answer = if expected.status == 200 { &output[*id] } else { &errors[*id] };
        assert_eq!((&answer["response"]["status_code"], &answer["error"]), (&json!(expected.status), &Value::Null));
        assert_eq!(answer["response"]["body"], expected.body, "{id}");
        assert_eq!(answer["response"]["request_id"], answer["id"]);
        tokens += expected.body["usage"]["total_tokens"].as_u64().unwrap_or_default();
    }
    assert_eq!((&batch["usage"]["input_tokens"], &batch["usage"]["total_tokens"]), (&json!(tokens), &json!(tokens)));
    let output = client.get(&format!("/v1/files/{}", batch["output_file_id"].as_str().unwrap())).body;
    assert_eq!(output["purpose"], "batch_output");
    let lifetime = output["expires_at"].as_u64().unwrap() - output["created_at"].as_u64().unwrap();
    assert_eq!(lifetime, 3600);

    let metric = |name: &str| app.metric(&format!("embedding_server_{name}"));
    assert_eq!(metric("batch_requests_total{result=\"completed\"}"), 4.0);
    assert_eq!(metric("batch_requests_total{result=\"failed\"}"), 3.0);
    assert_eq!(metric("batches{status=\"completed\"}"), 1.0);
    assert_eq!(metric("stored_files"), 3.0);
    let files = client.get("/v1/files").body;
    let bytes: u64 = files["data"].as_array().unwrap().iter().map(|file| file["bytes"].as_u64().unwrap()).sum();
    assert_eq!(metric("stored_bytes"), bytes as f64);
}

#[test]
fn a_file_without_a_last_line_break_and_with_a_mark_and_blank_lines_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path(), |_| {});
    let client = Client::of(&app);
    let one = |id: &str| line(id, &json!({"input": "a"}));
    let content = format!("\u{feff}{}\r\n\n  \n{}", one("a"), one("b"));
    let batch = client.ended(&client.begin(content.as_bytes()));
    assert_eq!(batch["status"], "completed", "{batch}");
    let answers = client.answers(&batch["output_file_id"]);
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["a", "b"]);
    // The name of the default model stands in for the missing one.
    assert_eq!(answers["a"]["response"]["body"]["model"], MODEL);
    assert_eq!(batch["error_file_id"], Value::Null);
}

#[test]
fn a_file_that_is_not_valid_fails_the_batch_with_the_lines_and_codes() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path(), |config| {
        config.server.max_body = ByteCount(2000);
        config.server.max_batch_requests = 10;
    });
    let client = Client::of(&app);
    let good = |id: &str| line(id, &json!({"model": MODEL, "input": "a"}));
    let failed = |lines: &[String]| {
        let batch = client.ended(&client.begin(lines.join("\n").as_bytes()));
        assert_eq!(batch["status"], "failed", "{batch}");
        assert!(batch["failed_at"].is_u64() && batch["output_file_id"].is_null() && batch["error_file_id"].is_null());
        assert_eq!(batch["errors"]["object"], "list");
        let errors = batch["errors"]["data"].as_array().unwrap().clone();
        assert!(errors.iter().all(|error| error["message"].as_str().unwrap().ends_with('.')), "{batch}");
        errors
            .iter()
            .map(|error| (error["code"].as_str().unwrap().to_owned(), error["line"].as_u64()))
            .collect::<Vec<_>>()
    };
    let lines = [
        good("a"),
        "{\"custom_id\": \"b\"".to_owned(),
        good("a"),
        good("c").replace("POST", "GET"),
        good("d").replace("/v1/embeddings", "/v1/chat/completions"),
        line("e", &json!({"model": "other", "input": "a"})),
        line("f", &json!({"model": MODEL, "input": "a".repeat(3000)})),
    ];
    let expected = [
        ("invalid_json_line", 2),
        ("duplicate_custom_id", 3),
        ("invalid_method", 4),
        ("invalid_url", 5),
        ("mismatched_model", 6),
        ("line_too_long", 7),
    ];
    assert_eq!(failed(&lines), expected.map(|(code, line)| (code.to_owned(), Some(line))));
    assert_eq!(failed(&[]), [("empty_file".to_owned(), None)]);
    assert_eq!(failed(&["\u{0}\u{1}\u{fffd}".to_owned()]), [("invalid_json_line".to_owned(), Some(1))]);
    let unknown = line("a", &json!({"model": "no/such", "input": "a"}));
    assert_eq!(failed(&[unknown]), [("model_not_found".to_owned(), None)]);
    let many: Vec<String> = (0..11).map(|n| good(&n.to_string())).collect();
    assert_eq!(failed(&many), [("too_many_requests".to_owned(), None)]);
    assert_eq!(client.ended(&client.begin(many[..10].join("\n").as_bytes()))["status"], "completed");
}

#[test]
fn without_a_directory_the_endpoints_name_the_setting() {
    let app = TestApp::start(|_| {});
    let client = Client::of(&app);
    let answers = [
        client.send_form(form(b"", &[("purpose", "batch")])),
        client.get("/v1/files"),
        client.get("/v1/files/file-1"),
        client.get("/v1/files/file-1/content"),
        client.delete("/v1/files/file-1"),
        client.create("file-1"),
        client.get("/v1/batches"),
        client.get("/v1/batches/batch_1"),
        client.post("/v1/batches/batch_1/cancel", &json!({})),
    ];
    for answer in answers {
        let (status, kind, code, _, message) = answer.error();
        assert_eq!((status, kind, code), (404, "invalid_request_error", Some("batches_are_off")));
        assert!(message.contains("server.batch_directory"), "{message}");
    }
}

#[test]
fn a_batch_that_is_killed_again_and_again_answers_every_request_once() {
    let dir = tempfile::tempdir().unwrap();
    let count = 4000;
    let mut server = process(dir.path(), "threads = 1");
    let id = Client::of_process(&server).begin(&process_lines(count));
    let mut before = 0;
    for _ in 0..3 {
        let completed = |batch: &Value| batch["request_counts"]["completed"].as_u64().unwrap();
        let batch = Client::of_process(&server).wait(&id, |batch| completed(batch) > before);
        assert_eq!(batch["status"], "in_progress", "{batch}");
        before = completed(&batch);
        server.signal("KILL");
        server.end();
        server = process(dir.path(), "threads = 1");
    }
    let client = Client::of_process(&server);
    let batch = client.ended(&id);
    assert_eq!(batch["status"], "completed", "{batch}");
    assert_eq!(batch["request_counts"], json!({"total": count, "completed": count, "failed": 0}));
    let answers = client.answers(&batch["output_file_id"]);
    assert!((0..count).all(|n| answers.contains_key(&format!("id-{n}"))) && answers.len() == count);
    let plain = client.post("/v1/embeddings", &json!({"model": "m", "input": format!("7 {}", "word ".repeat(200))}));
    assert_eq!(answers["id-7"]["response"]["body"], plain.body);
}

#[test]
fn a_stop_ends_the_work_after_a_request_and_a_start_continues_it() {
    let dir = tempfile::tempdir().unwrap();
    let count = 4000;
    let server = process(dir.path(), "threads = 1");
    let client = Client::of_process(&server);
    let id = client.begin(&process_lines(count));
    let batch = client.wait(&id, |batch| batch["request_counts"]["completed"].as_u64().unwrap() > 0);
    assert_eq!(batch["status"], "in_progress");
    let started = Instant::now();
    server.signal("TERM");
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    let record = dir.path().join(format!("batches/batches/{id}.json"));
    let record: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    let done = record["counts"]["completed"].as_u64().unwrap();
    assert!(done >= batch["request_counts"]["completed"].as_u64().unwrap() && done < count as u64, "{record}");
    assert_eq!(record["progress"]["lines"], done);
    let output = dir.path().join(format!("batches/files/{}.jsonl", record["output_file_id"].as_str().unwrap()));
    let output = std::fs::read_to_string(output).unwrap();
    assert_eq!((output.lines().count() as u64, output.ends_with('\n')), (done, true));

    let server = process(dir.path(), "");
    let client = Client::of_process(&server);
    let batch = client.ended(&id);
    assert_eq!(batch["request_counts"]["completed"], count, "{batch}");
    assert_eq!(client.answers(&batch["output_file_id"]).len(), count);
}

#[test]
fn a_batch_whose_model_was_replaced_fails_and_keeps_its_answers() {
    let dir = tempfile::tempdir().unwrap();
    let id = stopped_in_progress(dir.path());
    let config = dir.path().join("c.toml");
    let changed = std::fs::read_to_string(&config).unwrap() + "\nspecial_tokens = false\n";
    std::fs::write(&config, changed).unwrap();
    let server = Server::start(&["--config", config.to_str().unwrap()]);
    let client = Client::of_process(&server);
    let batch = client.ended(&id);
    assert_eq!((&batch["status"], &batch["errors"]["data"][0]["code"]), (&json!("failed"), &json!("model_changed")));
    let kept = client.answers(&batch["output_file_id"]).len();
    assert_eq!(batch["request_counts"]["completed"], kept);
}

#[test]
fn a_batch_over_its_completion_window_expires_with_an_error_for_each_request_that_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let id = stopped_in_progress(dir.path());
    let path = dir.path().join(format!("batches/batches/{id}.json"));
    let mut record: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    record["created_at"] = json!(record["created_at"].as_u64().unwrap() - 24 * 60 * 60 - 1);
    std::fs::write(&path, record.to_string()).unwrap();
    let server = process(dir.path(), "");
    let client = Client::of_process(&server);
    let batch = client.ended(&id);
    assert!(batch["status"] == "expired" && batch["expired_at"].is_u64() && batch["completed_at"].is_null(), "{batch}");
    let (output, errors) = (client.answers(&batch["output_file_id"]), client.answers(&batch["error_file_id"]));
    assert_eq!(output.len() as u64, record["counts"]["completed"].as_u64().unwrap());
    assert_eq!(output.len() + errors.len(), 4000);
    let error = errors.values().next().unwrap();
    assert_eq!((&error["response"], &error["error"]["code"]), (&Value::Null, &json!("batch_expired")));
}

#[test]
fn two_processes_do_not_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _first = process(dir.path(), "");
    let second = crate::process::command(&["--config", dir.path().join("c.toml").to_str().unwrap(), "--port", "0"]);
    let output = { second }.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("server.batch_directory") && said.contains("another process"), "{said}");
}

#[test]
fn a_key_sees_only_its_own_files_and_batches_and_uses_only_its_models() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path(), |config| {
        let other = embedding_server::config::ModelConfig::new("other", crate::common::checkpoint("qwen"));
        config.models.push(other);
        config.server.api_keys = ApiKeys::new(["sk-alice-1 name=alice", "sk-bob-22 other", "sk-carol-3"]);
    });
    let [alice, bob, carol] = ["sk-alice-1", "sk-bob-22", "sk-carol-3"].map(|key| Client::with_key(&app, key));
    let file = alice.upload(&lines(3, "a"));
    let id = alice.create(&file).body["id"].as_str().unwrap().to_owned();
    let batch = alice.ended(&id);
    assert_eq!(batch["status"], "completed", "{batch}");
    let output = batch["output_file_id"].as_str().unwrap();
    for client in [&bob, &carol] {
        for path in [format!("/v1/files/{file}"), format!("/v1/files/{output}/content"), format!("/v1/batches/{id}")] {
            assert_eq!(client.get(&path).error().0, 404, "{path}");
        }
        assert_eq!(client.delete(&format!("/v1/files/{file}")).error().0, 404);
        assert_eq!(client.post(&format!("/v1/batches/{id}/cancel"), &json!({})).error().0, 404);
        let refused = client.create(&file);
        assert_eq!((refused.status, refused.error().3), (404, Some("input_file_id")));
        for list in ["/v1/files", "/v1/batches"] {
            assert_eq!(client.get(list).body["data"], json!([]), "{list}");
        }
    }
    assert_eq!(alice.get("/v1/files").body["data"].as_array().unwrap().len(), 2);
    let nobody = Client::with_key(&app, "sk-nobody");
    assert_eq!((nobody.get("/v1/files").status, nobody.send_form(form(b"", &[])).status), (401, 401));
    // The inputs count for the key.
    assert_eq!(app.metric("embedding_server_key_inputs_total{key=\"alice\"}"), 3.0);
    // Bob may not use the default model.
    let batch = bob.ended(&bob.begin(&lines(1, "a")));
    assert_eq!(batch["errors"]["data"][0]["code"], "model_not_found", "{batch}");
    let own = bob.begin(line("a", &json!({"model": "other", "input": "a"})).as_bytes());
    assert_eq!(bob.ended(&own)["status"], "completed");
}

#[test]
fn files_and_batches_are_listed_page_by_page() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path(), |_| {});
    let client = Client::of(&app);
    let files: Vec<String> = (0..5).map(|n| client.upload(&lines(1, &n.to_string()))).collect();
    let batches: Vec<String> =
        files.iter().map(|file| client.create(file).body["id"].as_str().unwrap().to_owned()).collect();
    batches.iter().for_each(|batch| drop(client.ended(batch)));
    let list = |path: &str| {
        let body = client.get(path).body;
        let ids: Vec<String> =
            body["data"].as_array().unwrap().iter().map(|entry| entry["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(
            (body["first_id"].as_str(), body["last_id"].as_str()),
            (ids.first().map(|id| &**id), ids.last().map(|id| &**id))
        );
        (ids, body["has_more"].as_bool().unwrap())
    };
    let newest_first = |ids: &[String]| ids.iter().rev().cloned().collect::<Vec<_>>();
    assert_eq!(list("/v1/batches"), (newest_first(&batches), false));
    assert_eq!(list("/v1/batches?limit=2"), (newest_first(&batches[3..]), true));
    assert_eq!(list(&format!("/v1/batches?limit=2&after={}", batches[3])), (newest_first(&batches[1..3]), true));
    assert_eq!(list(&format!("/v1/batches?after={}", batches[1])), (newest_first(&batches[..1]), false));
    assert_eq!(list("/v1/files?purpose=batch"), (newest_first(&files), false));
    assert_eq!(list("/v1/files?purpose=batch&order=asc&limit=3"), (files[..3].to_vec(), true));
    assert_eq!(list(&format!("/v1/files?purpose=batch&order=asc&after={}", files[3])), (files[4..].to_vec(), false));
    assert_eq!(list("/v1/files?purpose=batch_output").0.len(), 5);
    assert_eq!(list("/v1/files?purpose=vision"), (vec![], false));
    for query in ["batches?limit=0", "batches?limit=101", "batches?limit=a", "files?limit=10001", "files?order=up"] {
        assert_eq!(client.get(&format!("/v1/{query}")).error().0, 400, "{query}");
    }
}

#[test]
fn a_batch_can_be_cancelled_and_its_input_is_kept_until_then() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path(), |config| config.server.threads = 1);
    let client = Client::of(&app);
    let file = client.upload(&lines(20_000, "some words in a text"));
    let occupied = app.occupy_workers();
    let id = client.create(&file).body["id"].as_str().unwrap().to_owned();
    let kept = client.delete(&format!("/v1/files/{file}"));
    assert!(kept.status == 400 && kept.error().4.contains(&id), "{}", kept.body);
    let cancelled = client.post(&format!("/v1/batches/{id}/cancel"), &json!({}));
    assert_eq!((cancelled.status, &cancelled.body["status"]), (200, &json!("cancelling")));
    drop(occupied);
    let batch = client.ended(&id);
    assert!(
        batch["status"] == "cancelled" && batch["cancelled_at"].is_u64() && batch["cancelling_at"].is_u64(),
        "{batch}"
    );
    let again = client.post(&format!("/v1/batches/{id}/cancel"), &json!({}));
    assert!(again.status == 400 && again.error().4.contains("'cancelled'"), "{}", again.body);

    // A batch that is cancelled while it is in progress has the answers so far.
    let id = client.create(&file).body["id"].as_str().unwrap().to_owned();
    client.wait(&id, |batch| batch["request_counts"]["completed"].as_u64().unwrap() > 0);
    assert_eq!(client.post(&format!("/v1/batches/{id}/cancel"), &json!({})).status, 200);
    let batch = client.ended(&id);
    assert_eq!(batch["status"], "cancelled");
    let answers = client.answers(&batch["output_file_id"]).len();
    assert!(answers < 20_000 && batch["request_counts"]["completed"] == answers, "{batch}");
    let deleted = client.delete(&format!("/v1/files/{file}"));
    assert_eq!(deleted.body, json!({"id": file, "object": "file", "deleted": true}));
    assert_eq!(client.get(&format!("/v1/files/{file}")).status, 404);
}

#[test]
fn requests_do_not_wait_for_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path(), |config| config.server.threads = 1);
    let client = Client::of(&app);
    let text = "word ".repeat(400_000);
    let long: Vec<String> = (0..8).map(|n| line(&n.to_string(), &json!({"input": vec![&text; 4]}))).collect();
    let id = client.begin(long.join("\n").as_bytes());
    client.wait(&id, |batch| batch["status"] == "in_progress");
    for _ in 0..20 {
        assert_eq!(app.embed(&json!({"input": "word ".repeat(300)})).status, 200);
    }
    let batch = client.batch(&id);
    assert_eq!(batch["status"], "in_progress", "the requests waited for the batch: {batch}");
    client.post(&format!("/v1/batches/{id}/cancel"), &json!({}));
}

#[test]
fn files_are_limited_in_size_and_number_and_nothing_is_left_of_refused_ones() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path(), |config| {
        config.server.max_file_bytes = ByteCount(100_000);
        config.server.max_stored_bytes = ByteCount(150_000);
        config.server.max_stored_files = 3;
        config.server.max_in_flight = ByteCount(200_000);
    });
    let client = Client::of(&app);
    let send = |bytes: usize| client.send_form(form(&vec![b'a'; bytes], &[("purpose", "batch")]));
    let refused = |answer: Answer, expected: &str, setting: &str| {
        let (status, _, code, _, message) = answer.error();
        assert_eq!((status, code), (413, Some(expected)), "{message}");
        assert!(message.contains(setting), "{message}");
    };
    refused(send(100_001), "file_too_large", "server.max_file_bytes");
    refused(send(3_000_000), "file_too_large", "server.max_file_bytes");
    let first = send(100_000);
    assert_eq!((first.status, &first.body["bytes"]), (200, &json!(100_000)));
    refused(send(50_001), "storage_limit_exceeded", "server.max_stored_bytes");
    assert_eq!(send(10).status, 200);
    assert_eq!(send(10).status, 200);
    refused(send(10), "storage_limit_exceeded", "server.max_stored_files");
    assert_eq!(app.metric("embedding_server_stored_bytes"), 100_020.0);
    let kept = std::fs::read_dir(dir.path().join("batches/files")).unwrap().count();
    assert_eq!(kept, 6, "a record and a content of each file");
    let full = client.create(first.body["id"].as_str().unwrap());
    assert_eq!((full.status, full.error().2), (413, Some("storage_limit_exceeded")));
    assert_eq!(client.delete(&format!("/v1/files/{}", first.body["id"].as_str().unwrap())).status, 200);
    assert_eq!(send(100_000).status, 200);
    assert_eq!(app.metric("embedding_server_bytes_in_flight"), 0.0);
}

#[test]
fn a_batch_whose_answers_do_not_fit_fails_and_keeps_those_that_fit() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path(), |config| config.server.max_stored_bytes = ByteCount(400_000));
    let client = Client::of(&app);
    let bodies = (0..40).map(|n| line(&n.to_string(), &json!({"input": vec!["text"; 200]})));
    let batch = client.ended(&client.begin(bodies.collect::<Vec<_>>().join("\n").as_bytes()));
    assert_eq!(batch["errors"]["data"][0]["code"], "storage_limit_exceeded", "{batch}");
    let files = client.get("/v1/files").body;
    let bytes: u64 = files["data"].as_array().unwrap().iter().map(|file| file["bytes"].as_u64().unwrap()).sum();
    assert!(bytes <= 400_000 && app.metric("embedding_server_stored_bytes") == bytes as f64, "{files}");
}

#[test]
fn files_and_batches_are_deleted_when_their_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path(), |config| config.server.file_expires_after = Seconds(Duration::from_secs(2)));
    let client = Client::of(&app);
    let kept = client.send_form(form(
        b"a",
        &[("purpose", "batch"), ("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "3600")],
    ));
    let lifetime = kept.body["expires_at"].as_u64().unwrap() - kept.body["created_at"].as_u64().unwrap();
    assert_eq!(lifetime, 3600);
    let id = client.begin(&lines(2, "a"));
    assert_eq!(client.ended(&id)["status"], "completed");
    let deadline = Instant::now() + Duration::from_secs(60);
    while app.metric("embedding_server_stored_files") > 1.0 || client.get(&format!("/v1/batches/{id}")).status == 200 {
        assert!(Instant::now() < deadline, "nothing is deleted");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(client.get("/v1/files").body["data"][0]["id"], kept.body["id"]);
    assert_eq!(std::fs::read_dir(dir.path().join("batches/files")).unwrap().count(), 2);
}

#[test]
fn ids_never_lead_out_of_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path(), |_| {});
    std::fs::write(dir.path().join("secret.jsonl"), "secret").unwrap();
    let long = "a".repeat(10_000);
    for id in ["../../secret", "..%2f..%2fsecret", "%2e%2e%2f%2e%2e%2fsecret", "file-..", "%00", ".", "*", &long] {
        for path in [format!("/v1/files/{id}/content"), format!("/v1/files/{id}"), format!("/v1/batches/{id}")] {
            // The client must not normalize the path.
            let mut stream = TcpStream::connect(&app.address).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 404") && answer.len() < 2000, "{path}: {answer}");
        }
    }
    let client = Client::of(&app);
    for id in ["../../secret", "file-../../../secret", ""] {
        assert_eq!(client.create(id).error().0, 404, "{id}");
    }
}

#[test]
fn a_form_that_is_not_an_upload_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path(), |_| {});
    let client = Client::of(&app);
    let whole = form(&lines(10, "a"), &[("purpose", "batch")]);
    let cut = |bytes: usize| whole[..whole.len() - bytes].to_vec();
    let part = |name: &str| format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\na\r\n");
    let end = format!("--{BOUNDARY}--\r\n");
    let twice = [&whole[..whole.len() - end.len()], &whole].concat();
    for (body, word) in [
        (cut(10), "last boundary"),
        (cut(100), "last boundary"),
        (cut(whole.len() - 20), "last boundary"),
        (Vec::new(), "form"),
        (b"no form at all".to_vec(), "form"),
        (form(b"a", &[("purpose", "fine-tune")]), "purpose"),
        (form(b"a", &[]), "purpose"),
        (form(b"a", &[("purpose", "batch"), ("expires_after[seconds]", "3600")]), "expires_after"),
        (format!("{}{end}", part("purpose")).into_bytes(), "purpose"),
        (format!("{}{end}", part("purpose").replace("\r\na\r\n", "\r\nbatch\r\n")).into_bytes(), "'file' is missing"),
        (format!("{}{end}", part("x").repeat(65)).into_bytes(), "more than 64 fields"),
        (format!("--{BOUNDARY}\r\nx: {}\r\n\r\n", "a".repeat(2_000_000)).into_bytes(), "too long"),
        ("a".repeat(2_000_000).into_bytes(), "too long"),
        (twice, "more than once"),
    ] {
        let answer = client.send_form(body);
        let (status, _, _, _, message) = answer.error();
        assert!(status == 400 && message.contains(word), "{word}: {status} {message}");
    }
    for content_type in ["multipart/form-data", "application/json", "text/plain; boundary=a"] {
        let answer = client.send("POST", "/v1/files", content_type, whole.clone());
        assert_eq!(answer.error().0, 415, "{content_type}");
    }
    let fields = form(b"a", &[("purpose", "batch"), ("x", &"a".repeat(3_000_000))]);
    assert_eq!(client.send_form(fields).error().0, 400);
    // The client goes away in the middle of the file.
    let mut stream = TcpStream::connect(&app.address).unwrap();
    let head =
        format!("POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary={BOUNDARY}\r\n");
    stream.write_all(format!("{head}content-length: {}\r\n\r\n", whole.len()).as_bytes()).unwrap();
    stream.write_all(&cut(100)).unwrap();
    drop(stream);
    let deadline = Instant::now() + Duration::from_secs(60);
    let left = || std::fs::read_dir(dir.path().join("batches/files")).unwrap().count();
    let metric = |name: &str| app.metric(&format!("embedding_server_{name}"));
    while left() > 0 || metric("bytes_in_flight") > 0.0 || metric("stored_bytes") > 0.0 {
        assert!(Instant::now() < deadline, "{} files and {} bytes are left", left(), metric("stored_bytes"));
        std::thread::yield_now();
    }
}

#[test]
fn a_large_file_takes_little_of_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let app = start(dir.path(), |config| config.server.max_in_flight = ByteCount(2_000_000));
    let client = Client::of(&app);
    // Another request in flight, so that the upload is not accepted because it is alone.
    let mut waiting = TcpStream::connect(&app.address).unwrap();
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 2000\r\n\r\n";
    waiting.write_all(head.as_bytes()).unwrap();
    waiting.write_all(&[b' '; 1000]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while app.metric("embedding_server_bytes_in_flight") < 1000.0 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    let content = vec![b'x'; 20_000_000];
    let file = client.upload(&content);
    assert!(client.content(&json!(file)) == content);
}
