//! `server.host = "unix:PATH"`: the file of the socket, and requests and health checks through it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::checkpoint;
use crate::process::{Server, command, model};

fn host(path: &Path) -> String {
    format!("unix:{}", path.display())
}

/// Starts a server on this socket, and returns it with what it prints up to the end of its banner.
fn run(command: &mut Command) -> (Server, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut stdout = BufReader::new(child.stdout.as_mut().unwrap());
    while !said.contains("  TLS ") && stdout.read_line(&mut said).unwrap() > 0 {}
    (Server { child, address: String::new() }, said)
}

fn start(path: &Path) -> (Server, String) {
    run(&mut command(&["--host", &host(path), "--model", &model(&checkpoint("llama"))]))
}

/// Returns the error of a server that does not start.
fn refused(path: &Path) -> String {
    let output = command(&["--host", &host(path), "--model", &model(&checkpoint("llama"))]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(&format!("cannot listen on {}", host(path))), "{error}");
    error
}

fn ask(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(path: &Path, route: &str) -> String {
    ask(path, &format!("GET {route} HTTP/1.1\r\nhost: any.example\r\nconnection: close\r\n\r\n"))
}

fn wait_until_ready(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !get(path, "/ready").starts_with("HTTP/1.1 200") {
        assert!(Instant::now() < deadline, "not ready");
        std::thread::yield_now();
    }
}

fn told(output: &Output) -> (Option<i32>, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn requests_and_health_checks_go_through_the_socket_until_it_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("es.sock");
    let config = dir.path().join("c.toml");
    std::fs::write(&config, format!("[server]\nhost = {:?}", host(&path))).unwrap();
    let (server, said) = start(&path);
    assert!(said.starts_with(&format!("listening on {}\n", host(&path))), "{said}");
    assert!(said.contains(&format!("socket      {}\n", path.display())), "{said}");
    assert!(said.contains("http://localhost/v1 through the socket") && !said.contains(":5000"), "{said}");
    wait_until_ready(&path);
    let body = r#"{"input":"hello"}"#;
    let post = format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = ask(&path, &post);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"embedding\""), "{answer}");

    let health = |args: &[&str], variable: Option<&str>| {
        let mut command = command(&[&["health"], args].concat());
        if let Some(value) = variable {
            command.env("EMBEDDING_SERVER_HOST", value);
        }
        told(&command.env("http_proxy", "http://127.0.0.1:1").output().unwrap())
    };
    let (ready, alive) = ("{\"status\":\"ready\"}\n".to_owned(), "{\"status\":\"ok\"}\n".to_owned());
    assert_eq!(health(&["--host", &host(&path)], None), (Some(0), ready.clone()));
    assert_eq!(health(&["--host", &host(&path), "--port", "0", "--live"], None), (Some(0), alive));
    assert_eq!(health(&["--config", config.to_str().unwrap()], None), (Some(0), ready.clone()));
    assert_eq!(health(&[], Some(&host(&path))), (Some(0), ready));

    server.signal("TERM");
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("NO API KEYS"), "{log}");
    assert!(std::fs::symlink_metadata(&path).is_err(), "the socket is still there");
    let (code, said) = health(&["--host", &host(&path)], None);
    assert!(code == Some(1) && said.contains(&format!("/ready of {} does not answer", host(&path))), "{said}");
}

#[test]
fn the_health_check_fails_if_the_socket_answers_503_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let health = || told(&command(&["health", "--host", &host(&path)]).output().unwrap());
    let (code, said) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = listener.accept().unwrap().0;
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while !lines.next().unwrap().unwrap().is_empty() {}
            stream.write_all(b"HTTP/1.1 503 No\r\ncontent-length: 4\r\n\r\nbusy").unwrap();
        });
        health()
    });
    assert!(code == Some(1) && said.contains("answered 503") && said.contains("busy"), "{said}");
    let (code, said) = health();
    assert!(code == Some(1) && said.contains("does not answer: timeout"), "{said}");
}

