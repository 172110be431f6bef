//! Tests the client that `fit` and `eval` use against endpoints that differ in how they implement OpenAI's API.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use embedding_server::client::Client;
use layer0_tuning::eval::{Embed, EmbedFailure};
use serde_json::{Value, json};

use crate::fake_teacher::{Asked, FakeTeacher, Fault, vector};

/// The headers that make the client retry almost at once, so that the tests are fast.
const SOON: &str = "retry-after-ms: 1\r\n";

fn client(teacher: &FakeTeacher) -> Client {
    Client::new(&teacher.url, "wise", Some("secret".to_owned())).unwrap()
}

fn texts(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("text number {n}")).collect()
}

fn expected(texts: &[String]) -> Vec<Vec<f32>> {
    texts.iter().map(|text| vector(text)).collect()
}

fn failure(client: &Client, texts: &[String]) -> EmbedFailure {
    client.embed(texts).unwrap_err()
}

fn sizes(teacher: &FakeTeacher) -> Vec<usize> {
    teacher.asked().iter().map(|asked| asked.texts.len()).collect()
}

fn encodings(teacher: &FakeTeacher) -> Vec<Option<String>> {
    teacher.asked().into_iter().map(|asked| asked.encoding_format).collect()
}

fn has(asked: &Asked, word: &str) -> bool {
    asked.texts.iter().any(|text| text.contains(word))
}

#[test]
fn an_endpoint_that_refuses_base64_is_asked_for_numbers_from_then_on() {
    for status in [400, 403, 404, 405, 406, 415, 422, 501] {
        let teacher = FakeTeacher::start();
        teacher.fault(move |asked| {
            let body = r#"{"error": {"message": "base64 encoding is not currently supported"}}"#;
            (asked.encoding_format.as_deref() == Some("base64")).then_some(Fault::Status(status, "", body))
        });
        let (client, texts) = (client(&teacher), texts(20));
        assert_eq!(client.embed(&texts).unwrap(), expected(&texts), "{status}");
        assert_eq!(client.embed(&texts[..5]).unwrap(), expected(&texts[..5]), "{status}");
        let float = Some("float".to_owned());
        assert_eq!(encodings(&teacher), [Some("base64".to_owned()), float.clone(), float], "{status}");
        assert_eq!(sizes(&teacher), [20, 20, 5], "{status}");
    }
}

