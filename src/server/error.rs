//! HTTP errors in OpenAI's format. This is the only file that knows status codes.

pub mod shape;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Method, Response, StatusCode};
use axum::response::IntoResponse;
use bytes::Bytes;
use utoipa::openapi::{Content, Ref, RefOr, ResponseBuilder};

use crate::batches::{StorageError, StorageErrorKind};
use crate::config::units::{ByteCount, Seconds};
use crate::openai::{ErrorBody, ErrorResponse};
use crate::server::observe::accounting::{ErrorClass, ResponseAccounting};
use crate::workers::Panicked;
use layer0::error::EmbedError;

/// An error response in OpenAI's format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: Cow<'static, str>,
    /// The value of `retry-after` in seconds, if it differs from [`RETRY_AFTER_SECONDS`].
    retry_after: Option<u64>,
    /// The body of the response, for an error that is the same for every request.
    written: Option<&'static Bytes>,
}

const INVALID_REQUEST: &str = "invalid_request_error";
const SERVER: &str = "server_error";

/// The content encodings that request bodies may have, in the form of the `Accept-Encoding` header.
pub const ACCEPTED_ENCODINGS: &str = "gzip, deflate, zstd";

/// The code of the error whose response lists the supported content encodings.
const UNSUPPORTED_CODING: &str = "unsupported_content_encoding";

/// The value of `retry-after` if retrying helps. OpenAI's SDKs wait that long and then double the time.
const RETRY_AFTER_SECONDS: u64 = 1;

