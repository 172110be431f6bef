//! The routes that answer new requests. A reload replaces them together with the state that they use.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::http::{Request, Response};

use super::{Routes, router};
use crate::server::observe::peer::Peer;
use crate::server::state::ServerState;

/// The routes that answer new requests, shared by the connections and the task that reloads the configuration.
#[derive(Clone)]
pub struct ActiveRoutes(Arc<ArcSwap<Routes>>);

impl ActiveRoutes {
    /// Builds the routes of `state`, which answer new requests until another state is activated.
    pub fn new(state: &Arc<ServerState>) -> Self {
        state.activated();
        Self(Arc::new(ArcSwap::from_pointee(router(state))))
    }

    /// Makes `state` the one that answers new requests. Requests in flight finish with the state that they began with.
    pub fn activate(&self, state: &Arc<ServerState>) {
        state.activated();
        self.0.store(Arc::new(router(state)));
    }

    /// Returns the routes for a new request.
    pub fn routes(&self) -> Routes {
        Routes::clone(&self.0.load())
    }

    /// Does what [`Routes::is_full`] does, with the routes for a new request.
    pub fn is_full(&self) -> bool {
        self.0.load().is_full()
    }

    /// Does what [`Routes::refuse`] does, with the routes for a new request.
    pub fn refuse<B>(&self, request: &Request<B>, length: u64, peer: Peer) -> Option<Response<Body>> {
        self.0.load().refuse(request, length, peer)
    }

    /// Returns the state that answers new requests.
    pub fn state(&self) -> Arc<ServerState> {
        Arc::clone(self.0.load().state())
    }
}

impl From<Arc<ServerState>> for ActiveRoutes {
    fn from(state: Arc<ServerState>) -> Self {
        Self::new(&state)
    }
}
