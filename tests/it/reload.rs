//! Reloads by SIGHUP and by watching files: under requests, with refused configurations, and with damaged tables.

use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{agent, checkpoint, copy_of};
use crate::models;
use crate::process::Server;

/// A server whose configuration file the test rewrites.
struct Configured {
    server: Server,
    dir: TempDir,
}

fn write(dir: &Path, settings: &str, models: &[(&str, &Path)]) {
    let mut text = settings.to_owned();
    for (id, path) in models {
        text += &format!("\n[[models]]\nid = {id:?}\npath = {path:?}\n");
    }
    // The file is replaced by renaming, as for a ConfigMap or by a careful editor.
    std::fs::write(dir.join("next"), text).unwrap();
    std::fs::rename(dir.join("next"), dir.join("c.toml")).unwrap();
}

impl Configured {
    fn start(settings: &str, models: &[(&str, &Path)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), settings, models);
        let server = Server::start(&["--log-format", "json", "--config", dir.path().join("c.toml").to_str().unwrap()]);
        server.wait_until_ready();
        Self { server, dir }
    }

    fn write(&self, settings: &str, models: &[(&str, &Path)]) {
        write(self.dir.path(), settings, models);
    }

    fn send(&self, path: &str, key: &str, body: Option<&Value>) -> (u16, Value) {
        let url = format!("http://{}{path}", self.server.address);
        let answer = match body {
            Some(body) => agent()
                .post(url)
                .header("api-key", key)
                .header("content-type", "application/json")
                .send(body.to_string()),
            None => agent().get(url).header("api-key", key).call(),
        };
        let mut answer = answer.unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        (answer.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    fn embed(&self, model: &str) -> (u16, Value) {
        self.send("/v1/embeddings", "", Some(&json!({"input": "hello world", "model": model})))
    }

    fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.send("/metrics", "", None);
        let text = text.as_str().unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .unwrap_or_else(|| panic!("{name}: {text}"));
        line.parse().unwrap()
    }

    /// Sends SIGHUP and waits until the metric of this result has risen by one.
    fn reload(&self, result: &str) {
        let name = format!("embedding_server_reloads_total{{result=\"{result}\"}}");
        let before = self.metric(&name);
        self.server.signal("HUP");
        wait(|| self.metric(&name) > before);
    }

    /// Returns the files that the process has mapped.
    fn maps(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/maps", self.server.child.id())).unwrap()
    }

    fn log(self) -> Vec<Value> {
        self.server.signal("TERM");
        let (code, log) = self.server.end();
        assert_eq!(code, Some(0), "{log}");
        log.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

fn wait(what: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !what() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
}

fn loads(log: &[Value], model: &str) -> usize {
    log.iter().filter(|line| line["message"] == "model loaded" && line["model"] == model).count()
}

#[test]
fn models_are_added_removed_and_renamed_without_reloading_unchanged_ones() {
    let (a, b) = (copy_of("llama"), copy_of("gemma"));
    let server = Configured::start("", &[("a", a.path()), ("b", b.path())]);
    let before = server.embed("a");
    assert_eq!((before.0, server.embed("b").0, server.embed("c").0), (200, 200, 404));
    let weights = |dir: &TempDir| dir.path().join("model.safetensors").display().to_string();
    assert!(server.maps().contains(&weights(&a)) && server.maps().contains(&weights(&b)));

    let c = copy_of("qwen");
    server.write("default_model = \"c\"", &[("renamed", a.path()), ("c", c.path())]);
    server.reload("reloaded");
    assert_eq!(server.embed("renamed").1["data"], before.1["data"]);
    assert_eq!((server.embed("a").0, server.embed("b").0, server.embed("c").0), (404, 404, 200));
    assert_eq!(server.send("/v1/embeddings", "", Some(&json!({"input": "x"}))).1["model"], "c");
    wait(|| !server.maps().contains(&weights(&b)));
    assert!(server.maps().contains(&weights(&a)) && server.maps().contains(&weights(&c)));
    assert!(!server.send("/metrics", "", None).1.to_string().contains("model_loaded{model=\\\"b\\\"}"));

    let log = server.log();
    assert_eq!(["a", "b", "renamed", "c"].map(|model| loads(&log, model)), [1, 1, 0, 1]);
}

#[test]
fn a_model_with_changed_files_or_settings_is_loaded_again() {
    let dir = copy_of("llama");
    let server = Configured::start("", &[("m", dir.path())]);
    let first = server.embed("m").1["data"].clone();
    // First a link that points to another checkpoint, like a deployment's `current`, and then the same path again.
    let other = copy_of("llama-class");
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        std::fs::copy(other.path().join(file), dir.path().join("next")).unwrap();
        std::fs::rename(dir.path().join("next"), dir.path().join(file)).unwrap();
    }
    assert_eq!(server.embed("m").1["data"], first, "the old table goes on");
    server.reload("reloaded");
    server.reload("reloaded");
    server.write("", &[("m", dir.path())]);
    let text = std::fs::read_to_string(server.dir.path().join("c.toml")).unwrap();
    std::fs::write(server.dir.path().join("c.toml"), format!("{text}dimensions = 5\n")).unwrap();
    server.reload("reloaded");
    assert_eq!(server.embed("m").1["data"][0]["embedding"].as_array().unwrap().len(), 5);
    assert_eq!(loads(&server.log(), "m"), 3);
}

#[test]
fn an_invalid_configuration_is_refused_and_the_old_one_stays_in_use() {
    let a = copy_of("llama");
    let missing = PathBuf::from("/nowhere/model");
    let nan = crate::common::broken("nan");
    let server = Configured::start("", &[("a", a.path())]);
    let before = server.embed("a");
    type Case<'a> = (&'a str, Vec<(&'a str, &'a Path)>, &'a str);
    let cases: [Case<'_>; 6] = [
        ("[server]\nprot = 1", vec![("a", a.path())], "did you mean"),
        ("[server", vec![], "line 1"),
        ("", vec![("a", a.path()), ("b", &missing)], "does not exist"),
        ("", vec![("a", a.path()), ("b", &nan)], "not finite"),
        ("[server]\napi_key_file = \"/nowhere/keys\"", vec![("a", a.path())], "/nowhere/keys"),
        ("[server]\ntls_cert = \"/nowhere/c\"\ntls_key = \"/nowhere/k\"", vec![("a", a.path())], "/nowhere/c"),
    ];
    for (settings, models, _) in &cases {
        server.write(settings, models);
        server.reload("refused");
        assert_eq!(server.embed("a"), before);
        assert_eq!(server.server.status("/ready"), 200);
    }
    let log = server.log();
    let refusals: Vec<&str> =
        log.iter().filter_map(|line| line["message"].as_str()).filter(|m| m.contains("refused")).collect();
    assert_eq!(refusals.len(), cases.len(), "{refusals:?}");
    for ((_, _, why), refusal) in cases.iter().zip(refusals) {
        assert!(refusal.contains(why), "{refusal}");
    }
}

#[test]
fn a_reload_changes_keys_and_limits_and_warns_about_a_changed_port() {
    let a = checkpoint("llama");
    let server = Configured::start("[server]\napi_keys = [\"sk-old\"]", &[("a", &a)]);
    let body = json!({"input": ["x", "y"]});
    let ask = |key: &str| server.send("/v1/embeddings", key, Some(&body)).0;
    assert_eq!((ask("sk-old"), ask("sk-new")), (200, 401));
    server.write("[server]\napi_keys = [\"sk-new\"]\nmax_inputs = 2", &[("a", &a)]);
    server.reload("reloaded");
    assert_eq!((ask("sk-old"), ask("sk-new")), (401, 200));
    server.write("[server]\nport = 1\nmax_inputs = 1\nthreads = 7", &[("a", &a)]);
    server.reload("reloaded");
    assert_eq!(ask("any"), 400);
    let log = server.log();
    let told = |setting: &str| log.iter().any(|line| line["message"].as_str().is_some_and(|m| m.starts_with(setting)));
    // Here a command-line flag sets the port.
    assert!(told("server.threads has changed") && !told("server.port has changed"));
    assert_eq!(loads(&log, "a"), 1);
}

#[test]
fn a_reload_without_keys_warns_as_a_start_does() {
    let a = checkpoint("llama");
    let server = Configured::start("[server]\nhost = \"0.0.0.0\"\napi_keys = [\"sk-old\"]", &[("a", &a)]);
    server.write("[server]\nhost = \"0.0.0.0\"", &[("a", &a)]);
    server.reload("reloaded");
    let log = server.log();
    let warned = |line: &&Value| line["message"].as_str().is_some_and(|m| m.starts_with("NO API KEYS"));
    assert_eq!(log.iter().filter(warned).count(), 1, "{log:?}");
}

/// The body of a request is still arriving while its model is replaced. The model that the request was sent for answers
/// it.
#[test]
fn requests_in_flight_finish_with_the_old_models() {
    let (a, b) = (copy_of("llama"), copy_of("gemma"));
    let server = Configured::start("", &[("a", a.path())]);
    let (_, before) = server.embed("a");
    let body = json!({"input": "hello world", "model": "a"}).to_string();
    let mut stream = TcpStream::connect(&server.server.address).unwrap();
    write!(stream, "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n", body.len()).unwrap();
    let mut head = [0; 25];
    stream.read_exact(&mut head).unwrap();
    assert!(head.starts_with(b"HTTP/1.1 100"), "the request is in flight");
    server.write("", &[("b", b.path())]);
    server.reload("reloaded");
    assert_eq!((server.embed("a").0, server.embed("b").0), (404, 200));
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let answer: Value = serde_json::from_str(answer.split("\r\n\r\n").last().unwrap()).unwrap();
    assert_eq!(answer["data"], before["data"]);
    wait(|| !server.maps().contains(a.path().to_str().unwrap()));
}

#[test]
fn a_changed_file_is_reloaded_if_an_interval_is_set() {
    let a = copy_of("llama");
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "sk-old").unwrap();
    let settings = format!("[server]\nreload_interval = \"20ms\"\napi_key_file = {:?}", keys.path());
    let server = Configured::start(&settings, &[("a", a.path())]);
    let models = |key: &str| server.send("/v1/models", key, None);
    assert_eq!((models("sk-old").0, models("sk-new").0), (200, 401));
    // A half-written file, in which `sk-new` has no models yet, is refused. The file at the start was complete.
    std::fs::write(keys.path(), "sk-newer\nsk-new").unwrap();
    wait(|| server.metric("embedding_server_reloads_total{result=\"refused\"}") == 1.0);
    assert_eq!((models("sk-old").0, models("sk-new").0), (200, 401));
    std::fs::write(keys.path(), "sk-newer\nsk-new\n").unwrap();
    wait(|| models("sk-new").0 == 200);
    assert_eq!(models("sk-old").0, 401);
    server.write(&settings, &[("a", a.path()), ("b", a.path())]);
    wait(|| models("sk-new").1["data"].as_array().unwrap().len() == 2);
    // A file that was emptied by mistake is refused, and the keys stay valid.
    std::fs::write(keys.path(), "").unwrap();
    wait(|| server.metric("embedding_server_reloads_total{result=\"refused\"}") == 2.0);
    assert_eq!((models("sk-new").0, models("").0), (200, 401));
}

