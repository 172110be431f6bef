//! The HTTP server: it binds its port before any model is loaded, and drains before it stops.
//!
//! [`ServerState`] holds one configuration with its models, and [`ActiveRoutes`] the routes that answer new requests. A
//! reload makes another state, loads the models that are new, and then activates its routes; requests in flight finish
//! with the state that they began with. [`serve()`] accepts connections until the server is asked to stop.
//!
//! The modules below are rooms. A room imports only from the rooms that are listed before it:
//!
//! 1. `observe`: the access log, metrics, stage times and traces;
//! 2. `error`: every error of the API and every status code;
//! 3. `state`: what all requests share;
//! 4. `response`: how a response is written and sent;
//! 5. `request`: what a request passes before its response begins;
//! 6. `routes`: the resources of the API, one file each;
//! 7. `router`: the list of all routes, and the steps that every request passes;
//! 8. `socket`: connections, below HTTP;
//! 9. `batches`: the work on batches, in the background;
//! 10. `preflight`, `reload` and `serve`: the life cycle of the process.

mod batches;
mod error;
mod observe;
pub mod preflight;
pub mod reload;
mod request;
mod response;
mod router;
mod routes;
mod serve;
mod socket;
mod state;

pub use observe::trace;
pub use response::offline;
pub use router::active::ActiveRoutes;
pub use router::{Routes, router};
pub use serve::{StopSignals, serve};
pub use socket::bind::bind;
pub use socket::listen::{Listener, Listeners};
pub use socket::systemd;
pub use state::ServerState;
