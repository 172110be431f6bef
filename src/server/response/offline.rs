//! Answers requests for embeddings without a connection, for batch files. The answers are those of POST /v1/embeddings, byte for byte.

use super::form::{ResponseForm, Section};
use crate::config::units::ByteCount;
use crate::openai::{self, CreateEmbeddingRequest, EncodingFormat};
use crate::server::error::ApiError;
use layer0::embedder::{Embedder, PooledTokens};
use layer0::error::EmbedError;
use layer0::yield_point::YieldPoint;

/// The number of inputs whose vectors are in memory at the same time, on the CPU.
const POOLED_INPUTS: usize = 64;

/// The limits on one request.
#[derive(Debug, Clone, Copy)]
pub struct OfflineLimits {
    /// The largest number of inputs.
    pub max_inputs: usize,
    /// The largest size of the text that token IDs stand for, in bytes.
    pub max_text: u64,
}

/// The answer to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfflineAnswer {
    /// The status code that the API would have returned.
    pub status: u16,
    /// The body, in JSON.
    pub body: Vec<u8>,
    /// The number of inputs, or 0 if the request is refused.
    pub inputs: usize,
    /// The number of tokens over which the vectors are the mean.
    pub tokens: usize,
}

impl OfflineAnswer {
    /// Returns whether the request was answered with embeddings.
    pub fn is_success(&self) -> bool {
        self.status < 400
    }
}

impl From<ApiError> for OfflineAnswer {
    fn from(error: ApiError) -> Self {
        let (status, body) = error.into_parts();
        Self { status: status.as_u16(), body: body.into(), inputs: 0, tokens: 0 }
    }
}

/// Answers the request with this body. Its `model` is not looked up, but repeated in the answer, or replaced by `default_model` if it is
/// missing. Between inputs, and within long ones, `at` is reached.
pub fn embeddings(
    embedder: &Embedder,
    body: &[u8],
    default_model: &str,
    limits: OfflineLimits,
    at: &dyn YieldPoint,
) -> OfflineAnswer {
    answer(embedder, body, default_model, limits, at).unwrap_or_else(OfflineAnswer::from)
}

fn answer(
    embedder: &Embedder,
    body: &[u8],
    default_model: &str,
    limits: OfflineLimits,
    at: &dyn YieldPoint,
) -> Result<OfflineAnswer, ApiError> {
    const BYTES: &str = "'encoding_format' must be \"float\" or \"base64\" in a batch file, whose lines are JSON";
    let request: CreateEmbeddingRequest = openai::parse(body, limits.max_inputs)?;
    let CreateEmbeddingRequest { input, model, encoding_format, output_dtype: dtype, dimensions, .. } = request;
    if input.count > limits.max_inputs {
        return Err(ApiError::too_many_inputs("input", input.count, limits.max_inputs));
    }
    let format = encoding_format.unwrap_or_default();
    if format == EncodingFormat::Bytes {
        return Err(ApiError::invalid_field(BYTES, Some("encoding_format")));
    }
    let dimensions = embedder.resolve_dimensions(dimensions)?;
    let text = input.list.iter().fold(0u64, |all, input| all.saturating_add(embedder.bytes_of(input) as u64));
    if text > limits.max_text {
        return Err(ApiError::text_too_large("input", text, ByteCount(limits.max_text)));
    }
    let tokens = input.list.iter().enumerate().map(|(index, input)| {
        at.reached().map_err(EmbedError::Stopped)?;
        embedder.tokens_in_steps(index, input, at)
    });
    let tokens = tokens.collect::<Result<Vec<PooledTokens>, _>>()?;
    let usage = tokens.iter().map(PooledTokens::len).sum();
    let form = ResponseForm::OpenAi { format, dtype };
    let (section, model) = (Section::Vectors(0), model.as_deref().unwrap_or(default_model));
    let mut out = Vec::with_capacity(tokens.len() * form.size_of_vector(dimensions) + 256);
    form.begin(section, model, &mut out);
    let piece = if embedder.wants_whole_batches() { tokens.len().max(1) } else { POOLED_INPUTS };
    let mut vectors = Vec::new();
    for (piece, first) in tokens.chunks(piece).zip((0..).step_by(piece)) {
        at.reached().map_err(EmbedError::Stopped)?;
        vectors.resize(piece.len() * dimensions, 0.0);
        embedder.pool_in_steps(first, piece, dimensions, &mut vectors, at)?;
        for (index, vector) in (first..).zip(vectors.chunks(dimensions.max(1))) {
            form.vector(section, index, vector, &mut out);
        }
    }
    form.end(section, model, usage, &mut out);
    Ok(OfflineAnswer { status: 200, body: out, inputs: tokens.len(), tokens: usage })
}