#[test]
fn an_endpoint_that_knows_no_encoding_is_asked_without() {
    for (status, body) in [(400, "Bad Request"), (422, r#"{"detail": [{"msg": "Extra inputs are not permitted"}]}"#)] {
        let teacher = FakeTeacher::start();
        teacher.fault(move |asked| asked.encoding_format.is_some().then_some(Fault::Status(status, "", body)));
        let (client, texts) = (client(&teacher), texts(20));
        assert_eq!(client.embed(&texts).unwrap(), expected(&texts));
        assert_eq!(client.embed(&texts).unwrap(), expected(&texts));
        assert_eq!(sizes(&teacher), [20; 4]);
        assert_eq!(encodings(&teacher)[2..], [None, None]);
    }
}

#[test]
fn an_endpoint_that_fails_on_base64_is_asked_for_numbers() {
    let teacher = FakeTeacher::start();
    teacher.fault(|asked| {
        (asked.encoding_format.as_deref() == Some("base64")).then_some(Fault::Status(
            500,
            SOON,
            "Internal Server Error",
        ))
    });
    let (client, texts) = (client(&teacher), texts(20));
    assert_eq!(client.embed(&texts).unwrap(), expected(&texts));
    assert_eq!(client.embed(&texts).unwrap(), expected(&texts));
    assert!(sizes(&teacher).iter().all(|&size| size == 20), "{:?}", sizes(&teacher));
    assert!(teacher.asked().len() <= 5);
}

#[test]
fn base64_of_zeros_is_told_and_numbers_are_asked_for() {
    static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let teacher = FakeTeacher::start();
    let zeros: fn(&mut Value) = |answer| {
        for item in answer["data"].as_array_mut().unwrap() {
            item["embedding"] = json!("A".repeat(32));
        }
    };
    teacher.fault(move |asked| (asked.encoding_format.as_deref() == Some("base64")).then_some(Fault::Instead(zeros)));
    let client = client(&teacher).with_notify(|text| TOLD.lock().unwrap().push(text.to_owned()));
    assert_eq!(client.embed(&texts(3)).unwrap(), expected(&texts(3)));
    assert_eq!(client.embed(&texts(3)).unwrap(), expected(&texts(3)));
    assert_eq!(teacher.asked().len(), 3);
    let told = TOLD.lock().unwrap().clone();
    assert!(told.len() == 1 && told[0].contains("base64") && told[0].contains("all zeros"), "{told:?}");
    // If the response with plain numbers is invalid too, the error names both encodings and the text.
    teacher.fault(move |_| Some(Fault::Instead(zeros)));
    let client = Client::new(&teacher.url, "wise", None).unwrap();
    let error = failure(&client, &texts(3));
    assert!(!error.temporary, "{error}");
    for part in ["base64", "all zeros", "text number 0"] {
        assert!(error.message.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_text_on_which_the_server_always_fails_is_named_after_few_requests() {
    for (count, bad) in [(40, 0), (40, 23), (40, 39), (2, 1)] {
        let teacher = FakeTeacher::start();
        let word = format!("number {bad}");
        let end = word.clone();
        teacher.fault(move |asked| {
            let body =
                r#"{"error": {"code": 500, "message": "input is too large to process", "type": "server_error"}}"#;
            asked.texts.iter().any(|text| text.ends_with(&end)).then_some(Fault::Status(500, SOON, body))
        });
        let error = failure(&client(&teacher), &texts(count));
        assert!(!error.temporary && error.message.contains(&format!("text {word}\"")), "{error}");
        assert!(error.message.contains("500: input is too large to process"), "{error}");
        assert!(teacher.asked().len() <= 32, "{:?}", sizes(&teacher));
        assert!(teacher.answered().values().all(|&times| times == 1));
    }
}

#[test]
fn failures_that_pass_are_waited_for() {
    for failures in [1, 2, 5, 20, 30] {
        let teacher = FakeTeacher::start();
        let mut left = failures;
        teacher.fault(move |_| {
            left -= 1;
            (left >= 0).then_some(Fault::Status(500, SOON, "starting"))
        });
        let (client, texts) = (client(&teacher), texts(40));
        assert_eq!(client.embed(&texts).unwrap(), expected(&texts), "{failures}");
        assert!(teacher.answered().values().all(|&times| times == 1), "{failures}");
    }
    // If one request in three fails, each failure costs one more request and nothing else.
    let teacher = FakeTeacher::start();
    let mut number = 0;
    teacher.fault(move |_| {
        number += 1;
        (number % 3 == 0).then_some(Fault::Status(502, SOON, "<html><title>502 Bad Gateway</title></html>"))
    });
    let (client, texts) = (client(&teacher), texts(40));
    for _ in 0..6 {
        assert_eq!(client.embed(&texts).unwrap(), expected(&texts));
    }
    assert!(sizes(&teacher).iter().all(|&size| size == 40), "{:?}", sizes(&teacher));
}

#[test]
fn a_server_that_always_fails_ends_the_run_as_what_may_pass() {
    let teacher = FakeTeacher::start();
    teacher.fault(|_| Some(Fault::Status(502, SOON, "<html><title>502 Bad Gateway</title>\n</html>")));
    let error = failure(&client(&teacher), &texts(8));
    assert!(error.temporary && error.message.contains("answered 502: 502 Bad Gateway"), "{error}");
    assert!(error.message.contains("asked 8 times"), "{error}");
    let error = failure(&client(&teacher), &texts(1));
    assert!(error.temporary && error.message.contains("text number 0"), "{error}");
}

#[test]
fn the_size_that_was_found_by_halving_is_kept() {
    static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());
    for status in [400, 413, 422, 500] {
        TOLD.lock().unwrap().clear();
        let teacher = FakeTeacher::start();
        teacher.fault(move |asked| {
            let body = r#"{"error": {"message": "at most 10"}}"#;
            (asked.texts.len() > 10).then_some(Fault::Status(status, SOON, body))
        });
        let client = client(&teacher).with_notify(|text| TOLD.lock().unwrap().push(text.to_owned()));
        let texts = texts(64);
        for _ in 0..3 {
            assert_eq!(client.embed(&texts).unwrap(), expected(&texts));
        }
        let sizes = sizes(&teacher);
        // The first batch is refused in up to three encodings. Then the parts of 32 and of 16 texts of each half are
        // refused.
        let refused = sizes.iter().filter(|&&size| size > 10).count();
        assert!((3..=11).contains(&refused), "{status}: {sizes:?}");
        assert_eq!(sizes[sizes.len() - 16..], [8; 16], "{status}");
        let told = TOLD.lock().unwrap().clone();
        assert!(told.len() == 1 && told[0].contains("at most 8 from now on"), "{told:?}");
        assert!(told[0].contains("at most 10"), "{told:?}");
    }
}

#[test]
fn an_endpoint_with_a_limit_and_without_base64_is_found_out_as_well() {
    for first in ["size", "encoding"] {
        let teacher = FakeTeacher::start();
        teacher.fault(move |asked| {
            let size = (asked.texts.len() > 10).then_some(Fault::Status(400, "", "at most 10"));
            let encoding =
                (asked.encoding_format.as_deref() == Some("base64")).then_some(Fault::Status(400, "", "unknown value"));
            if first == "size" { size.or(encoding) } else { encoding.or(size) }
        });
        let (client, texts) = (client(&teacher), texts(64));
        for _ in 0..3 {
            assert_eq!(client.embed(&texts).unwrap(), expected(&texts));
        }
        let asked = teacher.asked();
        assert!(asked[asked.len() - 8..].iter().all(|asked| asked.texts.len() == 8), "{:?}", sizes(&teacher));
        assert!(asked.len() < 50, "{:?}", sizes(&teacher));
    }
}

#[test]
fn threads_wait_for_the_first_answer_and_find_a_limit_once() {
    let teacher = FakeTeacher::start();
    teacher.fault(|asked| (asked.texts.len() > 10).then_some(Fault::Status(400, "", "at most 10")));
    let (client, texts) = (client(&teacher), texts(64));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(client.embed(&texts).unwrap(), expected(&texts)));
        }
    });
    let refused = sizes(&teacher).into_iter().filter(|&size| size > 10).count();
    assert!(refused <= 11, "{:?}", sizes(&teacher));
}

