//! Checks API keys, and restricts what each key may see.
//!
//! A key with a list of models sees a server that has only these models: the state in the [`RequestContext`] of its
//! requests is restricted to them.

use std::sync::Arc;
use std::time::Instant;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::context::RequestContext;
use crate::batches::Owner;
use crate::keys::Key;
use crate::server::error::ApiError;
use crate::server::observe::metrics::KeyMetrics;
use crate::server::state::ServerState;
use crate::server::state::rates::{KeyLimiter, RateExceeded};

/// The headers that hold nothing but a key: Azure's, and the one of API gateways and Anthropic's clients.
const API_KEYS: [HeaderName; 2] = [HeaderName::from_static("api-key"), HeaderName::from_static("x-api-key")];

/// An API key, with the counters and rate limits of the requests that use it.
pub struct Caller {
    pub metrics: KeyMetrics,
    limiter: Option<Arc<KeyLimiter>>,
}

impl Caller {
    fn new(state: &ServerState, key: &Key) -> Self {
        Self {
            metrics: state.process.metrics.key(key.name()),
            limiter: state.usage.limiter(key.digest(), key.rates()).map(Arc::new),
        }
    }

    /// Takes one request from the key's rate limits.
    ///
    /// # Errors
    /// If the key has to wait.
    pub fn take_request(&self) -> Result<(), RateExceeded> {
        self.limiter.as_ref().map_or(Ok(()), |limiter| limiter.take_request(Instant::now()))
    }

    /// Adds the headers that describe the key's rate limits to a response.
    pub fn describe_limits(&self, headers: &mut HeaderMap) {
        if let Some(limiter) = &self.limiter {
            limiter.describe(headers, Instant::now());
        }
    }
}

/// What one key gives access to.
struct KeyAccess {
    /// The state that the key may see, or `None` if it may see everything.
    view: Option<Arc<ServerState>>,
    /// Whom the key's files and batches belong to.
    owner: Arc<Owner>,
    caller: Caller,
}

/// The API keys of a server, and what each gives access to.
pub struct KeyGate {
    state: Arc<ServerState>,
    /// What each key gives access to, in the order of the keys.
    accesses: Vec<KeyAccess>,
    /// The paths of the routes that need a key.
    protected: Vec<String>,
}

impl KeyGate {
    /// Returns the gate for the keys of `state`. `protected` are the paths of the routes that need a key, if there are
    /// keys.
    pub fn new(state: &Arc<ServerState>, protected: Vec<String>) -> Self {
        let access = |key: &Key| {
            let caller = Caller::new(state, key);
            let view = state.restricted_to_key(key, caller.limiter.as_ref()).map(Arc::new);
            KeyAccess { view, owner: Arc::new(Owner(Some(key.owner()))), caller }
        };
        Self { state: Arc::clone(state), accesses: state.keys.iter().map(access).collect(), protected }
    }

    /// Checks the key of a request to `route`, and restricts the state in `context` to what the key may see. Returns the
    /// key if the route needs one.
    ///
    /// # Errors
    /// If the route needs a key, and the request has no known one.
    pub fn authorize(
        &self,
        route: Option<&str>,
        headers: &HeaderMap,
        context: &mut RequestContext,
    ) -> Result<Option<&Caller>, ApiError> {
        if self.accesses.is_empty() {
            return Ok(None);
        }
        let needs_key = route.is_some_and(|route| self.protected.iter().any(|protected| protected == route));
        let known = sent_keys(headers).find_map(|sent| self.state.keys.find(sent));
        // A known key is recorded even on a public route, which may then tell more.
        let Some(key) = known else {
            return match sent_keys(headers).next() {
                _ if !needs_key => Ok(None),
                Some(sent) => Err(ApiError::wrong_key(sent)),
                None => Err(ApiError::no_key()),
            };
        };
        context.has_known_key = true;
        let access = self.accesses.get(key);
        context.owner = access.map(|access| Arc::clone(&access.owner));
        if let Some(view) = access.and_then(|access| access.view.as_ref()) {
            context.state = Arc::clone(view);
        }
        Ok(access.filter(|_| needs_key).map(|access| &access.caller))
    }
}

/// Returns the keys in `Authorization: Bearer KEY` and in the headers that hold only a key. There may be several: a
/// client may send its own placeholder next to the key that a gateway adds.
fn sent_keys(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearer = headers.get_all(AUTHORIZATION).into_iter().filter_map(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(b"bearer".len())?;
        let is_bearer = scheme.eq_ignore_ascii_case(b"bearer") && key.first().is_some_and(u8::is_ascii_whitespace);
        is_bearer.then_some(key)
    });
    let alone = API_KEYS.into_iter().flat_map(|name| headers.get_all(name)).map(HeaderValue::as_bytes);
    bearer.chain(alone).map(<[u8]>::trim_ascii).filter(|key| !key.is_empty())
}
