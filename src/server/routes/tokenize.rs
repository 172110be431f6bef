//! POST /v1/tokenize: returns the tokens that are pooled for each input.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::openai::{CreateTokensRequest, CreateTokensResponse};
use crate::server::error::ApiError;
use crate::server::observe::stages::{Stage, Stages};
use crate::server::request::context::RequestContext;
use crate::server::request::inputs::{self, RequestedModel};
use crate::server::request::json::Json;
use crate::server::response::accounted::AccountedResponse;
use crate::server::response::slices::{WRITE_SLICE, split_by_size};
use crate::server::response::{stream, write};
use layer0::embedder::{Embedder, PooledTokens};

/// The number of tokens in a run, and the estimated response bytes per token. A 32 MiB input is split into many runs,
/// so its tokens are not one piece of the response.
const TOKENS: usize = 4096;
const BYTES_PER_TOKEN: usize = 12;

/// List the tokens of texts
///
/// Returns the tokens over which the model takes the mean. They include its special tokens, and exclude tokens that
/// have no row in the table.
#[utoipa::path(
    post,
    path = "/v1/tokenize",
    tag = "tools",
    operation_id = "createTokens",
    request_body = CreateTokensRequest,
    responses((status = OK, description = "The tokens of each input, in the order of the inputs", body = CreateTokensResponse), ApiError)
)]
pub async fn create(
    context: RequestContext,
    Json(request): Json<CreateTokensRequest>,
) -> Result<AccountedResponse, ApiError> {
    let state = &context.state;
    let CreateTokensRequest { input, model } = request;
    let inputs = input.list;
    let requested = RequestedModel::resolve(state, model.as_deref())?;
    let count = inputs.len();
    let inputs = requested.check(&context, "input", inputs)?;
    let short = inputs.are_short();
    let tokens = requested.tokenize(state, inputs, short).await?;
    let usage = inputs::charge(state, &tokens)?;
    let parts = parts(&tokens);
    let slices = split_by_size(parts.iter().map(|part| part.tokens.len() * BYTES_PER_TOKEN + 64), WRITE_SLICE);
    let answer = TokensResponse {
        embedder: Arc::clone(&requested.embedder),
        stages: Arc::clone(&requested.stages),
        model: model.unwrap_or_else(|| requested.entry.id().to_owned()),
        tokens,
        parts,
    };
    let response = stream::respond(&state.process.workers, slices.len(), Duration::ZERO, move |slice, _| {
        Ok(answer.write(slices.get(slice).cloned().unwrap_or_default()))
    });
    Ok(requested.with_accounting(response.await?, count, usage))
}

/// A run of the IDs, or of the pieces, of one input.
struct TokenRun {
    input: usize,
    pieces: bool,
    tokens: Range<usize>,
}

/// Returns all runs in the order in which the response lists them. An input without tokens has two empty runs.
fn parts(tokens: &[PooledTokens]) -> Vec<TokenRun> {
    let starts = |len: usize| (0..len.max(1)).step_by(TOKENS);
    let of_input = |(input, tokens): (usize, &PooledTokens)| {
        let len = tokens.len();
        [false, true].into_iter().flat_map(move |pieces| {
            starts(len).map(move |start| TokenRun { input, pieces, tokens: start..(start + TOKENS).min(len) })
        })
    };
    tokens.iter().enumerate().flat_map(of_input).collect()
}

struct TokensResponse {
    embedder: Arc<Embedder>,
    stages: Arc<Stages>,
    model: String,
    tokens: Vec<PooledTokens>,
    parts: Vec<TokenRun>,
}

impl TokensResponse {
    fn write(&self, range: Range<usize>) -> Bytes {
        self.stages.time(Stage::Serialize, || {
            let mut out = Vec::with_capacity(WRITE_SLICE);
            if range.start == 0 {
                out.extend_from_slice(write::HEAD);
            }
            for part in self.parts.get(range.clone()).unwrap_or_default() {
                self.part(part, &mut out);
            }
            if range.end == self.parts.len() {
                write::tail(&mut out, &self.model, inputs::token_count(&self.tokens));
            }
            out.into()
        })
    }

    fn part(&self, part: &TokenRun, out: &mut Vec<u8>) {
        let Some(all) = self.tokens.get(part.input).map(PooledTokens::ids) else { return };
        if part.tokens.start == 0 {
            let head = match (part.pieces, part.input) {
                (false, 0) => r#"{"object":"tokens","index":0,"ids":["#.to_owned(),
                (false, index) => format!(r#",{{"object":"tokens","index":{index},"ids":["#),
                (true, _) => r#","pieces":["#.to_owned(),
            };
            out.extend_from_slice(head.as_bytes());
        }
        let mut piece = String::new();
        for (place, &id) in all.iter().enumerate().take(part.tokens.end).skip(part.tokens.start) {
            if place > 0 {
                out.push(b',');
            }
            // Numbers and strings always serialize, and a Vec accepts every write.
            let _ = if part.pieces {
                piece.clear();
                self.embedder.pieces().write(id, &mut piece);
                serde_json::to_writer(&mut *out, &piece)
            } else {
                serde_json::to_writer(&mut *out, &id)
            };
        }
        if part.tokens.end == all.len() {
            let tail = if part.pieces { format!(r#"],"count":{}}}"#, all.len()) } else { "]".to_owned() };
            out.extend_from_slice(tail.as_bytes());
        }
    }
}
