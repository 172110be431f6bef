//! What systemd is told of the server's state (sd_notify(3)), and the sockets that it has opened for it (sd_listen_fds(3)).
//! Where systemd did not ask for the one or give the other, nothing happens.

use std::io;

use super::listen::Listeners;

/// The server answers requests.
pub fn ready() {
    #[cfg(unix)]
    tell(&[sd_notify::NotifyState::Ready]);
}

/// The configuration is being read again. [`ready`] ends that, whatever comes of it.
pub fn reloading() {
    #[cfg(unix)]
    if let Ok(now) = sd_notify::NotifyState::monotonic_usec_now() {
        tell(&[sd_notify::NotifyState::Reloading, now]);
    }
}

/// The server takes no more requests.
pub fn stopping() {
    #[cfg(unix)]
    tell(&[sd_notify::NotifyState::Stopping]);
}

#[cfg(unix)]
fn tell(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        tracing::warn!(%error, "systemd cannot be told of the server's state");
    }
}

/// The sockets that were passed to this process to listen on, if any were.
///
/// # Errors
/// When one of them is not a listening TCP or Unix socket.
pub fn passed_sockets() -> io::Result<Option<Listeners>> {
    #[cfg(unix)]
    {
        use tokio::net::{TcpListener, UnixListener};

        use super::listen::Listener;

        let mut passed = listenfd::ListenFd::from_env();
        let listeners = (0..passed.len()).map(|index| {
            if let Ok(Some(tcp)) = passed.take_tcp_listener(index) {
                tcp.set_nonblocking(true)?;
                return TcpListener::from_std(tcp).map(Listener::Tcp);
            }
            let unix = passed.take_unix_listener(index)?.ok_or(io::ErrorKind::NotFound)?;
            unix.set_nonblocking(true)?;
            UnixListener::from_std(unix).map(Listener::Unix)
        });
        let listeners = listeners.collect::<io::Result<Vec<Listener>>>()?;
        Ok((!listeners.is_empty()).then(|| listeners.into()))
    }
    #[cfg(not(unix))]
    Ok(None)
}
