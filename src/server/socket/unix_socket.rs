//! Opens a Unix socket to listen on, in place of one on which no process listens any more.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

use super::bind_error::{BindError, BindErrorKind};
use super::listen::{Listener, Listeners};
use super::socket_file::SocketFile;

/// How long to wait for another process that locks the directory. After that the socket is bound without the lock.
const LOCK: Duration = Duration::from_secs(1);

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
    let listener = listener.map_err(|error| BindError::io(&error, format!("{error}{}", advice(&error))))?;
    let file = SocketFile::from_path(path).map_err(|error| BindError::io(&error, error.to_string()))?;
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
    let file = std::fs::symlink_metadata(path).map_err(|error| BindError::io(&error, error.to_string()))?;
    if !file.file_type().is_socket() {
        let kind = match file.file_type() {
            kind if kind.is_dir() => "a directory",
            kind if kind.is_symlink() => "a symbolic link",
            _ => "a file that is not a socket",
        };
        return Err(BindError::new(
            BindErrorKind::Path,
            format!(
                "the path is {kind}, which the server does not remove; remove it, or set server.host or --host to \
                 another path"
            ),
        ));
    }
    match connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "removing a Unix socket on which no process listens");
            std::fs::remove_file(path)
                .map_err(|error| BindError::io(&error, format!("the old socket cannot be removed: {error}")))
        }
        // A socket with a full queue (WouldBlock), or of another type, also belongs to another process.
        Ok(()) | Err(_) if is_gone(path) => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(BindError::new(
            BindErrorKind::PermissionDenied,
            format!(
                "there is a socket already, and this process may not check whether another process listens on it: \
                 {error}; remove it, or set server.host or --host to another path"
            ),
        )),
        Ok(()) | Err(_) => Err(BindError::new(
            BindErrorKind::InUse,
            "another process listens on it; stop that process, or set server.host or --host to another path",
        )),
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
