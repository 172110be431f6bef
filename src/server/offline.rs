//! Answers requests for embeddings without a connection, for batch files. The answers are those of POST /v1/embeddings, byte for byte.

use super::error::ApiError;
use super::response::form::{ResponseForm, Section};
use crate::openai::{self, CreateEmbeddingRequest, EncodingFormat};
use layer0::embedder::{Embedder, PooledTokens};

/// The answer to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfflineAnswer {
    /// The status code that the API would have returned.
    pub status: u16,
    /// The body, in JSON.
    pub body: Vec<u8>,
    /// The number of tokens over which the vectors are the mean.
    pub tokens: usize,
}

/// Answers the request with this body. Its `model` is not looked up, but repeated in the answer.
pub fn embeddings(embedder: &Embedder, body: &[u8], max_inputs: usize) -> OfflineAnswer {
    match answer(embedder, body, max_inputs) {
        Ok((body, tokens)) => OfflineAnswer { status: 200, body, tokens },
        Err(error) => {
            let (status, body) = error.into_parts();
            OfflineAnswer { status: status.as_u16(), body: body.into(), tokens: 0 }
        }
    }
}

fn answer(embedder: &Embedder, body: &[u8], max_inputs: usize) -> Result<(Vec<u8>, usize), ApiError> {
    const BYTES: &str = "'encoding_format' must be \"float\" or \"base64\" in a batch file, whose lines are JSON";
    let request: CreateEmbeddingRequest = openai::parse(body, max_inputs)?;
    let CreateEmbeddingRequest { input, model, encoding_format, output_dtype: dtype, dimensions, .. } = request;
    if input.count > max_inputs {
        return Err(ApiError::too_many_inputs("input", input.count, max_inputs));
    }
    let format = encoding_format.unwrap_or_default();
    if format == EncodingFormat::Bytes {
        return Err(ApiError::invalid_field(BYTES, Some("encoding_format")));
    }
    let dimensions = embedder.resolve_dimensions(dimensions)?;
    let tokens = input.list.iter().enumerate().map(|(index, input)| embedder.tokens(index, input));
    let tokens = tokens.collect::<Result<Vec<PooledTokens>, _>>()?;
    let mut vectors = vec![0.0; tokens.len() * dimensions];
    embedder.pool(&tokens, dimensions, &mut vectors)?;
    let usage = tokens.iter().map(PooledTokens::len).sum();
    let form = ResponseForm::OpenAi { format, dtype };
    let (section, model) = (Section::Vectors(0), model.unwrap_or_default());
    let mut out = Vec::with_capacity(tokens.len() * form.size_of_vector(dimensions) + 256);
    form.begin(section, &model, &mut out);
    for (index, vector) in vectors.chunks(dimensions.max(1)).enumerate() {
        form.vector(section, index, vector, &mut out);
    }
    form.end(section, &model, usage, &mut out);
    Ok((out, usage))
}
