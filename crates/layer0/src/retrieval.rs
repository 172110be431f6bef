//! Scores documents against a query, for `/v1/rerank`, and makes sparse vectors, for `/v1/sparse-embeddings` ([`sparse`]).
//!
//! The score combines three that the token table provides at the cost of a lookup, without running a model:
//!
//! * [`soft`]: BM25 over tokens, in which similar tokens count as well, across languages;
//! * [`lexical`]: BM25 over words, which an exact name or number needs;
//! * the cosine of the pooled vectors.
//!
//! ```text
//! score(d)  =  0.5 soft(d) + 0.3 lexical(d) + 0.2 max(0, cosine(d))
//! ```
//!
//! All statistics (how many documents contain a token, how long documents are) come from the documents of the call: nothing is stored.
//! The weights were chosen on development data of 35 retrieval sets; docs/quality.md has the measurements.
//!
//! ```
//! use layer0::{Embedder, Input};
//! use layer0::retrieval::{Method, TokenizedText, scores};
//! use layer0::yield_point::Undisturbed;
//!
//! # let path = "../../tests/fixtures/checkpoints/llama";
//! let embedder = Embedder::open(path)?;
//! let texts = ["How do plants make food?", "Plants make food of light.", "The market fell on Monday."];
//! let tokens = texts
//!     .iter()
//!     .enumerate()
//!     .map(|(index, &text)| embedder.tokens(index, &Input::Text(text.to_owned())))
//!     .collect::<Result<Vec<_>, _>>()?;
//! let texts: Vec<_> = texts.iter().zip(&tokens).map(|(text, tokens)| TokenizedText { text, tokens }).collect();
//! let scores = scores(&embedder, texts[0], &texts[1..], Method::Combined, &Undisturbed)?;
//! assert!(scores[0] > scores[1]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod lexical;
mod similar;
pub mod soft;
mod spans;
pub mod sparse;
pub mod terms;

use crate::embedder::{Embedder, PooledTokens};
use crate::error::EmbedError;
use crate::pooling::dot;
use layer0_tokenizers::yield_point::YieldPoint;

use soft::SoftMatches;
pub use spans::best_span;

/// How documents are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Method {
    /// 0.5 soft + 0.3 lexical + 0.2 cosine.
    #[default]
    Combined,
    /// Tokens, of which similar ones count as well, and 0.2 of the cosine.
    Soft,
    /// BM25 over words alone.
    Lexical,
    /// The cosine of the vectors that `/v1/embeddings` returns, at least 0.
    Cosine,
}

impl Method {
    /// All methods, the default first.
    pub const ALL: [Self; 4] = [Self::Combined, Self::Soft, Self::Lexical, Self::Cosine];

    /// The weights of the three scores, whose sum is 1.
    const fn shares(self) -> Shares {
        match self {
            Self::Combined => Shares { soft: 0.5, lexical: 0.3, cosine: 0.2 },
            Self::Soft => Shares { soft: 0.8, lexical: 0.0, cosine: 0.2 },
            Self::Lexical => Shares { soft: 0.0, lexical: 1.0, cosine: 0.0 },
            Self::Cosine => Shares { soft: 0.0, lexical: 0.0, cosine: 1.0 },
        }
    }

    /// Whether [`SoftMatches`] are made, which take the memory of [`SoftMatches::bytes`].
    pub const fn matches_tokens(self) -> bool {
        self.shares().soft > 0.0
    }

    /// The name in requests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Combined => "combined",
            Self::Soft => "soft",
            Self::Lexical => "lexical",
            Self::Cosine => "cosine",
        }
    }
}

struct Shares {
    soft: f64,
    lexical: f64,
    cosine: f64,
}

/// A text and its tokens.
#[derive(Debug, Clone, Copy)]
pub struct TokenizedText<'a> {
    /// The text, for exact matches.
    pub text: &'a str,
    /// The tokens that its vector is the mean of, as [`Embedder::tokens`] returns them.
    pub tokens: &'a PooledTokens,
}

