//! Tells systemd about the server's state (sd_notify(3)), and takes over sockets that systemd has opened
//! (sd_listen_fds(3)).
//! Without systemd these functions do nothing.

use std::io;

use super::listen::Listeners;

/// Tells systemd that the server answers requests.
pub fn ready() {
    #[cfg(unix)]
    tell(&[sd_notify::NotifyState::Ready]);
}

/// Tells systemd that the configuration is being reloaded. A call of [`ready`] ends this state, also if the reload
/// failed.
pub fn reloading() {
    #[cfg(unix)]
    if let Ok(now) = sd_notify::NotifyState::monotonic_usec_now() {
        tell(&[sd_notify::NotifyState::Reloading, now]);
    }
}

/// Tells systemd that the server is shutting down.
pub fn stopping() {
    #[cfg(unix)]
    tell(&[sd_notify::NotifyState::Stopping]);
}

#[cfg(unix)]
fn tell(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        tracing::warn!(%error, "cannot notify systemd of the server's state");
    }
}

/// Returns the listening sockets that were passed to this process, if any.
///
/// # Errors
/// If one of them is not a listening TCP or Unix socket.
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
