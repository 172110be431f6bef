//! Notifications to systemd, and the sockets that systemd passes to the server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::checkpoint;
use crate::process::{Server, command, model};

#[test]
fn systemd_is_notified_of_ready_reload_and_stop() {
    let dir = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let told = || {
        let mut message = [0; 256];
        let length = socket.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    let mut notified = command(&["--port", "0", "--model", &model(&checkpoint("llama"))]);
    let server = Server::run(notified.env("NOTIFY_SOCKET", dir.path().join("notify")));
    assert_eq!(told().trim(), "READY=1");
    assert_eq!(server.status("/ready"), 200);
    server.signal("HUP");
    let reloading = told();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(told().trim(), "READY=1");
    server.signal("TERM");
    assert_eq!(told().trim(), "STOPPING=1");
    assert_eq!(server.end().0, Some(0));
}

/// Starts a server whose standard input becomes the first passed socket.
fn activated(socket: OwnedFd) -> (std::process::Child, String) {
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"";
    let mut server = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_embedding-server"), "--model", &model(&checkpoint("llama"))])
        .stdin(Stdio::from(socket))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    (server, line)
}

fn health(mut stream: impl Read + Write) -> String {
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_server_listens_on_the_sockets_that_systemd_passes() {
    let dir = tempfile::tempdir().unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let (mut server, line) = activated(tcp.into());
    assert_eq!(line, format!("listening on http://{address}\n"));
    assert!(health(TcpStream::connect(address).unwrap()).starts_with("HTTP/1.1 200"));
    let _ = (server.kill(), server.wait());

    let path = dir.path().join("s");
    let (mut server, line) = activated(UnixListener::bind(&path).unwrap().into());
    assert_eq!(line, format!("listening on unix:{}\n", path.display()));
    assert!(health(UnixStream::connect(&path).unwrap()).starts_with("HTTP/1.1 200"));
    let _ = (server.kill(), server.wait());
}
