//! Reads the ID of a model from the path of a request.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use crate::server::error::ApiError;

/// The name of a model in the path, percent-decoded.
pub struct ModelId(pub String);

impl<S: Send + Sync> FromRequestParts<S> for ModelId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(_) => Err(ApiError::invalid_path()),
        }
    }
}
