//! The setting `server.cors_origins`: origins as browsers send them (RFC 6454, section 6, and the Fetch standard).

use super::values::InvalidValue;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The entry that allows any origin.
pub const ANY: &str = "*";

/// Returns the origin as a browser writes it in the `Origin` header: in lower case, without the scheme's default port.
///
/// # Errors
/// A phrase that says what to write.
pub fn parse(text: &str) -> Result<String, InvalidValue> {
    if text == ANY || text.eq_ignore_ascii_case("null") {
        return Ok(text.to_ascii_lowercase());
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(match text.contains(['/', ':', ' ']) || text.is_empty() {
            true => "write scheme://host, such as https://page.example".into(),
            false => format!("write the scheme too, such as https://{text}").into(),
        });
    };
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    if !is_scheme {
        return Err("write scheme://host, such as https://page.example".into());
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    if let (Some(authority), Some(path)) = (rest.get(..end), rest.get(end..))
        && !path.is_empty()
    {
        return Err(format!("an origin has no path and no slash at its end: write {scheme}://{authority}").into());
    }
    if rest.contains('@') {
        return Err("an origin has no user name: write scheme://host".into());
    }
    if rest.contains('*') {
        return Err(format!("an origin has no wildcard: list each origin, or write {ANY:?} alone for any").into());
    }
    if !rest.is_ascii() {
        return Err("write the host in ASCII, as browsers send it (xn--...)".into());
    }
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    };
    if !is_host(host) {
        return Err("write scheme://host, such as https://page.example".into());
    }
    let (scheme, host) = (scheme.to_ascii_lowercase(), host.to_ascii_lowercase());
    let port = match port {
        None => return Ok(format!("{scheme}://{host}")),
        Some(port) => port.parse::<u16>().map_err(|_| "the port of an origin is a number up to 65535".to_owned())?,
    };
    match (scheme.as_str(), port) {
        ("http", 80) | ("https", 443) => Ok(format!("{scheme}://{host}")),
        _ => Ok(format!("{scheme}://{host}:{port}")),
    }
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    !host.is_empty()
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        && (!host.bytes().all(|b| b.is_ascii_digit() || b == b'.') || host.parse::<Ipv4Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_normalized_to_the_form_that_browsers_send() {
        for (text, origin) in [
            ("*", "*"),
            ("null", "null"),
            ("https://page.example", "https://page.example"),
            ("HTTPS://Page.Example:8443", "https://page.example:8443"),
            ("https://page.example:443", "https://page.example"),
            ("http://page.example:80", "http://page.example"),
            ("http://page.example:443", "http://page.example:443"),
            ("http://[::1]:3000", "http://[::1]:3000"),
            ("http://[::1]", "http://[::1]"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("app://obsidian.md", "app://obsidian.md"),
            ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
            ("moz-extension://0b4a5c0e-1b", "moz-extension://0b4a5c0e-1b"),
            ("capacitor://localhost", "capacitor://localhost"),
            ("tauri://localhost", "tauri://localhost"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(origin), "{text}");
        }
    }

    #[test]
    fn invalid_origins_are_refused_with_a_remedy() {
        for (text, part) in [
            ("page.example", "https://page.example"),
            ("https://page.example/", "write https://page.example"),
            ("https://page.example/app", "write https://page.example"),
            ("https://page.example?x", "write https://page.example"),
            ("https://*.example", "wildcard"),
            ("https://user@page.example", "user name"),
            ("https://grün.example", "xn--"),
            ("https://", "scheme://host"),
            ("://a", "scheme://host"),
            ("https://a:b", "port"),
            ("https://a:99999", "port"),
            ("https://a b", "scheme://host"),
            ("https://1.2.3", "scheme://host"),
            ("page.example:80", "scheme://host"),
            ("", "scheme://host"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
