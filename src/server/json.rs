//! Request bodies of JSON: every rejection is one of OpenAI's errors.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use serde::de::DeserializeOwned;

use super::State;
use super::admission::Weight;
use super::error::ApiError;
use super::{body, coding};
use crate::openai::CountInputs;

/// Bodies over this are parsed off the async threads.
const PARSE_INLINE: usize = 64 << 10;

/// A body of type `T`.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + CountInputs + Send + 'static> FromRequest<Arc<State>> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<State>) -> Result<Self, ApiError> {
        check_content_type(request.headers())?;
        coding::check_transfer(request.headers())?;
        let codings = coding::of(request.headers())?;
        let weight = request.extensions().get::<Arc<Weight>>().cloned();
        let max = state.config.server.max_body;
        let body = body::read(request.into_body(), max, weight.as_ref()).await?;
        let parsed: T = if codings.is_empty() && body.len() <= PARSE_INLINE {
            parse(&body)?
        } else {
            let weight = weight.clone();
            let decode_and_parse = move |_| match codings.as_slice() {
                [] => parse(&body),
                codings => parse(&coding::decode(&body, codings, max, weight.as_deref())?),
            };
            let parsed = state.workers.run(1, decode_and_parse).next().await;
            parsed.ok_or_else(ApiError::body_cut_short)???
        };
        if let Some(weight) = weight {
            weight.add_inputs(parsed.count_inputs())?;
        }
        Ok(Self(parsed))
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

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        if error.is_data() { ApiError::invalid_field(&error.to_string()) } else { ApiError::not_json(&error) }
    })
}
