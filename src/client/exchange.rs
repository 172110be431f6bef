//! Sends one request, reads the response, and classifies failures.

use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use super::answer::{self, Unusable};
use super::{Client, wait};
use layer0_tuning::eval::EmbedFailure;

/// The size of the largest response that is read, in bytes. It suffices for 256 vectors of 16,384 numbers in JSON.
const MAX_ANSWER: u64 = 256 << 20;
/// The number of characters of a text that an error shows.
const SHOWN: usize = 200;

/// The encoding in which vectors are requested. Servers that do not know `encoding_format` ignore it and send numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    #[default]
    Base64,
    Float,
    /// Requests without `encoding_format`, because some servers refuse the field whatever its value is.
    Unspecified,
}

impl Encoding {
    /// All encodings, in the order in which they are tried.
    pub const ALL: [Self; 3] = [Self::Base64, Self::Float, Self::Unspecified];

    const fn value(self) -> Option<&'static str> {
        match self {
            Self::Base64 => Some("base64"),
            Self::Float => Some("float"),
            Self::Unspecified => None,
        }
    }

    /// Returns a description of the encoding that continues a sentence with "asked for".
    pub const fn name(self) -> &'static str {
        match self {
            Self::Base64 => "as base64",
            Self::Float => "as numbers",
            Self::Unspecified => "without encoding_format",
        }
    }
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    input: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding_format: Option<&'static str>,
}

/// The consequence of a failure for further requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The same request may succeed later, as after 429 and 503.
    Overloaded,
    /// The server or the connection failed, either temporarily or because of these texts.
    Failed,
    /// The request was refused: the request or one of its texts is too large, or its form is unknown to the server.
    Refused,
    /// No further request will succeed.
    Final,
}

/// A failed attempt.
#[derive(Debug, Clone)]
pub struct Failure {
    pub kind: Kind,
    /// The description of the failure. It begins with the URL.
    pub message: String,
    /// The server's message.
    pub said: String,
    /// The time that the server asks to wait.
    pub wait: Option<Duration>,
    /// Whether the server's message mentions the encoding.
    pub speaks_of_encoding: bool,
    /// Whether another encoding cannot help.
    pub whatever_the_encoding: bool,
    /// Whether the response contained base64 that does not decode to valid vectors.
    pub unusable: bool,
    /// The failure that ended the run, if this request was not sent because of it.
    ended: Option<EmbedFailure>,
}

impl Failure {
    fn new(kind: Kind, message: String, said: String) -> Self {
        Self {
            kind,
            message,
            said,
            wait: None,
            speaks_of_encoding: false,
            whatever_the_encoding: false,
            unusable: false,
            ended: None,
        }
    }

    /// Creates a failure that another encoding cannot avoid.
    pub fn certain(kind: Kind, message: String) -> Self {
        Self { whatever_the_encoding: true, ..Self::new(kind, message, String::new()) }
    }

    /// Adds the only text of the request to the message.
    pub fn of_text(mut self, text: &str) -> Self {
        let _ = write!(self.message, ", to the text {:?}", shown(text));
        self
    }

    /// Adds to the message that no request has succeeded so far.
    pub fn of_every_request(mut self) -> Self {
        self.message.push_str(" alone; no request was answered, so the text may not be the reason");
        self
    }

    /// Adds to the message what failed before another encoding was tried.
    pub fn after(mut self, other: &Self) -> Self {
        let _ = write!(self.message, "; before, {}", other.said);
        self
    }

    /// Marks a request that was not sent because the run has ended.
    pub fn ended(self, ended: EmbedFailure) -> Self {
        Self { kind: Kind::Final, ended: Some(ended), ..self }
    }

    /// Returns the error of a request that would fail again.
    pub fn permanent(self) -> EmbedFailure {
        self.ended.unwrap_or(EmbedFailure { message: self.message, temporary: false })
    }

    /// Returns the error of a request that may succeed later.
    pub fn temporary(self, why: &str) -> EmbedFailure {
        let message = format!("{}; {why}", self.message);
        self.ended.unwrap_or(EmbedFailure { message, temporary: true })
    }
}

/// A response, read to its end.
pub struct Answer {
    pub status: u16,
    headers: ureq::http::HeaderMap,
    pub body: Vec<u8>,
}

impl Client {
    /// Requests embeddings.
    pub(super) fn exchange(&self, texts: &[String], encoding: Encoding) -> Result<Vec<Vec<f32>>, Failure> {
        let failed = |what: &str| self.redacted(format!("{}: {what}", self.url));
        let body = Request { model: &self.model, input: texts, encoding_format: encoding.value() };
        let answer = self.send(&self.address, &self.url, &body)?;
        let embeddings = match answer::read(&answer.body) {
            Ok(embeddings) => embeddings,
            Err(answer::NoEmbeddings::Error(code)) => {
                return Err(self.refusal(&self.url, &answer, code.unwrap_or(answer.status)));
            }
            Err(answer::NoEmbeddings::Other(problem)) => {
                let problem = format!("answered what is no list of embeddings: {problem}");
                return Err(Failure::certain(Kind::Final, failed(&problem)));
            }
        };
        let base64 = embeddings.iter().any(answer::Embedding::is_base64);
        match answer::vectors(embeddings, texts, &self.dimensions) {
            Ok(vectors) => Ok(vectors),
            Err(Unusable { problem, by_encoding }) => {
                let again = base64 && by_encoding && encoding == Encoding::Base64;
                let said = if base64 { format!("asked for base64, it answered {problem}") } else { problem };
                let failure = Failure::new(Kind::Final, failed(&format!("answered: {said}")), said);
                Err(Failure { speaks_of_encoding: again, whatever_the_encoding: !again, unusable: again, ..failure })
            }
        }
    }

