//! Sends requests to the Hub and handles redirects, tokens, status codes, ranges and retries.
//!
//! The client is blocking. It is built at the first request, so that a process without requests does not load
//! certificates. The token is never sent to another host, to which the Hub redirects requests for large files.

use std::io::{self, Read};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use ureq::http::{HeaderMap, Method, Request};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::address::{content_range, join, same_origin, shown, with_credentials};
use super::settings::Settings;
use crate::error::{HubError, RequestError, RequestErrorKind};
use crate::extract::source::Sink;
use crate::location::HubId;

/// The number of attempts in a row without progress after which a request fails.
const ATTEMPTS: u32 = 5;
const REDIRECTS: usize = 10;
const CONNECT: Duration = Duration::from_secs(10);
/// The lowest accepted transfer rate in bytes per second, on average over [`Settings::timeout`].
const LEAST_RATE: u64 = 1 << 10;
/// The limit on the duration of a response that is read into memory, as a multiple of [`Settings::timeout`].
const DOCUMENT_TIMEOUTS: u32 = 10;
/// The size in bytes of the largest response that is read into memory.
const DOCUMENT: u64 = 64 << 20;

/// What the Hub says about a file before the file is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMetadata {
    /// The ETag: the SHA-256 of a large file, and git's SHA-1 of a small one. Other servers may use any value.
    pub etag: String,
    pub size: u64,
}

/// A client for requests about one model.
pub struct Client<'a> {
    settings: &'a Settings,
    id: &'a HubId,
    agent: OnceLock<Agent>,
}

/// A failed attempt.
enum Failure {
    /// The request is worth another attempt, after the delay that the server asks for.
    Passing(HubError, Option<Duration>),
    /// The request is worth another attempt, but the bytes that arrived do not count as progress.
    Slow(HubError),
    Final(HubError),
}

impl Failure {
    fn error(self) -> HubError {
        match self {
            Self::Passing(error, _) | Self::Slow(error) | Self::Final(error) => error,
        }
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        Self::Final(error.into())
    }
}

/// A reader of a response that fails if the bytes arrive too slowly. A read timeout alone is not enough, because it
/// never expires if a server sends single bytes at intervals.
struct Paced<R> {
    reader: R,
    window: Duration,
    /// The time by which the whole response must have arrived.
    deadline: Option<Instant>,
    /// The time of the last check of the rate. `bytes` counts the bytes that have arrived since then.
    since: Instant,
    bytes: u64,
    is_slow: bool,
}

impl<R: Read> Paced<R> {
    fn new(reader: R, window: Duration, total: Option<Duration>) -> Self {
        let now = Instant::now();
        Self { reader, window, deadline: total.map(|total| now + total), since: now, bytes: 0, is_slow: false }
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.bytes += read as u64;
        let now = Instant::now();
        let passed = now - self.since;
        if read > 0 && passed >= self.window {
            self.is_slow = self.bytes < LEAST_RATE * passed.as_secs().max(1);
            (self.since, self.bytes) = (now, 0);
        }
        self.is_slow |= read > 0 && self.deadline.is_some_and(|deadline| now > deadline);
        if self.is_slow {
            let problem = format!("it comes with fewer than {LEAST_RATE} bytes a second");
            return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
        }
        Ok(read)
    }
}

struct Answer {
    url: String,
    status: u16,
    headers: HeaderMap,
    body: Body,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn is_page(&self) -> bool {
        self.header("content-type").is_some_and(|kind| kind.starts_with("text/html"))
    }
}

impl<'a> Client<'a> {
    pub fn new(settings: &'a Settings, id: &'a HubId) -> Self {
        Self { settings, id, agent: OnceLock::new() }
    }

    /// Returns the URL of the model's page.
    pub fn page(&self) -> String {
        format!("{}/{}", self.settings.endpoint, self.id.name)
    }

    /// Returns the URL of `file` at `commit`.
    pub fn file_url(&self, commit: &str, file: &str) -> String {
        format!("{}/resolve/{commit}/{file}", self.page())
    }

