//! Tests `embed --openai-batch`: batch files of OpenAI's API, whose answers are those of the API.

use std::path::Path;

use serde_json::{Value, json};

use crate::common::{TestApp, checkpoint};
use crate::process::command;

fn embed(input: &Path, args: &[&str]) -> std::process::Output {
    let llama = checkpoint("llama");
    let first = ["embed", input.to_str().unwrap(), "--model", llama.to_str().unwrap(), "--openai-batch"];
    command(&[&first, args].concat()).output().unwrap()
}

fn line(id: &str, body: &Value) -> Value {
    json!({"custom_id": id, "method": "POST", "url": "/v1/embeddings", "body": body})
}

fn write(dir: &Path, lines: impl IntoIterator<Item = Value>) -> std::path::PathBuf {
    let path = dir.join("batch.jsonl");
    let lines: Vec<String> = lines.into_iter().map(|line| line.to_string()).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

#[test]
fn each_request_has_the_answer_of_the_api() {
    let app = TestApp::start(|_| {});
    let model = "text-embedding-3-small";
    let bodies = [
        json!({"model": model, "input": "hello world"}),
        json!({"model": model, "input": ["a", "b", ""], "dimensions": 5, "encoding_format": "base64"}),
        json!({"model": model, "input": [15339, 1917], "output_dtype": "int8"}),
        json!({"model": model, "input": []}),
        json!({"model": model, "input": "a", "dimensions": 100_000}),
        json!({"model": model}),
        json!({"model": model, "input": vec!["a"; 2049]}),
    ];
    let dir = tempfile::tempdir().unwrap();
    let ids = ["first", "same", "same", "with \"quotes\"", "", "6", "7"];
    let input = write(dir.path(), ids.iter().zip(&bodies).map(|(id, body)| line(id, body)));
    let out = dir.path().join("out.jsonl");
    let done = embed(&input, &["--output", out.to_str().unwrap()]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let text = std::fs::read_to_string(out).unwrap();
    let answers: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), bodies.len());
    for ((answer, body), id) in answers.iter().zip(&bodies).zip(ids) {
        let expected = app.embed(body);
        assert_eq!(answer["custom_id"], id);
        assert_eq!(answer["error"], Value::Null);
        assert_eq!(answer["response"]["status_code"], expected.status, "{answer}");
        assert_eq!(answer["response"]["body"], expected.body);
        assert_eq!(answer["response"]["request_id"], answer["id"]);
    }
    let mut unique: Vec<_> = answers.iter().map(|answer| answer["id"].to_string()).collect();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), answers.len());
}

#[test]
fn the_answers_are_in_the_order_of_the_requests_and_a_repeated_run_writes_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let numbers = 0..2000;
    let body = |n| json!({"input": format!("text number {n}"), "encoding_format": "base64"});
    let input = write(dir.path(), numbers.clone().map(|n| line(&n.to_string(), &body(n))));
    let runs = ["1", "2"].map(|threads| {
        let done = embed(&input, &["--threads", threads]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    });
    assert_eq!(runs[0], runs[1]);
    let text = String::from_utf8(runs[0].clone()).unwrap();
    let ids: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["custom_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids, numbers.map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn a_line_that_is_no_request_for_embeddings_ends_the_run_or_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let good = line("a", &json!({"input": "a"}));
    let mut chat = line("b", &json!({"messages": []}));
    chat["url"] = json!("/v1/chat/completions");
    let mut get = good.clone();
    get["method"] = json!("GET");
    for (bad, word) in [(chat, "/v1/chat/completions"), (get, "GET"), (json!({"text": "a"}), "custom_id")] {
        let input = write(dir.path(), [good.clone(), bad]);
        let done = embed(&input, &[]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(1), "{said}");
        assert!(said.contains("batch.jsonl:2") && said.contains(word), "{said}");
        let skipped = embed(&input, &["--on-error", "skip", "--max-skipped", "50%"]);
        assert!(skipped.status.success());
        assert_eq!(String::from_utf8(skipped.stdout).unwrap().lines().count(), 1);
    }
}

#[test]
fn other_formats_and_the_flags_of_vectors_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let input = write(dir.path(), [line("a", &json!({"input": "a"}))]);
    let text = dir.path().join("in.txt");
    std::fs::copy(&input, &text).unwrap();
    assert_eq!(embed(&text, &[]).status.code(), Some(1));
    assert!(embed(&text, &["--input-format", "jsonl"]).status.success());
    assert_eq!(embed(&input, &["--output", "out.parquet"]).status.code(), Some(1));
    for flag in [&["--dimensions", "3"][..], &["--field", "a"], &["--sparse"], &["--embedding-dtype", "int8"]] {
        assert_eq!(embed(&input, flag).status.code(), Some(2), "{flag:?}");
    }
}
