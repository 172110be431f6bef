//! Starts the release binary, and reads its resource use from the operating system.

use std::fmt::{self, Display, Formatter};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::Client;

/// The resources of a process.
pub struct Resources {
    /// In bytes, as returned by [`Server::memory`].
    pub memory: u64,
    pub descriptors: usize,
    pub threads: usize,
}

impl Display for Resources {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { memory, descriptors, threads } = self;
        write!(f, "{} MiB of memory, {descriptors} descriptors, {threads} threads", memory >> 20)
    }
}

pub struct Server {
    child: Child,
    pub address: String,
}

impl Server {
    /// Starts the server on a free port with the built-in model, and waits until it is ready. If the variable `SERVER_CORE` names a core,
    /// the server runs only on that core.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        // This program is target/PROFILE/examples/load.
        let load = std::env::current_exe().unwrap();
        let binary = load.parent().and_then(Path::parent).unwrap().join("embedding-server");
        let mut command = match std::env::var_os("SERVER_CORE") {
            Some(core) => {
                let mut command = Command::new("taskset");
                command.arg("-c").arg(core).arg(&binary);
                command
            }
            None => Command::new(&binary),
        };
        let mut child = command
            .args(["--port", "0"])
            .envs(settings.iter().copied())
            .env("EMBEDDING_SERVER_LOG_LEVEL", "error")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", binary.display()));
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().split_once("://").expect(&line).1.to_owned();
        let server = Self { child, address };
        let deadline = Instant::now() + Duration::from_secs(60);
        while Client::connect(&server.address).await.get("/ready").await.unwrap() != 200 {
            assert!(Instant::now() < deadline, "not ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server
    }

    /// Returns the anonymous memory of the server in bytes. It excludes the pages of the program and of mapped tables, which the system can
    /// take back.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Returns the CPU time that the server's threads have used: those that serve connections, and all of them together.
    pub fn cpu(&self) -> (Duration, Duration) {
        let (mut sockets, mut all) = (Duration::ZERO, Duration::ZERO);
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap() {
            let read = |file: &str| std::fs::read_to_string(thread.as_ref().unwrap().path().join(file)).unwrap();
            // The first number is the time on a CPU in nanoseconds.
            let time = Duration::from_nanos(read("schedstat").split(' ').next().unwrap().parse().unwrap());
            all += time;
            if read("comm").starts_with("sockets") {
                sockets += time;
            }
        }
        (sockets, all)
    }

    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    pub fn resources(&self) -> Resources {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().count();
        Resources { memory: self.memory(), descriptors: self.descriptors(), threads }
    }

    /// Sends SIGHUP, which makes the server reload its configuration.
    pub fn hang_up(&self) {
        assert!(Command::new("kill").arg("-HUP").arg(self.child.id().to_string()).status().unwrap().success());
    }

    /// Returns whether the server still runs.
    pub fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
