//! A client of OpenAI-compatible embeddings endpoints, blocking. Plain HTTP: this build has no TLS.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Texts of one request; OpenAI takes 2048.
const TEXTS_AT_A_TIME: usize = 256;
const TIMEOUT: Duration = Duration::from_secs(120);
/// The largest answer that is read: 256 vectors of 16384 numbers in JSON.
const MAX_ANSWER: u64 = 256 << 20;

/// One model behind one endpoint.
pub struct Client {
    agent: ureq::Agent,
    url: String,
    model: String,
    key: Option<String>,
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    input: &'a [String],
    encoding_format: &'static str,
}

#[derive(Deserialize)]
struct Response {
    data: Vec<Embedding>,
}

#[derive(Deserialize)]
struct Embedding {
    index: usize,
    embedding: Vec<f32>,
}

impl Client {
    /// `base` as the SDKs have it, with `/v1`; `key` is sent as a bearer token.
    ///
    /// # Errors
    /// When `base` is no plain HTTP address.
    pub fn new(base: &str, model: &str, key: Option<String>) -> Result<Self, String> {
        if !base.starts_with("http://") {
            return Err(format!(
                "{base:?} is not an http:// address; this build has no TLS: put a local proxy in front of an https:// one"
            ));
        }
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT)).build();
        Ok(Self {
            agent: config.into(),
            url: format!("{}/embeddings", base.trim_end_matches('/')),
            model: model.to_owned(),
            key,
        })
    }

    /// One vector a text, in order.
    ///
    /// # Errors
    /// When the endpoint cannot be reached, refuses, or answers something else.
    pub fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, String> {
        let mut vectors = Vec::with_capacity(texts.len());
        for texts in texts.chunks(TEXTS_AT_A_TIME) {
            vectors.extend(self.request(texts)?);
        }
        Ok(vectors)
    }

    fn request(&self, texts: &[String]) -> Result<Vec<Vec<f32>>, String> {
        let failed = |what: String| format!("{}: {what}", self.url);
        let body = serde_json::to_vec(&Request { model: &self.model, input: texts, encoding_format: "float" })
            .map_err(|e| failed(e.to_string()))?;
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut answer = request.send(&body).map_err(|e| failed(e.to_string()))?;
        let status = answer.status();
        let text =
            answer.body_mut().with_config().limit(MAX_ANSWER).read_to_string().map_err(|e| failed(e.to_string()))?;
        if !status.is_success() {
            let shown: String = text.chars().take(400).collect();
            return Err(failed(format!("answered {status}: {shown}")));
        }
        let Response { mut data } =
            serde_json::from_str(&text).map_err(|e| failed(format!("answered what is no list of embeddings: {e}")))?;
        data.sort_by_key(|embedding| embedding.index);
        if data.len() != texts.len() {
            return Err(failed(format!("answered {} embeddings for {} texts", data.len(), texts.len())));
        }
        Ok(data.into_iter().map(|embedding| embedding.embedding).collect())
    }
}
