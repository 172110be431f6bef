//! Soft matching: BM25 over a model's tokens, in which similar tokens count as well.
//!
//! The formula is BM25's, with two changes. A document's term frequency of a query token also counts the document's tokens whose rows in the
//! embedding table are similar, and the weight of a token combines the norm of its row with its inverse document frequency in the request:
//!
//! ```text
//! g(t, u)  =  1 if t = u, otherwise  lambda * max(0, (cos(F_t, F_u) - theta) / (1 - theta))
//! x(t, d)  =  sum over the tokens u of d of  g(t, u)                                    the soft term frequency
//! n(t)     =  sum over d of  min(1, x(t, d));   idf(t) as in BM25
//! w(t)     =  qtf(t) |F_t| (r idf(t) / sum(qtf idf) + (1 - r) |F_t| / sum(qtf |F|)),   r = N / (N + 10),   scaled to the sum 1
//! L(d)     =  sum over t of  w(t) x(t, d) / (x(t, d) + k1 (1 - b + b |d| / mean |d|))
//! ```
//!
//! `F_t` is the vector of the token `t` alone, and `N` the number of documents. For example, the query "dog" has one token. A document with
//! "dog" once has x = 1. A document with "Hund" instead, at a cosine of 0.71, has x = 0.5 * (0.71 - 0.3) / 0.7 = 0.29: it is found across
//! languages, and ranked behind the exact match.
//!
//! The work is one pass over the distinct tokens of all documents: the similarities of each with the query's tokens are computed once, and
//! each document then adds up one row of similarities per token.

use foldhash::{HashMap, HashMapExt};

use super::lexical::idf;
use crate::embedder::Embedder;
use crate::error::EmbedError;
use crate::pooling::kernel;
use crate::yield_point::YieldPoint;

/// The weight of similar tokens beside equal ones.
const LAMBDA: f32 = 0.5;
/// The cosine from which on tokens count as similar, in a table of [`THETA_COLUMNS`] columns.
const THETA: f32 = 0.3;
const THETA_COLUMNS: f32 = 384.0;
const K1: f64 = 0.8;
const B: f64 = 0.6;
/// From how many documents on the inverse document frequency has more weight than the norm of the row.
const ENOUGH_DOCUMENTS: f64 = 10.0;
/// Distinct tokens of a query that are matched. Of a longer query the tokens with the largest norms are kept.
pub const MAX_QUERY_TOKENS: usize = 256;
/// Distinct tokens whose vectors are made at a time.
const BLOCK: usize = 64;
/// Tokens of documents between two calls of the yield point.
const STEP: usize = 16 << 10;

/// The cosine from which on tokens count as similar.
///
/// The cosines of unrelated rows shrink with the square root of the number of columns, and so does the threshold: 0.3 at 384 columns, 0.23
/// at 640. It never exceeds 0.3, because tables of fewer columns were not measured.
fn theta(columns: usize) -> f32 {
    (THETA * (THETA_COLUMNS / columns.max(1) as f32).sqrt()).min(THETA)
}

/// The query's distinct tokens.
struct QueryTokens {
    ids: Vec<u32>,
    /// How often each occurs.
    counts: Vec<f64>,
    norms: Vec<f64>,
    /// The vectors at length 1: `ids.len()` rows of `dimensions` numbers.
    units: Vec<f32>,
}

/// The soft term frequencies of every document, and what the score needs beside them.
pub struct SoftMatches {
    query: QueryTokens,
    /// `documents x query tokens`, row-major.
    frequencies: Vec<f32>,
    lengths: Vec<f64>,
}

impl SoftMatches {
    /// Matches the tokens of `query` with those of each document.
    ///
    /// # Errors
    /// When a device fails, the table's file was changed, or `at` ends the work.
    pub fn new(
        embedder: &Embedder,
        query: &[u32],
        documents: &[&[u32]],
        at: &dyn YieldPoint,
    ) -> Result<Self, EmbedError> {
        let dimensions = embedder.max_dimensions();
        let query = QueryTokens::new(embedder, query, at)?;
        let width = query.ids.len();
        let lengths = documents.iter().map(|document| document.len().max(1) as f64).collect();
        let mut frequencies = vec![0.0; width * documents.len()];
        if width == 0 {
            return Ok(Self { query, frequencies, lengths });
        }

        let mut distinct: HashMap<u32, u32> = HashMap::with_capacity(1 << 12);
        let mut ids: Vec<u32> = Vec::new();
        for (i, &id) in documents.iter().copied().flatten().enumerate() {
            distinct.entry(id).or_insert_with(|| {
                ids.push(id);
                ids.len() as u32 - 1
            });
            if i % STEP == STEP - 1 {
                at.reached()?;
            }
        }

        // One row of similarities for each distinct token.
        let (kernel, theta) = (kernel::best(), theta(dimensions));
        let places: HashMap<u32, usize> = query.ids.iter().copied().zip(0..).collect();
        let mut similarities = vec![0.0f32; width * ids.len()];
        let mut vectors = vec![0.0f32; BLOCK * dimensions];
        for (ids, similarities) in ids.chunks(BLOCK).zip(similarities.chunks_mut(BLOCK * width)) {
            embedder.token_vectors(ids, &mut vectors, at)?;
            for ((&id, vector), row) in ids.iter().zip(vectors.chunks(dimensions)).zip(similarities.chunks_mut(width)) {
                let norm = kernel.squares(vector).sqrt().max(1e-12) as f32;
                kernel.products(vector, &query.units, row);
                for similarity in &mut *row {
                    *similarity = LAMBDA * ((*similarity / norm - theta) / (1.0 - theta)).max(0.0);
                }
                if let Some(equal) = places.get(&id).and_then(|&place| row.get_mut(place)) {
                    *equal = 1.0;
                }
            }
            at.reached()?;
        }

        let mut tokens = 0;
        for (document, sums) in documents.iter().zip(frequencies.chunks_mut(width)) {
            for id in *document {
                let place = distinct.get(id).map_or(0, |&place| place as usize);
                let row = similarities.get(place * width..).unwrap_or_default();
                for (sum, similarity) in sums.iter_mut().zip(row) {
                    *sum += similarity;
                }
                tokens += 1;
                if tokens % STEP == 0 {
                    at.reached()?;
                }
            }
        }
        Ok(Self { query, frequencies, lengths })
    }

