//! `embedding-server health`: what a container's health check runs, where there is no shell and no curl.

use std::time::Duration;

use ureq::Agent;

use super::output::Failure;
use super::{HealthArgs, ServeArgs, running};

/// The longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

pub fn run(args: &HealthArgs) -> Result<String, Failure> {
    let given =
        ServeArgs { config: args.config.clone(), host: args.host.clone(), port: args.port, ..ServeArgs::default() };
    let nothing_given = given.config.is_none() && given.host.is_none() && given.port.is_none();
    let running = if nothing_given { running::find() } else { None };
    let server = match running {
        Some(running) => running.effective(),
        None => given.effective(),
    };
    let server = server.map_err(Failure::configuration)?.config.server;
    if server.port == 0 {
        return Err(Failure::Configuration("the server's port is 0, a free one: give --port PORT".to_owned()));
    }
    let address = format!("{}:{}", server.host.in_url(), server.port);
    let path = if args.live { "health" } else { "ready" };
    let scheme = if server.tls_cert.is_some() { "https" } else { "http" };
    Ok(ask(&format!("{scheme}://{address}/{path}"))?)
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