    /// Sends one request to `address`, which errors call `url`, and reads the response. A status that is no success is a failure.
    pub(super) fn send(&self, address: &str, url: &str, body: &impl Serialize) -> Result<Answer, Failure> {
        let failed = |what: &str| self.redacted(format!("{url}: {what}"));
        let body = serde_json::to_vec(body).map_err(|e| Failure::certain(Kind::Final, failed(&e.to_string())))?;
        let mut request = self.agent.post(address).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = if self.azure {
                request.header("api-key", key)
            } else {
                request.header("authorization", format!("Bearer {key}"))
            };
        }
        let broken = |e: ureq::Error| {
            let error = failed(&format!("does not answer: {e}"));
            let usual = matches!(
                e,
                ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::Protocol(_) | ureq::Error::ConnectionFailed
            );
            // If this address has never sent a response, it is probably wrong.
            let kind = if usual && self.reached.load(Ordering::Relaxed) { Kind::Failed } else { Kind::Final };
            Failure::certain(kind, error)
        };
        let mut response = request.send(&body).map_err(broken)?;
        self.reached.store(true, Ordering::Relaxed);
        let body = match response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec() {
            Err(ureq::Error::BodyExceedsLimit(limit)) => {
                return Err(Failure::certain(Kind::Refused, failed(&format!("answered with more than {limit} bytes"))));
            }
            body => body.map_err(broken)?,
        };
        let answer = Answer { status: response.status().as_u16(), headers: response.headers().clone(), body };
        if (200..300).contains(&answer.status) { Ok(answer) } else { Err(self.refusal(url, &answer, answer.status)) }
    }

    /// Returns the failure that a response is. `code` is its status, or the one that its body names.
    fn refusal(&self, url: &str, answer: &Answer, code: u16) -> Failure {
        let Answer { status, headers, body } = answer;
        let said = self.redacted(answer::words(body));
        let location = headers.get("location").and_then(|location| location.to_str().ok());
        let message = self.redacted(format!("{url}: answered {status}: {said}{}", advice(code, location)));
        let mut failure = Failure::new(kind(code, &said), message, said);
        failure.wait = wait::asked_for(headers);
        let lower = failure.said.to_lowercase();
        // The server may repeat a text in its message, and the text may contain these words. The mistake costs one
        // more request and nothing else.
        failure.speaks_of_encoding =
            !matches!(code, 401 | 407 | 429) && (lower.contains("base64") || lower.contains("encoding"));
        failure
    }

    /// Replaces the key in a server's message with asterisks.
    pub(super) fn redacted(&self, text: String) -> String {
        match &self.key {
            Some(key) if text.contains(key.as_str()) => text.replace(key.as_str(), "***"),
            _ => text,
        }
    }
}

/// Returns the consequence of a status for further requests, if the server's message is `said`.
fn kind(status: u16, said: &str) -> Kind {
    // These are the codes by which OpenAI reports that the account has no credit.
    const UNPAID: [&str; 3] = ["insufficient_quota", "billing_hard_limit_reached", "billing_not_active"];
    match status {
        429 if UNPAID.iter().any(|code| said.contains(code)) => Kind::Final,
        409 | 425 | 429 | 503 | 529 => Kind::Overloaded,
        408 | 500.. => Kind::Failed,
        // A status of 2xx gets here if the body is an error that names no status of its own.
        200..300 | 400 | 406 | 411..=424 | 426 | 428 | 431 => Kind::Refused,
        _ => Kind::Final,
    }
}

/// Returns the remedy for a status that retries cannot fix.
fn advice(status: u16, location: Option<&str>) -> String {
    match (status, location) {
        (300..=399, Some(location)) => {
            let location = location.split('?').next().unwrap_or(location);
            format!(" (it redirects to {location:?}: give the address that it means)")
        }
        (401 | 403, _) => " (check the key in the environment)".to_owned(),
        (404 | 405, _) => " (check the address, which usually ends in /v1, and the name of the model)".to_owned(),
        _ => String::new(),
    }
}

pub fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_whether_another_request_can_help() {
        for (status, expected) in [
            (400, Kind::Refused),
            (401, Kind::Final),
            (402, Kind::Final),
            (403, Kind::Final),
            (404, Kind::Final),
            (405, Kind::Final),
            (408, Kind::Failed),
            (410, Kind::Final),
            (413, Kind::Refused),
            (415, Kind::Refused),
            (422, Kind::Refused),
            (429, Kind::Overloaded),
            (500, Kind::Failed),
            (502, Kind::Failed),
            (503, Kind::Overloaded),
            (504, Kind::Failed),
            (301, Kind::Final),
        ] {
            assert_eq!(kind(status, "no"), expected, "{status}");
        }
        assert_eq!(kind(429, "You exceeded your quota (insufficient_quota)"), Kind::Final);
    }

    #[test]
    fn a_redirect_is_named_without_its_query() {
        assert!(advice(308, Some("https://x/v1/embeddings?key=secret")).contains("\"https://x/v1/embeddings\""));
        assert!(advice(404, None).contains("/v1"));
        assert_eq!(advice(500, Some("x")), "");
    }
}
