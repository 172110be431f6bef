//! Sparse vectors: a number for each token of a text, so that an inverted index can find documents by their dot product with a query.
//!
//! No statistics of a collection are needed. The norm of a token's row takes the place of the inverse document frequency: rows of frequent
//! tokens are short in a refined or fitted table. A document's numbers saturate with the frequency, as in BM25:
//!
//! ```text
//! document(t)  =  |F_t| tf (k1 + 1) / (tf + k1 (1 - b + b L / 200))        tf times in a document of L tokens
//! query(t)     =  sum over the query's tokens u of  qtf(u) |F_u| g(u, t)   /   ((k1 + 1) sum over u of  qtf(u) |F_u|^2)
//! ```
//!
//! `g` is that of the soft matching of `/v1/rerank`. The divisor is a constant of the query, so it does not change the order of documents. It
//! makes the dot product the mean of the saturated frequencies of the query's tokens, each weighted by `qtf(u) |F_u|^2`: near 1 for a document
//! with all tokens of the query, near 0 for one with few of them. So scores of different queries, and cosines, are of one scale, and can be
//! added: a query of another language than the documents has low scores, and then the cosine decides.
//!
//! A query has numbers not only for its own tokens (`g = 1`), but also for the tokens with the most similar rows, which are often translations.
//! For example, the query "dog" gets numbers for ` dog` and, smaller ones, for ` Hund`, `犬` and ` chien`. Documents are not expanded.
//!
//! The index of a number is the token's ID, so vectors of the same model can be compared for as long as its tokenizer and its table stay the
//! same.

use std::borrow::Borrow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use foldhash::{HashMap, HashMapExt};

use super::similar::{BLOCK, QueryComparison};
use super::soft::MAX_QUERY_TOKENS;
use crate::embedder::{Embedder, PooledTokens};
use crate::error::EmbedError;
use crate::places::Places;
use crate::pooling::kernel::{self, integers::LANES};
use layer0_tokenizers::yield_point::YieldPoint;

/// The number of most similar tokens that a query's token is expanded by, if the caller does not choose.
pub const DEFAULT_NEIGHBORS: usize = 16;
/// The largest such number.
pub const MAX_NEIGHBORS: usize = 64;
const K1: f64 = 0.8;
const B: f64 = 0.6;
/// The length of a document, in tokens, to which others are compared.
const TYPICAL_LENGTH: f64 = 200.0;
/// The number of tokens whose neighbors are found by one pass over the table.
const PASS: usize = 2 * LANES;
/// The number of tokens whose neighbors are kept: 8 MiB. When there are more, all are forgotten.
const CACHED: usize = 1 << 14;
/// Tokens of a text between two calls of the yield point.
const STEP: usize = 16 << 10;

/// A sparse vector. Indices are in ascending order, and no value is 0.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SparseVector {
    /// The token IDs.
    pub indices: Vec<u32>,
    /// The number of each token.
    pub values: Vec<f32>,
}

impl FromIterator<(u32, f64)> for SparseVector {
    fn from_iter<I: IntoIterator<Item = (u32, f64)>>(entries: I) -> Self {
        let mut entries: Vec<(u32, f32)> =
            entries.into_iter().map(|(id, value)| (id, value as f32)).filter(|(_, value)| *value > 0.0).collect();
        entries.sort_unstable_by_key(|(id, _)| *id);
        let (indices, values) = entries.into_iter().unzip();
        Self { indices, values }
    }
}

/// The tokens whose rows are most similar to a token's, each with its similarity, the most similar first.
type Neighbors = Arc<[(u32, f32)]>;

/// Makes sparse vectors with the table of an embedder, and remembers what it found out about tokens.
pub struct SparseEncoder<E> {
    embedder: E,
    /// The bits of the norm of each row, or 0 if it is not known yet.
    norms: Vec<AtomicU32>,
    neighbors: RwLock<HashMap<u32, Neighbors>>,
}

impl<E> std::fmt::Debug for SparseEncoder<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SparseEncoder").field("rows", &self.norms.len()).finish_non_exhaustive()
    }
}