#[test]
fn what_cannot_pass_ends_the_run_with_one_request() {
    for (status, headers, body, part) in [
        (401, "", r#"{"error": {"message": "Incorrect key: secret"}}"#, "401: Incorrect key: *** (check the key"),
        (402, "", "pay", "402: pay"),
        (403, "", "no", "403: no (check the key"),
        (404, "", r#"{"error": "model not found"}"#, "404: model not found (check the address"),
        (405, "", "Method Not Allowed", "/v1"),
        (410, "", "gone", "410: gone"),
        (308, "location: https://other/v1/embeddings?key=hidden\r\n", "", "\"https://other/v1/embeddings\""),
        (429, "", r#"{"error": {"message": "Spent", "type": "insufficient_quota"}}"#, "429: Spent"),
    ] {
        let teacher = FakeTeacher::start();
        teacher.fault(move |_| Some(Fault::Status(status, headers, body)));
        let client = client(&teacher);
        let error = failure(&client, &texts(9));
        assert!(!error.temporary && error.message.contains(part), "{part}: {error}");
        assert!(!error.message.contains("secret") && !error.message.contains("hidden"), "{error}");
        assert_eq!(teacher.asked().len(), 1, "{status}");
        // After the failure, no further batch is requested either.
        assert_eq!(failure(&client, &texts(3)), error);
        assert_eq!(teacher.asked().len(), 1, "{status}");
    }
}

#[test]
fn a_failure_wakes_the_threads_that_wait() {
    let teacher = FakeTeacher::start();
    let client = client(&teacher);
    client.embed(&texts(1)).unwrap();
    teacher.fault(|asked| {
        let waits = has(asked, "number 0");
        Some(if waits { Fault::Status(429, "retry-after: 500\r\n", "") } else { Fault::Status(401, "", "expired") })
    });
    let start = Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| failure(&client, &texts(1)));
        let deadline = Instant::now() + Duration::from_secs(60);
        while teacher.asked().len() < 2 {
            assert!(Instant::now() < deadline, "nothing was asked");
            std::thread::yield_now();
        }
        assert!(failure(&client, &["other".to_owned()]).message.contains("expired"));
        assert!(waiting.join().unwrap().message.contains("expired"));
    });
    assert!(start.elapsed() < Duration::from_secs(300));
}

