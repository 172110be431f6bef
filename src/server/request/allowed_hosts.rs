//! Protection against DNS rebinding: checks the `Host` of requests to a server that is on a loopback address and has no
//! API keys.
//!
//! Such a server trusts everyone who can reach it. A web page can reach it too, by DNS rebinding: the page's own host
//! name is made to resolve to 127.0.0.1, and the browser then sends requests with that name as their `Host`.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::HOST;
use axum::http::uri::Authority;

use crate::config::host::Host;
use crate::server::error::ApiError;
use crate::server::state::ServerState;

/// The hosts that requests may name, or `None` if they may name any.
pub struct AllowedHosts(Option<Vec<String>>);

impl AllowedHosts {
    /// Returns the allowed hosts for the configuration of `state`.
    pub fn new(state: &ServerState) -> Self {
        let server = &state.config.server;
        let any = !state.keys.is_empty()
            || matches!(server.host, Host::Unix(_))
            || !server.host.is_loopback()
            || server.allowed_hosts.iter().any(|host| host == "*");
        Self((!any).then(|| {
            let mut hosts = server.allowed_hosts.clone();
            if let Host::Name(name) = &server.host {
                hosts.push(name.clone());
            }
            hosts
        }))
    }

    /// Accepts a request that names an allowed host, or names none.
    ///
    /// # Errors
    /// If the request names another host.
    pub fn check<B>(&self, request: &Request<B>) -> Result<(), ApiError> {
        let Some(allowed) = &self.0 else { return Ok(()) };
        let headers = request.headers().get_all(HOST).iter().map(HeaderValue::as_bytes);
        // HTTP/2 requests, and requests that were meant for a proxy, name the host in the URI.
        let authority = request.uri().authority().map(|authority| authority.as_str().as_bytes());
        for host in headers.chain(authority) {
            if !is_plainly_local(host) && !is_allowed(host, allowed) {
                return Err(ApiError::host_not_allowed(host));
            }
        }
        Ok(())
    }
}

/// Returns whether `host` is 127.0.0.1 or localhost, with or without a port. Almost all requests have such a host, and
/// this check is faster than parsing it.
fn is_plainly_local(host: &[u8]) -> bool {
    let rest = host.strip_prefix(b"127.0.0.1").or_else(|| host.strip_prefix(b"localhost"));
    matches!(rest, Some([] | [b':', ..])) && rest.is_some_and(|rest| rest.iter().skip(1).all(u8::is_ascii_digit))
}

fn is_allowed(host: &[u8], allowed: &[String]) -> bool {
    let Ok(authority) = Authority::try_from(host) else { return false };
    // `Authority` also accepts a user name, and any text after the colon.
    let is_port = |rest: &str| {
        rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()))
    };
    if !authority.as_str().strip_prefix(authority.host()).is_some_and(is_port) {
        return false;
    }
    let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return address.to_canonical().is_loopback() || allowed.iter().any(|known| known.parse() == Ok(address));
    }
    // The public DNS has no names of a single label, so such a name belongs to this machine or its network and not to a
    // page.
    !host.contains('.') || host.ends_with(".localhost") || allowed.contains(&host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_that_a_web_page_can_have_are_refused() {
        let allowed = ["embeddings.example".to_owned(), "10.0.0.7".to_owned()];
        for host in [
            "localhost",
            "localhost:5000",
            "LocalHost:5000",
            "127.0.0.1",
            "127.0.0.1:80",
            "127.8.8.8:1",
            "[::1]:5000",
            "[::ffff:127.0.0.1]",
            "app.localhost",
            "localhost.",
            "embedding-server:5000",
            "Embeddings.Example:443",
            "10.0.0.7:5000",
        ] {
            assert!(is_plainly_local(host.as_bytes()) || is_allowed(host.as_bytes(), &allowed), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:5000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:80.evil.example",
            "localhost:x",
            "localhost@evil.example",
            "10.0.0.8",
            "[::2]",
            "sub.embeddings.example",
            "a b",
            "",
        ] {
            assert!(!is_plainly_local(host.as_bytes()) && !is_allowed(host.as_bytes(), &allowed), "{host}");
        }
    }
}
