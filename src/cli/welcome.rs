//! The banner that the server prints when it starts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::{Config, ModelConfig};

/// Returns the banner: the version, the models and the addresses. The server listens on `place`, which has an `address`
/// unless it is a Unix socket. `dimensions` are those of each model, if they are known.
pub fn text(config: &Config, place: &str, address: Option<SocketAddr>, dimensions: &[Option<usize>]) -> String {
    let server = &config.server;
    let scheme = if server.tls_cert.is_some() { "https" } else { "http" };
    let prefix = &server.path_prefix;
    let mut text = format!("embedding-server {}\n", env!("CARGO_PKG_VERSION"));
    let mut line = |name: &str, value: &str| text += &format!("  {name:<11} {value}\n");
    for (model, dimensions) in config.models.iter().zip(dimensions) {
        line("model", &describe(model, *dimensions));
    }
    match address {
        Some(address) => {
            let address = SocketAddr::new(reachable(address.ip()), address.port());
            let url = format!("{scheme}://{address}{prefix}");
            line("base URL", &format!("{url}/v1"));
            if server.playground {
                line("playground", &format!("{url}/"));
            }
            if server.docs {
                line("API docs", &format!("{url}/docs"));
            }
        }
        // Browsers cannot open pages through a Unix socket, so the pages are not listed.
        None => {
            line("socket", place.strip_prefix("unix:").unwrap_or(place));
            line("base URL", &format!("{scheme}://localhost{prefix}/v1 through the socket (curl --unix-socket)"));
        }
    }
    let keys = if server.api_keys.is_empty() && server.api_key_file.is_none() { "not needed" } else { "needed" };
    line("API keys", keys);
    line("TLS", if server.tls_cert.is_some() { "on" } else { "off" });
    text
}

fn describe(model: &ModelConfig, dimensions: Option<usize>) -> String {
    let dimensions = dimensions.map_or_else(String::new, |n| format!(", {n} dimensions"));
    let aliases =
        if model.aliases.is_empty() { String::new() } else { format!(", also called {}", model.aliases.join(", ")) };
    format!("{}{dimensions}{aliases}", model.id)
}

/// Returns the address at which a client on this machine reaches a server that listens on `host`.
fn reachable(host: IpAddr) -> IpAddr {
    match host {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_path_prefix() {
        let mut config = Config::default();
        config.server.path_prefix = "/models/a".to_owned();
        let tcp = text(&config, "http://0.0.0.0:5000", Some(([0, 0, 0, 0], 5000).into()), &[None]);
        for path in ["/models/a/v1\n", "/models/a/\n", "/models/a/docs\n"] {
            assert!(tcp.contains(&format!("http://127.0.0.1:5000{path}")), "{tcp}");
        }
        let unix = text(&config, "unix:/run/es.sock", None, &[None]);
        assert!(unix.contains("  /run/es.sock\n") && unix.contains("http://localhost/models/a/v1 "), "{unix}");
    }
}
