//! Tests the real program: its exit codes, readiness, signals and output.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::{agent, broken, checkpoint, copy_of};
#[cfg(feature = "hub")]
use crate::fake_hub::FakeHub;

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embedding-server"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("EMBEDDING_SERVER_")) {
        command.env_remove(name);
    }
    command.args(args);
    command
}

fn output(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub struct Server {
    pub child: Child,
    pub address: String,
}

impl Server {
    pub fn start(args: &[&str]) -> Self {
        Self::run(command(args).args(["--port", "0"]))
    }

    pub fn run(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().split_once("://").expect(&line).1.to_owned();
        Self { child, address }
    }

    /// Starts a server with `settings` and the tiny Llama as model `m`, from a file `c.toml` in `dir`.
    pub fn configured(dir: &Path, settings: &str, args: &[&str]) -> Self {
        let (config, path) = (dir.join("c.toml"), checkpoint("llama"));
        std::fs::write(&config, format!("{settings}\n[[models]]\nid = \"m\"\npath = {path:?}")).unwrap();
        Self::start(&[args, &["--config", config.to_str().unwrap()]].concat())
    }

    pub fn status(&self, path: &str) -> u16 {
        agent().get(format!("http://{}{path}", self.address)).call().unwrap().status().as_u16()
    }

    pub fn wait_until_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.status("/ready") != 200 {
            assert!(Instant::now() < deadline, "not ready");
            std::thread::yield_now();
        }
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the process to end, and returns its exit code and its log.
    pub fn end(mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn model(path: &Path) -> String {
    format!("m={}", path.display())
}

#[test]
fn a_bad_configuration_exits_with_78_before_a_port_is_bound() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "[server]\nprot = 1").unwrap();
    for args in [
        vec!["serve", "--config", file.to_str().unwrap()],
        vec!["serve", "--config", "/nowhere.toml"],
        vec!["serve", "--model", "m=/nowhere"],
        vec!["--host", "localhost:1"],
        vec!["check", "--config", file.to_str().unwrap()],
    ] {
        let output = output(&args);
        assert_eq!(output.status.code(), Some(78), "{args:?}: {}", stderr(&output));
        assert!(!String::from_utf8_lossy(&output.stdout).contains("listening"), "{args:?}");
        assert!(stderr(&output).starts_with("error: "), "{args:?}");
    }
    assert_eq!(output(&["serve", "--no-such-flag"]).status.code(), Some(2));
}

#[test]
fn a_checkpoint_that_fails_to_load_ends_the_process_with_its_error() {
    let server = Server::start(&["serve", "--model", &model(&broken("nan"))]);
    let (code, log) = server.end();
    assert_eq!(code, Some(1));
    assert!(log.contains("not finite"), "{log}");
}

#[test]
fn the_default_command_serves_and_exits_cleanly_on_sigterm_and_sigint() {
    for signal in ["TERM", "INT"] {
        let server = Server::start(&["--model", checkpoint("llama").to_str().unwrap()]);
        server.wait_until_ready();
        let url = format!("http://{}/v1/embeddings", server.address);
        let body = r#"{"input": "hello", "model": "text-embedding-3-small"}"#;
        let mut answer = agent().post(&url).header("content-type", "application/json").send(body).unwrap();
        assert!(answer.body_mut().read_to_string().unwrap().contains("\"embedding\""));
        server.signal(signal);
        let (code, log) = server.end();
        assert_eq!(code, Some(0), "{log}");
        let line = log.lines().find(|line| line.contains("/v1/embeddings")).unwrap();
        for field in
            ["status=200", "inputs=1", "tokens=", "duration_ms=", "request_id=", "model=\"text-embedding-3-small\""]
        {
            assert!(line.contains(field), "{line}");
        }
        assert!(!log.contains("hello"), "the log holds a text: {log}");
    }
}

#[cfg(feature = "default-model")]
#[test]
fn without_configuration_the_built_in_model_answers_under_its_four_names() {
    let server = Server::start(&[]);
    server.wait_until_ready();
    let ask = |name: &str| {
        let body = format!(r#"{{"input": "hello", "model": "{name}"}}"#);
        let url = format!("http://{}/v1/embeddings", server.address);
        let mut answer = agent().post(&url).header("content-type", "application/json").send(body).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
        answer["data"][0]["embedding"].clone()
    };
    let names = [
        "multilingual-e5-small-static-2",
        "text-embedding-3-small",
        "text-embedding-ada-002",
        "text-embedding-3-large",
    ];
    for name in names {
        let vector = ask(name);
        assert_eq!(vector.as_array().map(Vec::len), Some(384), "{name}");
        assert_eq!(vector, ask(names[0]), "{name}");
    }
    let mut listed = agent().get(format!("http://{}/v1/models", server.address)).call().unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed.body_mut().read_to_string().unwrap()).unwrap();
    let ids: Vec<&str> = listed["data"].as_array().unwrap().iter().filter_map(|m| m["id"].as_str()).collect();
    assert_eq!(ids, names);
}

#[cfg(feature = "default-model")]
#[test]
fn a_configured_model_replaces_the_built_in_one_or_is_served_next_to_it() {
    let models = |args: &[&str]| {
        let output = output(&[&["check"], args].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().filter(|line| line.starts_with("models.") && line.contains(".path = "));
        lines.map(|line| line.split("  #").next().unwrap().trim_end().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(models(&[]), [r#"models.multilingual-e5-small-static-2.path = "builtin:default""#]);
    let llama = checkpoint("llama");
    let configured = format!("models.text-embedding-3-small.path = {:?}", llama.display().to_string());
    assert_eq!(models(&["--model", llama.to_str().unwrap()]), [configured.as_str()]);
    assert_eq!(
        models(&["--model", llama.to_str().unwrap(), "--model", "small=builtin:default"]),
        [configured.as_str(), r#"models.small.path = "builtin:default""#]
    );
}

/// A model that does not finish loading, because the Hub that it comes from holds its response back.
#[cfg(feature = "hub")]
struct HeldInLoading {
    hub: FakeHub,
    cache: tempfile::TempDir,
    answer: std::sync::mpsc::Sender<()>,
}

#[cfg(feature = "hub")]
impl HeldInLoading {
    fn new() -> Self {
        let (hub, cache) = (FakeHub::start(&checkpoint("llama")), tempfile::tempdir().unwrap());
        let (answer, told) = std::sync::mpsc::channel();
        hub.fault(move |asked| {
            if asked.file == "api" {
                let _ = told.recv();
            }
            None
        });
        Self { hub, cache, answer }
    }

    /// Starts a server that loads the model.
    fn server(&self, args: &[&str]) -> Server {
        let mut command = command(args);
        for (name, _) in std::env::vars() {
            if name.starts_with("HF_") || name.to_uppercase().ends_with("_PROXY") {
                command.env_remove(name);
            }
        }
        command.args(["--port", "0", "--model", "m=org/model"]).env("HF_ENDPOINT", &self.hub.endpoint);
        Server::run(command.env("HF_HUB_CACHE", self.cache.path()).env("HF_HOME", self.cache.path()))
    }

    fn let_it_load(&self) {
        self.answer.send(()).unwrap();
    }
}

/// The server answers on its port before the models are loaded.
#[cfg(feature = "hub")]
#[test]
fn the_port_is_bound_before_models_are_loaded() {
    let held = HeldInLoading::new();
    let server = held.server(&[]);
    assert_eq!((server.status("/health"), server.status("/ready"), server.status("/v1/models")), (200, 503, 200));
    let url = format!("http://{}/v1/embeddings", server.address);
    let mut answer = agent().post(&url).header("content-type", "application/json").send(r#"{"input":"a"}"#).unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].to_str().unwrap()), (503, "1"));
    assert!(answer.body_mut().read_to_string().unwrap().contains("not_ready"));
    held.let_it_load();
    server.wait_until_ready();
}

/// A request whose body is still arriving at SIGTERM is answered, and new connections are not accepted.
#[test]
fn requests_in_flight_are_drained() {
    let server = Server::start(&["--model", &model(&checkpoint("llama"))]);
    server.wait_until_ready();
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let body = r#"{"input":"in flight"}"#;
    write!(stream, "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n", body.len()).unwrap();
    // The server has asked for the body, so the request is in flight.
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 100"), "{line}");
    server.signal("TERM");
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(&server.address).is_ok() {
        assert!(Instant::now() < deadline, "still accepts connections");
        std::thread::yield_now();
    }
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    reader.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("HTTP/1.1 200") && answer.contains("\"usage\""), "{answer}");
    assert_eq!(server.end().0, Some(0));
}

/// Requests are sent both on a connection that was open before the signal and on a new one.
#[test]
fn requests_are_accepted_during_the_drain_delay() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::configured(dir.path(), "[server]\ndrain_delay = \"4s\"", &[]);
    server.wait_until_ready();
    let mut open = BufReader::new(TcpStream::connect(&server.address).unwrap());
    let body = r#"{"input":"a"}"#;
    let ask = |stream: &mut BufReader<TcpStream>| {
        let length = body.len();
        write!(stream.get_mut(), "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}")
            .unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}}") {
            assert!(stream.read_until(b'}', &mut answer).unwrap() > 0, "cut");
        }
        String::from_utf8(answer).unwrap().to_ascii_lowercase()
    };
    assert!(!ask(&mut open).contains("connection: close"));
    server.signal("TERM");
    let deadline = Instant::now() + Duration::from_secs(10);
    while server.status("/ready") == 200 {
        assert!(Instant::now() < deadline, "still ready");
        std::thread::yield_now();
    }
    let mut new = BufReader::new(TcpStream::connect(&server.address).unwrap());
    for stream in [&mut open, &mut new] {
        let answer = ask(stream);
        assert!(answer.starts_with("http/1.1 200") && answer.contains("connection: close"), "{answer}");
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn requests_that_do_not_end_are_cut_off_after_the_drain_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::configured(dir.path(), "[server]\ndrain_timeout = \"200ms\"", &[]);
    server.wait_until_ready();
    let mut stream = TcpStream::connect(&server.address).unwrap();
    write!(stream, "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: 10\r\n\r\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
    server.signal("TERM");
    let (code, log) = server.end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("server.drain_timeout has passed"), "{log}");
}

#[test]
fn the_log_can_be_json() {
    let server = Server::start(&["--log-format", "json", "--model", &model(&checkpoint("llama"))]);
    server.wait_until_ready();
    assert_eq!(server.status("/v1/models"), 200);
    server.signal("TERM");
    let (_, log) = server.end();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let request = lines.iter().find(|line| line["message"] == "request").unwrap();
    assert_eq!((request["route"].as_str(), request["status"].as_u64()), (Some("/v1/models"), Some(200)));
}

#[test]
fn the_log_has_the_trace_id_and_no_line_for_scrapes() {
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    for level in ["info", "debug"] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::configured(dir.path(), &format!("[log]\nlevel = {level:?}"), &["--log-format", "json"]);
        server.wait_until_ready();
        assert_eq!((server.status("/metrics"), server.status("/health")), (200, 200));
        let url = format!("http://{}/v1/models", server.address);
        let parent = format!("00-{trace}-00f067aa0ba902b7-01");
        agent().get(&url).header("traceparent", parent).call().unwrap();
        server.signal("TERM");
        let (_, log) = server.end();
        let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line));
        let requests: Vec<_> = lines.filter(|line| line["message"] == "request").collect();
        let of = |route: &str| requests.iter().filter(|line| line["route"] == route).collect::<Vec<_>>();
        assert_eq!(of("/v1/models")[0]["trace_id"], trace, "{log}");
        for route in ["/metrics", "/health"] {
            assert_eq!(of(route).len(), usize::from(level == "debug"), "{route}: {log}");
        }
    }
}

#[cfg(feature = "hub")]
#[test]
fn the_exit_code_of_health_says_whether_the_server_is_ready() {
    let held = HeldInLoading::new();
    let server = held.server(&["--host", "0.0.0.0"]);
    let port = server.address.rsplit(':').next().unwrap().to_owned();
    let ask = |more: &[&str]| {
        let mut command = command(&["health"]);
        command.args(more).env("EMBEDDING_SERVER_HOST", "0.0.0.0").env("EMBEDDING_SERVER_PORT", &port);
        // The proxy variables do not apply to a server on this machine.
        let output = command.env("http_proxy", "http://127.0.0.1:1").output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout.clone()).unwrap() + &stderr(&output))
    };
    let alive = (Some(0), "{\"status\":\"ok\"}\n".to_owned());
    assert_eq!(ask(&["--live"]), alive);
    let (code, said) = ask(&[]);
    assert!(code == Some(1) && said.contains("answered 503") && said.contains("not_ready"), "{code:?}: {said}");
    held.let_it_load();
    server.wait_until_ready();
    assert_eq!(ask(&[]), (Some(0), "{\"status\":\"ready\"}\n".to_owned()));
    drop(server);
    for more in [&[] as &[&str], &["--live"]] {
        let (code, said) = ask(more);
        assert!(code == Some(1) && said.contains("does not answer"), "{code:?}: {said}");
    }
}

