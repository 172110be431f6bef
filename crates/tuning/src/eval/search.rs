//! Ranks the documents of a retrieval task by the methods that the server offers, with a table in memory or over the server's API.

use foldhash::{HashMap, HashMapExt};
use rayon::prelude::*;

use super::metrics::{Ranked, ranked_by};
use super::{Embed, EmbedFailure, Ranking};
use layer0::embedder::{Embedder, Input, PooledTokens};
use layer0::error::EmbedError;
use layer0::retrieval::sparse::{DEFAULT_NEIGHBORS, SparseEncoder, SparseVector};
use layer0::retrieval::{Method, TokenizedText};
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
    /// By the dot product of sparse vectors and the cosine, added with the weights 0.8 and 0.2: what a vector store can do alone.
    Fused,
    /// The best documents by cosine, ranked by the default score of `/v1/rerank` among themselves.
    Reranked,
    /// The best documents by cosine and by sparse vectors, ranked by the default score of `/v1/rerank` among themselves: what a vector store
    /// and the server do together.
    Hybrid,
}

/// The number of documents that [`SearchMethod::Reranked`] takes, and [`SearchMethod::Hybrid`] from each of its two searches.
const CANDIDATES: usize = 50;

impl SearchMethod {
    /// All methods, the default first.
    pub const ALL: [Self; 8] = [
        Self::Cosine,
        Self::Lexical,
        Self::Soft,
        Self::Combined,
        Self::Sparse,
        Self::Fused,
        Self::Reranked,
        Self::Hybrid,
    ];

    /// Returns the name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Lexical => "lexical",
            Self::Soft => "soft",
            Self::Combined => "combined",
            Self::Sparse => "sparse",
            Self::Fused => "fused",
            Self::Reranked => "reranked",
            Self::Hybrid => "hybrid",
        }
    }

    /// Returns whether documents are ranked by sparse vectors.
    const fn is_sparse(self) -> bool {
        matches!(self, Self::Sparse | Self::Fused | Self::Hybrid)
    }
}

/// The weight of the dot product of sparse vectors in [`SearchMethod::Fused`]. That of the cosine is the rest.
const SPARSE_SHARE: f32 = 0.8;

/// Ranks `documents` for each query. `relevant` holds the indices and gains of the relevant documents of each.
///
/// # Errors
/// Fails if the model does not take one of the texts, or has neither a table nor a server's scores.
pub(super) fn search(
    model: &dyn Embed,
    method: SearchMethod,
    documents: &[String],
    queries: &[String],
    relevant: &[Vec<(usize, f64)>],
    cut: usize,
) -> Result<Vec<Ranked>, EmbedFailure> {
    let scorer: Box<dyn Scorer + '_> = match (model.embedder(), model.ranking()) {
        (Some(embedder), _) => Box::new(Table::new(embedder, documents).map_err(|error| failure(&error))?),
        (None, Some(ranking)) => Box::new(Remote { ranking, documents }),
        (None, None) => {
            let message = format!("the model has no scores for the method {:?}", method.name());
            return Err(EmbedFailure { message, temporary: false });
        }
    };
    // For each token, the documents that have it with their numbers, and the vector of each query.
    let mut postings: HashMap<u32, Vec<(usize, f32)>> = HashMap::new();
    let mut sparse_queries = Vec::new();
    if method.is_sparse() {
        for (document, vector) in scorer.sparse(documents, false)?.into_iter().enumerate() {
            for (id, value) in vector.indices.into_iter().zip(vector.values) {
                postings.entry(id).or_default().push((document, value));
            }
        }
        sparse_queries = scorer.sparse(queries, true)?;
    }
    sparse_queries.resize(queries.len(), SparseVector::default());
    let rank = |((query, sparse), relevant): ((&String, &SparseVector), &Vec<(usize, f64)>)| {
        let sparse = dot_products(sparse, &postings, documents.len());
        Ok(ranked_by(&scores(scorer.as_ref(), method, query, documents.len(), sparse)?, relevant, cut))
    };
    queries.par_iter().zip(&sparse_queries).zip(relevant).map(rank).collect()
}

