//! Opens the listening socket: at `server.host` and `server.port`, or at a Unix socket (`unix:PATH`).

use std::io::ErrorKind;

use tokio::net::TcpListener;

use super::listen::{Listener, Listeners};
use crate::config::Config;
#[cfg(unix)]
use crate::config::host::Host;

/// Why the server cannot listen: a sentence with the address and the setting that changes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BindError(pub String);

impl From<String> for BindError {
    fn from(problem: String) -> Self {
        Self(problem)
    }
}

impl From<&str> for BindError {
    fn from(problem: &str) -> Self {
        Self(problem.to_owned())
    }
}

/// Binds the configured address or Unix socket. For `localhost` it binds both loopback addresses that the machine has,
/// because clients try either of them first.
///
/// # Errors
/// A sentence with the address and the setting that changes it.
pub async fn bind(config: &Config) -> Result<Listeners, BindError> {
    let (host, port) = (&config.server.host, config.server.port);
    #[cfg(unix)]
    if let Host::Unix(path) = host {
        return unix::bind(path).map_err(|reason| BindError(format!("cannot listen on {host}: {reason}")));
    }
    let failed =
        |e: &std::io::Error| BindError(format!("cannot listen on {}:{port}: {e}{}", host.in_url(), advice(e, port)));
    let addresses = host.addresses(port).map_err(|error| BindError(error.0))?;
    if !host.is_localhost() {
        let listener = TcpListener::bind(addresses.as_slice()).await.map_err(|e| failed(&e))?;
        return Ok(listener.into());
    }
    let mut listeners: Vec<Listener> = Vec::new();
    for mut address in addresses {
        // If the port is 0, the system chooses it for the first address, and the second address uses the same port.
        if let Some(Listener::Tcp(first)) = listeners.first() {
            address.set_port(first.local_addr().map_err(|e| failed(&e))?.port());
        }
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push(Listener::Tcp(listener)),
            Err(error) if is_missing(&error) => tracing::debug!(%address, %error, "this machine has no such address"),
            Err(error) => {
                return Err(format!("cannot listen on {address}: {error}{}", advice(&error, address.port())).into());
            }
        }
    }
    match listeners.is_empty() {
        true => Err(failed(&ErrorKind::AddrNotAvailable.into())),
        false => Ok(listeners.into()),
    }
}

/// Returns whether the machine has no address of this kind, for example because it has no IPv6.
fn is_missing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::AddrNotAvailable | ErrorKind::Unsupported)
        || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Returns the remedy for an address that cannot be bound.
fn advice(error: &std::io::Error, port: u16) -> &'static str {
    match (error.kind(), port) {
        (ErrorKind::AddrInUse, 5000) if cfg!(target_os = "macos") => {
            "; AirPlay Receiver uses port 5000: switch it off in System Settings, General, AirDrop & Handoff, or set \
             server.port or --port to another port"
        }
        (ErrorKind::AddrInUse, _) => "; set server.port or --port to a free port (0 takes any)",
        (ErrorKind::PermissionDenied, 1..1024) => {
            "; ports below 1024 need root or the capability CAP_NET_BIND_SERVICE: set server.port or --port to a \
             higher port"
        }
        (ErrorKind::AddrNotAvailable, _) => {
            "; set server.host or --host to an address of this machine, or to 0.0.0.0 for all of them"
        }
        _ => "; set server.host and server.port",
    }
}

#[cfg(unix)]
pub use unix::SocketFile;

#[cfg(unix)]
mod unix {
    use std::fs::File;
    use std::io::{self, ErrorKind};
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use socket2::{Domain, SockAddr, Socket, Type};
    use tokio::net::UnixListener;

    use super::super::listen::{Listener, Listeners};
    use super::BindError;

    /// How long to wait for another process that locks the directory. After that the socket is bound without the lock.
    const LOCK: Duration = Duration::from_secs(1);

    /// The file of a socket that this process has bound. Dropping it removes the file, unless another file has taken
    /// its place.
    pub struct SocketFile {
        path: PathBuf,
        /// The device and the inode of the file.
        identity: (u64, u64),
    }

    impl SocketFile {
        fn from_path(path: &Path) -> io::Result<Self> {
            let file = std::fs::symlink_metadata(path)?;
            Ok(Self { path: path.to_owned(), identity: (file.dev(), file.ino()) })
        }
    }