#[test]
fn completions_and_the_manual_match_the_command_line() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = output(&["completions", shell]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("log-format") && text.contains("extract"), "{shell}: {text}");
    }
    assert_eq!(output(&["completions", "tcsh"]).status.code(), Some(2));
    let output = output(&["man"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains(".TH"), "{text}");
    for part in ["embedding\\-server\\-refine", "\\-\\-log\\-format", "SIGHUP", "EMBEDDING_SERVER_CONFIG"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let text = String::from_utf8(command(&["man", "extract"]).output().unwrap().stdout).unwrap();
    assert!(text.contains("\\-\\-revision") && !text.contains("SIGHUP"), "{text}");
    let dir = tempfile::tempdir().unwrap();
    let written = command(&["man", "--dir", dir.path().to_str().unwrap()]).output().unwrap();
    assert!(written.status.success(), "{}", stderr(&written));
    for name in ["embedding-server.1", "embedding-server-serve.1", "embedding-server-extract.1"] {
        assert!(dir.path().join(name).is_file(), "{name}");
    }
}

#[test]
fn a_port_in_use_is_reported_with_the_setting() {
    let server = Server::start(&["--model", &model(&checkpoint("llama"))]);
    let port = server.address.rsplit(':').next().unwrap();
    let output = output(&["--model", &model(&checkpoint("llama")), "--port", port]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("server.port"), "{}", stderr(&output));
}

/// mergekit and save_pretrained write weights with mode 0600, and containers run as another user.
#[test]
fn an_unreadable_file_is_reported_with_a_remedy() {
    let dir = copy_of("llama");
    let weights = dir.path().join("model.safetensors");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&weights, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut inspect = command(&["inspect", dir.path().to_str().unwrap()]);
    // The owner may always read the file, so root runs the command as another user. Other users set mode 0.
    let root = std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    if root {
        let copy = dir.path().join("binary");
        std::fs::copy(env!("CARGO_BIN_EXE_embedding-server"), &copy).unwrap();
        inspect = Command::new(copy);
        inspect.args(["inspect", dir.path().to_str().unwrap()]).uid(65534).gid(65534);
    } else {
        std::fs::set_permissions(&weights, std::fs::Permissions::from_mode(0o000)).unwrap();
    }
    let output = inspect.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    assert!(error.contains("model.safetensors") && error.contains("chmod a+r"), "{error}");
}

#[test]
fn inspect_describes_a_checkpoint() {
    let output = output(&["inspect", checkpoint("gemma").to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "model type       gemma",
        "rms_plus_one",
        "model.embed_tokens.weight",
        "bf16",
        "embedding scale  4",
        "3e-5",
        "<bos>",
    ] {
        assert!(text.contains(part), "{text}\nlacks {part}");
    }
}

#[test]
fn check_prints_values_and_origins() {
    let path = checkpoint("llama");
    let output = output(&["check", "--port", "7", "--model", &model(&path)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |key: &str| text.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key}: {text}"));
    assert!(line("server.port = 7 ").ends_with("# flag --port"));
    assert!(line("server.max_body = \"32.0 MiB\" ").ends_with("# default"));
    assert!(line("models.m.path = ").ends_with("# flag --model"));
}

/// Texts from the client are on one line, escaped and cut. The query, which may contain a key, is left out.
#[test]
fn an_error_is_logged_with_its_code_and_at_debug_with_path_and_client() {
    for (level, shown) in [("info", false), ("debug", true)] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::configured(dir.path(), &format!("[log]\nlevel = {level:?}"), &[]);
        server.wait_until_ready();
        let mut stream = TcpStream::connect(&server.address).unwrap();
        let local = stream.local_addr().unwrap();
        let long = "y".repeat(5000);
        write!(
            stream,
            "GET /no/such/path?key=sk-query HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 1.2.3.4 \"quoted\" {long}\r\n\
             Connection: close\r\n\r\n"
        )
        .unwrap();
        stream.read_to_string(&mut String::new()).unwrap();
        server.signal("TERM");
        let (_, log) = server.end();
        let line = log.lines().find(|line| line.contains("status=404")).expect(&log);
        assert!(line.contains("code=\"unknown_url\""), "{line}");
        assert_eq!(line.contains("path=\"/no/such/path\""), shown, "{line}");
        assert_eq!(line.contains(&format!("client=\"{local}\"")), shown, "{line}");
        assert_eq!(line.contains(r#"forwarded_for="1.2.3.4 \"quoted\" yyy"#), shown, "{line}");
        assert!(!log.contains("sk-query") && line.len() < 1000, "{line}");
    }
}

#[test]
fn requests_are_logged_as_configured_and_health_finds_a_server_below_a_prefix() {
    for access in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let settings = format!("[server]\npath_prefix = \"/models/a\"\n[log]\nlevel = \"debug\"\naccess = {access}");
        let server = Server::configured(dir.path(), &settings, &[]);
        let (host, path) = server.address.split_once('/').unwrap();
        assert_eq!(path, "models/a");
        server.wait_until_ready();
        assert_eq!((server.status("/v1/models"), server.status("/nowhere")), (200, 404));
        let port = host.rsplit(':').next().unwrap();
        assert_eq!(output(&["health", "--port", port]).status.code(), Some(0));
        let config = dir.path().join("c.toml");
        let found = output(&["health", "--config", config.to_str().unwrap(), "--port", port]);
        assert_eq!(found.status.code(), Some(0), "{}", stderr(&found));
        server.signal("TERM");
        let (code, log) = server.end();
        assert_eq!(code, Some(0), "{log}");
        assert_eq!((log.contains("status=200"), log.contains("status=404")), (access, access), "{log}");
    }
}
