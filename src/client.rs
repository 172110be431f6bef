//! A blocking client of OpenAI-compatible embeddings endpoints. `eval` and `fit` use it to request vectors, and `eval` also scores of
//! documents.
//!
//! Endpoints differ in what they accept. The client determines the following properties and remembers them for its
//! lifetime:
//!
//! * The encoding of the numbers (`Encoding`): the client first requests base64 because it is the smallest, then
//!   `float`, and then omits `encoding_format`.
//! * The number of texts per request: a batch that is refused, or that fails repeatedly, is requested again in halves.
//!   The largest size that succeeds becomes the limit.
//!
//! The client retries after temporary failures (broken connections, 408, 409, 425, 429 and 5xx). Until the first
//! request succeeds, only one request is sent at a time, so that several threads do not probe the same properties in
//! parallel.

mod answer;
mod exchange;
mod ranking;
mod wait;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ureq::Agent;

use exchange::{Encoding, Failure, Kind};
use layer0_tuning::eval::{Embed, EmbedFailure, Ranking};

/// The largest number of texts in one request. OpenAI accepts 2048. Text Embeddings Inference accepts 32 by default.
const TEXTS_AT_A_TIME: usize = 256;
/// The number of attempts after which a temporary failure ends the run.
const ATTEMPTS: u32 = 8;
/// The number of attempts after which a failing batch is requested in parts.
const ATTEMPTS_AS_A_WHOLE: u32 = 3;
/// The wait before the second attempt. It doubles with each further attempt.
const BACKOFF: Duration = Duration::from_millis(500);
/// The shortest wait before the second attempt. It applies even if the server asks for no wait at all.
const SHORTEST_WAIT: Duration = Duration::from_millis(20);
/// The longest wait that is accepted from a server.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
const CONNECT: Duration = Duration::from_secs(10);
/// The longest time until a response begins. A model that runs on a CPU can be slow.
const ANSWER: Duration = Duration::from_secs(300);

/// A model that an endpoint serves.
pub struct Client {
    agent: Agent,
    /// The URL of requests, with the query.
    address: String,
    /// The URL without the query, which may contain a secret.
    url: String,
    model: String,
    key: Option<String>,
    /// Whether the key is sent in the header `api-key`, as Azure requires.
    azure: bool,
    notify: fn(&str),
    /// Whether the server has sent any response. From then on, a broken connection is retried.
    reached: AtomicBool,
    /// The index in [`Encoding::ALL`] of the encoding to request.
    encoding: AtomicUsize,
    /// The number of requests that were answered with vectors.
    answered: AtomicUsize,
    /// The refusal after which all other encodings were tried without success.
    refused_in_every_encoding: Mutex<Option<String>>,
    /// The largest number of texts that a request may have.
    limit: AtomicUsize,
    /// The number of dimensions of all vectors.
    dimensions: OnceLock<usize>,
    /// The lock that a request holds while no request has succeeded yet.
    first: Mutex<()>,
    /// The failure that ended the run. Threads that wait for their next attempt return it.
    ended: Mutex<Option<EmbedFailure>>,
    end: Condvar,
}

/// The result of requesting a batch in parts.
#[derive(Default)]
struct Search {
    /// The size of the largest part that succeeded, or 0 if none did.
    largest: usize,
}

/// The error for an address that is not that of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidUrl(String);

