//! Ranks the documents of a retrieval task by the methods that the server offers, with the table in memory.

use foldhash::{HashMap, HashMapExt};
use rayon::prelude::*;

use super::EmbedFailure;
use super::metrics::{Ranked, ranked_by};
use layer0::embedder::{Embedder, Input, PooledTokens};
use layer0::error::EmbedError;
use layer0::retrieval::sparse::{DEFAULT_NEIGHBORS, SparseEncoder};
use layer0::retrieval::{Method, TokenizedText, scores};
use layer0::yield_point::Undisturbed;

/// How the documents of a retrieval task are ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SearchMethod {
    /// By the cosine of the vectors.
    #[default]
    Cosine,
    /// By BM25 over words, with the statistics of all documents.
    Lexical,
    /// By similar tokens, as `/v1/rerank` does with this method, of all documents.
    Soft,
    /// By the default score of `/v1/rerank`, of all documents.
    Combined,
    /// By the dot product of sparse vectors, with expanded queries.
    Sparse,
    /// The best documents by cosine and by sparse vectors, ranked by the default score of `/v1/rerank` among themselves: what a vector store
    /// and the server do together.
    Hybrid,
}

/// The number of documents that [`SearchMethod::Hybrid`] takes from each of its two searches.
const CANDIDATES: usize = 50;

impl SearchMethod {
    /// All methods, the default first.
    pub const ALL: [Self; 6] = [Self::Cosine, Self::Lexical, Self::Soft, Self::Combined, Self::Sparse, Self::Hybrid];

    /// Returns the name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Lexical => "lexical",
            Self::Soft => "soft",
            Self::Combined => "combined",
            Self::Sparse => "sparse",
            Self::Hybrid => "hybrid",
        }
    }
}

/// The documents of a task, ready to be ranked.
struct Collection<'a> {
    embedder: &'a Embedder,
    encoder: SparseEncoder<&'a Embedder>,
    texts: &'a [String],
    tokens: Vec<PooledTokens>,
    /// For each token, the documents that have it with their numbers, if the method needs them.
    postings: HashMap<u32, Vec<(usize, f32)>>,
}

/// Ranks `documents` for each query. `relevant` holds the indices and gains of the relevant documents of each.
///
/// # Errors
/// Fails if the model does not take one of the texts.
pub(super) fn search(
    embedder: &Embedder,
    method: SearchMethod,
    documents: &[String],
    queries: &[String],
    relevant: &[Vec<(usize, f64)>],
    cut: usize,
) -> Result<Vec<Ranked>, EmbedFailure> {
    let ranked = || {
        let collection = Collection::new(embedder, method, documents)?;
        let rank = |(query, relevant): (&String, &Vec<(usize, f64)>)| {
            Ok(ranked_by(&collection.scores(method, query)?, relevant, cut))
        };
        queries.par_iter().zip(relevant).map(rank).collect::<Result<Vec<_>, EmbedError>>()
    };
    ranked().map_err(|e| EmbedFailure { message: e.to_string(), temporary: false })
}

fn tokens(embedder: &Embedder, text: &str) -> Result<PooledTokens, EmbedError> {
    embedder.tokens(0, &Input::Text(text.to_owned()))
}

impl<'a> Collection<'a> {
    fn new(embedder: &'a Embedder, method: SearchMethod, texts: &'a [String]) -> Result<Self, EmbedError> {
        let encoder = SparseEncoder::new(embedder);
        let tokens = texts.par_iter().map(|text| tokens(embedder, text)).collect::<Result<Vec<_>, _>>()?;
        let mut postings: HashMap<u32, Vec<(usize, f32)>> = HashMap::new();
        if matches!(method, SearchMethod::Sparse | SearchMethod::Hybrid) {
            for (document, tokens) in tokens.iter().enumerate() {
                let vector = encoder.document(tokens, &Undisturbed)?;
                for (id, value) in vector.indices.into_iter().zip(vector.values) {
                    postings.entry(id).or_default().push((document, value));
                }
            }
        }
        Ok(Self { embedder, encoder, texts, tokens, postings })
    }

    /// Returns the score of each document. A document that the method does not find has the score -1.
    fn scores(&self, method: SearchMethod, query: &str) -> Result<Vec<f32>, EmbedError> {
        let tokens = tokens(self.embedder, query)?;
        let query = TokenizedText { text: query, tokens: &tokens };
        let all: Vec<usize> = (0..self.texts.len()).collect();
        match method {
            SearchMethod::Cosine => self.scores_of(query, &all, Method::Cosine),
            SearchMethod::Lexical => self.scores_of(query, &all, Method::Lexical),
            SearchMethod::Soft => self.scores_of(query, &all, Method::Soft),
            SearchMethod::Combined => self.scores_of(query, &all, Method::Combined),
            SearchMethod::Sparse => self.sparse(&tokens),
            SearchMethod::Hybrid => {
                let mut candidates = best(&self.scores_of(query, &all, Method::Cosine)?);
                candidates.extend(best(&self.sparse(&tokens)?));
                candidates.sort_unstable();
                candidates.dedup();
                let mut found = vec![-1.0; self.texts.len()];
                for (&document, score) in candidates.iter().zip(self.scores_of(query, &candidates, Method::Combined)?) {
                    if let Some(found) = found.get_mut(document) {
                        *found = score;
                    }
                }
                Ok(found)
            }
        }
    }

    /// Returns the scores of these documents, with statistics of them alone.
    fn scores_of(&self, query: TokenizedText<'_>, documents: &[usize], method: Method) -> Result<Vec<f32>, EmbedError> {
        let documents: Vec<TokenizedText<'_>> = documents
            .iter()
            .filter_map(|&document| {
                Some(TokenizedText { text: self.texts.get(document)?, tokens: self.tokens.get(document)? })
            })
            .collect();
        scores(self.embedder, query, &documents, method, &Undisturbed)
    }

    fn sparse(&self, query: &PooledTokens) -> Result<Vec<f32>, EmbedError> {
        let mut scores = vec![0.0; self.texts.len()];
        let vector = self.encoder.query(query, DEFAULT_NEIGHBORS, &Undisturbed)?;
        for (id, weight) in vector.indices.iter().zip(vector.values) {
            for (document, value) in self.postings.get(id).into_iter().flatten() {
                if let Some(score) = scores.get_mut(*document) {
                    *score += weight * value;
                }
            }
        }
        Ok(scores)
    }
}

/// Returns the indices of the [`CANDIDATES`] best scores.
fn best(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<(usize, f32)> = scores.iter().copied().enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    order.into_iter().take(CANDIDATES).map(|(document, _)| document).collect()
}
