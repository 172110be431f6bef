//! Opens the listening socket: at `server.host` and `server.port`, or at a Unix socket (`unix:PATH`).

use std::io::ErrorKind;

use tokio::net::TcpListener;

use super::bind_error::{BindError, BindErrorKind};
use super::listen::{Listener, Listeners};
#[cfg(unix)]
use super::unix_socket;
use crate::config::Config;
#[cfg(unix)]
use crate::config::host::Host;

/// Binds the configured address or Unix socket. For `localhost` it binds both loopback addresses that the machine has,
/// because clients try either of them first.
///
/// # Errors
/// A sentence with the address and the setting that changes it.
pub async fn bind(config: &Config) -> Result<Listeners, BindError> {
    let (host, port) = (&config.server.host, config.server.port);
    #[cfg(unix)]
    if let Host::Unix(path) = host {
        return unix_socket::bind(path).map_err(|error| error.at(host));
    }
    let failed = |e: &std::io::Error| {
        BindError::io(e, format!("{e}{}", advice(e, port))).at(format_args!("{}:{port}", host.in_url()))
    };
    let addresses =
        host.addresses(port).map_err(|error| BindError::new(BindErrorKind::NoSuchAddress, error.to_string()))?;
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
                let message = format!("{error}{}", advice(&error, address.port()));
                return Err(BindError::io(&error, message).at(address));
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
            let error = bind(&on_localhost(port)).await.err().unwrap();
            assert_eq!(error.kind(), BindErrorKind::InUse);
            let error = error.to_string();
            assert!(error.contains(&port.to_string()) && error.contains("server.port"), "{error}");
        }
    }
}
