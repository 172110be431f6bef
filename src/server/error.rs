//! OpenAI's errors: the only file that knows status codes.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Method, Response, StatusCode};
use axum::response::IntoResponse;

use crate::error::EmbedError;
use crate::openai::{ErrorBody, ErrorResponse};
use crate::workers::Panicked;

/// An answer that is an error, in OpenAI's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    /// Seconds.
    retry_after: Option<u32>,
}

const INVALID_REQUEST: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code: None, param: None, message: message.into(), retry_after: None }
    }

    fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// The body is no JSON at all.
    pub fn not_json(error: &serde_json::Error) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            INVALID_REQUEST,
            format!("We could not parse the JSON body of your request: {error}"),
        )
    }

    /// The body is JSON of another shape. `message` names the field in single quotes where there is one.
    pub fn invalid_field(message: &str) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message);
        match message.split('\'').nth(1) {
            Some(field) => error.param(field),
            None => error,
        }
    }

    pub fn too_many_inputs(inputs: usize, max: usize) -> Self {
        let message = format!(
            "'input' holds {inputs} inputs; this server takes at most {max} in one request (its setting server.max_inputs)"
        );
        Self::invalid_field(&message)
    }

    pub fn model_not_found(model: &str) -> Self {
        let message = format!(
            "The model `{model}` does not exist or you do not have access to it. GET /v1/models lists what there is."
        );
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, message).param("model").code("model_not_found")
    }

    pub fn no_such_path(method: &Method, path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, format!("Invalid URL ({method} {path})")).code("unknown_url")
    }

    pub fn method_not_allowed(method: &Method, path: &str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID_REQUEST, format!("Not allowed to {method} on {path}."))
            .code("method_not_supported")
    }

    pub fn content_type(found: &str) -> Self {
        let message = format!("Unsupported content type: '{found}'. Send the header `Content-Type: application/json`.");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST, message).code("unsupported_content_type")
    }

    /// `size` where the client announced it.
    pub fn body_too_large(size: Option<u64>, max: crate::config::units::ByteCount) -> Self {
        let size = size.map_or_else(String::new, |size| format!(" of {}", crate::config::units::ByteCount(size)));
        let message = format!(
            "The request body{size} is larger than {max}, the limit of this server (its setting server.max_body)."
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID_REQUEST, message).code("request_too_large")
    }

    /// The client stopped sending in the middle of its body.
    pub fn body_cut_short() -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, "The request body ended before its announced length.")
    }

    pub fn loading(models: &[&str]) -> Self {
        let message = format!("Not ready: loading {}.", models.join(", "));
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, message).code("not_ready");
        Self { retry_after: Some(1), ..error }
    }

    pub fn draining() -> Self {
        let error =
            Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "Not ready: shutting down.").code("shutting_down");
        Self { retry_after: Some(1), ..error }
    }

    fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            SERVER,
            "The server had an error while processing your request. Its log has more under this answer's x-request-id.",
        )
    }
}

impl From<EmbedError> for ApiError {
    fn from(error: EmbedError) -> Self {
        let bad_request = |param| Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, error.to_string()).param(param);
        match &error {
            EmbedError::Dimensions { .. } => bad_request("dimensions"),
            EmbedError::TokenIdOutOfRange { .. }
            | EmbedError::NotCl100k { .. }
            | EmbedError::TokenIdsRejected { .. }
            | EmbedError::TooManyTokens { .. }
            | EmbedError::Tokenizer { .. } => bad_request("input"),
            EmbedError::Device { message } => {
                tracing::error!(message, "the device failed");
                Self::internal()
            }
        }
    }
}

impl From<Panicked> for ApiError {
    fn from(Panicked(message): Panicked) -> Self {
        tracing::error!(message, "a worker panicked");
        Self::internal()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let error =
            ErrorBody { message: &self.message, kind: self.kind, param: self.param.as_deref(), code: self.code };
        // Strings and options always serialize.
        let body = serde_json::to_vec(&ErrorResponse { error }).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