    impl Drop for SocketFile {
        fn drop(&mut self) {
            let ours =
                std::fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
            if ours && let Err(error) = std::fs::remove_file(&self.path) {
                tracing::warn!(path = %self.path.display(), %error, "the Unix socket cannot be removed");
            }
        }
    }

    /// Listens on `path`. An existing socket on which no process listens is removed first.
    ///
    /// # Errors
    /// A sentence with what is wrong with `path`, and the remedy.
    pub fn bind(path: &Path) -> Result<Listeners, BindError> {
        // Two servers that start at the same time must not each remove the other's socket: between bind(2) and
        // listen(2) a socket refuses connections and looks as if no process listened on it.
        let _lock = path.parent().and_then(lock);
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path)
            }
            bound => bound,
        };
        let listener = listener.map_err(|error| format!("{error}{}", advice(&error)))?;
        let file = SocketFile::from_path(path).map_err(|error| error.to_string())?;
        Ok(Listeners::with_file(Listener::Unix(listener), file))
    }

    /// Locks the directory until the returned file is dropped. Returns `None` if the lock cannot be taken.
    fn lock(directory: &Path) -> Option<File> {
        let directory = File::open(directory).ok()?;
        let deadline = Instant::now() + LOCK;
        loop {
            match directory.try_lock() {
                Ok(()) => return Some(directory),
                Err(std::fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(_) => return None,
            }
        }
    }

    fn remove_stale(path: &Path) -> Result<(), BindError> {
        let file = std::fs::symlink_metadata(path).map_err(|error| error.to_string())?;
        if !file.file_type().is_socket() {
            let kind = match file.file_type() {
                kind if kind.is_dir() => "a directory",
                kind if kind.is_symlink() => "a symbolic link",
                _ => "a file that is not a socket",
            };
            return Err(format!(
                "the path is {kind}, which the server does not remove; remove it, or set server.host or --host to \
                 another path"
            )
            .into());
        }
        match connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                tracing::info!(path = %path.display(), "removing a Unix socket on which no process listens");
                std::fs::remove_file(path)
                    .map_err(|error| BindError(format!("the old socket cannot be removed: {error}")))
            }
            // A socket with a full queue (WouldBlock), or of another type, also belongs to another process.
            Ok(()) | Err(_) if is_gone(path) => Ok(()),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(format!(
                "there is a socket already, and this process may not check whether another process listens on it: {error}; \
                 remove it, or set server.host or --host to another path"
            ).into()),
            Ok(()) | Err(_) => {
                Err("another process listens on it; stop that process, or set server.host or --host to another path".into())
            }
        }
    }

    /// Connects without waiting if the queue of incoming connections is full.
    fn connect(path: &Path) -> io::Result<()> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    }

    fn is_gone(path: &Path) -> bool {
        std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
    }

    /// Returns the remedy for a path that cannot be bound.
    fn advice(error: &io::Error) -> &'static str {
        match error.kind() {
            ErrorKind::NotFound => "; create the directory, or set server.host or --host to another path",
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                "; the user of this process must be able to write to the directory"
            }
            _ => "; set server.host or --host to another path",
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    fn on_localhost(port: u16) -> Config {
        let mut config = Config::default();
        config.server.host = "localhost".parse().unwrap();
        config.server.port = port;
        config
    }

    #[tokio::test]
    async fn localhost_binds_the_same_port_on_both_loopback_addresses() {
        let has_ipv6 = TcpListener::bind("[::1]:0").await.is_ok();
        let listeners = bind(&on_localhost(0)).await.unwrap();
        let port = listeners.address().unwrap().port();
        assert_eq!(listeners.places("http", "").len(), if has_ipv6 { 2 } else { 1 });
        TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert_eq!(TcpStream::connect(("::1", port)).await.is_ok(), has_ipv6);
    }

    #[tokio::test]
    async fn a_port_in_use_on_one_loopback_address_is_an_error() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(taken) = TcpListener::bind(address).await else { continue };
            let port = taken.local_addr().unwrap().port();
            let error = bind(&on_localhost(port)).await.err().unwrap().to_string();
            assert!(error.contains(&port.to_string()) && error.contains("server.port"), "{error}");
        }
    }
}