/// Returns the score of each document. A document that the method does not find has the score -1.
fn scores(
    scorer: &dyn Scorer,
    method: SearchMethod,
    query: &str,
    documents: usize,
    sparse: Vec<f32>,
) -> Result<Vec<f32>, EmbedFailure> {
    let all: Vec<usize> = (0..documents).collect();
    let candidates = match method {
        SearchMethod::Cosine => return scorer.scores(Method::Cosine, query, &all),
        SearchMethod::Lexical => return scorer.scores(Method::Lexical, query, &all),
        SearchMethod::Soft => return scorer.scores(Method::Soft, query, &all),
        SearchMethod::Combined => return scorer.scores(Method::Combined, query, &all),
        SearchMethod::Sparse => return Ok(sparse),
        SearchMethod::Fused => {
            let cosines = scorer.scores(Method::Cosine, query, &all)?;
            let sum = |(sparse, cosine): (f32, f32)| SPARSE_SHARE * sparse + (1.0 - SPARSE_SHARE) * cosine;
            return Ok(sparse.into_iter().zip(cosines).map(sum).collect());
        }
        SearchMethod::Reranked => best(&scorer.scores(Method::Cosine, query, &all)?),
        SearchMethod::Hybrid => {
            let mut candidates = best(&scorer.scores(Method::Cosine, query, &all)?);
            candidates.extend(best(&sparse));
            candidates.sort_unstable();
            candidates.dedup();
            candidates
        }
    };
    let mut found = vec![-1.0; documents];
    for (&document, score) in candidates.iter().zip(scorer.scores(Method::Combined, query, &candidates)?) {
        if let Some(found) = found.get_mut(document) {
            *found = score;
        }
    }
    Ok(found)
}

/// Returns the dot product of the query's vector with that of each document.
fn dot_products(query: &SparseVector, postings: &HashMap<u32, Vec<(usize, f32)>>, documents: usize) -> Vec<f32> {
    let mut scores = vec![0.0; documents];
    for (id, weight) in query.indices.iter().zip(&query.values) {
        for (document, value) in postings.get(id).into_iter().flatten() {
            if let Some(score) = scores.get_mut(*document) {
                *score += weight * value;
            }
        }
    }
    scores
}

/// Scores the documents of a task.
trait Scorer: Sync {
    /// Returns the scores of the documents with these indices, with the statistics of them alone.
    fn scores(&self, method: Method, query: &str, documents: &[usize]) -> Result<Vec<f32>, EmbedFailure>;

    /// Returns the sparse vector of each text.
    fn sparse(&self, texts: &[String], is_query: bool) -> Result<Vec<SparseVector>, EmbedFailure>;
}

/// A table in memory, with the tokens of the documents.
struct Table<'a> {
    embedder: &'a Embedder,
    encoder: SparseEncoder<&'a Embedder>,
    texts: &'a [String],
    tokens: Vec<PooledTokens>,
}

fn failure(error: &EmbedError) -> EmbedFailure {
    EmbedFailure { message: error.to_string(), temporary: false }
}

fn tokens(embedder: &Embedder, text: &str) -> Result<PooledTokens, EmbedError> {
    embedder.tokens(0, &Input::Text(text.to_owned()))
}

impl<'a> Table<'a> {
    fn new(embedder: &'a Embedder, texts: &'a [String]) -> Result<Self, EmbedError> {
        let tokens = texts.par_iter().map(|text| tokens(embedder, text)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { embedder, encoder: SparseEncoder::new(embedder), texts, tokens })
    }
}

impl Scorer for Table<'_> {
    fn scores(&self, method: Method, query: &str, documents: &[usize]) -> Result<Vec<f32>, EmbedFailure> {
        let tokens = tokens(self.embedder, query).map_err(|error| failure(&error))?;
        let query = TokenizedText { text: query, tokens: &tokens };
        let documents: Vec<TokenizedText<'_>> = documents
            .iter()
            .filter_map(|&document| {
                Some(TokenizedText { text: self.texts.get(document)?, tokens: self.tokens.get(document)? })
            })
            .collect();
        layer0::retrieval::scores(self.embedder, query, &documents, method, &Undisturbed)
            .map_err(|error| failure(&error))
    }

    fn sparse(&self, texts: &[String], is_query: bool) -> Result<Vec<SparseVector>, EmbedFailure> {
        let vector = |text: &String| {
            let tokens = tokens(self.embedder, text)?;
            match is_query {
                true => self.encoder.query(&tokens, DEFAULT_NEIGHBORS, &Undisturbed),
                false => self.encoder.document(&tokens, &Undisturbed),
            }
        };
        texts.par_iter().map(vector).collect::<Result<_, _>>().map_err(|error| failure(&error))
    }
}

/// A server, which gets the documents with each request.
struct Remote<'a> {
    ranking: &'a dyn Ranking,
    documents: &'a [String],
}

impl Scorer for Remote<'_> {
    fn scores(&self, method: Method, query: &str, documents: &[usize]) -> Result<Vec<f32>, EmbedFailure> {
        let documents: Vec<&str> =
            documents.iter().filter_map(|&i| self.documents.get(i).map(String::as_str)).collect();
        self.ranking.rerank(method, query, &documents)
    }

    fn sparse(&self, texts: &[String], is_query: bool) -> Result<Vec<SparseVector>, EmbedFailure> {
        self.ranking.sparse(texts, is_query)
    }
}

/// Returns the indices of the [`CANDIDATES`] best scores.
fn best(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<(usize, f32)> = scores.iter().copied().enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    order.into_iter().take(CANDIDATES).map(|(document, _)| document).collect()
}
