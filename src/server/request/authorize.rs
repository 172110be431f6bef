//! Checks API keys, and restricts what each key may see.
//!
//! A key with a list of models sees a server that has only these models. Handlers reach the models only through
//! [`VisibleState`].

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{FromRequestParts, Request};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue};

use crate::keys::{Key, UNNAMED};
use crate::server::error::ApiError;
use crate::server::observe::metrics::KeyMetrics;
use crate::server::state::ServerState;
use crate::server::state::rates::{KeyLimiter, RateExceeded};

/// The headers that hold nothing but a key: Azure's, and the one of API gateways and Anthropic's clients.
const API_KEYS: [HeaderName; 2] = [HeaderName::from_static("api-key"), HeaderName::from_static("x-api-key")];

/// The server's state, restricted to what the request's API key may see.
pub struct VisibleState(pub Arc<ServerState>);

impl VisibleState {
    /// Returns `state` restricted for a request with these extensions.
    pub fn from_extensions(extensions: &Extensions, state: &Arc<ServerState>) -> Self {
        Self(Arc::clone(extensions.get::<Arc<ServerState>>().unwrap_or(state)))
    }
}

impl FromRequestParts<Arc<ServerState>> for VisibleState {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<ServerState>) -> Result<Self, Self::Rejection> {
        Ok(Self::from_extensions(&parts.extensions, state))
    }
}

/// The extension of a request that has a known API key.
#[derive(Clone, Copy)]
struct KnownKey;

/// Returns whether a request with these extensions may learn the names of models and files: it has a known API key, or
/// the server has no keys.
pub fn may_see_names(extensions: &Extensions, state: &ServerState) -> bool {
    state.keys.is_empty() || extensions.get::<KnownKey>().is_some()
}

/// An API key, with the counters and rate limits of the requests that use it.
pub struct Caller {
    name: Option<String>,
    pub counts: KeyMetrics,
    limiter: Option<Arc<KeyLimiter>>,
}

impl Caller {
    fn new(state: &ServerState, key: &Key) -> Self {
        Self {
            name: key.name().map(str::to_owned),
            counts: state.process.metrics.key(key.name().unwrap_or(UNNAMED)),
            limiter: state.usage.limiter(key.digest(), key.rates()).map(Arc::new),
        }
    }

    /// Returns the name that the configuration gives the key.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
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
            KeyAccess { view: state.restricted_to_key(key, caller.limiter.as_ref()).map(Arc::new), caller }
        };
        Self { state: Arc::clone(state), accesses: state.keys.iter().map(access).collect(), protected }
    }

    /// Checks the key of a request to `route`, and attaches the state that the key may see to the request. Returns the
    /// key if the route needs one.
    ///
    /// # Errors
    /// If the route needs a key, and the request has no known one.
    pub fn authorize(&self, route: Option<&str>, request: &mut Request) -> Result<Option<&Caller>, ApiError> {
        if self.accesses.is_empty() {
            return Ok(None);
        }
        let needs_key = route.is_some_and(|route| self.protected.iter().any(|protected| protected == route));
        let known = sent_keys(request.headers()).find_map(|sent| self.state.keys.find(sent));
        // A known key is recorded even on a public route, which may then tell more.
        let Some(key) = known else {
            return match sent_keys(request.headers()).next() {
                _ if !needs_key => Ok(None),
                Some(sent) => Err(ApiError::wrong_key(sent)),
                None => Err(ApiError::no_key()),
            };
        };
        request.extensions_mut().insert(KnownKey);
        let access = self.accesses.get(key);
        if let Some(view) = access.and_then(|access| access.view.as_ref()) {
            request.extensions_mut().insert(Arc::clone(view));
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
