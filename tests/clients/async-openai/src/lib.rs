//! Tests the crate async-openai with the server of `test_async_openai.py`, which passes the expected values in SERVED.
#![cfg(test)]

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::types::embeddings::{CreateEmbeddingRequest, CreateEmbeddingRequestArgs, EmbeddingInput, EncodingFormat};
use base64::Engine;
use serde_json::Value;

fn served() -> (Value, Client<OpenAIConfig>) {
    let served: Value = serde_json::from_str(&std::env::var("SERVED").unwrap()).unwrap();
    let config = OpenAIConfig::new().with_api_base(served["base"].as_str().unwrap()).with_api_key("any");
    (served, Client::with_config(config))
}

fn request(served: &Value, input: impl Into<EmbeddingInput>) -> CreateEmbeddingRequest {
    CreateEmbeddingRequestArgs::default().model(served["model"].as_str().unwrap()).input(input).build().unwrap()
}

fn near(vector: &[f32], expected: &Value) {
    let expected = expected.as_array().unwrap();
    assert_eq!(vector.len(), expected.len());
    for (a, b) in vector.iter().zip(expected) {
        assert!((f64::from(*a) - b.as_f64().unwrap()).abs() < 1e-6);
    }
}

#[tokio::test]
async fn texts_in_order() {
    let (served, client) = served();
    let answer = client.embeddings().create(request(&served, vec!["one", "hello world"])).await.unwrap();
    assert_eq!((answer.object.as_str(), answer.model.as_str()), ("list", served["model"].as_str().unwrap()));
    assert_eq!(answer.data.iter().map(|item| item.index).collect::<Vec<_>>(), [0, 1]);
    near(&answer.data[1].embedding, &served["vector"]);
    assert!(answer.usage.prompt_tokens > 0 && answer.usage.prompt_tokens == answer.usage.total_tokens);
}

#[tokio::test]
async fn base64_dimensions_and_ids() {
    let (served, client) = served();
    let mut asked = request(&served, vec![15339, 1917]);
    asked.encoding_format = Some(EncodingFormat::Base64);
    let answer = client.embeddings().create_base64(asked).await.unwrap();
    let bytes = base64::prelude::BASE64_STANDARD.decode(&answer.data[0].embedding.0).unwrap();
    let floats: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    near(&floats, &served["vector"]);

    let mut asked = request(&served, "hello world");
    asked.dimensions = Some(u32::try_from(served["half"].as_array().unwrap().len()).unwrap());
    near(&client.embeddings().create(asked).await.unwrap().data[0].embedding, &served["half"]);
}

#[tokio::test]
async fn models() {
    let (served, client) = served();
    let listed = client.models().list().await.unwrap();
    assert!(listed.data.iter().any(|model| model.id == served["model"].as_str().unwrap()));
}

#[tokio::test]
async fn errors() {
    let (served, client) = served();
    let unknown = CreateEmbeddingRequest { model: "no-such".to_owned(), ..request(&served, "a") };
    let OpenAIError::ApiError(error) = client.embeddings().create(unknown).await.unwrap_err() else { panic!("not read") };
    assert_eq!(error.api_error.code.as_deref(), Some("model_not_found"));
    let refused = CreateEmbeddingRequest { dimensions: Some(0), ..request(&served, "a") };
    let OpenAIError::ApiError(error) = client.embeddings().create(refused).await.unwrap_err() else { panic!("not read") };
    assert_eq!(error.api_error.param.as_deref(), Some("dimensions"));
}
