//! Responses with what the access log and the metrics record about them.

use axum::body::Body;
use axum::http::Response;
use axum::response::IntoResponse;

use crate::server::observe::accounting::ResponseAccounting;

/// A response of a handler, and what the access log and the metrics record about it.
pub struct AccountedResponse {
    response: Response<Body>,
    accounting: ResponseAccounting,
}

impl AccountedResponse {
    /// Adds the accounting to a response.
    pub fn new(response: Response<Body>, accounting: ResponseAccounting) -> Self {
        Self { response, accounting }
    }
}

impl IntoResponse for AccountedResponse {
    fn into_response(self) -> Response<Body> {
        let Self { mut response, accounting } = self;
        response.extensions_mut().insert(accounting);
        response
    }
}