/// Truncates the table of `dir` to its header.
fn cut_short(dir: &Path) {
    let file = std::fs::OpenOptions::new().write(true).open(dir.join("model.safetensors")).unwrap();
    file.set_len(4096).unwrap();
}

#[test]
fn a_truncated_table_is_an_error_until_it_is_loaded_again() {
    let (cut, whole) = (models::layer0(), copy_of("llama"));
    let server = Configured::start("", &[("cut", cut.path()), ("whole", whole.path())]);
    let before = server.embed("cut");
    let fine = server.embed("whole");
    assert_eq!((before.0, fine.0), (200, 200));
    cut_short(cut.path());
    let (status, error) = server.embed("cut");
    assert_eq!((status, error["error"]["code"].as_str()), (503, Some("model_damaged")), "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("model.safetensors"));
    assert_eq!((server.server.status("/ready"), server.server.status("/health")), (503, 200));
    assert_eq!(server.embed("whole"), fine);
    server.reload("refused");
    let repaired = models::layer0();
    std::fs::rename(repaired.path().join("model.safetensors"), cut.path().join("model.safetensors")).unwrap();
    server.reload("reloaded");
    assert_eq!((server.embed("cut"), server.server.status("/ready")), (before, 200));
    let log = server.log();
    assert!(log.iter().any(|line| line["level"] == "ERROR" && line.to_string().contains("cut short")));
    assert_eq!(loads(&log, "whole"), 1);
}

/// Overwrites all but the first `kept` bytes of the table of `dir` in place.
fn overwrite(dir: &Path, kept: usize, change: impl Fn(u8) -> u8) {
    let path = dir.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let changed: Vec<u8> = bytes[kept..].iter().map(|&byte| change(byte)).collect();
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(kept as u64)).unwrap();
    file.write_all(&changed).unwrap();
}