/// The relevance of each document to `query`, between 0 and 1; higher is more relevant.
///
/// Scores of one call can be compared with each other. Scores of different calls cannot, because the statistics come from the documents of
/// the call. A relevant document typically has a score of 0.3 to 0.55, and an unrelated one less than 0.05.
///
/// # Errors
/// When a device fails, the table's file was changed under its map, or `at` ends the work.
pub fn scores(
    embedder: &Embedder,
    query: TokenizedText<'_>,
    documents: &[TokenizedText<'_>],
    method: Method,
    at: &dyn YieldPoint,
) -> Result<Vec<f32>, EmbedError> {
    scores_and_matches(embedder, query, documents, method, at).map(|(scores, _)| scores)
}

/// As [`scores`], and returns the matches of the query's tokens if the method needed them.
///
/// # Errors
/// As for [`scores`].
pub fn scores_and_matches(
    embedder: &Embedder,
    query: TokenizedText<'_>,
    documents: &[TokenizedText<'_>],
    method: Method,
    at: &dyn YieldPoint,
) -> Result<(Vec<f32>, Option<SoftMatches>), EmbedError> {
    let Shares { soft, lexical, cosine } = method.shares();
    let mut matches = None;
    let mut scores = vec![0.0f64; documents.len()];
    let mut add = |share: f64, part: Vec<f64>| {
        for (score, part) in scores.iter_mut().zip(part) {
            *score += share * part;
        }
    };
    if soft > 0.0 {
        let found = token_matches(embedder, query, documents, at)?;
        add(soft, found.scores());
        matches = Some(found);
    }
    if lexical > 0.0 {
        let texts: Vec<&str> = documents.iter().map(|document| document.text).collect();
        add(lexical, lexical::scores(query.text, &texts, at)?);
    }
    if cosine > 0.0 && !query.tokens.is_empty() {
        add(cosine, cosines(embedder, query, documents, at)?);
    }
    Ok((scores.into_iter().map(|score| score.clamp(0.0, 1.0) as f32).collect(), matches))
}

/// Matches the tokens of `query` with those of the documents, without the tokens of the tokenizer's template.
///
/// # Errors
/// As for [`scores`].
pub fn token_matches(
    embedder: &Embedder,
    query: TokenizedText<'_>,
    documents: &[TokenizedText<'_>],
    at: &dyn YieldPoint,
) -> Result<SoftMatches, EmbedError> {
    let ids: Vec<&[u32]> = documents.iter().map(|document| embedder.without_template(document.tokens.ids())).collect();
    SoftMatches::new(embedder, embedder.without_template(query.tokens.ids()), &ids, at)
}

/// Documents that are pooled at a time on a device whose calls are expensive.
const DEVICE_BATCH: usize = 256;

/// The cosine of the query's vector with each document's, at least 0. A document without tokens has 0.
fn cosines(
    embedder: &Embedder,
    query: TokenizedText<'_>,
    documents: &[TokenizedText<'_>],
    at: &dyn YieldPoint,
) -> Result<Vec<f64>, EmbedError> {
    let dimensions = embedder.dimensions();
    let unit_vectors = |first: usize, tokens: &[PooledTokens]| {
        let mut vectors = vec![0.0; tokens.len() * dimensions];
        embedder.unit_vectors(first, tokens, dimensions, &mut vectors, at).map(|()| vectors)
    };
    let query = unit_vectors(0, std::slice::from_ref(query.tokens))?;
    let mut cosines = Vec::with_capacity(documents.len());
    let batch = if embedder.wants_whole_batches() { DEVICE_BATCH } else { 1 };
    for (batch, first) in documents.chunks(batch).zip((0..).step_by(batch)) {
        let tokens: Vec<PooledTokens> = batch.iter().map(|document| document.tokens.clone()).collect();
        let vectors = unit_vectors(first, &tokens)?;
        at.reached()?;
        for (tokens, vector) in tokens.iter().zip(vectors.chunks(dimensions.max(1))) {
            cosines.push(if tokens.is_empty() { 0.0 } else { f64::from(dot(&query, vector)).max(0.0) });
        }
    }
    Ok(cosines)
}