/// The longest texts from a client that a message repeats, in bytes.
const LONGEST_METHOD: usize = 32;
const LONGEST_PATH: usize = 200;
const LONGEST_NAME: usize = 100;

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, kind, code: None, param: None, message: message.into(), retry_after: None, written: None }
    }

    fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// The body is not JSON.
    pub fn not_json(problem: &str) -> Self {
        let message = format!("We could not parse the JSON body of your request: {problem}.");
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message)
    }

    /// The body is JSON, but does not have the fields of the request.
    pub fn invalid_field(message: &str, field: Option<&str>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message.to_owned());
        match field {
            Some(field) => error.param(field),
            None => error,
        }
    }

    /// `field` holds more than `max` inputs.
    pub fn too_many_inputs(field: &str, inputs: usize, max: usize) -> Self {
        let message = format!(
            "'{field}' holds {inputs} inputs; this server accepts at most {max} in one request (the setting \
             server.max_inputs)"
        );
        Self::invalid_field(&message, Some(field))
    }

    pub fn model_not_found(model: &str) -> Self {
        let message = format!(
            "The model `{}` does not exist or you do not have access to it. GET /v1/models lists the models that you \
             can use.",
            bounded(model, LONGEST_NAME)
        );
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, message).param("model").code("model_not_found")
    }

    /// No route has this path. `advice` says in whole sentences which URL the client probably meant.
    pub fn no_such_path(method: &Method, path: &str, advice: Option<&str>) -> Self {
        let (method, path) = (bounded(method.as_str(), LONGEST_METHOD), bounded(path, LONGEST_PATH));
        let mut message = format!("Invalid URL ({method} {path}).");
        if let Some(advice) = advice {
            message.extend([" ", advice]);
        }
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, message).code("unknown_url")
    }

    pub fn method_not_allowed(method: &Method, path: &str) -> Self {
        let (method, path) = (bounded(method.as_str(), LONGEST_METHOD), bounded(path, LONGEST_PATH));
        let message = format!(
            "{method} is not allowed for {path}. The `Allow` header of this response lists the allowed methods."
        );
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID_REQUEST, message).code("method_not_supported")
    }

    pub fn content_type(found: &str) -> Self {
        let found = bounded(found, LONGEST_NAME);
        let message = format!(
            "Unsupported content type: '{found}'. Send the body as JSON with the header `Content-Type: \
             application/json`."
        );
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST, message).code("unsupported_content_type")
    }

    /// The server does not support this `Content-Encoding`.
    pub fn content_coding(found: &str) -> Self {
        let found: String = found.chars().take(64).collect();
        let message = format!(
            "Unsupported content encoding: '{found}'. Send the body uncompressed, or compress it with one of: {ACCEPTED_ENCODINGS}."
        );
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST, message).code(UNSUPPORTED_CODING)
    }

    /// The request has a `Transfer-Encoding` other than `chunked`.
    pub fn transfer_coding() -> Self {
        let message =
            "Unsupported transfer encoding. Send the body with a Content-Length, or with `Transfer-Encoding: chunked`.";
        Self::new(StatusCode::NOT_IMPLEMENTED, INVALID_REQUEST, message).code("unsupported_transfer_encoding")
    }

    /// The body cannot be decompressed.
    pub fn broken_coding(error: impl std::fmt::Display) -> Self {
        let message = format!(
            "We could not decompress the body of your request according to its Content-Encoding header: {error}."
        );
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message).code("invalid_content_encoding")
    }

    /// The body is larger than `max`. `size` is the length that the client announced, if it did.
    pub fn body_too_large(size: Option<u64>, max: crate::config::units::ByteCount) -> Self {
        let size = size.map_or_else(String::new, |size| format!(" of {}", crate::config::units::ByteCount(size)));
        let message = format!(
            "The request body{size} is larger than {max}, the limit of this server (the setting server.max_body)."
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID_REQUEST, message).code("request_too_large")
    }

    /// The token IDs of `field` stand for `size` bytes of text, more than `max`.
    pub fn text_too_large(field: &str, size: u64, max: crate::config::units::ByteCount) -> Self {
        let size = crate::config::units::ByteCount(size);
        let message = format!(
            "The token ids in '{field}' stand for a text of {size}; this server accepts at most {max} of text (the setting \
             server.max_body). Send fewer token ids."
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID_REQUEST, message).param(field).code("request_too_large")
    }

    /// The client stopped sending before the end of its body.
    pub fn body_cut_short() -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, "The request body ended before its announced length.")
    }

    /// The body must be a form, and `found` is its content type.
    pub fn not_multipart(found: &str) -> Self {
        let found = bounded(found, LONGEST_NAME);
        let message = format!(
            "Unsupported content type: '{found}'. Send the file as a form, with the header `Content-Type: multipart/form-data; \
             boundary=...`."
        );
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST, message).code("unsupported_content_type")
    }

    /// The body is a form, but cannot be read.
    pub fn malformed_form(problem: &str) -> Self {
        let message = format!("We could not parse the form of your request: {problem}.");
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message)
    }

    /// The body is a form with a `Content-Encoding`.
    pub fn compressed_form() -> Self {
        const MESSAGE: &str = "Forms cannot be compressed: send the file without the header `Content-Encoding`.";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST, MESSAGE)
            .code("unsupported_content_encoding_of_form")
    }

    /// The server stores no files and batches.
    pub fn batches_are_off() -> Self {
        const MESSAGE: &str = "Files and batches are switched off on this server. Its operator can switch them on with the setting \
                               server.batch_directory.";
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, MESSAGE).code("batches_are_off")
    }

    pub fn loading(models: &[&str]) -> Self {
        let message = format!("Not ready: loading {}.", models.join(", "));
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, message).code("not_ready")
    }

    /// Like [`ApiError::loading`], for clients that may not learn which models there are.
    pub fn loading_models() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "Not ready: models are loading.").code("not_ready")
    }

    /// The table file of a model was cut short or changed while the server was using it.
    pub fn damaged(error: &EmbedError) -> Self {
        let message = format!("{error}. The server must load the model again.");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, message).code(ErrorClass::MODEL_DAMAGED.0)
    }

    /// Like [`ApiError::damaged`], without the name of the file.
    pub fn damaged_model() -> Self {
        const MESSAGE: &str =
            "The table of a model was changed or cut short while it was in use. The server must load the model again.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, MESSAGE).code(ErrorClass::MODEL_DAMAGED.0)
    }

    /// The request has no API key.
    pub fn no_key() -> Self {
        let message = "You didn't provide an API key. Send it in the header `Authorization: Bearer YOUR_KEY`, \
                       `api-key: YOUR_KEY` or `x-api-key: YOUR_KEY`.";
        Self::new(StatusCode::UNAUTHORIZED, INVALID_REQUEST, message)
    }

    /// The request has an API key that the server does not know. The message shows at most the end of the key.
    pub fn wrong_key(sent: &[u8]) -> Self {
        const SHOWN: usize = 4;
        let end = sent.len().checked_sub(SHOWN).filter(|rest| *rest >= 2 * SHOWN).and_then(|rest| sent.get(rest..));
        let end =
            end.filter(|end| end.iter().all(u8::is_ascii_graphic)).map(String::from_utf8_lossy).unwrap_or_default();
        let message = format!("Incorrect API key provided: ***{end}. Ask the operator of this server for a valid key.");
        Self::new(StatusCode::UNAUTHORIZED, INVALID_REQUEST, message).code("invalid_api_key")
    }

    /// The requests in flight use up the in-flight budget.
    pub fn overloaded() -> Self {
        static WRITTEN: OnceLock<Bytes> = OnceLock::new();
        let message = "This server is overloaded: the requests in flight have reached its limit (the setting \
                       server.max_in_flight). Please retry after a second.";
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "requests", message).code("rate_limit_exceeded");
        // Under overload, most responses are this error.
        let written = Some(WRITTEN.get_or_init(|| error.body()));
        Self { written, ..error }
    }

    /// The request names a host that is not this server's, as a web page's request does after DNS rebinding.
    pub fn host_not_allowed(host: &[u8]) -> Self {
        let shown: String = host.iter().take(64).map(|b| char::from(*b)).filter(char::is_ascii_graphic).collect();
        let message = format!(
            "This server accepts requests only from its own machine, and this request is for the host '{shown}'. If that is \
             a name of this server, add it to the setting server.allowed_hosts, or configure API keys."
        );
        Self::new(StatusCode::FORBIDDEN, INVALID_REQUEST, message).code("host_not_allowed")
    }

    /// As many connections are open as `server.max_connections` allows.
    pub fn too_many_connections() -> Self {
        let message = "This server has reached its limit of open connections (the setting server.max_connections). \
                       Please retry later.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, message).code("too_many_connections")
    }

    /// The code of errors about requests that are not valid HTTP for this server.
    pub const BAD_HTTP: &'static str = "bad_http";

    /// The request arrived as plain HTTP on an HTTPS port.
    pub fn plain_http() -> Self {
        let message =
            "This port expects HTTPS, and the request was sent as plain HTTP. Use a URL that begins with https://.";
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message).code(Self::BAD_HTTP)
    }

    /// An HTTP/1.1 request does not have exactly one valid `Host` header. `reason` says what it has instead.
    pub fn bad_host(reason: &str) -> Self {
        let message = format!("This is {reason}. HTTP/1.1 requires exactly one, with the name of the server.");
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message).code(Self::BAD_HTTP)
    }

    /// The head of the request is not HTTP/1.1, or is too large. `status` is the status that hyper chose for it, and
    /// `too_great_a_length` says whether its Content-Length is what hyper found too large.
    pub fn malformed_head(status: &str, too_great_a_length: bool) -> Self {
        let (status, message) = match status {
            "431" if too_great_a_length => {
                (StatusCode::BAD_REQUEST, "The `Content-Length` header announces more bytes than a body can have.")
            }
            "431" => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "The head of the request is too large: this server accepts at most 100 header fields and about 400 \
                 KiB.",
            ),
            "414" => {
                (StatusCode::URI_TOO_LONG, "The URL of the request is too long: this server accepts at most 64 KiB.")
            }
            _ => (StatusCode::BAD_REQUEST, "The request is not valid HTTP/1.1."),
        };
        Self::new(status, INVALID_REQUEST, message).code(Self::BAD_HTTP)
    }

    /// The client sent less than `least` bytes per second, averaged over `window`.
    pub fn body_too_slow(least: ByteCount, window: Seconds) -> Self {
        let message = format!(
            "The request body arrived too slowly: this server expects at least {least} per second, averaged over \
             {window}."
        );
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID_REQUEST, message).code("request_timeout")
    }

    /// The server took longer than `max` to answer.
    pub fn too_slow(max: crate::config::units::Seconds) -> Self {
        let message = format!(
            "The request was not answered within {max}, the limit of this server (the setting server.request_timeout)."
        );
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, message).code("timeout")
    }

    pub fn draining() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "Not ready: shutting down.").code("shutting_down")
    }

    /// The path of the URL is not UTF-8 after percent-decoding.
    pub fn invalid_path() -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, "The path of this URL is not UTF-8.")
    }

    /// Returns the error about a file with `field` as its `param`, for a body that names the file in this field.
    #[must_use]
    pub fn for_file(self, field: &str) -> Self {
        if self.param.as_deref() == Some("id") { self.param(field) } else { self }
    }

    /// Returns the error with `field` as its `param`, for inputs that are in another field than `input`.
    #[must_use]
    pub fn for_field(self, field: &str) -> Self {
        if self.param.as_deref() == Some("input") { self.param(field) } else { self }
    }

    #[cfg(test)]
    pub fn into_status(self) -> u16 {
        self.status.as_u16()
    }

    /// Returns the status and the body, for a response that is written without axum.
    pub fn into_parts(self) -> (StatusCode, Bytes) {
        (self.status, self.body())
    }

    fn body(&self) -> Bytes {
        if let Some(written) = self.written {
            return written.clone();
        }
        let error =
            ErrorBody { message: &self.message, kind: self.kind, param: self.param.as_deref(), code: self.code };
        // Strings and options always serialize.
        serde_json::to_vec(&ErrorResponse { error }).unwrap_or_default().into()
    }

    fn class(&self) -> ErrorClass {
        if self.retry_after.is_some() {
            return ErrorClass::KEY_RATE_LIMIT;
        }
        let class = self.code.unwrap_or(match self.status {
            StatusCode::UNAUTHORIZED => "invalid_api_key",
            status if status.is_server_error() => "internal_error",
            _ => "invalid_request",
        });
        ErrorClass(class)
    }

    /// An API key has reached its rate limit of `resource` ("requests" or "tokens"), and may retry after `wait`.
    pub fn key_rate_limit(resource: &'static str, message: String, wait: Duration) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, resource, message);
        // Rounded up to whole seconds, so that a retry after that time is accepted.
        let seconds = wait.as_nanos().div_ceil(1_000_000_000);
        let retry_after = Some(u64::try_from(seconds).unwrap_or(u64::MAX).max(RETRY_AFTER_SECONDS));
        Self { retry_after, ..error.code("rate_limit_exceeded") }
    }

    /// The request has more tokens than its API key may use in a whole minute. The status is 413 and not 429, because
    /// SDKs retry a 429.
    pub fn too_many_tokens_for_key(message: String) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID_REQUEST, message).param("input").code("request_too_large")
    }

    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            SERVER,
            "The server had an error while processing your request. The server's log has the details under the \
             x-request-id of this response.",
        )
    }
}

