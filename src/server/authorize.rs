//! Who may ask, and for which models.
//!
//! A key with a list of models sees a server that has only those: [`View`] is the one way from a handler to the models.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, MatchedPath, Request, State as Shared};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Response};
use axum::middleware::Next;
use axum::response::IntoResponse;

use super::State;
use super::error::ApiError;

/// Azure's.
const API_KEY: HeaderName = HeaderName::from_static("api-key");

/// The server as far as the request's key may see it.
pub struct View(pub Arc<State>);

impl FromRequestParts<Arc<State>> for View {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Self::Rejection> {
        Ok(Self(Arc::clone(parts.extensions.get::<Arc<State>>().unwrap_or(state))))
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

    /// # Errors
    /// When a key is needed and none that is known is sent.
    fn open(&self, request: &Request) -> Result<Option<&Arc<State>>, ApiError> {
        let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        if self.views.is_empty() || !path.is_some_and(|path| self.closed.iter().any(|closed| closed == path)) {
            return Ok(None);
        }
        let sent = sent_key(request.headers()).ok_or_else(ApiError::no_key)?;
        let key = self.state.keys.find(sent).ok_or_else(|| ApiError::wrong_key(sent))?;
        Ok(self.views.get(key).and_then(Option::as_ref))
    }
}

/// Lets a request pass whose key is known, with what it may see.
pub async fn authorize(Shared(doors): Shared<Arc<Doors>>, mut request: Request, next: Next) -> Response<Body> {
    match doors.open(&request) {
        Err(error) => return error.into_response(),
        Ok(None) => {}
        Ok(Some(view)) => {
            let view = Arc::clone(view);
            request.extensions_mut().insert(view);
        }
    }
    next.run(request).await
}

/// The key in `Authorization: Bearer KEY`, or in Azure's header.
fn sent_key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(b"bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
    });
    bearer.or_else(|| headers.get(API_KEY).map(|value| value.as_bytes().trim_ascii())).filter(|key| !key.is_empty())
}
