//! POST /v1/rerank: orders documents by their relevance to a query.
//!
//! One job on the workers tokenizes the query and the documents, as for embeddings. A second one scores them. The statistics of the score need
//! all documents, so the response begins when the last score is known.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;

use crate::openai::{
    CreateRerankRequest, CreateRerankResponse, Documents, RerankResult, ReturnedDocument, Span, TeiRank, TokenShare,
};
use crate::server::error::ApiError;
use crate::server::observe::stages::Stage;
use crate::server::request::context::RequestContext;
use crate::server::request::inputs::{self, RequestedModel};
use crate::server::request::json::Json;
use crate::server::response::accounted::AccountedResponse;
use crate::server::response::stream;
use layer0::embedder::{Embedder, Input, PooledTokens};
use layer0::error::EmbedError;
use layer0::retrieval::soft::{MAX_QUERY_TOKENS, SoftMatches};
use layer0::retrieval::{self, Method, TokenizedText};
use layer0::yield_point::YieldPoint;

/// Numbers that are multiplied and added in a microsecond.
const PRODUCTS_PER_MICROSECOND: usize = 4096;
/// The bytes that a token with its share takes in a response, and in memory.
const BYTES_PER_TOKEN: usize = 96;
/// Of a longer document, this many tokens are returned with their shares.
const MAX_RETURNED_TOKENS: usize = 4096;
/// Scoring that takes less time is one step.
const SHORT: Duration = Duration::from_millis(2);

/// Rank documents by their relevance to a query
///
/// Compares tokens (similar ones count as well, also across languages), words and vectors. The statistics come from the documents of the
/// request, so scores of different requests cannot be compared.
#[utoipa::path(
    post,
    path = "/v1/rerank",
    tag = "retrieval",
    operation_id = "createRerank",
    request_body = CreateRerankRequest,
    responses((status = OK, description = "The documents with their scores, the most relevant first", body = CreateRerankResponse), ApiError)
)]
pub async fn create(
    context: RequestContext,
    Json(request): Json<CreateRerankRequest>,
) -> Result<AccountedResponse, ApiError> {
    let state = &context.state;
    let CreateRerankRequest {
        query,
        documents,
        model,
        top_n,
        return_documents,
        return_spans,
        return_tokens,
        method,
        is_tei,
        ..
    } = request;
    let Documents { texts, .. } = documents;
    let requested = RequestedModel::resolve(state, model.as_deref())?;
    let count = texts.len();
    let returned_bytes = if return_documents { texts.iter().map(String::len).sum() } else { 0 };
    let all = [query].into_iter().chain(texts).map(Input::Text).collect();
    let admitted = requested.check(&context, "documents", all)?;
    let texts = admitted.inputs();
    let short = admitted.are_short();
    // The query is the first input.
    let tokens = requested.tokenize(state, admitted, short).await.map_err(|error| error.for_field("documents"))?;
    let usage = inputs::charge(state, &tokens).map_err(|error| error.for_field("documents"))?;
    let size = Size::new(&tokens, requested.embedder.rows(), requested.embedder.max_dimensions());
    let bytes = if method.matches_tokens() || return_spans || return_tokens { size.bytes } else { 0 };
    let spans = if return_spans { size.span_bytes } else { 0 };
    let returned_tokens = if return_tokens { usage.saturating_mul(BYTES_PER_TOKEN) } else { 0 };
    let returned = returned_bytes.saturating_add(returned_tokens);
    context.add_weight(bytes.saturating_add(spans).saturating_add(returned) as u64)?;

    // Finding the spans tokenizes the documents again.
    let time = if return_spans { size.time + size.span_time } else { size.time };
    let longest = if time > SHORT { time } else { Duration::ZERO };
    let (stages, queued) = (Arc::clone(&requested.stages), requested.stages.queued());
    let job = RerankJob {
        embedder: Arc::clone(&requested.embedder),
        texts,
        tokens,
        method,
        top_n: top_n.unwrap_or(usize::MAX),
        return_documents,
        return_spans,
        return_tokens,
        is_tei,
    };
    let mut job = state.process.workers.run_long(1, longest, move |slice, at| {
        queued(slice);
        let ranked = stages.time(Stage::Pool, || job.ranked(at))?;
        stages.time(Stage::Serialize, || job.results(ranked, at))
    });
    let results: Result<Vec<u8>, EmbedError> = job.next().await.unwrap_or(Ok(Ok(b"[]".to_vec())))?;
    let results = results?;
    let body = if is_tei {
        results
    } else {
        let model = model.unwrap_or_else(|| requested.entry.id().to_owned());
        // A string always serializes.
        let model = serde_json::to_string(&model).unwrap_or_default();
        let id = fastrand::u64(..);
        let head = format!(r#"{{"id":"rerank-{id:016x}","object":"list","model":{model},"results":"#);
        let tail = format!(
            r#","usage":{{"prompt_tokens":{usage},"total_tokens":{usage}}},"meta":{{"billed_units":{{"search_units":1}}}}}}"#
        );
        [head.as_bytes(), &results, tail.as_bytes()].concat()
    };
    Ok(requested.with_accounting(stream::json(Body::from(body)), count, usage))
}

/// What a worker needs to rank the documents and to write the results.
struct RerankJob {
    embedder: Arc<Embedder>,
    /// The query, then the documents.
    texts: Arc<Vec<Input>>,
    tokens: Vec<PooledTokens>,
    method: Method,
    top_n: usize,
    return_documents: bool,
    return_spans: bool,
    return_tokens: bool,
    is_tei: bool,
}

impl RerankJob {
    /// Returns the best documents, the most relevant first.
    fn ranked(&self, at: &dyn YieldPoint) -> Result<Vec<Ranked>, EmbedError> {
        let texts: Vec<TokenizedText<'_>> = self.texts.iter().zip(&self.tokens).map(tokenized).collect();
        let Some((query, documents)) = texts.split_first() else { return Ok(Vec::new()) };
        let (scores, matches) = retrieval::scores_and_matches(&self.embedder, *query, documents, self.method, at)?;
        let mut ranked: Vec<Ranked> = scores
            .into_iter()
            .enumerate()
            .map(|(index, score)| Ranked { index, score, span: None, tokens: None })
            .collect();
        ranked.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.index.cmp(&b.index)));
        ranked.truncate(self.top_n);
        if !self.return_spans && !self.return_tokens {
            return Ok(ranked);
        }
        let matches = match matches {
            Some(matches) => matches,
            None => retrieval::token_matches(&self.embedder, *query, documents, at)?,
        };
        for ranked in &mut ranked {
            let Some(document) = documents.get(ranked.index) else { continue };
            if self.return_spans {
                let span = retrieval::best_span(&self.embedder, &matches, document.text, at)?;
                ranked.span = span.map(|span| span_of(document.text, span));
            }
            if self.return_tokens {
                let ids = self.embedder.without_template(document.tokens.ids());
                let ids = ids.get(..MAX_RETURNED_TOKENS).unwrap_or(ids);
                let shares = matches.shares(&self.embedder, ranked.index, ids, at)?;
                ranked.tokens = Some(shares_of(&self.embedder, ids, &shares));
            }
            at.reached()?;
        }
        Ok(ranked)
    }

    /// Returns the results as a JSON array.
    fn results(&self, ranked: Vec<Ranked>, at: &dyn YieldPoint) -> Result<Vec<u8>, EmbedError> {
        let mut out = vec![b'['];
        for (place, Ranked { index, score, span, tokens }) in ranked.into_iter().enumerate() {
            if place > 0 {
                out.push(b',');
            }
            let text = match self.texts.get(index + 1) {
                Some(Input::Text(text)) if self.return_documents => Some(text.clone()),
                _ => None,
            };
            // Strings and finite numbers always serialize, and a Vec accepts every write.
            let _ = if self.is_tei {
                serde_json::to_writer(&mut out, &TeiRank { index, score, text, span })
            } else {
                let document = text.map(|text| ReturnedDocument { text });
                serde_json::to_writer(&mut out, &RerankResult { index, relevance_score: score, document, span, tokens })
            };
            at.reached()?;
        }
        out.push(b']');
        Ok(out)
    }
}

