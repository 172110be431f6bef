//! What the server knows about a request beside its head and its body.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request};
use axum::http::Uri;
use axum::http::request::Parts;

use crate::batches::Owner;
use crate::server::error::ApiError;
use crate::server::observe::peer::Peer;
use crate::server::state::ServerState;
use crate::server::state::admission::RequestWeight;

/// What the server knows about a request beside its head and its body. The router makes it when the request arrives,
/// and completes it when the API key is checked and the request is admitted. Handlers name it as a parameter.
///
/// It is the only extension that this program adds to requests.
#[derive(Clone)]
pub struct RequestContext {
    /// The server's state, restricted to what the request's API key may use: a key with a list of models sees a server
    /// that has only these models.
    pub state: Arc<ServerState>,
    /// The weight of the request in the in-flight budget, or `None` for a request that brings no work (all but POST).
    pub weight: Option<Arc<RequestWeight>>,
    /// Whether the request has a known API key.
    pub has_known_key: bool,
    /// Whom the files and batches belong to that the request stores or asks for: its API key, or everybody.
    pub owner: Option<Arc<Owner>>,
    /// The other end of the connection, or `None` if it is not known.
    pub peer: Option<Peer>,
    /// The URI that the client wrote, if the router has replaced its path.
    pub original_uri: Option<Uri>,
}

impl RequestContext {
    /// Returns the context of a request that has just arrived.
    pub fn new(state: &Arc<ServerState>, peer: Option<Peer>) -> Self {
        Self { state: Arc::clone(state), weight: None, has_known_key: false, owner: None, peer, original_uri: None }
    }

    /// Returns the URI of the request as the client wrote it.
    pub fn uri<'a>(&'a self, request: &'a Request) -> &'a Uri {
        self.original_uri.as_ref().unwrap_or(request.uri())
    }

    /// Returns whether the request may learn the names of models and files: it has a known API key, or the server has
    /// no keys.
    pub fn may_see_names(&self) -> bool {
        self.has_known_key || self.state.keys.is_empty()
    }

    /// Returns whom the files and batches belong to that the request stores or asks for.
    pub fn owner(&self) -> Owner {
        self.owner.as_deref().cloned().unwrap_or_default()
    }

    /// Adds `bytes` bytes of memory that the request takes to its weight.
    ///
    /// # Errors
    /// If they do not fit into the in-flight budget.
    pub fn add_weight(&self, bytes: u64) -> Result<(), ApiError> {
        self.weight.as_ref().map_or(Ok(()), |weight| weight.arrived(bytes))
    }
}

impl<S: Sync> FromRequestParts<S> for RequestContext {
    type Rejection = ApiError;

    /// Fails only for a request that did not come through the router, which would be a mistake in this program. Such a
    /// request must not see the whole state.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get().cloned().ok_or_else(ApiError::internal)
    }
}
