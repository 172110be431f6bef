//! Content negotiation: how much the `Accept` header prefers each representation of a resource (RFC 9110, section 12).

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::header::ACCEPT;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};

/// The media ranges of a request. Without any, every representation is equally acceptable.
pub struct Accept<'a>(Vec<MediaRange<'a>>);

/// One media range, such as `text/*;q=0.5`.
struct MediaRange<'a> {
    kind: &'a str,
    subtype: &'a str,
    version: Option<&'a str>,
    /// The quality in thousandths.
    quality: u16,
}

/// Whether a request asks for the bytes of vectors alone: its `Accept` header names `application/octet-stream` and does not prefer
/// JSON.
#[derive(Debug, Clone, Copy)]
pub struct WantsBytes(pub bool);

impl WantsBytes {
    /// Reads the `Accept` headers.
    pub fn of(headers: &HeaderMap) -> Self {
        // Almost no request names the type, so the search comes before the parser.
        let names = |value: &HeaderValue| memchr::memmem::find(value.as_bytes(), b"octet-stream").is_some();
        if !headers.get_all(ACCEPT).iter().any(names) {
            return Self(false);
        }
        let accept = Accept::new(headers);
        let bytes = accept.preference("application", "octet-stream", None);
        Self(bytes.is_named() && bytes > accept.preference("application", "json", None))
    }
}

impl<S: Sync> FromRequestParts<S> for WantsBytes {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.headers))
    }
}

/// How acceptable a representation is: ordered by quality, then by whether the client named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Preference {
    /// The quality in thousandths; 0 means that the representation is not acceptable.
    quality: u16,
    /// Whether a media range names exactly this media type, and not only `*/*` or `type/*`.
    named: bool,
}

impl Preference {
    /// Returns whether a media range names exactly this media type.
    pub fn is_named(self) -> bool {
        self.named
    }
}

impl<'a> Accept<'a> {
    /// Reads the media ranges of all `Accept` headers. Malformed ranges are ignored.
    pub fn new(headers: &'a HeaderMap) -> Self {
        let lists = headers.get_all(ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
        Self(lists.flat_map(|list| split(list, ',')).filter_map(MediaRange::parse).collect())
    }

    /// Returns the client's preference for the media type `kind/subtype`, with `version` if the type has versions. The
    /// most specific matching range decides.
    pub fn preference(&self, kind: &str, subtype: &str, version: Option<&str>) -> Preference {
        if self.0.is_empty() {
            return Preference { quality: 1000, named: false };
        }
        let matching = self.0.iter().filter_map(|range| {
            let specificity = range.specificity(kind, subtype, version)?;
            Some((specificity, range.quality))
        });
        match matching.max() {
            Some((specificity, quality)) => {
                Preference { quality, named: specificity >= MediaRange::NAMED && quality > 0 }
            }
            None => Preference { quality: 0, named: false },
        }
    }
}

impl<'a> MediaRange<'a> {
    /// The lowest specificity of a range that names the media type.
    const NAMED: u8 = 2;

    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = split(text, ';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        let mut range = Self { kind: kind.trim(), subtype: subtype.trim(), version: None, quality: 1000 };
        for parameter in parts {
            let Some((name, value)) = parameter.split_once('=') else { continue };
            let value = value.trim().trim_matches('"');
            match name.trim() {
                q if q.eq_ignore_ascii_case("q") => range.quality = thousandths(value)?,
                version if version.eq_ignore_ascii_case("version") => range.version = Some(value),
                _ => {}
            }
        }
        Some(range)
    }

    /// Returns how specific the range is for this media type, or `None` if it does not match.
    fn specificity(&self, kind: &str, subtype: &str, version: Option<&str>) -> Option<u8> {
        if (self.kind, self.subtype) == ("*", "*") {
            return Some(0);
        }
        if !self.kind.eq_ignore_ascii_case(kind) {
            return None;
        }
        if self.subtype == "*" {
            return Some(1);
        }
        match self.version {
            _ if !self.subtype.eq_ignore_ascii_case(subtype) => None,
            None => Some(Self::NAMED),
            wanted => (version.is_none() || wanted == version).then_some(Self::NAMED + 1),
        }
    }
}

/// Parses a quality such as `0.25` into thousandths.
fn thousandths(text: &str) -> Option<u16> {
    let quality: f64 = text.parse().ok()?;
    (0.0..=1.0).contains(&quality).then(|| (quality * 1000.0).round() as u16)
}

/// Splits a list at separators that are outside quotation marks.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(lines: &[&'static str]) -> HeaderMap {
        lines.iter().map(|line| (ACCEPT, HeaderValue::from_static(line))).collect()
    }

    #[test]
    fn the_most_specific_range_decides() {
        let headers = headers(&["text/*;q=0.3, text/plain;q=0.7, */*;q=0.5", "text/plain;version=0.0.4;q=0.9"]);
        let accept = Accept::new(&headers);
        let quality = |kind, subtype, version| accept.preference(kind, subtype, version).quality;
        assert_eq!(quality("text", "plain", Some("0.0.4")), 900);
        assert_eq!(quality("text", "plain", Some("1.0.0")), 700);
        assert_eq!(quality("text", "html", None), 300);
        assert_eq!(quality("image", "png", None), 500);
    }

    #[test]
    fn an_unnamed_type_is_not_acceptable_and_no_header_accepts_all() {
        let named = headers(&["application/json , TEXT/HTML ; Q=0 , x/y;q=7, broken, text/plain;a=\"b,c;q=0\""]);
        let accept = Accept::new(&named);
        assert_eq!(accept.preference("text", "html", None), Preference { quality: 0, named: false });
        assert_eq!(accept.preference("x", "y", None).quality, 0);
        assert_eq!(accept.preference("text", "plain", None), Preference { quality: 1000, named: true });
        let none = HeaderMap::new();
        assert_eq!(Accept::new(&none).preference("a", "b", None), Preference { quality: 1000, named: false });
    }
}
