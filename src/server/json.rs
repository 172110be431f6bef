//! Reads a JSON request body: every rejection is one of OpenAI's errors that the client gets to read.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use axum::http::{HeaderMap, HeaderValue};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::State;
use super::admission::Weight;
use super::error::ApiError;
use super::transport::Unwanted;
use crate::openai::CountInputs;

/// Bodies over this are parsed off the async threads.
const PARSE_INLINE: usize = 64 << 10;

/// How long a client that sends too much may go on sending into the void. Answered and cut at once, it would see a reset
/// connection and never read why: most clients write all they have before they read.
const LINGER: Duration = Duration::from_secs(10);

/// A body of type `T`.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + CountInputs + Send + 'static> FromRequest<Arc<State>> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<State>) -> Result<Self, ApiError> {
        check_content_type(request.headers())?;
        let weight = request.extensions().get::<Arc<Weight>>().cloned();
        let body = read(request, state, weight.as_deref()).await?;
        let parsed: T = if body.len() <= PARSE_INLINE {
            parse(&body)?
        } else {
            let parsed = state.workers.run(1, move |_| parse(&body)).next().await;
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

async fn read(request: Request, state: &State, weight: Option<&Weight>) -> Result<Bytes, ApiError> {
    let max = state.config.server.max_body;
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let unwanted = request.extensions().get::<Unwanted>().cloned().zip(announced);
    let waits = request.headers().get(EXPECT).is_some_and(|v| v == HeaderValue::from_static("100-continue"));
    let body = request.into_body();
    if announced.is_some_and(|size| size > max.0) {
        // A client that waits for leave to send gets the answer in its place.
        if !waits {
            discard(body, unwanted).await;
        }
        return Err(ApiError::body_too_large(announced, max));
    }
    if let Err(overloaded) = weight.map_or(Ok(()), |weight| weight.add_unread(announced.unwrap_or(0))) {
        if !waits {
            discard(body, unwanted).await;
        }
        return Err(overloaded);
    }
    let mut body = body;
    let mut bytes = BytesMut::with_capacity(announced.and_then(|size| usize::try_from(size).ok()).unwrap_or(0));
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| ApiError::body_cut_short())?.into_data() else { continue };
        if (bytes.len() + data.len()) as u64 > max.0 {
            drop(bytes);
            discard(body, None).await;
            return Err(ApiError::body_too_large(None, max));
        }
        if announced.is_none()
            && let Err(overloaded) = weight.map_or(Ok(()), |weight| weight.add_read(data.len() as u64))
        {
            drop(bytes);
            discard(body, None).await;
            return Err(overloaded);
        }
        bytes.extend_from_slice(&data);
    }
    if let Some(weight) = weight {
        weight.received();
    }
    Ok(bytes.freeze())
}

/// Reads to the end, keeping nothing. `unwanted` takes how much is still to come, of the length that was announced.
async fn discard(mut body: Body, unwanted: Option<(Unwanted, u64)>) {
    let all = async {
        // The first piece is what has been read with the head.
        let first = body.frame().await.and_then(Result::ok).and_then(|frame| frame.into_data().ok());
        if let (Some((unwanted, length)), Some(first)) = (unwanted, first) {
            unwanted.set(length.saturating_sub(first.len() as u64));
        }
        while let Some(Ok(_)) = body.frame().await {}
    };
    if tokio::time::timeout(LINGER, all).await.is_err() {
        tracing::debug!("a client is still sending a body that is refused: cutting it");
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        if error.is_data() { ApiError::invalid_field(&error.to_string()) } else { ApiError::not_json(&error) }
    })
}