impl Client {
    /// Creates a client of the endpoint at `base`. The URL is written as for OpenAI's SDKs (`https://host/v1`) and may
    /// have a query. The key is sent as a bearer token, or in the header `api-key` if the query contains Azure's
    /// `api-version`.
    ///
    /// # Errors
    /// Fails if `base` is not an HTTP URL.
    pub fn new(base: &str, model: &str, key: Option<String>) -> Result<Self, InvalidUrl> {
        let base = base.trim();
        let tls = cfg!(feature = "hub");
        let rest = base.strip_prefix("http://").or_else(|| base.strip_prefix("https://").filter(|_| tls));
        let Some(rest) = rest else {
            let schemes = if tls { "http:// or https://" } else { "http:// (this build has no TLS)" };
            let problem = format!("{base:?} is no {schemes} address, such as http://127.0.0.1:8080/v1");
            return Err(InvalidUrl(problem));
        };
        if rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@')) {
            let problem = "the address holds a name or a password; give a key in the environment instead";
            return Err(InvalidUrl(problem.to_owned()));
        }
        let base = base.split('#').next().unwrap_or(base);
        let (path, query) = base.split_once('?').map_or((base, None), |(path, query)| (path, Some(query)));
        let path = path.trim_end_matches('/');
        let url = format!("{}/embeddings", path.strip_suffix("/embeddings").unwrap_or(path));
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
        let key = key.map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
        Ok(Self {
            agent: config.build().into(),
            address: query.map_or_else(|| url.clone(), |query| format!("{url}?{query}")),
            url,
            model: model.to_owned(),
            key,
            azure: query.is_some_and(|query| query.split('&').any(|pair| pair.starts_with("api-version="))),
            notify: |_| {},
            reached: AtomicBool::new(false),
            encoding: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            refused_in_every_encoding: Mutex::default(),
            limit: AtomicUsize::new(TEXTS_AT_A_TIME),
            dimensions: OnceLock::new(),
            first: Mutex::default(),
            ended: Mutex::default(),
            end: Condvar::new(),
        })
    }

    /// Sets the function that receives messages for the user about the endpoint. A message consists of whole sentences.
    #[must_use]
    pub fn with_notify(self, notify: fn(&str)) -> Self {
        Self { notify, ..self }
    }

    /// Returns the URL of requests, without the query.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn model(&self) -> &str {
        &self.model
    }

    fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire) > 0
    }

    /// Requests the vectors of `texts`. Until a request has succeeded, only one thread at a time does this. A failure
    /// ends the run for all threads.
    fn ask(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedFailure> {
        let mut alone = None;
        if !self.has_answered() {
            alone = Some(lock(&self.first)).filter(|_| !self.has_answered());
        }
        if let Some(failure) = lock(&self.ended).clone() {
            return Err(failure);
        }
        let answer = self.persist(texts).inspect_err(|failure| {
            lock(&self.ended).get_or_insert_with(|| failure.clone());
            self.end.notify_all();
        });
        // The lock is released only now, so that a thread that waits for it finds the failure in `self.ended`.
        drop(alone);
        answer
    }

    /// Requests the vectors of `texts` until there is a response, or until further attempts are pointless.
    fn persist(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedFailure> {
        let mut attempt = 0;
        loop {
            let limit = self.limit.load(Ordering::Acquire).max(1);
            if texts.len() > limit {
                // Another thread has found a lower limit in the meantime.
                let mut vectors = Vec::with_capacity(texts.len());
                for texts in texts.chunks(limit) {
                    vectors.extend(self.persist(texts)?);
                }
                return Ok(vectors);
            }
            let answered_before = self.answered.load(Ordering::Acquire);
            let failure = match self.in_some_encoding(texts, attempt + 1 == ATTEMPTS_AS_A_WHOLE) {
                Ok(vectors) => return Ok(vectors),
                Err(failure) => failure,
            };
            attempt += 1;
            let divisible = match failure.kind {
                Kind::Final => return Err(failure.permanent()),
                Kind::Refused => true,
                Kind::Failed => attempt == ATTEMPTS_AS_A_WHOLE || attempt == ATTEMPTS,
                Kind::Overloaded => false,
            };
            if divisible {
                match self.in_parts(texts, failure.clone()) {
                    Ok(vectors) => return Ok(vectors),
                    Err(None) => {}
                    Err(Some(failure)) => return Err(failure),
                }
            }
            let others_are_answered = self.answered.load(Ordering::Acquire) > answered_before;
            if let (Kind::Failed, [text], true) = (failure.kind, texts, others_are_answered)
                && attempt >= ATTEMPTS_AS_A_WHOLE
            {
                return Err(failure.of_text(text).permanent());
            }
            if attempt == ATTEMPTS {
                let failure = if let [text] = texts { failure.of_text(text) } else { failure };
                return Err(failure.temporary(&format!("it was asked {ATTEMPTS} times")));
            }
            self.pause(&failure, attempt)?;
        }
    }

    /// Waits before attempt number `attempt`, counted from 0.
    fn pause(&self, failure: &Failure, attempt: u32) -> Result<(), EmbedFailure> {
        let doubled = |wait: Duration| wait.saturating_mul(2u32.saturating_pow(attempt.saturating_sub(1)));
        let wait = failure.wait.map_or(doubled(BACKOFF), |wait| wait.max(doubled(SHORTEST_WAIT)));
        if wait > LONGEST_WAIT {
            let longest = LONGEST_WAIT.as_secs();
            let problem =
                format!("it asks to wait {} s, and at most {longest} s are waited", wait.as_secs_f64().round());
            return Err(failure.clone().temporary(&problem));
        }
        tracing::debug!(error = failure.message, attempt, ?wait, "asking again");
        let ended = lock(&self.ended);
        let (ended, _) =
            self.end.wait_timeout_while(ended, wait, |ended| ended.is_none()).unwrap_or_else(PoisonError::into_inner);
        ended.clone().map_or(Ok(()), Err)
    }

    /// Requests a batch in parts after it failed as a whole. The error is `None` if no part succeeded although the
    /// texts were not refused. The endpoint then fails regardless of the texts.
    fn in_parts(&self, texts: &[String], failure: Failure) -> Result<Vec<Vec<f32>>, Option<EmbedFailure>> {
        let encoding = self.encoding();
        let mut search = Search::default();
        let failure = match texts {
            [text] => failure.of_text(text),
            _ => match self.halves(texts, &mut search) {
                Ok(vectors) => {
                    if self.encoding() == encoding {
                        self.learn_limit(search.largest, texts.len(), &failure.message);
                    }
                    return Ok(vectors);
                }
                Err(failure) => failure,
            },
        };
        match failure.kind {
            Kind::Final => Err(Some(failure.permanent())),
            Kind::Overloaded => Err(Some(failure.temporary("it answered nothing else meanwhile"))),
            Kind::Failed if search.largest == 0 => Err(None),
            Kind::Refused if !self.has_answered() => Err(Some(failure.of_every_request().permanent())),
            Kind::Refused | Kind::Failed => Err(Some(failure.permanent())),
        }
    }

    fn halves(&self, texts: &[String], search: &mut Search) -> Result<Vec<Vec<f32>>, Failure> {
        let (first, second) = texts.split_at(texts.len() / 2);
        let mut vectors = match self.part(first, search) {
            Err(failure) if search.largest == 0 && matches!(failure.kind, Kind::Refused | Kind::Failed) => {
                // The second half shows whether the endpoint answers at all. Only if it does, a text of the first half
                // causes the failure.
                let Ok(rest) = self.when_free(second) else { return Err(failure) };
                search.largest = rest.len();
                let mut vectors = self.part(first, search)?;
                vectors.extend(rest);
                return Ok(vectors);
            }
            vectors => vectors?,
        };
        vectors.extend(self.part(second, search)?);
        Ok(vectors)
    }

    fn part(&self, texts: &[String], search: &mut Search) -> Result<Vec<Vec<f32>>, Failure> {
        let mut attempt = 0;
        loop {
            let failure = match self.when_free(texts) {
                Ok(vectors) => {
                    search.largest = search.largest.max(texts.len());
                    return Ok(vectors);
                }
                Err(failure) => failure,
            };
            attempt += 1;
            match (failure.kind, texts) {
                (Kind::Refused | Kind::Failed, [_, _, ..]) => return self.halves(texts, search),
                // The endpoint answers other requests, so either this text causes the failure, or the failure is a rare
                // one.
                (Kind::Failed, [_]) if search.largest > 0 && attempt < ATTEMPTS_AS_A_WHOLE => {
                    self.pause(&failure, attempt).map_err(|ended| failure.ended(ended))?;
                }
                (Kind::Refused | Kind::Failed, [text]) => return Err(failure.of_text(text)),
                _ => return Err(failure),
            }
        }
    }

    /// Requests the vectors of `texts`, and retries while the server is overloaded.
    fn when_free(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, Failure> {
        let mut attempt = 0;
        loop {
            match self.in_some_encoding(texts, texts.len() == 1) {
                Err(failure) if failure.kind == Kind::Overloaded && attempt + 1 < ATTEMPTS => {
                    attempt += 1;
                    self.pause(&failure, attempt).map_err(|ended| failure.ended(ended))?;
                }
                answer => return answer,
            }
        }
    }

    /// Requests the vectors of `texts` in the encoding that is known to work. The other encodings are tried as well if
    /// no encoding is known to work and the texts are refused, or if the response mentions the encoding. With
    /// `thorough`, they are also tried if the same refusal was seen before, or if the server fails.
    fn in_some_encoding(&self, texts: &[String], thorough: bool) -> Result<Vec<Vec<f32>>, Failure> {
        let encoding = self.encoding();
        let failure = match self.exchange(texts, encoding) {
            Ok(vectors) => return Ok(self.answered_in(encoding, vectors)),
            Err(failure) => failure,
        };
        let unknown = !self.has_answered();
        let refused = failure.kind == Kind::Refused;
        let new = lock(&self.refused_in_every_encoding).as_deref() != Some(failure.said.as_str());
        let try_others = failure.speaks_of_encoding
            || unknown && refused && (thorough || new)
            || unknown && thorough && failure.kind == Kind::Failed;
        if !try_others || failure.whatever_the_encoding {
            return Err(failure);
        }
        for &other in Encoding::ALL.iter().skip_while(|other| **other != encoding).skip(1) {
            match self.exchange(texts, other) {
                Ok(vectors) => {
                    if failure.unusable {
                        (self.notify)(&format!(
                            "{}: {}. Vectors are asked for {} from now on.",
                            self.url,
                            failure.said,
                            other.name()
                        ));
                    }
                    return Ok(self.answered_in(other, vectors));
                }
                // The vectors of these texts are invalid in this encoding as well.
                Err(found) if failure.unusable && found.kind == Kind::Final && found.whatever_the_encoding => {
                    return Err(found.after(&failure));
                }
                Err(found) if failure.unusable && found.kind != Kind::Refused => return Err(found),
                Err(found) if found.kind == Kind::Overloaded => break,
                Err(_) => {}
            }
        }
        if refused {
            *lock(&self.refused_in_every_encoding) = Some(failure.said.clone());
        }
        Err(failure)
    }

    fn encoding(&self) -> Encoding {
        Encoding::ALL.get(self.encoding.load(Ordering::Acquire)).copied().unwrap_or_default()
    }

    /// Remembers that `encoding` works.
    fn answered_in(&self, encoding: Encoding, vectors: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
        let index = Encoding::ALL.iter().position(|other| *other == encoding).unwrap_or_default();
        self.encoding.store(index, Ordering::Release);
        self.answered.fetch_add(1, Ordering::AcqRel);
        vectors
    }

    /// Lowers the limit to the size of the largest part that succeeded of a batch that failed as a whole.
    fn learn_limit(&self, answered: usize, failed: usize, why: &str) {
        if answered > 0 && answered < failed && self.limit.fetch_min(answered, Ordering::AcqRel) > answered {
            (self.notify)(&format!(
                "{why}, to a request with {failed} texts. Requests have at most {answered} from now on."
            ));
        }
    }
}

impl Embed for Client {
    fn ranking(&self) -> Option<&dyn Ranking> {
        Some(self)
    }

    fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedFailure> {
        let mut vectors = Vec::with_capacity(texts.len());
        let mut rest = texts;
        while !rest.is_empty() {
            let size = self.limit.load(Ordering::Acquire).clamp(1, rest.len());
            let (batch, others) = rest.split_at(size);
            vectors.extend(self.ask(batch)?);
            rest = others;
        }
        Ok(vectors)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