    /// Returns the Hub's description of the model at the requested revision.
    ///
    /// # Errors
    /// Returns an error if the Hub does not respond, or if the response is not one of the Hub.
    pub fn describe<T: DeserializeOwned>(&self) -> Result<T, HubError> {
        let revision = self.id.revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}", self.settings.endpoint, self.id.name);
        self.again(|| {
            let mut answer = self.get(&url, None)?;
            if answer.is_page() {
                return Err(page_instead(&url).into());
            }
            let mut json = Vec::new();
            let read = self.document(answer.body.as_reader()).take(DOCUMENT).read_to_end(&mut json);
            read.map_err(|e| cut(&url, &e))?;
            serde_json::from_slice(&json).map_err(|e| {
                let expected = "the Hub's description of a model; HF_ENDPOINT must name the Hub or a mirror of its API";
                wrong_answer(&url, format!("answered with something else: {e}")).expected(expected).into()
            })
        })
    }

    /// Returns what the Hub says about the file at `url`.
    ///
    /// # Errors
    /// Returns an error if the Hub does not respond, or states no size or no ETag.
    pub fn metadata(&self, url: &str) -> Result<FileMetadata, HubError> {
        self.again(|| {
            // A redirect to the store of large files has headers that the response of the store lacks.
            let tells = |answer: &Answer| answer.header("x-linked-etag").is_some();
            let answer = self.follow(&Method::HEAD, url, None, &tells)?;
            self.check_status(&answer)?;
            let etag = answer.header("x-linked-etag").or_else(|| answer.header("etag")).unwrap_or_default();
            let etag = etag.trim_start_matches("W/").trim_matches('"');
            let size = answer.header("x-linked-size").or_else(|| answer.header("content-length"));
            let size = size.and_then(|size| size.parse().ok());
            // The ETag becomes the name of a file, so it must be a valid one.
            let named = (1..=128).contains(&etag.len())
                && etag.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !etag.starts_with('.');
            match size {
                Some(size) if named => Ok(FileMetadata { etag: etag.to_owned(), size }),
                _ if answer.is_page() => Err(page_instead(url).into()),
                _ => {
                    let expected = "what the Hub states of each file; HF_ENDPOINT must name the Hub or a mirror of it";
                    Err(wrong_answer(url, "has no usable ETag or size").expected(expected).into())
                }
            }
        })
    }

    /// Passes the bytes `from..to` of the file at `url` to `sink`, and continues after each interruption. `size` is the
    /// size of the whole file. If `whole` is set, a response that ignores the range is accepted too, and the bytes
    /// before `from` are skipped.
    ///
    /// # Errors
    /// Returns the errors of `sink`, and an error if several attempts in a row brought no bytes.
    pub fn copy(
        &self,
        url: &str,
        (from, to): (u64, u64),
        size: u64,
        whole: bool,
        sink: &mut Sink<'_>,
    ) -> Result<(), HubError> {
        let mut at = from;
        let mut attempt = 0;
        while at < to {
            let before = at;
            let result = self.copy_once(url, &mut at, to, size, whole, sink);
            if at > before && !matches!(result, Err(Failure::Slow(_))) {
                attempt = 0;
            }
            if let Err(failure) = result {
                attempt += 1;
                self.pause(attempt, failure)?;
            }
        }
        Ok(())
    }

    fn copy_once(
        &self,
        url: &str,
        at: &mut u64,
        to: u64,
        size: u64,
        whole: bool,
        sink: &mut Sink<'_>,
    ) -> Result<(), Failure> {
        let mut answer = self.get(url, Some((*at, to)))?;
        if answer.is_page() && !url.ends_with(".html") {
            return Err(page_instead(url).into());
        }
        let start = match (answer.status, answer.header("content-range").and_then(content_range)) {
            (206, Some((start, total))) if start == *at && total == size => start,
            (200, _) if whole || (*at == 0 && to == size) => 0,
            (200, _) => {
                return Err(wrong_answer(url, "is answered whole where a part was asked for")
                    .expected("a server that answers byte ranges, as the Hub does")
                    .remedy(
                        "set HF_ENDPOINT to another mirror, or download the model another way and give its directory",
                    )
                    .into());
            }
            (status, range) => {
                let found = wrong_answer(url, format!("answered {status} with the range {range:?}"))
                    .expected(format!("bytes {at} to {to} of {size}"));
                return Err(Failure::Passing(found.into(), None));
            }
        };
        let mut reader = Paced::new(answer.body.as_reader(), self.settings.timeout, None);
        let mut skip = *at - start;
        let mut buffer = vec![0; 64 << 10];
        while *at < to {
            let n = reader.read(&mut buffer).map_err(|e| match e.kind() {
                io::ErrorKind::TimedOut if reader.is_slow => Failure::Slow(cut(url, &e).error()),
                _ => cut(url, &e),
            })?;
            if n == 0 {
                return Err(cut(url, &format!("it ended after {at} of {to} bytes")));
            }
            let piece = buffer.get(..n).unwrap_or_default();
            let past = usize::try_from(skip).unwrap_or(n).min(n);
            skip -= past as u64;
            let wanted = usize::try_from(to - *at).unwrap_or(n);
            let piece = piece.get(past..).unwrap_or_default();
            let piece = piece.get(..wanted).unwrap_or(piece);
            sink(piece).map_err(|error| Failure::Final(error.into()))?;
            *at += piece.len() as u64;
        }
        Ok(())
    }

    /// Returns `len` bytes from offset `from` on, and the size of the file.
    ///
    /// # Errors
    /// Returns the same errors as [`Client::copy`].
    pub fn bytes(&self, url: &str, from: u64, len: u64) -> Result<(Vec<u8>, u64), HubError> {
        self.again(|| {
            let mut answer = self.get(url, Some((from, from + len)))?;
            if answer.is_page() {
                return Err(page_instead(url).into());
            }
            let Some((_, size)) = answer.header("content-range").and_then(content_range).filter(|(at, _)| *at == from)
            else {
                return Err(wrong_answer(url, "is answered without a byte range")
                    .expected("a server that answers byte ranges, as the Hub does")
                    .remedy(
                        "set HF_ENDPOINT to another mirror, or download the model another way and give its directory",
                    )
                    .into());
            };
            let mut bytes = Vec::new();
            let read = self.document(answer.body.as_reader()).take(len).read_to_end(&mut bytes);
            read.map_err(|e| cut(url, &e))?;
            if bytes.len() as u64 != len {
                return Err(cut(url, &format!("it ended after {} of {len} bytes", bytes.len())));
            }
            Ok((bytes, size))
        })
    }

    /// Returns a reader for a response that is read into memory.
    fn document<R: Read>(&self, reader: R) -> Paced<R> {
        Paced::new(reader, self.settings.timeout, Some(self.settings.timeout * DOCUMENT_TIMEOUTS))
    }

    fn get(&self, url: &str, range: Option<(u64, u64)>) -> Result<Answer, Failure> {
        let answer = self.follow(&Method::GET, url, range, &|_| false)?;
        self.check_status(&answer)?;
        Ok(answer)
    }

    /// Follows redirects until `enough` returns true for a response. ureq's own redirects cannot stop at a response
    /// whose headers are needed.
    fn follow(
        &self,
        method: &Method,
        url: &str,
        range: Option<(u64, u64)>,
        enough: &dyn Fn(&Answer) -> bool,
    ) -> Result<Answer, Failure> {
        let mut at = url.to_owned();
        for _ in 0..REDIRECTS {
            let at_hub = same_origin(&at, &self.settings.endpoint);
            let credentials = self.settings.credentials.as_ref().filter(|_| at_hub);
            let uri = credentials.map_or_else(|| at.clone(), |credentials| with_credentials(&at, credentials));
            let mut request = Request::builder().method(method).uri(uri);
            if let Some((from, to)) = range {
                request = request.header("range", format!("bytes={from}-{}", to.saturating_sub(1)));
            }
            if let Some(token) = self.settings.token.as_ref().filter(|_| at_hub) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let request = request.body(()).map_err(|e| {
                let problem = format!("cannot be asked: {e}");
                RequestError::new(RequestErrorKind::InvalidRequest, shown(&at), problem)
                    .expected("an HTTP address in HF_ENDPOINT, and a token of plain letters")
            })?;
            let response = self.agent().run(request).map_err(|e| unanswered(&at, &e, credentials))?;
            let (head, body) = response.into_parts();
            let answer = Answer { url: at, status: head.status.as_u16(), headers: head.headers, body };
            let target = answer.header("location").filter(|_| (300..400).contains(&answer.status));
            let Some(target) = target.filter(|_| !enough(&answer)) else { return Ok(answer) };
            at = join(&answer.url, target).ok_or_else(|| {
                wrong_answer(&shown(&answer.url), format!("redirects to {:?}", shown(target)))
                    .expected("another HTTPS address")
            })?;
        }
        Err(wrong_answer(url, format!("redirects more than {REDIRECTS} times")).into())
    }

    fn agent(&self) -> &Agent {
        self.agent.get_or_init(|| {
            let roots = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
            Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .timeout_resolve(Some(CONNECT))
                .timeout_connect(Some(CONNECT))
                .timeout_recv_response(Some(self.settings.timeout))
                .timeout_per_read(Some(self.settings.timeout))
                .user_agent(concat!("embedding-server/", env!("CARGO_PKG_VERSION")))
                .tls_config(roots)
                .build()
                .into()
        })
    }

    /// Returns the error for an unsuccessful status, with what the status means for the Hub and a remedy.
    fn check_status(&self, answer: &Answer) -> Result<(), Failure> {
        let (status, at_hub) = (answer.status, same_origin(&answer.url, &self.settings.endpoint));
        if (200..400).contains(&status) {
            return Ok(());
        }
        let said: String = answer.header("x-error-message").unwrap_or_default().chars().take(200).collect();
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        let kind = match (status, answer.header("x-error-code")) {
            (404, _) | (401, Some("RepoNotFound")) => RequestErrorKind::NotFound,
            (401 | 403, _) if at_hub => RequestErrorKind::Unauthorized,
            _ => RequestErrorKind::Refused,
        };
        let error = RequestError::new(kind, shown(&answer.url), format!("answered {status}{said}"));
        let page = self.page();
        let error = match (status, answer.header("x-error-code")) {
            (401 | 404, Some("RepoNotFound")) => error
                .expected(format!("a public model {}, or a token that may see it", self.id.name))
                .remedy("a private model needs HF_TOKEN"),
            (401 | 403, _) if at_hub => match (&self.settings.token, status) {
                (None, _) => error
                    .remedy(format!("set HF_TOKEN to a token that may read {page}, and accept its conditions there")),
                (Some(_), 401) => error.remedy("HF_TOKEN, or the stored token, is not valid: make a new one"),
                (Some(_), _) => error.remedy(format!(
                    "the token may not read {page}: accept the model's conditions there with the token's account"
                )),
            },
            (404, Some("RevisionNotFound")) => {
                error.expected(format!("a branch, tag or commit {:?} of {page}", self.id.revision))
            }
            (404, _) => {
                error.expected(format!("an existing model at {page}, with the revision {:?}", self.id.revision))
            }
            // An address at the store of large files expires after some minutes. The next attempt asks the Hub for a
            // new one.
            (401 | 403 | 408 | 425 | 429 | 500.., _) => {
                let wait = answer.header("retry-after").and_then(|s| s.parse().ok()).map(Duration::from_secs);
                let error = error.remedy("try again later: what has come so far is kept");
                return Err(Failure::Passing(error.into(), wait));
            }
            _ => error,
        };
        Err(error.into())
    }

    fn again<T>(&self, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, HubError> {
        let mut failures = 0;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(failure) => {
                    failures += 1;
                    self.pause(failures, failure)?;
                }
            }
        }
    }

    /// Waits before the next attempt, or returns the error of the failure.
    fn pause(&self, attempt: u32, failure: Failure) -> Result<(), HubError> {
        const LONGEST: Duration = Duration::from_secs(60);
        match failure {
            Failure::Final(error) => Err(error),
            Failure::Passing(error, _) | Failure::Slow(error) if attempt >= ATTEMPTS => Err(error),
            Failure::Slow(_) => Ok(()),
            Failure::Passing(error, wait) => {
                tracing::debug!(%error, attempt, "trying again");
                let backoff = self.settings.backoff * 2u32.saturating_pow(attempt - 1);
                std::thread::sleep(wait.unwrap_or(backoff).min(LONGEST));
                Ok(())
            }
        }
    }
}

