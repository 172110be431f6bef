//! Gives errors on the paths of other systems' APIs the form that the clients of these systems read. Everywhere else, errors have
//! OpenAI's form.

use axum::body::Body;
use axum::http::Response;
use axum::http::header::CONTENT_LENGTH;
use http_body_util::BodyExt;
use serde_json::{Value, json};

/// The form of the body of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorShape {
    /// `{"error": "..."}`
    Ollama,
    /// `{"error": "...", "error_type": "..."}`
    Tei,
    /// `{"message": "..."}`
    Cohere,
}

impl ErrorShape {
    /// Returns the form of errors of the route with this path, or `None` for OpenAI's.
    pub fn of(route: &str) -> Option<Self> {
        match route {
            "/embed" | "/info" => Some(Self::Tei),
            "/v1/embed" | "/v2/embed" => Some(Self::Cohere),
            _ if route.starts_with("/api/") => Some(Self::Ollama),
            _ => None,
        }
    }

    /// Returns the JSON schema of an error in this form.
    pub fn schema(self) -> Value {
        let fields: &[&str] = match self {
            Self::Ollama => &["error"],
            Self::Tei => &["error", "error_type"],
            Self::Cohere => &["message"],
        };
        let properties: Value = fields.iter().map(|field| ((*field).to_owned(), json!({"type": "string"}))).collect();
        json!({"type": "object", "required": fields, "properties": properties})
    }

    /// Returns the response to an error in this form. `response` has the error in OpenAI's form.
    pub async fn reshape(self, response: Response<Body>) -> Response<Body> {
        let (mut head, body) = response.into_parts();
        // Errors are short and in memory, so reading one cannot fail. If it did, the client would still get the status.
        let bytes = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let message = match serde_json::from_slice::<Value>(&bytes) {
            Ok(error) => error.pointer("/error/message").and_then(Value::as_str).map(str::to_owned),
            Err(_) => None,
        };
        let Some(message) = message else { return Response::from_parts(head, Body::from(bytes)) };
        let shaped = match self {
            Self::Ollama => json!({"error": message}),
            Self::Tei => json!({"error": message, "error_type": super::tei_error_type(head.status)}),
            Self::Cohere => json!({"message": message}),
        };
        head.headers.remove(CONTENT_LENGTH);
        Response::from_parts(head, Body::from(shaped.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;
    use crate::server::error::ApiError;
    use crate::server::observe::accounting::ResponseAccounting;

    #[tokio::test]
    async fn each_form_keeps_the_message_the_status_and_the_headers() {
        for (route, key) in [("/api/embed", "error"), ("/embed", "error"), ("/v2/embed", "message")] {
            let response = ErrorShape::of(route).unwrap().reshape(ApiError::overloaded().into_response()).await;
            assert_eq!(response.status().as_u16(), 429);
            assert!(response.headers().contains_key("retry-after"));
            assert!(response.extensions().get::<ResponseAccounting>().is_some());
            let body: Value =
                serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
            assert!(body[key].as_str().unwrap().starts_with("This server is overloaded"), "{route}: {body}");
            assert_eq!(body.get("error_type"), (route == "/embed").then_some(&json!("overloaded")));
        }
        assert_eq!(ErrorShape::of("/v1/embeddings"), None);
        assert_eq!(ErrorShape::of("/v1/rerank"), None);
    }
}
