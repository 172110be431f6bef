//! Parses addresses and ranges strictly, because they decide where a token is sent and where a redirect may lead.

use ureq::http::Uri;

/// Parses a `Content-Range` header: `bytes 5-9/100` becomes `(5, 100)`.
pub fn content_range(value: &str) -> Option<(u64, u64)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
}

/// Returns whether two addresses have the same scheme, host and port. A token is only sent to the origin that it
/// belongs to.
pub fn same_origin(a: &str, b: &str) -> bool {
    let origin = |url: &str| {
        let uri: Uri = url.parse().ok()?;
        Some((uri.scheme_str()?.to_owned(), uri.authority()?.host().to_lowercase(), uri.port_u16()))
    };
    origin(a).is_some_and(|a| origin(b) == Some(a))
}

/// Returns the address that a redirect leads to, or `None` for a redirect that leaves HTTPS.
pub fn join(base: &str, target: &str) -> Option<String> {
    let base_uri: Uri = base.parse().ok()?;
    let scheme = base_uri.scheme_str()?;
    if target.starts_with('/') {
        let authority = if target.starts_with("//") { "" } else { base_uri.authority()?.as_str() };
        let slashes = if target.starts_with("//") { "" } else { "//" };
        return Some(format!("{scheme}:{slashes}{authority}{target}"));
    }
    let allowed = target.starts_with("https://") || (target.starts_with("http://") && scheme == "http");
    allowed.then(|| target.to_owned())
}

/// Returns an address for messages: without credentials and without its query, which is a signature for large files in
/// the store.
pub fn shown(url: &str) -> String {
    let (url, _) = without_credentials(url);
    url.split_once('?').map_or(url.as_str(), |(address, _)| address).to_owned()
}

/// Splits `https://NAME:PASSWORD@HOST/PATH` into `https://HOST/PATH` and `NAME:PASSWORD`. The function also works for
/// invalid addresses, which may appear in messages.
pub fn without_credentials(url: &str) -> (String, Option<String>) {
    let (scheme, rest) = url.split_once("//").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    match authority.rsplit_once('@') {
        None => (url.to_owned(), None),
        Some((credentials, host)) => {
            let slashes = if scheme.is_empty() { "" } else { "//" };
            (format!("{scheme}{slashes}{host}{path}"), Some(credentials.to_owned()))
        }
    }
}

/// Returns the address `url` with `credentials` before its host. This is the inverse of [`without_credentials`].
pub fn with_credentials(url: &str, credentials: &str) -> String {
    match url.split_once("//") {
        Some((scheme, rest)) => format!("{scheme}//{credentials}@{rest}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_join_and_never_leave_https() {
        let base = "https://h.test:1/a/b";
        assert_eq!(join(base, "/c?d").unwrap(), "https://h.test:1/c?d");
        assert_eq!(join(base, "https://cdn.test/x").unwrap(), "https://cdn.test/x");
        assert_eq!(join(base, "//cdn.test/x").unwrap(), "https://cdn.test/x");
        assert_eq!(join(base, "http://cdn.test/x"), None);
        assert_eq!(join(base, "file:///etc/passwd"), None);
        assert!(join("http://h.test/", "http://cdn.test/x").is_some());
    }

    #[test]
    fn a_token_stays_with_its_origin() {
        assert!(same_origin("https://h.test/a", "https://H.test/b"));
        for other in ["http://h.test/", "https://h.test:444/", "https://h.test.evil/", "https://evil/h.test", "h.test"]
        {
            assert!(!same_origin("https://h.test/a", other), "{other}");
        }
    }

    #[test]
    fn signatures_are_not_shown() {
        assert_eq!(shown("https://cdn.test/x?Signature=s"), "https://cdn.test/x");
        assert_eq!(shown("https://cdn.test/x"), "https://cdn.test/x");
        assert_eq!(shown("https://user:SECRET@cdn.test/x?y@z"), "https://cdn.test/x");
        assert_eq!(with_credentials("https://cdn.test/x", "a:b"), "https://a:b@cdn.test/x");
    }

    #[test]
    fn content_ranges_are_read_or_refused() {
        assert_eq!(content_range("bytes 5-9/100"), Some((5, 100)));
        for bad in ["bytes 5-9/*", "bytes */100", "5-9/100", "", "bytes -9/10"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