    /// The number of bytes that matching `query` tokens with documents takes at most: `documents` of `tokens` tokens in all, over a table
    /// of `rows` rows.
    pub fn bytes(query: usize, documents: usize, tokens: usize, rows: usize) -> usize {
        let per_query_token = tokens.min(rows).saturating_add(documents).saturating_mul(size_of::<f32>());
        query.min(MAX_QUERY_TOKENS).saturating_mul(per_query_token)
    }

    /// The score of each document, between 0 and 1.
    pub fn scores(&self) -> Vec<f64> {
        let (weights, n) = (self.weights(), self.lengths.len() as f64);
        let mean = self.lengths.iter().sum::<f64>() / n.max(1.0);
        let width = weights.len().max(1);
        let score = |(length, row): (&f64, &[f32])| {
            let saturation = K1 * (1.0 - B + B * length / mean);
            weights.iter().zip(row).map(|(weight, &x)| weight * f64::from(x) / (f64::from(x) + saturation)).sum()
        };
        let mut scores: Vec<f64> = self.lengths.iter().zip(self.frequencies.chunks(width)).map(score).collect();
        scores.resize(self.lengths.len(), 0.0);
        scores
    }

    /// The weight of each of the query's tokens; their sum is 1.
    fn weights(&self) -> Vec<f64> {
        let QueryTokens { counts, norms, .. } = &self.query;
        let n = self.lengths.len() as f64;
        let mut containing = vec![0.0; counts.len()];
        for row in self.frequencies.chunks(counts.len().max(1)) {
            for (containing, &x) in containing.iter_mut().zip(row) {
                *containing += f64::from(x.min(1.0));
            }
        }
        let idfs: Vec<f64> = containing.iter().map(|&df| idf(n, df)).collect();
        let sum = |of: &[f64]| counts.iter().zip(of).map(|(count, x)| count * x).sum::<f64>().max(1e-12);
        let (idf_sum, norm_sum, r) = (sum(&idfs), sum(norms), n / (n + ENOUGH_DOCUMENTS));
        let weight = |((count, norm), idf): ((&f64, &f64), &f64)| {
            count * norm * (r * idf / idf_sum + (1.0 - r) * norm / norm_sum)
        };
        let mut weights: Vec<f64> = counts.iter().zip(norms).zip(&idfs).map(weight).collect();
        let all = weights.iter().sum::<f64>().max(1e-12);
        for weight in &mut weights {
            *weight /= all;
        }
        weights
    }
}

impl QueryTokens {
    fn new(embedder: &Embedder, ids: &[u32], at: &dyn YieldPoint) -> Result<Self, EmbedError> {
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        let mut tokens: Vec<(u32, f64)> = Vec::new();
        for id in sorted {
            match tokens.last_mut() {
                Some((last, count)) if *last == id => *count += 1.0,
                _ => tokens.push((id, 1.0)),
            }
        }
        let (dimensions, kernel) = (embedder.max_dimensions(), kernel::best());
        let mut found: Vec<(f64, u32, f64, Vec<f32>)> = Vec::with_capacity(tokens.len().min(MAX_QUERY_TOKENS));
        let mut vectors = vec![0.0; BLOCK * dimensions];
        for block in tokens.chunks(BLOCK) {
            let ids: Vec<u32> = block.iter().map(|&(id, _)| id).collect();
            embedder.token_vectors(&ids, &mut vectors, at)?;
            for (&(id, count), vector) in block.iter().zip(vectors.chunks(dimensions)) {
                let norm = kernel.squares(vector).sqrt();
                let unit = vector.iter().map(|x| x / norm.max(1e-12) as f32).collect();
                found.push((norm, id, count, unit));
            }
            if found.len() > 2 * MAX_QUERY_TOKENS {
                keep_largest(&mut found);
            }
            at.reached()?;
        }
        keep_largest(&mut found);
        Ok(Self {
            ids: found.iter().map(|(_, id, ..)| *id).collect(),
            counts: found.iter().map(|(_, _, count, _)| *count).collect(),
            norms: found.iter().map(|(norm, ..)| *norm).collect(),
            units: found.into_iter().flat_map(|(.., unit)| unit).collect(),
        })
    }
}

/// Keeps the [`MAX_QUERY_TOKENS`] tokens of the largest norms.
fn keep_largest(found: &mut Vec<(f64, u32, f64, Vec<f32>)>) {
    if found.len() > MAX_QUERY_TOKENS {
        found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        found.truncate(MAX_QUERY_TOKENS);
    }
}

#[cfg(test)]
mod tests {
    use super::theta;

    #[test]
    fn the_threshold_follows_the_number_of_columns() {
        assert_eq!(theta(384), 0.3);
        assert!((theta(640) - 0.232).abs() < 1e-3);
        assert_eq!((theta(64), theta(0)), (0.3, 0.3));
    }
}