#[test]
fn an_error_in_an_answer_with_status_200_is_shown_in_the_servers_words() {
    for body in [
        r#"{"error": {"message": "model not loaded"}}"#,
        r#"{"error": "model not loaded"}"#,
        r#"{"error": {"message": "model not loaded", "code": 404}, "data": null}"#,
        r#"{"detail": "model not loaded"}"#,
        r#"[{"error": {"message": "model not loaded", "status": "NOT_FOUND"}}]"#,
    ] {
        let teacher = FakeTeacher::start();
        teacher.fault(move |_| Some(Fault::Status(200, "", body)));
        let error = failure(&client(&teacher), &texts(9));
        assert!(error.message.contains("200: model not loaded") && !error.temporary, "{error}");
        assert!(teacher.asked().len() < 20);
    }
    // The status that the error names counts instead of the HTTP status. This one is temporary.
    let teacher = FakeTeacher::start();
    let mut left = 2;
    teacher.fault(move |_| {
        left -= 1;
        let body = r#"{"error": {"message": "Provider returned error", "code": 429}}"#;
        (left >= 0).then_some(Fault::Status(200, SOON, body))
    });
    assert_eq!(client(&teacher).embed(&texts(3)).unwrap(), expected(&texts(3)));
    assert_eq!(sizes(&teacher), [3; 3]);
}

#[test]
fn the_order_of_an_answer_counts_where_its_indexes_say_none() {
    let strange: [fn(&mut Value); 6] = [
        |answer| items(answer, |_, item| drop(item.as_object_mut().unwrap().remove("index"))),
        |answer| items(answer, |_, item| item["index"] = json!(0)),
        |answer| items(answer, |n, item| item["index"] = json!(n.to_string())),
        |answer| items(answer, |n, item| item["index"] = json!(n / 2)),
        |answer| items(answer, |n, item| item["index"] = json!(if n == 3 { 70 } else { n })),
        |answer| {
            *answer = json!({ "data": answer["data"].clone() });
            items(answer, |_, item| drop(item.as_object_mut().unwrap().remove("object")));
        },
    ];
    for change in strange {
        let teacher = FakeTeacher::start();
        teacher.fault(move |_| Some(Fault::Instead(change)));
        assert_eq!(client(&teacher).embed(&texts(6)).unwrap(), expected(&texts(6)));
    }
    let teacher = FakeTeacher::start();
    teacher.fault(|_| Some(Fault::Instead(|answer| answer["data"].as_array_mut().unwrap().reverse())));
    assert_eq!(client(&teacher).embed(&texts(6)).unwrap(), expected(&texts(6)));
}

fn items(answer: &mut Value, change: fn(usize, &mut Value)) {
    for (n, item) in answer["data"].as_array_mut().unwrap().iter_mut().enumerate() {
        change(n, item);
    }
}

#[test]
fn vectors_of_another_length_in_a_later_answer_name_their_text() {
    let teacher = FakeTeacher::start();
    let client = client(&teacher);
    client.embed(&texts(2)).unwrap();
    teacher.fault(|_| Some(Fault::Instead(|answer| items(answer, |_, item| item["embedding"] = json!([1, 2])))));
    let error = failure(&client, &texts(2));
    assert!(
        error.message.contains("2 numbers at index 0, where others have 6, for the text \"text number 0\""),
        "{error}"
    );
    assert!(!error.temporary);
}

#[test]
fn the_address_keeps_its_query_and_azure_gets_its_own_header() {
    let teacher = FakeTeacher::start();
    let base = teacher.url.trim_end_matches("/v1").to_owned();
    for (address, target, azure) in [
        ("/v1", "/v1/embeddings", false),
        ("/v1/", "/v1/embeddings", false),
        ("/v1/embeddings", "/v1/embeddings", false),
        ("/v1?user=me", "/v1/embeddings?user=me", false),
        (
            "/openai/deployments/d?api-version=2024-02-01",
            "/openai/deployments/d/embeddings?api-version=2024-02-01",
            true,
        ),
        (
            "/openai/deployments/d/embeddings?api-version=2024-02-01",
            "/openai/deployments/d/embeddings?api-version=2024-02-01",
            true,
        ),
    ] {
        let client = Client::new(&format!("{base}{address}"), "wise", Some("secret\n".to_owned())).unwrap();
        client.embed(&texts(1)).unwrap();
        let asked = teacher.asked().pop().unwrap();
        assert_eq!(asked.target, target);
        assert_eq!(asked.authorization.as_deref(), (!azure).then_some("Bearer secret"), "{address}");
        assert_eq!(asked.api_key.as_deref(), azure.then_some("secret"), "{address}");
        assert!(!client.url().contains('?'));
    }
    for base in ["ftp://x/v1", "x/v1", "", "http://user:pass@x/v1", "http://user:pass@x?y"] {
        let error = Client::new(base, "m", None).err().unwrap();
        assert!(error.to_string().contains("address") && !error.to_string().contains("pass@"), "{error}");
    }
    assert_eq!(Client::new("https://x/v1", "m", None).is_ok(), cfg!(feature = "hub"));
}
