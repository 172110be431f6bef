//! A client of OpenAI-compatible embeddings endpoints, blocking: the one through which `eval` and `fit` ask.
//!
//! What passes is tried again: connections that break, 408, 409, 425, 429 and 5xx, after the time that the server asks for
//! or a doubling one. A batch that is refused as too large is asked for in halves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use ureq::Agent;
use ureq::http::HeaderMap;

use crate::eval::Embed;

/// Texts of one request; OpenAI takes 2048, Text Embeddings Inference 32 unless told otherwise.
const TEXTS_AT_A_TIME: usize = 256;
/// How often a request is made before its error counts.
const ATTEMPTS: u32 = 8;
/// The wait before the second attempt; it doubles each time.
const BACKOFF: Duration = Duration::from_millis(500);
/// The longest wait that a server can ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
const CONNECT: Duration = Duration::from_secs(10);
/// Until an answer begins: a teacher on a CPU takes its time.
const ANSWER: Duration = Duration::from_secs(300);
/// The largest answer that is read: 256 vectors of 16384 numbers in JSON.
const MAX_ANSWER: u64 = 256 << 20;
/// Characters of a text, or of what a server says, that an error shows.
const SHOWN: usize = 400;

/// One model behind one endpoint.
pub struct Client {
    agent: Agent,
    url: String,
    model: String,
    key: Option<String>,
    /// Something there has answered: from now on a broken connection is worth another attempt.
    reached: AtomicBool,
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    input: &'a [String],
    encoding_format: &'static str,
}

#[derive(Deserialize)]
struct Response {
    data: Vec<Embedding>,
}

#[derive(Deserialize)]
struct Embedding {
    /// Missing in some servers' answers: then they are in order.
    index: Option<usize>,
    embedding: Numbers,
}

/// Asked for as base64, which is smaller; servers that do not know it answer with numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Numbers {
    Base64(String),
    Floats(Vec<f32>),
}

#[derive(Deserialize, Default)]
struct Refusal {
    error: RefusalBody,
}

#[derive(Deserialize, Default)]
struct RefusalBody {
    #[serde(default)]
    code: Option<serde_json::Value>,
}

/// A failed attempt.
enum Failure {
    /// Worth another one, after what the server asks to wait.
    Passing(String, Option<Duration>),
    /// The batch may be too large, or one of its texts.
    Refused(String),
    Final(String),
}

impl Client {
    /// `base` as the SDKs have it, with `/v1`; `key` is sent as a bearer token.
    ///
    /// # Errors
    /// When `base` is no HTTP address.
    pub fn new(base: &str, model: &str, key: Option<String>) -> Result<Self, String> {
        let tls = cfg!(feature = "hub");
        let rest = base.strip_prefix("http://").or_else(|| base.strip_prefix("https://").filter(|_| tls));
        let Some(rest) = rest else {
            let schemes = if tls { "http:// or https://" } else { "http:// (this build has no TLS)" };
            return Err(format!("{base:?} is no {schemes} address, such as http://127.0.0.1:8080/v1"));
        };
        if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
            return Err("the address holds a name or a password; give a key in the environment instead".to_owned());
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .timeout_per_read(Some(ANSWER))
            .user_agent(concat!("embedding-server/", env!("CARGO_PKG_VERSION")));
        #[cfg(feature = "hub")]
        let config = config
            .tls_config(ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build());
        let base = base.trim_end_matches('/');
        Ok(Self {
            agent: config.build().into(),
            url: format!("{}/embeddings", base.strip_suffix("/embeddings").unwrap_or(base)),
            model: model.to_owned(),
            key,
            reached: AtomicBool::new(false),
        })
    }

