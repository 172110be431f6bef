//! Who may ask, and for which models.
//!
//! A key with a list of models sees a server that has only those: [`View`] is the one way from a handler to the models.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue};

use super::State;
use super::error::ApiError;

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

/// The keys of a server, and what each opens.
pub struct Doors {
    state: Arc<State>,
    /// By key; `None`: everything.
    views: Vec<Option<Arc<State>>>,
    /// The routes that ask for a key.
    closed: Vec<String>,
}

impl Doors {
    /// `closed` are the paths of the routes that ask for a key, if the server has any.
    pub fn new(state: &Arc<State>, closed: Vec<String>) -> Self {
        let view = |models: &[String]| (!models.is_empty()).then(|| Arc::new(state.only(models)));
        let views = state.keys.iter().map(|key| view(key.models())).collect();
        Self { state: Arc::clone(state), views, closed }
    }

    /// Lets a request to `route` pass whose key is known, with what it may see.
    ///
    /// # Errors
    /// When a key is needed, and none of those that were sent is known.
    pub fn pass(&self, route: Option<&str>, request: &mut Request) -> Result<(), ApiError> {
        if self.views.is_empty() {
            return Ok(());
        }
        let is_closed = route.is_some_and(|route| self.closed.iter().any(|closed| closed == route));
        let known = sent_keys(request.headers()).find_map(|sent| self.state.keys.find(sent));
        // A route that is open to all tells more to those who have a key.
        let Some(key) = known else {
            return match sent_keys(request.headers()).next() {
                _ if !is_closed => Ok(()),
                Some(sent) => Err(ApiError::wrong_key(sent)),
                None => Err(ApiError::no_key()),
            };
        };
        request.extensions_mut().insert(KnownKey);
        if let Some(view) = self.views.get(key).and_then(Option::as_ref) {
            let view = Arc::clone(view);
            request.extensions_mut().insert(view);
        }
        Ok(())
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
