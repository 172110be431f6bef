//! The setting `server.host`: an IP address, a host name, or the path of a Unix socket.

use super::values::InvalidValue;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The address, name or Unix socket that the server listens on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Host {
    Address(IpAddr),
    /// A name that is resolved when the server starts. `localhost` stands for both loopback addresses.
    Name(String),
    /// The path of a Unix socket, written `unix:/path`.
    Unix(PathBuf),
}

const LOCALHOST: &str = "localhost";

impl Host {
    /// Returns whether the host is `localhost`, which stands for both loopback addresses.
    pub fn is_localhost(&self) -> bool {
        matches!(self, Self::Name(name) if name == LOCALHOST)
    }

    /// Returns the addresses to listen on, in order of preference.
    ///
    /// # Errors
    /// A sentence if the name does not resolve, or if the host is a Unix socket.
    pub fn addresses(&self, port: u16) -> Result<Vec<SocketAddr>, InvalidValue> {
        match self {
            Self::Address(address) => Ok(vec![SocketAddr::new(*address, port)]),
            Self::Name(_) if self.is_localhost() => Ok(vec![
                SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
                SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port),
            ]),
            Self::Name(name) => {
                let mut found = Vec::new();
                for address in (name.as_str(), port)
                    .to_socket_addrs()
                    .map_err(|e| format!("server.host is {name:?}, which does not resolve to an address: {e}"))?
                {
                    if !found.contains(&address) {
                        found.push(address);
                    }
                }
                match found.is_empty() {
                    true => Err(format!("server.host is {name:?}, which resolves to no address").into()),
                    false => Ok(found),
                }
            }
            Self::Unix(path) => {
                Err(format!("server.host is the Unix socket {}, not an address", path.display()).into())
            }
        }
    }

    /// Checks that a host name resolves.
    ///
    /// # Errors
    /// A sentence if it does not resolve.
    pub fn check(&self) -> Result<(), InvalidValue> {
        match self {
            Self::Name(_) => self.addresses(0).map(drop),
            Self::Address(_) | Self::Unix(_) => Ok(()),
        }
    }

    /// Returns whether only the server's own machine can reach the server.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Address(address) => address.to_canonical().is_loopback(),
            Self::Name(name) if name == LOCALHOST => true,
            Self::Name(_) => self
                .addresses(0)
                .is_ok_and(|addresses| addresses.iter().all(|address| address.ip().to_canonical().is_loopback())),
            Self::Unix(_) => true,
        }
    }

    /// Returns how a client on the server's own machine writes the host in a URL.
    pub fn in_url(&self) -> String {
        match self {
            Self::Address(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => Ipv4Addr::LOCALHOST.to_string(),
            Self::Address(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => format!("[{}]", Ipv6Addr::LOCALHOST),
            Self::Address(IpAddr::V6(address)) => format!("[{address}]"),
            host => host.to_string(),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Host {
    type Err = InvalidValue;

    /// Parses a host. Errors say what to write.
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let text = text.trim();
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path).map(Self::Unix);
        }
        if text.starts_with('/') {
            return Err(format!("write unix:{text} for a Unix socket").into());
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse() {
            return Ok(Self::Address(address));
        }
        if let Some((_, rest)) = text.split_once("://") {
            let host = rest
                .split(['/', ':'])
                .next()
                .filter(|host| is_name(host) || host.parse::<IpAddr>().is_ok())
                .unwrap_or("127.0.0.1");
            return Err(format!(
                "write the host without a scheme, such as {host}, and the port as the setting \
                                server.port"
            )
            .into());
        }
        if let Some((host, port)) = text.rsplit_once(':')
            && port.bytes().all(|b| b.is_ascii_digit())
            && (Self::from_str(host).is_ok() || host == "*" || host.is_empty())
        {
            let host = if matches!(host, "*" | "") { "0.0.0.0" } else { host };
            let port = if port.is_empty() { "the port" } else { port };
            return Err(format!("write {host} alone, and {port} as the setting server.port (--port)").into());
        }
        if text == "*" {
            return Err("write 0.0.0.0 for all IPv4 addresses of this machine, or :: for IPv6 and IPv4".into());
        }
        match is_name(text) {
            true => Ok(Self::Name(text.trim_end_matches('.').to_ascii_lowercase())),
            false => Err(
                "write an IP address or a host name, such as 127.0.0.1, ::1, localhost or 0.0.0.0, or unix: and a path"
                    .into(),
            ),
        }
    }
}

/// The longest path of a Unix socket, in bytes: the size of `sun_path` without the NUL at its end.
const LONGEST_PATH: usize = if cfg!(any(target_os = "linux", target_os = "android")) { 107 } else { 103 };

/// Parses the path after `unix:`, or after `unix://` as in a URL.
fn socket_path(text: &str) -> Result<PathBuf, InvalidValue> {
    const EXAMPLE: &str = "unix:/run/embedding-server.sock";
    let path = text.strip_prefix("//").unwrap_or(text);
    if cfg!(not(unix)) {
        return Err("this system has no Unix sockets: write an IP address or a host name".into());
    }
    if path.is_empty() {
        return Err(format!("the path of the Unix socket is empty: write an absolute path, such as {EXAMPLE}").into());
    }
    if !path.starts_with('/') {
        return Err(format!(
            "the path of the Unix socket, {path:?}, is relative: write an absolute path, such as {EXAMPLE}"
        )
        .into());
    }
    if path.contains(char::is_control) {
        return Err(format!("the path of the Unix socket, {path:?}, contains a control character: remove it").into());
    }
    if matches!(path.rsplit('/').next(), None | Some("" | "." | "..")) {
        return Err(
            format!("{path:?} is a directory: write the path of the Unix socket itself, such as {EXAMPLE}").into()
        );
    }
    if path.len() > LONGEST_PATH {
        return Err(format!(
            "the path of the Unix socket has {} bytes, and the system allows at most {LONGEST_PATH}: write \
                         a shorter path",
            path.len()
        )
        .into());
    }
    Ok(path.into())
}

/// Returns whether `text` has the form of a host name: labels of letters, digits, `-` and `_`, the last of which is not
/// a number.
fn is_name(text: &str) -> bool {
    let labels = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = labels.rsplit('.').next().unwrap_or_default();
    labels.len() <= 253 && labels.split('.').all(is_label) && !last.bytes().all(|b| b.is_ascii_digit())
}

impl TryFrom<String> for Host {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

impl From<Host> for String {
    fn from(host: Host) -> Self {
        host.to_string()
    }
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        Self::Address(address)
    }
}

/// Parses an entry of `server.allowed_hosts` into the form with which requests are compared; `*` stands for any host.
///
/// # Errors
/// A phrase that says what to write.
pub fn parse_allowed(text: &str) -> Result<String, InvalidValue> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    match text.parse::<Host>()? {
        Host::Unix(_) => Err("write a host name, such as embeddings.example".into()),
        host => Ok(host.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_names_and_sockets_are_hosts_and_round_trip() {
        for (text, printed, in_url, loopback) in [
            ("127.0.0.1", "127.0.0.1", "127.0.0.1", true),
            ("127.9.9.9", "127.9.9.9", "127.9.9.9", true),
            ("0.0.0.0", "0.0.0.0", "127.0.0.1", false),
            ("::", "::", "[::1]", false),
            ("::1", "::1", "[::1]", true),
            ("[::1]", "::1", "[::1]", true),
            ("::ffff:127.0.0.1", "::ffff:127.0.0.1", "[::ffff:127.0.0.1]", true),
            ("10.0.0.1", "10.0.0.1", "10.0.0.1", false),
            ("localhost", "localhost", "localhost", true),
            (" LocalHost. ", "localhost", "localhost", true),
            ("unix:/run/es.sock", "unix:/run/es.sock", "unix:/run/es.sock", true),
        ] {
            let host: Host = text.parse().unwrap();
            assert_eq!((host.to_string().as_str(), host.in_url().as_str()), (printed, in_url));
            assert_eq!(host.is_loopback(), loopback, "{text}");
            assert_eq!(host.to_string().parse(), Ok(host));
        }
        assert_eq!("my-host.example".parse(), Ok(Host::Name("my-host.example".to_owned())));
    }

    #[test]
    fn the_length_of_a_socket_path_is_limited() {
        let of = |bytes: usize| format!("unix:/{}", "x".repeat(bytes - 1)).parse::<Host>();
        assert!(of(LONGEST_PATH).is_ok());
        let error = of(LONGEST_PATH + 1).unwrap_err().to_string();
        assert!(error.contains(&format!("has {} bytes", LONGEST_PATH + 1)), "{error}");
        // The limit is in bytes, and not in characters.
        let error = format!("unix:/{}", "é".repeat(LONGEST_PATH / 2 + 1)).parse::<Host>().unwrap_err().to_string();
        assert!(error.contains("bytes"), "{error}");
        assert_eq!("unix:///run/es.sock".parse(), Ok(Host::Unix("/run/es.sock".into())));
    }

    #[test]
    fn localhost_means_both_loopback_addresses() {
        let addresses = "localhost".parse::<Host>().unwrap().addresses(7).unwrap();
        assert_eq!(addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["127.0.0.1:7", "[::1]:7"]);
        let error = "no-such-host.invalid".parse::<Host>().unwrap().addresses(7).unwrap_err().to_string();
        assert!(error.contains("no-such-host.invalid") && error.contains("does not resolve"), "{error}");
    }

    #[test]
    fn other_forms_are_refused_with_a_remedy() {
        for (text, part) in [
            ("0.0.0.0:8080", "write 0.0.0.0 alone, and 8080 as the setting server.port"),
            ("localhost:1", "write localhost alone, and 1 as"),
            ("[::1]:80", "write [::1] alone, and 80 as"),
            (":8080", "write 0.0.0.0 alone, and 8080 as"),
            ("*:8080", "write 0.0.0.0 alone, and 8080 as"),
            ("localhost:", "write localhost alone"),
            ("http://0.0.0.0:8080/", "such as 0.0.0.0"),
            ("https://example.com", "such as example.com"),
            ("*", "write 0.0.0.0 for all"),
            ("256.0.0.1", "127.0.0.1"),
            ("127.0.0", "127.0.0.1"),
            ("0", "127.0.0.1"),
            ("127.0.0.1/8", "127.0.0.1"),
            ("a b", "127.0.0.1"),
            ("", "127.0.0.1"),
            ("[::1", "127.0.0.1"),
            ("-a", "127.0.0.1"),
            ("unix:run/x", "absolute path"),
            ("unix:run/x", "relative"),
            ("unix:@abstract", "relative"),
            ("unix://run/x", "relative"),
            ("unix:", "is empty"),
            ("unix://", "is empty"),
            ("unix:/", "is a directory"),
            ("unix:/run/", "is a directory"),
            ("unix:/run/..", "is a directory"),
            ("unix:/a\0b", "control character"),
            ("/run/x.sock", "write unix:/run/x.sock"),
        ] {
            let error = text.parse::<Host>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn allowed_hosts_have_no_port() {
        assert_eq!(parse_allowed("Embeddings.Example").as_deref(), Ok("embeddings.example"));
        assert_eq!(parse_allowed("[::1]").as_deref(), Ok("::1"));
        assert_eq!(parse_allowed("*").as_deref(), Ok("*"));
        for wrong in ["a.example:80", "https://a.example", "*.example", "", "unix:/a"] {
            assert!(parse_allowed(wrong).is_err(), "{wrong}");
        }
    }
}
