//! Who may ask, and for which models.
//!
//! A key with a list of models sees a server that has only those: [`View`] is the one way from a handler to the models.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName};

use super::State;
use super::error::ApiError;

/// Azure's.
const API_KEY: HeaderName = HeaderName::from_static("api-key");

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
    /// When a key is needed and none that is known is sent.
    pub fn pass(&self, route: Option<&str>, request: &mut Request) -> Result<(), ApiError> {
        if self.views.is_empty() || !route.is_some_and(|route| self.closed.iter().any(|closed| closed == route)) {
            return Ok(());
        }
        let sent = sent_key(request.headers()).ok_or_else(ApiError::no_key)?;
        let key = self.state.keys.find(sent).ok_or_else(|| ApiError::wrong_key(sent))?;
        if let Some(view) = self.views.get(key).and_then(Option::as_ref) {
            let view = Arc::clone(view);
            request.extensions_mut().insert(view);
        }
        Ok(())
    }
}

/// The key in `Authorization: Bearer KEY`, or in Azure's header.
fn sent_key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(b"bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
    });
    bearer.or_else(|| headers.get(API_KEY).map(|value| value.as_bytes().trim_ascii())).filter(|key| !key.is_empty())
}