/// Rank documents (Cohere's current path)
///
/// The same as `/v1/rerank`.
#[utoipa::path(
    post,
    path = "/v2/rerank",
    tag = "retrieval",
    operation_id = "createRerankV2",
    request_body = CreateRerankRequest,
    responses((status = OK, description = "The same as for `/v1/rerank`", body = CreateRerankResponse), ApiError)
)]
pub async fn create_v2(
    context: RequestContext,
    request: Json<CreateRerankRequest>,
) -> Result<AccountedResponse, ApiError> {
    create(context, request).await
}

fn tokenized<'a>((text, tokens): (&'a Input, &'a PooledTokens)) -> TokenizedText<'a> {
    match text {
        Input::Text(text) => TokenizedText { text, tokens },
        Input::TokenIds(_) => TokenizedText { text: "", tokens },
    }
}

/// A document with its score.
struct Ranked {
    index: usize,
    score: f32,
    span: Option<Span>,
    tokens: Option<Vec<TokenShare>>,
}

fn shares_of(embedder: &Embedder, ids: &[u32], shares: &[f32]) -> Vec<TokenShare> {
    let share = |(&id, &share): (&u32, &f32)| {
        let mut text = String::new();
        embedder.pieces().write(id, &mut text);
        TokenShare { text, share }
    };
    ids.iter().zip(shares).map(share).collect()
}

/// Returns the characters that a range of bytes has.
fn span_of(text: &str, bytes: Range<usize>) -> Span {
    let characters = |bytes: Range<usize>| text.get(bytes).map_or(0, |text| text.chars().count());
    let start = characters(0..bytes.start);
    Span { start, end: start + characters(bytes) }
}

/// What scoring takes at most.
struct Size {
    /// Bytes of memory.
    bytes: usize,
    time: Duration,
    /// Beyond that, what finding the best span of each document takes.
    span_bytes: usize,
    span_time: Duration,
}

impl Size {
    fn new(tokens: &[PooledTokens], rows: usize, dimensions: usize) -> Self {
        let query = tokens.first().map_or(0, PooledTokens::len).min(MAX_QUERY_TOKENS);
        let all: usize = tokens.iter().skip(1).map(PooledTokens::len).sum();
        let products = all.min(rows).saturating_mul(dimensions).saturating_mul(query + 4);
        let sums = all.saturating_mul(query + dimensions);
        let micros = products.saturating_add(sums) / PRODUCTS_PER_MICROSECOND;
        let longest = tokens.iter().skip(1).map(PooledTokens::len).max().unwrap_or(0);
        Self {
            bytes: SoftMatches::bytes(query, tokens.len(), all, rows),
            time: Duration::from_micros(micros as u64),
            // A segment has several tokens, but may have one.
            span_bytes: longest.saturating_mul(query * size_of::<f32>() + 32),
            span_time: Duration::from_micros(all as u64),
        }
    }
}