fn is_damaged((status, error): &(u16, Value), how: &str) {
    assert_eq!((*status, error["error"]["code"].as_str()), (503, Some("model_damaged")), "{error}");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("model.safetensors") && message.contains(how), "{message}");
}

#[test]
fn a_table_overwritten_in_place_counts_as_damaged_once_its_reload_is_refused() {
    // Once with garbage everywhere, and once with valid numbers that do not match the norms computed at load.
    for (kept, change) in [(0, (|_| 0xff) as fn(u8) -> u8), (4096, |byte| byte & !1)] {
        let (changed, whole) = (copy_of("llama"), copy_of("llama"));
        let server = Configured::start("", &[("m", changed.path()), ("whole", whole.path())]);
        let fine = server.embed("whole");
        let before = server.embed("m");
        overwrite(changed.path(), kept, change);
        // The reload is refused for a reason other than the table.
        server.write("nonsense = 1", &[]);
        server.reload("refused");
        let answer = server.embed("m");
        is_damaged(&answer, "was changed in place");
        assert_eq!(server.server.status("/ready"), 503);
        assert_eq!(server.embed("whole"), fine);
        let repaired = copy_of("llama");
        std::fs::rename(repaired.path().join("model.safetensors"), changed.path().join("model.safetensors")).unwrap();
        server.write("", &[("m", changed.path()), ("whole", whole.path())]);
        server.reload("reloaded");
        assert_eq!((server.embed("m"), server.server.status("/ready")), (before, 200));
        assert_eq!(loads(&server.log(), "whole"), 1);
    }
}

