//! Reads JSON request bodies. Every rejection is an error in OpenAI's format.

use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;

use super::coding::Coding;
use super::context::RequestContext;
use super::{body, coding};
use crate::openai::{self, BodyError};
use crate::server::error::ApiError;
use crate::server::state::ServerState;

/// The largest body, in bytes, that is parsed on the socket thread.
const PARSE_INLINE: usize = 64 << 10;

/// The parsed body of a request. Its inputs are added to the weight of the request.
pub struct Json<T>(pub T);

impl<T: openai::ParsedRequest> FromRequest<Arc<ServerState>> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &Arc<ServerState>) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        let context = RequestContext::from_request_parts(&mut parts, &()).await?;
        Self::read(&context, Request::from_parts(parts, body)).await
    }
}

impl<T: openai::ParsedRequest> Json<T> {
    /// Receives and parses the body of `request`.
    ///
    /// # Errors
    /// If the body is not valid JSON for `T`, or the server does not accept it.
    pub async fn read(context: &RequestContext, request: Request) -> Result<Self, ApiError> {
        let (state, weight) = (&context.state, context.weight.clone());
        let codings = check_headers::<T>(request.headers())?;
        let (max, max_inputs) = (state.config.server.max_body, state.config.server.max_inputs);
        let body = body::read(request.into_body(), max, weight.as_ref()).await?;
        let parsed: T = if codings.is_empty() && body.len() <= PARSE_INLINE {
            openai::parse(&body, max_inputs)?
        } else {
            let weight = weight.clone();
            let decode_and_parse = move |_| match codings.as_slice() {
                [] => Ok(openai::parse(&body, max_inputs)?),
                codings => Ok::<_, ApiError>(openai::parse(
                    &coding::decode(&body, codings, max, weight.as_deref())?,
                    max_inputs,
                )?),
            };
            let parsed = state.process.workers.run(1, decode_and_parse).next().await;
            parsed.ok_or_else(ApiError::body_cut_short)???
        };
        // This is checked before the inputs are weighed, because retrying such a request would not help.
        if let Some((field, count)) = parsed.lists().find(|&(_, count)| count > max_inputs) {
            return Err(ApiError::too_many_inputs(field, count, max_inputs));
        }
        if let Some(weight) = &weight {
            weight.add_inputs(parsed.lists().map(|(_, count)| count).sum())?;
        }
        Ok(Self(parsed))
    }
}

/// Checks the headers that say how to read the body of a `T`, and returns the codings of the body.
///
/// # Errors
/// If the body is not JSON, or has a coding that is not supported.
pub fn check_headers<T: openai::ParsedRequest>(headers: &HeaderMap) -> Result<Vec<Coding>, ApiError> {
    if !T::ANY_CONTENT_TYPE {
        check_content_type(headers)?;
    }
    coding::check_transfer(headers)?;
    coding::content_codings(headers)
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(content_type) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let text = content_type.to_str().unwrap_or("?");
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        Ok(())
    } else {
        Err(ApiError::content_type(text))
    }
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::NotJson(problem) => Self::not_json(&problem),
            BodyError::Field { message, field } => Self::invalid_field(&message, field),
        }
    }
}