impl<E: Borrow<Embedder>> SparseEncoder<E> {
    /// Creates an encoder that knows nothing about the tokens yet.
    pub fn new(embedder: E) -> Self {
        let norms = (0..embedder.borrow().rows()).map(|_| AtomicU32::new(0)).collect();
        Self { embedder, norms, neighbors: RwLock::default() }
    }

    /// Returns the embedder whose table is used.
    pub fn embedder(&self) -> &E {
        &self.embedder
    }

    /// Returns the vector of a document. A text without tokens has an empty vector.
    ///
    /// # Errors
    /// When a device fails, the table's file was changed, or `at` ends the work.
    pub fn document(&self, tokens: &PooledTokens, at: &dyn YieldPoint) -> Result<SparseVector, EmbedError> {
        let (counts, length) = self.counts(tokens, at)?;
        let norms = self.norms(&counts, at)?;
        let saturation = K1 * (1.0 - B + B * length as f64 / TYPICAL_LENGTH);
        let value = |((id, tf), norm): ((u32, f64), f64)| (id, norm * tf * (K1 + 1.0) / (tf + saturation));
        Ok(counts.into_iter().zip(norms).map(value).collect())
    }

    /// Returns the vector of a query, in which each token is expanded by the `neighbors` most similar ones, at most [`MAX_NEIGHBORS`]. Of a
    /// query of more than 256 distinct tokens, those with the largest norms are expanded.
    ///
    /// # Errors
    /// When a device fails, the table's file was changed, or `at` ends the work.
    pub fn query(
        &self,
        tokens: &PooledTokens,
        neighbors: usize,
        at: &dyn YieldPoint,
    ) -> Result<SparseVector, EmbedError> {
        let (counts, _) = self.counts(tokens, at)?;
        let mut weighted: Vec<(u32, f64, f64)> = counts
            .iter()
            .zip(self.norms(&counts, at)?)
            .map(|(&(id, count), norm)| (id, count * norm, norm))
            .filter(|(_, weight, _)| *weight > 0.0)
            .collect();
        let all = (K1 + 1.0) * weighted.iter().map(|(_, weight, norm)| weight * norm).sum::<f64>();
        for (_, weight, _) in &mut weighted {
            *weight /= all;
        }
        let mut values: HashMap<u32, f64> = weighted.iter().map(|&(id, weight, _)| (id, weight)).collect();
        if neighbors > 0 {
            weighted.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)));
            weighted.truncate(MAX_QUERY_TOKENS);
            let ids: Vec<u32> = weighted.iter().map(|(id, ..)| *id).collect();
            for ((_, weight, _), found) in weighted.iter().zip(self.neighbors(&ids, at)?) {
                for &(neighbor, similarity) in found.iter().take(neighbors) {
                    *values.entry(neighbor).or_insert(0.0) += weight * f64::from(similarity);
                }
            }
        }
        Ok(values.into_iter().collect())
    }

    /// Returns the distinct tokens of a text with their frequencies, and the number of all.
    fn counts(&self, tokens: &PooledTokens, at: &dyn YieldPoint) -> Result<(Vec<(u32, f64)>, usize), EmbedError> {
        let embedder = self.embedder.borrow();
        let ids = embedder.without_template(tokens.ids());
        let mut places = Places::new(ids.len(), embedder.rows());
        let mut counts: Vec<f64> = Vec::new();
        for ids in ids.chunks(STEP) {
            for &id in ids {
                let number = places.number(id) as usize;
                match counts.get_mut(number) {
                    Some(count) => *count += 1.0,
                    None => counts.push(1.0),
                }
            }
            at.reached()?;
        }
        Ok((places.ids().iter().copied().zip(counts).collect(), ids.len()))
    }

    /// Returns the length of each token's row.
    fn norms(&self, tokens: &[(u32, f64)], at: &dyn YieldPoint) -> Result<Vec<f64>, EmbedError> {
        let known = |id: u32| self.norms.get(id as usize).map_or(0, |norm| norm.load(Ordering::Relaxed));
        let unknown: Vec<u32> = tokens.iter().map(|(id, _)| *id).filter(|&id| known(id) == 0).collect();
        if !unknown.is_empty() {
            let (embedder, kernel) = (self.embedder.borrow(), kernel::best());
            let dimensions = embedder.table_dimensions();
            let mut vectors = vec![0.0; BLOCK.min(unknown.len()) * dimensions];
            for ids in unknown.chunks(BLOCK) {
                embedder.token_vectors(ids, &mut vectors, at)?;
                for (&id, vector) in ids.iter().zip(vectors.chunks(dimensions)) {
                    if let Some(norm) = self.norms.get(id as usize) {
                        norm.store((kernel.squares(vector).sqrt() as f32).to_bits(), Ordering::Relaxed);
                    }
                }
                at.reached()?;
            }
        }
        Ok(tokens.iter().map(|(id, _)| f64::from(f32::from_bits(known(*id)))).collect())
    }

    /// Returns the neighbors of each token, from the cache or by passes over the table.
    fn neighbors(&self, ids: &[u32], at: &dyn YieldPoint) -> Result<Vec<Neighbors>, EmbedError> {
        let mut found: HashMap<u32, Neighbors> = HashMap::with_capacity(ids.len());
        {
            let cache = self.neighbors.read().unwrap_or_else(PoisonError::into_inner);
            found.extend(ids.iter().filter_map(|id| Some((*id, Arc::clone(cache.get(id)?)))));
        }
        let unknown: Vec<u32> = ids.iter().copied().filter(|id| !found.contains_key(id)).collect();
        for ids in unknown.chunks(PASS) {
            let made = self.search(ids, at)?;
            let mut cache = self.neighbors.write().unwrap_or_else(PoisonError::into_inner);
            if cache.len() + made.len() > CACHED {
                cache.clear();
            }
            for (&id, neighbors) in ids.iter().zip(made) {
                cache.insert(id, Arc::clone(&neighbors));
                found.insert(id, neighbors);
            }
        }
        Ok(ids.iter().filter_map(|id| found.get(id).cloned()).collect())
    }

    /// Finds the neighbors of up to [`PASS`] tokens by comparing them with all rows of the table.
    fn search(&self, ids: &[u32], at: &dyn YieldPoint) -> Result<Vec<Neighbors>, EmbedError> {
        let embedder = self.embedder.borrow();
        let (dimensions, kernel) = (embedder.table_dimensions(), kernel::best());
        let mut units = vec![0.0; ids.len() * dimensions];
        embedder.token_vectors(ids, &mut units, at)?;
        for vector in units.chunks_mut(dimensions) {
            kernel.scale(vector, 1.0 / kernel.squares(vector).sqrt().max(1e-12) as f32);
        }
        let mut comparison = QueryComparison::new(embedder, ids, &units)?;
        let blocks = comparison.blocks();
        let mut rows = vec![[0.0f32; LANES]; BLOCK * blocks];
        let mut similar = [false; BLOCK];
        let mut best: Vec<Best> = ids.iter().map(|_| Best::default()).collect();
        let all: Vec<u32> = (0..embedder.rows() as u32).collect();
        for others in all.chunks(BLOCK) {
            comparison.similarities(others, &mut rows, &mut similar, at)?;
            for ((&other, row), _) in
                others.iter().zip(rows.chunks(blocks)).zip(similar).filter(|(_, similar)| *similar)
            {
                for ((best, &similarity), &id) in best.iter_mut().zip(row.as_flattened()).zip(ids) {
                    if similarity > best.least && other != id {
                        best.add(other, similarity);
                    }
                }
            }
            at.reached()?;
        }
        Ok(best.into_iter().map(Best::into_neighbors).collect())
    }
}

/// The [`MAX_NEIGHBORS`] most similar tokens so far, and up to as many that may still be dropped.
#[derive(Default)]
struct Best {
    found: Vec<(u32, f32)>,
    /// Only tokens that are more similar can be among the best.
    least: f32,
}

impl Best {
    fn add(&mut self, id: u32, similarity: f32) {
        self.found.push((id, similarity));
        if self.found.len() >= 2 * MAX_NEIGHBORS {
            self.shorten();
        }
    }

    fn shorten(&mut self) {
        self.found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        self.found.truncate(MAX_NEIGHBORS);
        if let Some(&(_, last)) = self.found.get(MAX_NEIGHBORS - 1) {
            self.least = last;
        }
    }

    fn into_neighbors(mut self) -> Neighbors {
        self.shorten();
        self.found.into()
    }
}