#[test]
fn a_table_replaced_by_an_invalid_one_is_served_from_the_old_file() {
    let dir = copy_of("llama");
    let server = Configured::start("", &[("m", dir.path())]);
    let before = server.embed("m");
    std::fs::write(dir.path().join("next"), [0xff; 100_000]).unwrap();
    std::fs::rename(dir.path().join("next"), dir.path().join("model.safetensors")).unwrap();
    server.reload("refused");
    assert_eq!((server.embed("m"), server.server.status("/ready")), (before, 200));
}

#[test]
fn a_sum_that_is_not_finite_is_reported_as_damage() {
    for settings in ["", "normalize = false\n"] {
        let dir = copy_of("llama");
        let config = tempfile::tempdir().unwrap();
        let path = config.path().join("c.toml");
        std::fs::write(&path, format!("[[models]]\nid = \"m\"\npath = {:?}\n{settings}", dir.path())).unwrap();
        let server = Server::start(&["--config", path.to_str().unwrap()]);
        server.wait_until_ready();
        let server = Configured { server, dir: config };
        assert_eq!(server.embed("m").0, 200);
        overwrite(dir.path(), 4096, |_| 0xff);
        let answer = server.embed("m");
        is_damaged(&answer, "not finite");
        assert_eq!(server.server.status("/ready"), 503);
    }
}

#[test]
fn a_copied_table_is_independent_of_its_file() {
    let dir = models::layer0();
    let settings = tempfile::tempdir().unwrap();
    let config = settings.path().join("c.toml");
    std::fs::write(&config, format!("[[models]]\nid = \"m\"\npath = {:?}\nmemory = \"copy\"", dir.path())).unwrap();
    let server = Server::start(&["--config", config.to_str().unwrap()]);
    server.wait_until_ready();
    let ask = || {
        let url = format!("http://{}/v1/embeddings", server.address);
        let answer = agent().post(url).header("content-type", "application/json").send(r#"{"input":"hello world"}"#);
        answer.unwrap().body_mut().read_to_string().unwrap()
    };
    let before = ask();
    assert!(before.contains("\"embedding\""));
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.child.id())).unwrap();
    assert!(!maps.contains(dir.path().to_str().unwrap()), "{maps}");
    cut_short(dir.path());
    assert_eq!(ask(), before);
    assert_eq!(server.status("/ready"), 200);
}
