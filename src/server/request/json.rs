//! Reads JSON request bodies. Every rejection is an error in OpenAI's format.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;

use super::{body, coding};
use crate::openai::{self, BodyError};
use crate::server::error::ApiError;
use crate::server::state::ServerState;
use crate::server::state::admission::RequestWeight;

/// The largest body, in bytes, that is parsed on the socket thread.
const PARSE_INLINE: usize = 64 << 10;

/// The parsed body, and the weight of the request, to which later steps add the data that they derive from the body.
pub struct Json<T>(pub T, pub Option<Arc<RequestWeight>>);

impl<T: openai::ParsedRequest> FromRequest<Arc<ServerState>> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<ServerState>) -> Result<Self, ApiError> {
        check_content_type(request.headers())?;
        coding::check_transfer(request.headers())?;
        let codings = coding::content_codings(request.headers())?;
        let weight = request.extensions().get::<Arc<RequestWeight>>().cloned();
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
        Ok(Self(parsed, weight))
    }
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
