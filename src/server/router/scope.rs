//! The steps that every request passes, whatever its route.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::Response;
use axum::middleware::Next;
use axum::response::IntoResponse;
use futures_util::FutureExt;
use tracing::Instrument;

use crate::server::error::ApiError;
use crate::server::error::shape::ErrorShape;
use crate::server::observe::access::{AccessLog, LoggedRequest};
use crate::server::observe::accounting::{ErrorClass, ResponseAccounting};
use crate::server::observe::metrics::GaugeGuard;
use crate::server::request::admit::{AdmissionLimits, admit};
use crate::server::request::allowed_hosts::AllowedHosts;
use crate::server::request::authorize::{Caller, KeyGate};
use crate::server::request::context::RequestContext;
use crate::server::response::guarded_body::keep_until_sent;
use crate::server::state::ServerState;
use crate::workers;

/// The steps that every request passes, whatever its route.
pub struct RequestScope {
    /// The routes of pages that contain relative links.
    pub pages: Vec<&'static str>,
    pub state: Arc<ServerState>,
    pub log: AccessLog,
    pub hosts: AllowedHosts,
    pub gate: KeyGate,
}

impl RequestScope {
    /// Runs `next` inside all common steps, from the outermost to the innermost: access log and metrics, catching
    /// panics, checking the host, checking the key and its rate limits, admission.
    pub async fn answer<F: Future<Output = Response<Body>>>(
        &self,
        route: Option<&str>,
        mut context: RequestContext,
        request: Request,
        next: impl FnOnce(RequestContext, Request) -> F,
    ) -> Response<Body> {
        let logged = self.log.begin(route, &request, context.uri(&request), context.peer);
        let mut caller = None;
        let answer = async {
            match self.check(route, &request, &mut context, &mut caller) {
                Ok(()) => {
                    let server = &self.state.config.server;
                    let limits = AdmissionLimits {
                        max_in_flight: server.max_in_flight,
                        request_timeout: server.request_timeout,
                    };
                    admit(&self.state.process.admission, limits, context, request, next).await
                }
                Err(error) => error.into_response(),
            }
        };
        let answer = AssertUnwindSafe(answer).catch_unwind().instrument(logged.span()).await;
        let mut answer =
            answer.unwrap_or_else(|panic| ApiError::from(workers::Panicked::from_payload(&*panic)).into_response());
        // The message names a file, which only the operator should see. The log has the message.
        if !self.state.keys.is_empty() && is_damaged_model(&answer) {
            answer = ApiError::damaged_model().into_response();
        }
        if let Some(shape) = route.and_then(ErrorShape::of)
            && matches!(answer.extensions().get(), Some(ResponseAccounting::Failed(_)))
        {
            answer = shape.reshape(answer).await;
        }
        let in_flight = finish(logged, caller, &mut answer);
        keep_until_sent(answer, in_flight)
    }

    /// Answers a request to `route` that does not fit into the in-flight budget, with the same steps around admission
    /// as [`RequestScope::answer`].
    pub fn refuse<B>(&self, route: &str, mut context: RequestContext, request: &Request<B>) -> Response<Body> {
        let logged = self.log.begin(Some(route), request, request.uri(), context.peer);
        let mut caller = None;
        let checked = self.check(Some(route), request, &mut context, &mut caller);
        let error = checked.err().unwrap_or_else(|| self.state.process.admission.refuse());
        let mut answer = error.into_response();
        finish(logged, caller, &mut answer);
        answer
    }

    /// Checks the host and the key of a request, and takes the request from the rate limits of the key, which becomes
    /// `caller`.
    fn check<'a, B>(
        &'a self,
        route: Option<&str>,
        request: &Request<B>,
        context: &mut RequestContext,
        caller: &mut Option<&'a Caller>,
    ) -> Result<(), ApiError> {
        self.hosts.check(request)?;
        *caller = self.gate.authorize(route, request.headers(), context)?;
        Ok(caller.map_or(Ok(()), Caller::take_request)?)
    }

    /// Runs the steps around a route of axum's router.
    pub async fn layer(
        State(scope): State<Arc<Self>>,
        route: Option<MatchedPath>,
        context: RequestContext,
        request: Request,
        next: Next,
    ) -> Response<Body> {
        let route = route.as_ref().map(MatchedPath::as_str);
        let next = |context, mut request: Request| {
            request.extensions_mut().insert(context);
            next.run(request)
        };
        scope.answer(route, context, request, next).await
    }
}

/// Adds the headers of the key's rate limits to the response, counts it and logs it.
fn finish(logged: LoggedRequest<'_>, caller: Option<&Caller>, answer: &mut Response<Body>) -> GaugeGuard {
    if let Some(caller) = caller {
        caller.describe_limits(answer.headers_mut());
    }
    logged.finish(answer, caller.map(|caller| &caller.metrics))
}

fn is_damaged_model(response: &Response<Body>) -> bool {
    matches!(response.extensions().get(), Some(ResponseAccounting::Failed(class)) if *class == ErrorClass::MODEL_DAMAGED)
}