#[test]
fn the_umask_determines_the_mode_of_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 0117; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_embedding-server")]);
    let (_server, _) = run(shell.args(["--host", &host(&path), "--model", &model(&checkpoint("llama"))]));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
}

#[test]
fn a_stale_socket_is_replaced_by_exactly_one_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(std::fs::symlink_metadata(&path).unwrap().file_type().is_socket());
    let mut started = std::thread::scope(|scope| {
        let starts = [scope.spawn(|| start(&path)), scope.spawn(|| start(&path))];
        starts.map(|start| start.join().unwrap())
    });
    started.sort_by_key(|(_, said)| said.is_empty());
    let [(winner, said), (loser, nothing)] = started;
    assert!(said.starts_with("listening on") && nothing.is_empty(), "{said:?}, {nothing:?}");
    let (code, log) = loser.end();
    assert!(code == Some(1) && log.contains("another process listens on it"), "{log}");
    wait_until_ready(&path);

    // The server is killed, so that its socket file stays.
    winner.signal("KILL");
    winner.end();
    let (server, _) = start(&path);
    wait_until_ready(&path);
    server.signal("TERM");
    let (_, log) = server.end();
    assert!(log.contains("no process listens"), "{log}");
}

#[test]
fn files_that_are_not_stale_sockets_are_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("file"), "mine").unwrap();
    std::fs::create_dir(at("directory")).unwrap();
    symlink(at("nowhere"), at("link")).unwrap();
    assert!(refused(&at("file")).contains("the path is a file that is not a socket"));
    assert!(refused(&at("directory")).contains("the path is a directory"));
    assert!(refused(&at("link")).contains("the path is a symbolic link"));
    assert_eq!(std::fs::read_to_string(at("file")).unwrap(), "mine");
    assert!(at("directory").is_dir() && at("link").is_symlink());
    assert!(refused(&at("none").join("s")).contains("create the directory"));

    let (server, _) = start(&at("s"));
    assert!(refused(&at("s")).contains("another process listens on it"));
    assert!(get(&at("s"), "/health").starts_with("HTTP/1.1 200"));
    // Another program's socket takes the place of this server's socket.
    std::fs::remove_file(at("s")).unwrap();
    let _other = UnixListener::bind(at("s")).unwrap();
    server.signal("TERM");
    assert_eq!(server.end().0, Some(0));
    assert!(UnixStream::connect(at("s")).is_ok());
}

#[test]
fn check_shows_the_socket_and_a_reload_says_that_a_change_needs_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (path, config) = (dir.path().join("s"), dir.path().join("c.toml"));
    let configure = |path: &Path| {
        let (host, model) = (host(path), checkpoint("llama"));
        let text = format!("[server]\nhost = {host:?}\nport = 7\n[[models]]\nid = \"m\"\npath = {model:?}");
        std::fs::write(&config, text).unwrap();
    };
    configure(&path);
    let (code, said) = told(&command(&["check", "--config", config.to_str().unwrap()]).output().unwrap());
    assert!(code == Some(0) && said.contains(&format!("server.host = {:?}", host(&path))), "{said}");
    assert!(said.contains("server.port has no effect: server.host is a Unix socket"), "{said}");
    let long = host(&dir.path().join("x".repeat(200)));
    let (code, said) = told(&command(&["check", "--host", &long]).output().unwrap());
    assert!(code == Some(78) && said.contains("write a shorter path"), "{said}");

    let (mut server, _) = run(&mut command(&["--config", config.to_str().unwrap()]));
    wait_until_ready(&path);
    configure(&dir.path().join("other"));
    server.signal("HUP");
    let mut log = String::new();
    let mut stderr = BufReader::new(server.child.stderr.take().unwrap());
    while !log.contains("configuration reloaded") && stderr.read_line(&mut log).unwrap() > 0 {}
    assert!(log.contains("server.host has changed; restart the server"), "{log}");
    assert!(get(&path, "/health").starts_with("HTTP/1.1 200"));
}
