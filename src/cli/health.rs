//! The command `embedding-server health`, for health checks in containers that have no shell and no curl.

#[cfg(unix)]
use std::net::Ipv4Addr;
use std::time::Duration;

use ureq::Agent;

use super::output::Failure;
use super::setting_flags::SettingFlags;
use super::{HealthArgs, ServeArgs, running};
#[cfg(unix)]
use crate::config::host::Host;

/// The time limit for a response.
const TIMEOUT: Duration = Duration::from_secs(5);

pub fn run(args: &HealthArgs) -> Result<String, Failure> {
    let settings =
        SettingFlags::new([("--host", args.host.clone()), ("--port", args.port.map(|port| port.to_string()))]);
    let nothing_given = args.config.is_none() && settings.given().is_empty();
    let given = ServeArgs { config: args.config.clone(), settings, ..ServeArgs::default() };
    let running = if nothing_given { running::find() } else { None };
    let server = match running {
        Some(running) => running.effective(),
        None => given.effective(),
    };
    let server = server.map_err(Failure::configuration)?.config.server;
    let path = if args.live { "health" } else { "ready" };
    let scheme = if server.tls_cert.is_some() { "https" } else { "http" };
    #[cfg(unix)]
    if let Host::Unix(socket) = &server.host {
        let agent = unix::agent(config(), socket);
        // No connection is made to this address. An address, unlike a name, needs no lookup.
        let url = format!("{scheme}://{}/{path}", Ipv4Addr::LOCALHOST);
        return Ok(ask(&agent, &url, &format!("/{path} of {}", server.host))?);
    }
    if server.port == 0 {
        return Err(Failure::Configuration(
            "the configured port is 0, which means any free port: add --port \
                                           PORT"
                .to_owned(),
        ));
    }
    let url = format!("{scheme}://{}:{}/{path}", server.host.in_url(), server.port);
    Ok(ask(&config().into(), &url, &url)?)
}

fn config() -> ureq::config::Config {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        // The server is on this machine, so there is no proxy in front of it.
        .proxy(None)
        .timeout_global(Some(TIMEOUT));
    // The certificate names another host than this address, and the request contains no secret.
    #[cfg(feature = "tls")]
    let config = config.tls_config(ureq::tls::TlsConfig::builder().disable_verification(true).build());
    config.build()
}

/// Sends the request and returns the body of the response with a line break. Error messages call the address `name`.
fn ask(agent: &Agent, url: &str, name: &str) -> Result<String, String> {
    let mut answer = agent.get(url).call().map_err(|e| format!("{name} does not answer: {e}"))?;
    let said = answer.body_mut().read_to_string().map_err(|e| format!("{name}: {e}"))?;
    let status = answer.status();
    if status.is_success() { Ok(format!("{said}\n")) } else { Err(format!("{name} answered {status}: {said}")) }
}

/// HTTP over a Unix socket.
#[cfg(unix)]
mod unix {
    use std::io::{self, ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};

    use socket2::{Domain, SockAddr, Socket, Type};
    use ureq::config::Config;
    use ureq::unversioned::resolver::DefaultResolver;
    use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport};
    use ureq::{Agent, Error};

    /// Returns an agent whose requests all go through `socket`.
    pub fn agent(config: Config, socket: &Path) -> Agent {
        let connector = UnixConnector(socket.to_owned());
        #[cfg(feature = "tls")]
        let connector = connector.chain(ureq::unversioned::transport::RustlsConnector::default());
        Agent::with_parts(config, connector, DefaultResolver::default())
    }

    #[derive(Debug)]
    struct UnixConnector(PathBuf);

    impl Connector for UnixConnector {
        type Out = UnixTransport;

        fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<UnixTransport>, Error> {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // The timeout also limits how long connect(2) waits for a place in the server's queue.
            socket.set_write_timeout(details.timeout.not_zero().map(|limit| *limit))?;
            let connected = SockAddr::unix(&self.0).and_then(|address| socket.connect(&address));
            connected.map_err(|error| failure(error, details.timeout))?;
            let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
            Ok(Some(UnixTransport { stream: socket.into(), buffers }))
        }
    }

    struct UnixTransport {
        stream: UnixStream,
        buffers: LazyBuffers,
    }

    impl std::fmt::Debug for UnixTransport {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.stream.fmt(f)
        }
    }

    impl Transport for UnixTransport {
        fn buffers(&mut self) -> &mut dyn Buffers {
            &mut self.buffers
        }

        fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
            self.stream.set_write_timeout(timeout.not_zero().map(|limit| *limit))?;
            let output = self.buffers.output().get(..amount).unwrap_or_default();
            self.stream.write_all(output).map_err(|error| failure(error, timeout))
        }

        fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
            self.stream.set_read_timeout(timeout.not_zero().map(|limit| *limit))?;
            let amount = self.stream.read(self.buffers.input_append_buf()).map_err(|error| failure(error, timeout))?;
            self.buffers.input_appended(amount);
            Ok(amount > 0)
        }

        /// Each run of the command makes one request, so connections are never reused.
        fn is_open(&mut self) -> bool {
            false
        }
    }

    fn failure(error: io::Error, timeout: NextTimeout) -> Error {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::Timeout(timeout.reason),
            _ => error.into(),
        }
    }
}
