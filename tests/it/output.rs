//! Standard output and standard error that are closed, full, or not read.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::checkpoint;
use crate::process::{Server, command, model};

/// Sends `count` requests that are logged, on one connection, and reads the responses.
fn ask(server: &Server, count: usize) {
    let mut stream = BufReader::new(TcpStream::connect(&server.address).unwrap());
    stream.get_ref().set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let id = "x".repeat(128);
    let request = format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nx-request-id: {id}\r\n\r\n");
    for begin in (0..count).step_by(100) {
        let now = (count - begin).min(100);
        stream.get_mut().write_all(request.repeat(now).as_bytes()).unwrap();
        for _ in 0..now {
            let mut length = 0;
            let mut line = String::new();
            while line != "\r\n" {
                line.clear();
                stream.read_line(&mut line).unwrap();
                if let Some(value) = line.strip_prefix("content-length: ") {
                    length = value.trim().parse().unwrap();
                }
            }
            stream.read_exact(&mut vec![0; length]).unwrap();
        }
    }
}

fn dropped_lines(server: &Server) -> u64 {
    let mut answer = crate::common::agent().get(format!("http://{}/metrics", server.address)).call().unwrap();
    let text = answer.body_mut().read_to_string().unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("embedding_server_log_lines_dropped_total "));
    line.expect(&text).parse().unwrap()
}

/// A pipe holds 64 KiB, and a thousand lines are more than that.
#[test]
fn an_unread_log_blocks_neither_requests_nor_the_exit() {
    let mut server = Server::start(&["--model", &model(&checkpoint("llama"))]);
    server.wait_until_ready();
    ask(&server, 1000);
    server.signal("TERM");
    let deadline = Instant::now() + Duration::from_secs(25);
    let code = loop {
        match server.child.try_wait().unwrap() {
            Some(status) => break status.code(),
            None => assert!(Instant::now() < deadline, "still there"),
        }
        std::thread::yield_now();
    };
    assert_eq!(code, Some(0));
}

#[test]
fn lines_of_an_unread_log_are_dropped_and_counted() {
    let mut server = Server::start(&["--log-format", "json", "--model", &model(&checkpoint("llama"))]);
    server.wait_until_ready();
    assert_eq!(dropped_lines(&server), 0);
    let deadline = Instant::now() + Duration::from_secs(120);
    while dropped_lines(&server) == 0 {
        assert!(Instant::now() < deadline, "all lines are kept");
        ask(&server, 2000);
    }
    // Once the log is read again, it reports the dropped lines and continues.
    let log = server.child.stderr.take().unwrap();
    let (told, notice) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut last = serde_json::Value::Null;
        for line in BufReader::new(log).lines() {
            let line = line.unwrap();
            last = serde_json::from_str(&line).expect(&line);
            if last["message"].as_str().unwrap().contains("were dropped") {
                let _ = told.send(last["lines"].as_u64().unwrap());
            }
        }
        last
    });
    let told = notice.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(told, dropped_lines(&server));
    server.signal("TERM");
    let last = reader.join().unwrap();
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    assert!(last["message"].as_str().unwrap().contains("drain"), "{last}");
}

/// A slow reader still receives every line that is written before the process ends.
#[test]
fn a_slow_reader_of_the_log_gets_every_line() {
    let mut server = Server::start(&["--model", &model(&checkpoint("llama"))]);
    server.wait_until_ready();
    ask(&server, 3000);
    let log = server.child.stderr.take().unwrap();
    server.signal("TERM");
    let requests =
        BufReader::new(log).lines().filter(|line| line.as_ref().unwrap().contains("route=\"/v1/models\"")).count();
    assert_eq!((requests, server.child.wait().unwrap().code()), (3000, Some(0)));
}

/// Returns commands that print their result and exit, and that succeed if they can print it.
fn commands() -> Vec<Vec<String>> {
    let llama = checkpoint("llama").display().to_string();
    let list = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
    let mut commands = vec![
        list(&["check"]),
        list(&["check", "--model", &llama]),
        list(&["inspect", &llama]),
        list(&["man"]),
        list(&["completions", "bash"]),
        list(&["--help"]),
        list(&["-h"]),
        list(&["--version"]),
        list(&["serve", "--help"]),
        list(&["help", "extract"]),
    ];
    if cfg!(feature = "bulk") {
        let input = concat!(env!("CARGO_MANIFEST_DIR"), "/LICENSE");
        commands.push(list(&["embed", input, "--model", &llama]));
    }
    commands
}

fn with_stdout(args: &[String], stdout: impl Into<Stdio>) -> (Option<i32>, String) {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = command(&args).stdout(stdout).stderr(Stdio::piped()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_exits_with_74() {
    for args in commands() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (code, said) = with_stdout(&args, full);
        assert_eq!(code, Some(74), "{args:?}: {said}");
        let error = said.lines().find(|line| line.starts_with("error: ")).expect(&said);
        assert!(error.contains("standard output"), "{args:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn a_closed_pipe_ends_a_command_quietly() {
    for args in commands() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (code, said) = with_stdout(&args, writer);
        assert_eq!((code, said.as_str()), (Some(74), ""), "{args:?}");
    }
}

/// A message that cannot be written to standard error does not change the exit code.
#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_error_changes_no_exit_code() {
    for (args, code) in [
        (&["check", "--port", "0"][..], 0),
        (&["check", "--config", "/nowhere.toml"], 78),
        (&["--config", "/nowhere.toml"], 78),
        (&["inspect", "/nowhere"], 1),
        (&["--no-such-flag"], 2),
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command: Command = command(args);
        let status = command.env("EMBEDDING_SERVER_PROT", "1").stdout(Stdio::null()).stderr(full).status().unwrap();
        assert_eq!(status.code(), Some(code), "{args:?}");
    }
}
