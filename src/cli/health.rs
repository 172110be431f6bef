//! `embedding-server health`: what a container's health check runs, where there is no shell and no curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ureq::Agent;

use super::output::Failure;
use super::{HealthArgs, ServeArgs};

/// The longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

pub fn run(args: &HealthArgs) -> Result<String, Failure> {
    let serve =
        ServeArgs { config: args.config.clone(), host: args.host.clone(), port: args.port, ..ServeArgs::default() };
    let server = serve.effective().map_err(Failure::configuration)?.config.server;
    let address = SocketAddr::new(reachable(server.host), server.port);
    let path = if args.live { "health" } else { "ready" };
    let scheme = if server.tls_cert.is_some() { "https" } else { "http" };
    Ok(ask(&format!("{scheme}://{address}/{path}"))?)
}

/// Where a server that listens on `host` is found from its own machine.
fn reachable(host: IpAddr) -> IpAddr {
    match host {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        host => host,
    }
}

/// What the server says, with a line break.
fn ask(url: &str) -> Result<String, String> {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        // The server's own address is never behind one.
        .proxy(None)
        .timeout_global(Some(TIMEOUT));
    // Its certificate is for a name, not for this address, and nothing is told to it.
    #[cfg(feature = "tls")]
    let config = config.tls_config(ureq::tls::TlsConfig::builder().disable_verification(true).build());
    let mut answer = Agent::from(config.build()).get(url).call().map_err(|e| format!("{url} does not answer: {e}"))?;
    let said = answer.body_mut().read_to_string().map_err(|e| format!("{url}: {e}"))?;
    let status = answer.status();
    if status.is_success() { Ok(format!("{said}\n")) } else { Err(format!("{url} answered {status}: {said}")) }
}
