//! Refuses requests under overload before HTTP sees them.
//!
//! Under overload most requests are refused, so the cost of a refusal decides how much time is left for the others. For
//! such a request, hyper's state machines and a task that discards the body cost several times as much as the decision.
//! So if the in-flight budget is used up, [`super::transport`] shows the first bytes of a request to [`EarlyRefusal`],
//! which parses the head with hyper's parser and runs the same steps as for every refused request: API key, rate
//! limits, metrics, access log. Only requests of the common form are answered here. Every other request goes to hyper,
//! which refuses it with the same response.

use std::io::Write;
use std::time::SystemTime;

use axum::body::Body;
use axum::http::header::{CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING, UPGRADE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use httpdate::HttpDate;

use super::early_answer::{EarlyAnswer, RefuseEarly};
use super::refuse;
use super::request_body::LARGEST_DISCARDED;
use crate::server::observe::peer::Peer;
use crate::server::router::active::ActiveRoutes;

/// The most header fields of a head that is parsed here.
const MOST_FIELDS: usize = 32;

/// The header fields that change how the body arrives or what follows the response.
const SPECIAL_FIELDS: [HeaderName; 4] = [CONTENT_ENCODING, EXPECT, TRANSFER_ENCODING, UPGRADE];

/// Refuses the requests of one connection.
pub struct EarlyRefusal {
    active: ActiveRoutes,
    peer: Peer,
}

impl EarlyRefusal {
    /// Refuses requests of the connection to `peer`.
    pub fn new(active: ActiveRoutes, peer: Peer) -> Self {
        Self { active, peer }
    }
}

impl RefuseEarly for EarlyRefusal {
    fn may_refuse(&self) -> bool {
        self.active.is_full()
    }

    fn refuse(&self, first: &[u8]) -> Option<EarlyAnswer> {
        let (request, length, end) = parse(first)?;
        // The first bytes may be the whole request, but must not reach into the next one.
        let unread = length.checked_sub((first.len() - end) as u64)?;
        let response = self.active.refuse(&request, length, self.peer)?;
        Some(EarlyAnswer { bytes: write(response)?, unread })
    }
}

/// Parses a head. Returns the request, the length of its body and the length of its head, or `None` if the head is
/// incomplete or not of the common form.
fn parse(bytes: &[u8]) -> Option<(Request<()>, u64, usize)> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let Ok(httparse::Status::Complete(end)) = head.parse(bytes) else { return None };
    let path = head.path.filter(|path| path.starts_with('/'))?;
    if head.method != Some("POST") || head.version != Some(1) {
        return None;
    }
    let mut headers = HeaderMap::with_capacity(head.headers.len());
    for field in head.headers.iter() {
        headers.append(HeaderName::from_bytes(field.name.as_bytes()).ok()?, HeaderValue::from_bytes(field.value).ok()?);
    }
    let keeps_alive = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"keep-alive");
    if SPECIAL_FIELDS.iter().any(|name| headers.contains_key(name))
        || !headers.get_all(CONNECTION).iter().all(keeps_alive)
    {
        return None;
    }
    let length = content_length(&headers)?;
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path.parse().ok()?;
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = headers;
    refuse::bad_host(&request).is_none().then_some((request, length, end))
}

/// Returns the length of a body that can be discarded.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let (Some(only), None) = (values.next(), values.next()) else { return None };
    let digits = only.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok().filter(|length| *length <= LARGEST_DISCARDED)
}

/// Returns the bytes of a response as hyper writes them.
fn write(response: Response<Body>) -> Option<Vec<u8>> {
    let (head, body) = response.into_parts();
    // The body of an error is complete.
    let body = body.collect().now_or_never()?.ok()?.to_bytes();
    let mut bytes = Vec::with_capacity(512 + body.len());
    let (status, reason) = (head.status.as_str(), head.status.canonical_reason().unwrap_or_default());
    write!(bytes, "HTTP/1.1 {status} {reason}\r\n").ok()?;
    for (name, value) in &head.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    }
    let date = HttpDate::from(SystemTime::now());
    write!(bytes, "content-length: {}\r\ndate: {date}\r\n\r\n", body.len()).ok()?;
    bytes.extend_from_slice(&body);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;
    use crate::server::error::ApiError;

    fn head(fields: &str) -> Vec<u8> {
        format!("POST /v1/embeddings HTTP/1.1\r\nhost: x\r\n{fields}\r\n{{\"in").into_bytes()
    }

    #[test]
    fn a_head_of_the_common_form_is_parsed() {
        let bytes = head("Content-Length: 40\r\nconnection: Keep-Alive\r\nauthorization: Bearer k\r\n");
        let (request, length, end) = parse(&bytes).unwrap();
        assert_eq!((request.uri().path(), length, bytes.len() - end), ("/v1/embeddings", 40, 4));
        assert_eq!(request.headers()["authorization"], "Bearer k");
    }

    #[test]
    fn a_request_whose_connection_or_body_is_special_goes_to_hyper() {
        let length = "content-length: 40\r\n";
        assert!(parse(&head(length)).is_some());
        for fields in [
            "",
            "content-length: 40\r\ncontent-length: 40\r\n",
            "content-length: +40\r\n",
            "content-length: 67108865\r\n",
            "transfer-encoding: chunked\r\n",
            "content-length: 40\r\ntransfer-encoding: chunked\r\n",
            "content-length: 40\r\nexpect: 100-continue\r\n",
            "content-length: 40\r\nconnection: close\r\n",
            "content-length: 40\r\nconnection: keep-alive, upgrade\r\n",
            "content-length: 40\r\nupgrade: h2c\r\n",
            "content-length: 40\r\ncontent-encoding: gzip\r\n",
            "content-length: 40\r\nhost: y\r\n",
            "content-length: 40\r\nbad name: y\r\n",
        ] {
            assert!(parse(&head(fields)).is_none(), "{fields}");
        }
        let replaced = |from: &str, to: &str| String::from_utf8(head(length)).unwrap().replace(from, to).into_bytes();
        for other in [
            replaced("POST", "PUT"),
            replaced("HTTP/1.1", "HTTP/1.0"),
            replaced("/v1", "http://x/v1"),
            replaced("host: x\r\n", ""),
            replaced("\r\n\r\n", "\r\n"),
        ] {
            assert!(parse(&other).is_none(), "{}", String::from_utf8_lossy(&other));
        }
    }

    #[test]
    fn a_response_has_its_headers_its_length_and_the_date() {
        let bytes = String::from_utf8(write(ApiError::overloaded().into_response()).unwrap()).unwrap();
        let (head, body) = bytes.split_once("\r\n\r\n").unwrap();
        let expected = format!(
            "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 1\r\ncontent-length: {}\r\ndate: ",
            body.len()
        );
        assert!(head.starts_with(&expected) && head.ends_with(" GMT"), "{head}");
        assert!(body.contains("rate_limit_exceeded"), "{body}");
    }
}