/// Returns the type of an error with this status in text-embeddings-inference.
fn tei_error_type(status: StatusCode) -> &'static str {
    match status {
        StatusCode::TOO_MANY_REQUESTS => "overloaded",
        StatusCode::SERVICE_UNAVAILABLE => "unhealthy",
        status if status.is_server_error() => "backend",
        _ => "validation",
    }
}

/// Returns how the message about an input continues: with what the client can send instead, and the setting of the model
/// that decides.
fn advice(error: &EmbedError) -> Option<&'static str> {
    Some(match error {
        EmbedError::NotCl100k { .. } => {
            "; send text, or set token_input = \"model\" for this model if these are IDs of its own vocabulary"
        }
        EmbedError::TokenIdsRejected { .. } => {
            " (token_input = \"reject\"); with LangChain, set check_embedding_ctx_length=False"
        }
        EmbedError::Empty { .. } => {
            "; send a text with at least one token (the setting empty_input = \"reject\" of this model refuses empty \
             inputs)"
        }
        EmbedError::TooManyTokens { .. } => {
            "; please shorten it (the limit is the setting max_input_tokens of this model)"
        }
        _ => return None,
    })
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        let (kind, message) = (error.kind(), error.to_string());
        match kind {
            StorageErrorKind::NoSuchFile | StorageErrorKind::NoSuchBatch => {
                Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, message).param("id")
            }
            StorageErrorKind::FileTooLarge => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID_REQUEST, message).code("file_too_large")
            }
            StorageErrorKind::Full => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID_REQUEST, message).code("storage_limit_exceeded")
            }
            StorageErrorKind::Busy => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "requests", message).code("rate_limit_exceeded")
            }
            // Not 409, which OpenAI's clients send again.
            StorageErrorKind::Conflict => Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message),
            StorageErrorKind::Disk => {
                tracing::error!(%error, "the directory of batches cannot be used");
                Self::internal()
            }
        }
    }
}