    /// Where requests go.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn model(&self) -> &str {
        &self.model
    }

    /// Asks until there is an answer, or no hope of one.
    fn ask(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, String> {
        let mut attempt = 0;
        loop {
            let (error, wait) = match self.request(texts) {
                Ok(vectors) => return Ok(vectors),
                Err(Failure::Refused(_)) if texts.len() > 1 => {
                    let (first, second) = texts.split_at(texts.len() / 2);
                    let mut vectors = self.ask(first)?;
                    vectors.extend(self.ask(second)?);
                    return Ok(vectors);
                }
                Err(Failure::Refused(error)) => {
                    return Err(format!("{error}, to the text {:?}", shown(texts.first().map_or("", String::as_str))));
                }
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(error, wait)) => (error, wait),
            };
            let wait = wait.unwrap_or(BACKOFF * 2u32.saturating_pow(attempt));
            attempt += 1;
            if attempt == ATTEMPTS {
                return Err(format!("{error}; it was asked {ATTEMPTS} times"));
            }
            if wait > LONGEST_WAIT {
                return Err(format!("{error}; it asks to wait {} s", wait.as_secs()));
            }
            tracing::debug!(error, attempt, ?wait, "asking again");
            std::thread::sleep(wait);
        }
    }

    fn request(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, Failure> {
        let failed = |what: &str| format!("{}: {what}", self.url);
        let body = serde_json::to_vec(&Request { model: &self.model, input: texts, encoding_format: "base64" })
            .map_err(|e| Failure::Final(failed(&e.to_string())))?;
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let broken = |e: ureq::Error| {
            let error = failed(&format!("does not answer: {e}"));
            let usual = matches!(
                e,
                ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::Protocol(_) | ureq::Error::ConnectionFailed
            );
            // An address where nothing ever answered is a wrong one.
            if usual && self.reached.load(Ordering::Relaxed) {
                Failure::Passing(error, None)
            } else {
                Failure::Final(error)
            }
        };
        let mut answer = request.send(&body).map_err(broken)?;
        self.reached.store(true, Ordering::Relaxed);
        let text = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
        let text = match text {
            Err(ureq::Error::BodyExceedsLimit(limit)) => {
                return Err(Failure::Final(failed(&format!("answered with more than {limit} bytes"))));
            }
            text => text.map_err(broken)?,
        };
        let status = answer.status().as_u16();
        if !(200..300).contains(&status) {
            let said = String::from_utf8_lossy(&text);
            let error = failed(&format!("answered {status}: {}", shown(&said)));
            let code = serde_json::from_slice::<Refusal>(&text).unwrap_or_default().error.code;
            return Err(match status {
                // OpenAI's way to say that nobody has paid.
                429 if code.is_some_and(|code| code == "insufficient_quota") => Failure::Final(error),
                408 | 409 | 425 | 429 | 500.. => Failure::Passing(error, wait(answer.headers())),
                400 | 413 | 422 => Failure::Refused(error),
                _ => Failure::Final(error),
            });
        }
        let Response { data } = serde_json::from_slice(&text)
            .map_err(|e| Failure::Final(failed(&format!("answered what is no list of embeddings: {e}"))))?;
        vectors(data, texts.len()).map_err(|problem| Failure::Final(failed(&format!("answered {problem}"))))
    }
}

impl Embed for Client {
    fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, String> {
        let mut vectors = Vec::with_capacity(texts.len());
        for texts in texts.chunks(TEXTS_AT_A_TIME) {
            vectors.extend(self.ask(texts)?);
        }
        Ok(vectors)
    }
}

/// The vectors in the order of their indices; an error says what was answered instead of `count` of one length.
fn vectors(data: Vec<Embedding>, count: usize) -> Result<Vec<Vec<f32>>, String> {
    if data.len() != count {
        return Err(format!("{} embeddings for {count} texts", data.len()));
    }
    let mut vectors: Vec<Option<Vec<f32>>> = vec![None; count];
    let mut dimensions = None;
    for (position, Embedding { index, embedding }) in data.into_iter().enumerate() {
        let index = index.unwrap_or(position);
        let vector = match embedding {
            Numbers::Floats(numbers) => numbers,
            Numbers::Base64(text) => floats(&text).ok_or_else(|| format!("no numbers in base64 at index {index}"))?,
        };
        if vector.len() != *dimensions.get_or_insert(vector.len()) || vector.is_empty() {
            return Err(format!("{} numbers at index {index}, and others elsewhere", vector.len()));
        }
        if let Some(number) = vector.iter().find(|x| !x.is_finite()) {
            return Err(format!("{number} among the numbers at index {index}"));
        }
        match vectors.get_mut(index) {
            Some(slot @ None) => *slot = Some(vector),
            Some(_) => return Err(format!("two embeddings with index {index}")),
            None => return Err(format!("an embedding with index {index} for {count} texts")),
        }
    }
    Ok(vectors.into_iter().flatten().collect())
}

