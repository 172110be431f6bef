//! Who may ask, and for which models.
//!
//! A key with a list of models sees a server that has only those: [`View`] is the one way from a handler to the models.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{FromRequestParts, Request};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue};

use super::State;
use super::error::ApiError;
use super::metrics::OfKey;
use super::rates::{Exceeded, Limiter};
use crate::keys::{Key, UNNAMED};

/// The headers that hold nothing but a key: Azure's, and that of API gateways and of Anthropic's clients.
const API_KEYS: [HeaderName; 2] = [HeaderName::from_static("api-key"), HeaderName::from_static("x-api-key")];

/// The server as far as the request's key may see it.
pub struct View(pub Arc<State>);

impl View {
    /// What the key of a request with these extensions may see of `state`.
    pub fn of(extensions: &Extensions, state: &Arc<State>) -> Self {
        Self(Arc::clone(extensions.get::<Arc<State>>().unwrap_or(state)))
    }
}

impl FromRequestParts<Arc<State>> for View {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Self::Rejection> {
        Ok(Self::of(&parts.extensions, state))
    }
}

/// On a request that brought a key which is known.
#[derive(Clone, Copy)]
struct KnownKey;

/// Whether a request with these extensions may learn which models and files there are: it brought a key that is known, or
/// the server has no keys.
pub fn may_see_names(extensions: &Extensions, state: &State) -> bool {
    state.keys.is_empty() || extensions.get::<KnownKey>().is_some()
}

/// A key, as its requests to the routes that ask for one are counted and limited.
pub struct Caller {
    name: Option<String>,
    pub counts: OfKey,
    limiter: Option<Arc<Limiter>>,
}

impl Caller {
    fn new(state: &State, key: &Key) -> Self {
        Self {
            name: key.name().map(str::to_owned),
            counts: state.metrics.key(key.name().unwrap_or(UNNAMED)),
            limiter: state.usage.limiter(key.digest(), key.rates()).map(Arc::new),
        }
    }

    /// What the configuration calls the key.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Takes one request of those that the key may make.
    ///
    /// # Errors
    /// When the key has to wait.
    pub fn take_request(&self) -> Result<(), Exceeded> {
        self.limiter.as_ref().map_or(Ok(()), |limiter| limiter.take_request(Instant::now()))
    }

    /// Adds to an answer what is left of the key's limits.
    pub fn describe_limits(&self, headers: &mut HeaderMap) {
        if let Some(limiter) = &self.limiter {
            limiter.describe(headers, Instant::now());
        }
    }
}

/// What a key opens.
struct Door {
    /// What it may see; `None`: everything.
    view: Option<Arc<State>>,
    caller: Caller,
}

/// The keys of a server, and what each opens.
pub struct Doors {
    state: Arc<State>,
    /// By key.
    doors: Vec<Door>,
    /// The routes that ask for a key.
    closed: Vec<String>,
}

impl Doors {
    /// `closed` are the paths of the routes that ask for a key, if the server has any.
    pub fn new(state: &Arc<State>, closed: Vec<String>) -> Self {
        let door = |key: &Key| {
            let caller = Caller::new(state, key);
            Door { view: state.seen_by(key, caller.limiter.as_ref()).map(Arc::new), caller }
        };
        Self { state: Arc::clone(state), doors: state.keys.iter().map(door).collect(), closed }
    }

    /// Lets a request to `route` pass whose key is known, with what it may see. Returns the key if `route` asks for one.
    ///
    /// # Errors
    /// When a key is needed, and none of those that were sent is known.
    pub fn pass(&self, route: Option<&str>, request: &mut Request) -> Result<Option<&Caller>, ApiError> {
        if self.doors.is_empty() {
            return Ok(None);
        }
        let is_closed = route.is_some_and(|route| self.closed.iter().any(|closed| closed == route));
        let known = sent_keys(request.headers()).find_map(|sent| self.state.keys.find(sent));
        // A route that is open to all tells more to those who have a key.
        let Some(key) = known else {
            return match sent_keys(request.headers()).next() {
                _ if !is_closed => Ok(None),
                Some(sent) => Err(ApiError::wrong_key(sent)),
                None => Err(ApiError::no_key()),
            };
        };
        request.extensions_mut().insert(KnownKey);
        let door = self.doors.get(key);
        if let Some(view) = door.and_then(|door| door.view.as_ref()) {
            request.extensions_mut().insert(Arc::clone(view));
        }
        Ok(door.filter(|_| is_closed).map(|door| &door.caller))
    }
}

/// The keys in `Authorization: Bearer KEY` and in the headers that hold a key alone, of which there may be several: a
/// client's own placeholder may stand beside the key that a gateway adds.
fn sent_keys(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearer = headers.get_all(AUTHORIZATION).into_iter().filter_map(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(b"bearer".len())?;
        let is_bearer = scheme.eq_ignore_ascii_case(b"bearer") && key.first().is_some_and(u8::is_ascii_whitespace);
        is_bearer.then_some(key)
    });
    let alone = API_KEYS.into_iter().flat_map(|name| headers.get_all(name)).map(HeaderValue::as_bytes);
    bearer.chain(alone).map(<[u8]>::trim_ascii).filter(|key| !key.is_empty())
}