impl From<EmbedError> for ApiError {
    fn from(error: EmbedError) -> Self {
        let message = advice(&error).map_or_else(|| error.to_string(), |advice| format!("{error}{advice}"));
        let bad_request = |param| Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message.clone()).param(param);
        match &error {
            EmbedError::Dimensions { .. } => bad_request("dimensions"),
            EmbedError::TokenIdOutOfRange { .. }
            | EmbedError::NotCl100k { .. }
            | EmbedError::TokenIdsRejected { .. }
            | EmbedError::Empty { .. }
            | EmbedError::TooManyTokens { .. }
            | EmbedError::Tokenizer { .. } => bad_request("input"),
            EmbedError::Damaged { .. } => {
                tracing::error!(%error, "the file of a table was changed in place; replace such files by renaming a \
                                         new one into place, then reload, or set memory = \"copy\"");
                Self::damaged(&error)
            }
            EmbedError::TooLarge { .. } => {
                tracing::error!(%error, "a vector is too large for 32-bit floats; set normalize = true for this model, \
                                         or scale its table down");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, format!("{error}."))
            }
            EmbedError::NotFinite { .. } => {
                tracing::error!(%error, "a table in memory or on a device produced a sum that is not finite");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, format!("{error}."))
            }
            EmbedError::Device { message } => {
                tracing::error!(message, "the device failed");
                Self::internal()
            }
            // The client is gone, so nobody receives this response.
            EmbedError::Stopped(_) => Self::internal(),
        }
    }
}