fn floats(base64: &str) -> Option<Vec<f32>> {
    let bytes = base64_simd::STANDARD.decode_to_vec(base64).ok()?;
    let (numbers, rest) = bytes.as_chunks();
    rest.is_empty().then(|| numbers.iter().map(|&x| f32::from_le_bytes(x)).collect())
}

/// What the server asks to wait: `retry-after-ms` as OpenAI's SDKs read it, or `retry-after` in seconds or as a date (RFC 9110,
/// section 10.2.3).
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name: &str| text(name)?.parse::<f64>().ok();
    let seconds = number("retry-after-ms").map(|ms| ms / 1e3).or_else(|| number("retry-after"));
    if let Some(wait) = seconds {
        return Duration::try_from_secs_f64(wait).ok();
    }
    let date = httpdate::parse_http_date(text("retry-after")?).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(json: &str, count: usize) -> Result<Vec<Vec<f32>>, String> {
        vectors(serde_json::from_str::<Response>(json).map_err(|e| e.to_string())?.data, count)
    }

    #[test]
    fn vectors_come_in_the_order_of_their_indices() {
        let json = r#"{"data": [{"index": 1, "embedding": [3, 4]}, {"index": 0, "embedding": "AACAPwAAAEA="}]}"#;
        assert_eq!(answered(json, 2).unwrap(), [[1.0, 2.0], [3.0, 4.0]]);
        let json = r#"{"data": [{"embedding": [1]}, {"embedding": [2]}]}"#;
        assert_eq!(answered(json, 2).unwrap(), [[1.0], [2.0]]);
    }

    #[test]
    fn answers_that_are_none_are_named() {
        for (json, count, part) in [
            (r#"{"data": [{"index": 0, "embedding": [1]}]}"#, 2, "1 embeddings for 2 texts"),
            (
                r#"{"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}]}"#,
                2,
                "two embeddings with index 0",
            ),
            (r#"{"data": [{"index": 7, "embedding": [1]}]}"#, 1, "index 7 for 1 texts"),
            (
                r#"{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}]}"#,
                2,
                "2 numbers at index 1",
            ),
            (r#"{"data": [{"index": 0, "embedding": []}]}"#, 1, "0 numbers at index 0"),
            (r#"{"data": [{"index": 0, "embedding": [1e39]}]}"#, 1, "inf among the numbers at index 0"),
            // 1.0 and NaN.
            (r#"{"data": [{"index": 0, "embedding": "AACAPwAAwH8="}]}"#, 1, "NaN among the numbers at index 0"),
            (r#"{"data": [{"index": 0, "embedding": "AACA"}]}"#, 1, "no numbers in base64 at index 0"),
            (r#"{"data": [{"index": 0, "embedding": "?"}]}"#, 1, "no numbers in base64 at index 0"),
        ] {
            let error = answered(json, count).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn retry_after_is_read_in_every_form() {
        let waited = |pairs: &[(&'static str, &str)]| {
            let pairs = pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            wait(&pairs.collect::<HeaderMap>())
        };
        assert_eq!(waited(&[("retry-after", "3")]), Some(Duration::from_secs(3)));
        assert_eq!(waited(&[("retry-after", "0.25")]), Some(Duration::from_millis(250)));
        assert_eq!(waited(&[("retry-after", "3"), ("retry-after-ms", "20")]), Some(Duration::from_millis(20)));
        assert_eq!(waited(&[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")]), Some(Duration::ZERO));
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!(waited(&[("retry-after", &later)]).is_some_and(|wait| (95..=100).contains(&wait.as_secs())));
        for nothing in ["", "soon", "-1", "NaN", "1e99"] {
            assert_eq!(waited(&[("retry-after", nothing)]), None, "{nothing:?}");
        }
    }

    #[test]
    fn addresses_are_http_without_passwords() {
        for base in ["ftp://x/v1", "x/v1", "", "http://user:pass@x/v1"] {
            let error = Client::new(base, "m", None).err().unwrap();
            assert!(error.contains("address") && !error.contains("pass@"), "{error}");
        }
        assert_eq!(Client::new("https://x/v1", "m", None).is_ok(), cfg!(feature = "hub"));
        for base in ["http://x/v1", "http://x/v1/", "http://x/v1/embeddings"] {
            assert_eq!(Client::new(base, "m", None).unwrap().url(), "http://x/v1/embeddings");
        }
    }
}
