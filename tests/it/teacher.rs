//! Tests `fit --teacher` against an endpoint that fails in many ways, and with a process that is killed and started
//! again.

use std::collections::HashSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::common::fixtures;
use crate::fake_teacher::{FakeTeacher, Fault};

const PREFIX: &str = "query: ";

fn command(teacher: &FakeTeacher, dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embedding-server"));
    command
        .arg("fit")
        .arg(fixtures("refined").join("table"))
        .arg(dir.join("out"))
        .arg("--corpus")
        .arg(fixtures("refined").join("corpus.txt"))
        .args(["--teacher", &teacher.url, "--teacher-model", "wise"])
        .args(["--teacher-batch", "7", "--lambda", "0.02", "--held-out", "0.3", "--force"])
        .arg("--cache")
        .arg(dir.join("cache"))
        .args(if more.contains(&"--teacher-prefix") { &[][..] } else { &["--teacher-prefix", PREFIX] })
        .args(more)
        .env("OPENAI_API_KEY", "other")
        .env("EMBEDDING_TEACHER_API_KEY", "secret")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs `fit` to its end. Returns whether it succeeded, and its output.
fn run(teacher: &FakeTeacher, dir: &Path, more: &[&str]) -> (bool, String) {
    finish(command(teacher, dir, more).spawn().unwrap())
}

fn finish(child: Child) -> (bool, String) {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

/// Returns the distinct texts of the corpus in the form in which they are sent.
fn corpus() -> HashSet<String> {
    let text = std::fs::read_to_string(fixtures("refined").join("corpus.txt")).unwrap();
    text.lines().map(|line| format!("{PREFIX}{line}")).collect()
}

#[test]
fn each_text_is_asked_for_once_and_a_second_run_asks_for_nothing() {
    let (teacher, dir) = (FakeTeacher::start(), tempfile::tempdir().unwrap());
    let (well, said) = run(&teacher, dir.path(), &[]);
    assert!(well, "{said}");
    assert_eq!(teacher.answered().into_keys().collect::<HashSet<_>>(), corpus());
    assert!(teacher.answered().values().all(|&times| times == 1), "{:?}", teacher.answered());
    let asked = teacher.asked();
    assert!(
        asked.iter().all(|asked| asked.texts.len() <= 7 && asked.authorization.as_deref() == Some("Bearer secret"))
    );
    let config =
        || -> Value { serde_json::from_slice(&std::fs::read(dir.path().join("out/config.json")).unwrap()).unwrap() };
    let first = config();
    let by = &first["refined"]["fit"]["teacher"];
    assert_eq!((by["model"].as_str(), by["prefix"].as_str()), (Some("wise"), Some(PREFIX)));
    assert!(!first.to_string().contains("secret"));

    let (well, said) = run(&teacher, dir.path(), &[]);
    assert!(well, "{said}");
    assert_eq!(teacher.asked().len(), asked.len(), "the second run asked");
    assert_eq!(config(), first);
    // With another prefix, the texts are requested anew.
    let (well, said) = run(&teacher, dir.path(), &["--teacher-prefix", ""]);
    assert!(well, "{said}");
    assert_eq!(teacher.answered().len(), 2 * corpus().len());
}

#[test]
fn what_passes_is_asked_again() {
    let (teacher, dir) = (FakeTeacher::start(), tempfile::tempdir().unwrap());
    let mut faults = vec![
        Fault::Status(429, "retry-after: 0\r\n", "{\"error\": {\"code\": \"rate_limit_exceeded\"}}"),
        Fault::Cut,
        Fault::Status(500, "retry-after-ms: 1\r\n", "oh"),
        Fault::Status(503, "retry-after: Wed, 21 Oct 2015 07:28:00 GMT\r\n", ""),
        Fault::Hang,
        Fault::Status(408, "retry-after: 0.001\r\n", ""),
    ];
    teacher.fault(move |_| faults.pop());
    let (well, said) = run(&teacher, dir.path(), &["--teacher-requests", "1"]);
    assert!(well, "{said}");
    assert_eq!(teacher.answered().into_keys().collect::<HashSet<_>>(), corpus());
    assert!(teacher.answered().values().all(|&times| times == 1));
}

#[test]
fn a_batch_that_is_too_large_comes_in_halves() {
    let (teacher, dir) = (FakeTeacher::start(), tempfile::tempdir().unwrap());
    teacher.fault(|asked| (asked.texts.len() > 2).then_some(Fault::Status(413, "", "{}")));
    let (well, said) = run(&teacher, dir.path(), &[]);
    assert!(well, "{said}");
    assert!(teacher.answered().values().all(|&times| times == 1) && teacher.answered().len() == corpus().len());
}

#[test]
fn a_killed_run_goes_on_where_it_stopped() {
    let (teacher, dir) = (FakeTeacher::start(), tempfile::tempdir().unwrap());
    for batches in [0, 1, 3, 2] {
        let mut left = batches;
        teacher.fault(move |_| {
            left -= 1;
            (left < 0).then_some(Fault::Hold)
        });
        let mut child = command(&teacher, dir.path(), &["--teacher-requests", "1"]).spawn().unwrap();
        // When the request is held, the answers to all earlier requests are in the cache.
        teacher.wait_until_held();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!dir.path().join("out").exists());
        // A crash can leave an incomplete record at the end of the file.
        if let Some(cache) = std::fs::read_dir(dir.path().join("cache"))
            .unwrap()
            .flatten()
            .find(|e| e.path().extension().is_some_and(|e| e == "vectors"))
        {
            let bytes = std::fs::read(cache.path()).unwrap();
            std::fs::write(cache.path(), [&bytes, &bytes[..bytes.len().min(50)]].concat()).unwrap();
        }
    }
    teacher.fault(|_| None);
    let (well, said) = run(&teacher, dir.path(), &[]);
    assert!(well, "{said}");
    let answered = teacher.answered();
    assert_eq!(answered.len(), corpus().len());
    assert!(answered.values().all(|&times| times == 1), "{answered:?}");
    // The killed runs have left nothing beside the table and the cache.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn answers_that_are_none_are_errors_and_are_not_kept() {
    let (teacher, dir) = (FakeTeacher::start(), tempfile::tempdir().unwrap());
    let cases: [(Fault, &str); 9] = [
        (Fault::Instead(|answer| drop(answer["data"].as_array_mut().unwrap().pop())), "6 embeddings for 7 texts"),
        (Fault::Instead(|answer| answer["data"][3]["embedding"] = json!([1, 2])), "2 numbers at index 3"),
        (Fault::Instead(|answer| answer["data"][3]["embedding"] = json!("AADAfwAAwH8AAMB/AADAfwAAwH8AAMB/")), "NaN"),
        (Fault::Instead(|answer| answer["data"][3]["embedding"] = json!([0, 0, 0, 0, 0, 0])), "all zeros"),
        (Fault::Instead(|answer| *answer = json!("<html>")), "no list of embeddings"),
        (Fault::Status(404, "", "{\"error\": {\"message\": \"no such model\"}}"), "no such model"),
        (Fault::Status(401, "", "no key"), "401"),
        (Fault::Status(429, "", "{\"error\": {\"code\": \"insufficient_quota\"}}"), "insufficient_quota"),
        (Fault::Status(503, "retry-after: 90000\r\n", ""), "asks to wait 90000 s"),
    ];
    for (fault, part) in cases {
        teacher.fault(move |_| Some(fault.clone()));
        let (well, said) = run(&teacher, dir.path(), &["--teacher-requests", "1"]);
        assert!(!well && said.contains(part), "{part}: {said}");
        assert!(!said.contains("secret"), "{said}");
    }
    // Each case takes one request. The base64 that holds NaN takes a second one, because the vector could be valid as
    // plain numbers.
    assert_eq!(teacher.asked().len(), 10);
    // The error names the text that the teacher refuses.
    teacher.fault(|asked| {
        asked.texts.iter().any(|text| text.contains("moon")).then_some(Fault::Status(400, "", "too long"))
    });
    let (well, said) = run(&teacher, dir.path(), &["--teacher-requests", "1"]);
    assert!(!well && said.contains("too long, to the text \"query: ") && said.contains("moon"), "{said}");
    // Another order of the vectors is not an error, because the index says to which text a vector belongs.
    teacher.fault(|_| Some(Fault::Instead(|answer| answer["data"].as_array_mut().unwrap().reverse())));
    let (well, said) = run(&teacher, dir.path(), &[]);
    assert!(well, "{said}");
    let rows = |dir: &Path| std::fs::read(dir.join("out/model.safetensors")).unwrap();
    let reversed = rows(dir.path());
    let other = tempfile::tempdir().unwrap();
    teacher.fault(|_| None);
    let (well, said) = run(&teacher, other.path(), &[]);
    assert!(well && rows(other.path()) == reversed, "{said}");
}

#[test]
fn an_endpoint_that_never_answered_is_an_error_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut teacher = FakeTeacher::start();
    // The port of the listener is free again, so nothing listens there.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    teacher.url = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let (well, said) = run(&teacher, dir.path(), &[]);
    assert!(!well && said.contains("does not answer"), "{said}");
}
