//! Finds the server that runs in this container from what Linux reports about processes. No file has to be written, so
//! this also works in a read-only image without /tmp.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Parser;

use super::{Cli, Command, ServeArgs};
use crate::config::error::ConfigError;
use crate::config::layers::EffectiveConfig;
use crate::config::values::unquoted;
use crate::config::variables::{CONFIG, PREFIX};

/// How a server was started.
#[derive(Debug, PartialEq, Eq)]
pub struct Running {
    args: ServeArgs,
    environment: Vec<(OsString, OsString)>,
    directory: PathBuf,
}

impl Running {
    /// Returns the server's configuration, computed from the server's flags and environment and the current content of
    /// the configuration file.
    pub fn effective(self) -> Result<EffectiveConfig, ConfigError> {
        let Self { mut args, mut environment, directory } = self;
        // Relative paths start at the server's directory, which may differ from the one of this process.
        args.config = args.config.map(|file| directory.join(file));
        for (_, file) in environment.iter_mut().filter(|(name, _)| name == CONFIG) {
            if let Some(path) = file.to_str().map(unquoted).filter(|path| !path.is_empty()) {
                *file = directory.join(path).into_os_string();
            }
        }
        args.effective_with(environment)
    }
}

/// Returns the server that is process 1, as in a container. If process 1 is another program, returns the only server of
/// this user in the same network namespace, unless the environment of this command already says where the server is.
pub fn find() -> Option<Running> {
    let process = |id: u32| Running::of(&PathBuf::from(format!("/proc/{id}")));
    if let Some(first) = process(1) {
        return Some(first);
    }
    let is_set = |name: &&str| std::env::var_os(format!("{PREFIX}{name}")).is_some_and(|value| !value.is_empty());
    let told = ["CONFIG", "HOST", "PORT"].iter().any(is_set);
    if told {
        return None;
    }
    let ids = std::fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut servers = ids.filter(|&id| is_reachable(id)).filter_map(process);
    let found = servers.next();
    if servers.next().is_some() { None } else { found }
}

impl Running {
    /// Reads the process in this directory of /proc, and returns it if it is a server.
    fn of(process: &Path) -> Option<Self> {
        let line = std::fs::read(process.join("cmdline")).ok()?;
        let args = strings(&line).collect::<Vec<_>>();
        let cli = Cli::try_parse_from(of_program(&args)?).ok()?;
        let args = match cli.command {
            None => cli.serve,
            Some(Command::Serve(args)) => args,
            Some(_) => return None,
        };
        // The environment of another user's process cannot be read. In a container all processes have the same
        // environment.
        let environment = match std::fs::read(process.join("environ")) {
            Ok(variables) => strings(&variables).filter_map(|variable| pair(&variable)).collect(),
            Err(_) => std::env::vars_os().collect(),
        };
        let directory = std::fs::read_link(process.join("cwd")).unwrap_or_default();
        Some(Self { args, environment, directory })
    }
}

/// Returns the command line of the program in the arguments of a process. The command of the Python package is a script of an interpreter:
/// `python3 /usr/local/bin/embedding-server --port 8080`.
fn of_program(args: &[String]) -> Option<&[String]> {
    let name = |at: usize| Path::new(args.get(at)?).file_name()?.to_str();
    let first = name(0)?;
    let is_interpreter = first.starts_with("python");
    let renamed = || std::env::current_exe().ok()?.file_name().map(|own| !is_interpreter && own == first);
    if first == env!("CARGO_PKG_NAME") || renamed()? {
        return Some(args);
    }
    args.get(1..).filter(|_| is_interpreter && name(1) == Some(env!("CARGO_PKG_NAME")))
}

/// Splits a file of /proc at its NUL bytes.
fn strings(bytes: &[u8]) -> impl Iterator<Item = String> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    bytes.split(|&byte| byte == 0).map(|string| String::from_utf8_lossy(string).into_owned())
}

fn pair(variable: &str) -> Option<(OsString, OsString)> {
    variable.split_once('=').map(|(name, value)| (name.into(), value.into()))
}

/// Returns whether the process is in the same network namespace: an address in another container's namespace is a
/// different one. Only the owner of a process, or root, may know.
fn is_reachable(id: u32) -> bool {
    let network = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let own = network("self");
    own.is_some() && network(&id.to_string()) == own
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(args: &[&str], environment: &str) -> (tempfile::TempDir, Option<Running>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cmdline"), args.iter().map(|arg| format!("{arg}\0")).collect::<String>())
            .unwrap();
        std::fs::write(dir.path().join("environ"), environment).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("cwd")).unwrap();
        let found = Running::of(dir.path());
        (dir, found)
    }

    #[test]
    fn a_server_is_known_by_its_arguments_its_environment_and_its_directory() {
        let environment = "EMBEDDING_SERVER_HOST=0.0.0.0\0EMBEDDING_SERVER_PORT=7\0";
        let (dir, found) = process(&["/embedding-server", "--config", "c.toml"], environment);
        std::fs::write(dir.path().join("c.toml"), "[server]\nport = 8\nmax_inputs = 9").unwrap();
        let server = found.unwrap().effective().unwrap().config.server;
        assert_eq!((server.host.to_string().as_str(), server.port, server.max_inputs), ("0.0.0.0", 7, 9));
        let (_dir, found) = process(&["./embedding-server", "serve", "-p", "8080"], environment);
        assert_eq!(found.unwrap().effective().unwrap().config.server.port, 8080);
        let (_dir, found) = process(&["/embedding-server", "--host", "unix:/run/es.sock"], environment);
        assert_eq!(found.unwrap().effective().unwrap().config.server.host.to_string(), "unix:/run/es.sock");
        let (_dir, found) = process(&["/usr/bin/python3.13", "/bin/embedding-server", "-p", "9"], environment);
        assert_eq!(found.unwrap().effective().unwrap().config.server.port, 9);
    }

    #[test]
    fn other_processes_are_no_servers() {
        for args in [
            &["/sbin/init"][..],
            &[],
            &["sh", "-c", "embedding-server"],
            &["embedding-server", "health"],
            &["embedding-server", "--prot"],
            &["python3"],
            &["python3", "/usr/bin/gunicorn"],
            &["vim", "embedding-server"],
        ] {
            assert_eq!(process(args, "").1, None, "{args:?}");
        }
    }
}