impl From<Panicked> for ApiError {
    fn from(Panicked(message): Panicked) -> Self {
        tracing::error!(message, "the processing of a request panicked");
        Self::internal()
    }
}

/// Returns `text`, cut to `max` bytes and followed by "..." if it is longer.
fn bounded(text: &str, max: usize) -> Cow<'_, str> {
    if text.len() <= max {
        return Cow::from(text);
    }
    let end = (0..=max).rev().find(|&end| text.is_char_boundary(end)).unwrap_or_default();
    Cow::from(format!("{}...", text.get(..end).unwrap_or_default()))
}

/// The error responses that the OpenAPI description lists for every route with a request body.
impl utoipa::IntoResponses for ApiError {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let content = || Content::new(Some(Ref::from_schema_name("ErrorResponse")));
        let of = |(status, description): (StatusCode, &str)| {
            let response = ResponseBuilder::new().description(description).content("application/json", content());
            (status.as_str().to_owned(), response.build().into())
        };
        [
            (
                StatusCode::BAD_REQUEST,
                "The request is not valid for this server or model; `param` names the field",
            ),
            (StatusCode::UNAUTHORIZED, "The API key is missing or unknown"),
            (StatusCode::NOT_FOUND, "There is no such model, or the API key may not use it"),
            (StatusCode::REQUEST_TIMEOUT, "The body arrived too slowly"),
            (StatusCode::PAYLOAD_TOO_LARGE, "The body is larger than `server.max_body`, or has more tokens than the API key may use per minute"),
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body is not declared as JSON, or its compression is not supported; `Accept-Encoding` lists the supported ones"),
            (StatusCode::TOO_MANY_REQUESTS, "The server is overloaded, or the API key has reached its limit per minute; `Retry-After` says when to retry"),
            (StatusCode::INTERNAL_SERVER_ERROR, "The server failed"),
            (StatusCode::SERVICE_UNAVAILABLE, "The server or the model is not ready; `Retry-After` says when to retry"),
        ]
        .map(of)
        .into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(RETRY_AFTER, HeaderValue::from(self.retry_after.unwrap_or(RETRY_AFTER_SECONDS)));
        }
        if self.code == Some(UNSUPPORTED_CODING) {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(ACCEPTED_ENCODINGS));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(ResponseAccounting::Failed(self.class()));
        response
    }
}