fn wrong_answer(url: &str, problem: impl Into<String>) -> RequestError {
    RequestError::new(RequestErrorKind::WrongAnswer, url, problem)
}

fn page_instead(url: &str) -> RequestError {
    wrong_answer(url, "is answered with an HTML page")
        .expected("the file itself")
        .remedy("a proxy's or a network's login page stands before the Hub, or HF_ENDPOINT names something else")
}

fn cut(url: &str, problem: &dyn std::fmt::Display) -> Failure {
    Failure::Passing(
        RequestError::new(RequestErrorKind::Interrupted, url, format!("was cut: {problem}"))
            .expected("the whole file")
            .remedy("run the same again: it goes on where it stopped; HF_HUB_DOWNLOAD_TIMEOUT is how many seconds a silence may last")
            .into(),
        None,
    )
}

fn unanswered(url: &str, error: &ureq::Error, credentials: Option<&String>) -> Failure {
    let url = shown(url);
    let mut problem = error.to_string();
    if let Some(credentials) = credentials {
        problem = problem.replace(credentials.as_str(), "...");
    }
    let found = RequestError::new(RequestErrorKind::Unanswered, url, format!("does not answer: {problem}"));
    let certificate = ["ertificate", "UnknownIssuer", "tls", "TLS"].iter().any(|word| problem.contains(word));
    match error {
        _ if certificate => found.expected("a certificate that this system trusts").remedy(
            "behind a proxy that inspects traffic, set SSL_CERT_FILE to a file with its certificate authority; an image without certificates needs ca-certificates",
        ).into(),
        ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
            found.remedy("check HF_ENDPOINT and the proxy variables").into()
        }
        _ => Failure::Passing(
            found.remedy("check the network, HTTPS_PROXY and HF_ENDPOINT; HF_HUB_OFFLINE=1 uses what the cache has; HF_HUB_DOWNLOAD_TIMEOUT is how many seconds a silence may last").into(),
            None,
        ),
    }
}
