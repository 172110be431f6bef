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
//! If no document contains `t`, as is usual for a query in another language, then similar tokens are all that there is, and need not be
//! ranked behind an exact match. So 1.3 times the cosine is used in `g`, with k1 = 0.5 and b = 1: chance similarities grow with the length of
//! a document. If neither document of the example has "dog", the one with "Hund" has x = 0.5 * (1.3 * 0.71 - 0.3) / 0.7 = 0.45.
//!
//! The work is one pass over the distinct tokens of all documents: the similarities of each with the query's tokens are computed once, from
//! the rows as they are stored where that is possible ([`Embedder::comparison`]). Each document then adds up one row of similarities for each
//! token that is similar to a token of the query. Most tokens are similar to none, and adding their zeros would not change the sums.

use foldhash::HashMap;

use super::lexical::idf;
use super::similar::{BLOCK, QueryComparison};
use crate::embedder::Embedder;
use crate::error::EmbedError;
use crate::places::Places;
use crate::pooling::kernel::{self, integers::LANES};
use layer0_tokenizers::yield_point::YieldPoint;

const K1: f64 = 0.8;
const B: f64 = 0.6;
/// What replaces [`K1`] and [`B`] for a token of the query that no document contains.
const K1_ABSENT: f64 = 0.5;
const B_ABSENT: f64 = 1.0;
/// The factor of the cosines of such a token.
const SCALE_ABSENT: f32 = 1.3;
/// From how many documents on the inverse document frequency has more weight than the norm of the row.
const ENOUGH_DOCUMENTS: f64 = 10.0;
/// Distinct tokens of a query that are matched. Of a longer query the tokens with the largest norms are kept.
pub const MAX_QUERY_TOKENS: usize = 256;
/// Tokens of documents between two calls of the yield point, and documents if they are short.
const STEP: usize = 16 << 10;
const DOCUMENTS_A_STEP: usize = 64;

/// The query's distinct tokens.
#[derive(Debug)]
struct QueryTokens {
    ids: Vec<u32>,
    /// How often each occurs.
    counts: Vec<f64>,
    norms: Vec<f64>,
    /// The vectors at length 1: `ids.len()` rows of `dimensions` numbers.
    units: Vec<f32>,
    /// Whether no document contains the token. The documents are known only later, so this is false at first.
    absent: Vec<bool>,
}

/// The soft term frequencies of every document, and what the score needs beside them.
#[derive(Debug)]
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
        let mut query = QueryTokens::new(embedder, query, at)?;
        let lengths = documents.iter().map(|document| document.len().max(1) as f64).collect();
        let numbered = NumberedTokens::new(embedder, documents, at)?;
        query.absent = query.ids.iter().map(|&id| !numbered.places.contains(id)).collect();
        let frequencies = query.frequencies(embedder, documents, &numbered, at)?;
        Ok(Self { query, frequencies, lengths })
    }

    /// Returns the soft term frequencies of other texts, `[texts, query tokens]`.
    ///
    /// # Errors
    /// When a device fails, the table's file was changed, or `at` ends the work.
    pub(super) fn frequencies_of(
        &self,
        embedder: &Embedder,
        texts: &[&[u32]],
        at: &dyn YieldPoint,
    ) -> Result<Vec<f32>, EmbedError> {
        self.query.frequencies(embedder, texts, &NumberedTokens::new(embedder, texts, at)?, at)
    }

    /// The number of bytes that matching `query` tokens with documents takes at most: `documents` of `tokens` tokens in all, over a table
    /// of `rows` rows.
    pub fn bytes(query: usize, documents: usize, tokens: usize, rows: usize) -> usize {
        let per_query_token = tokens.min(rows).saturating_add(documents).saturating_mul(size_of::<f32>());
        let query = query.min(MAX_QUERY_TOKENS).next_multiple_of(LANES);
        let numbers = tokens.saturating_mul(size_of::<u32>()).saturating_add(Places::bytes(tokens, rows));
        query.saturating_mul(per_query_token).saturating_add(numbers)
    }

    /// The score of each document, between 0 and 1.
    pub fn scores(&self) -> Vec<f64> {
        let (weights, n) = (self.weights(), self.lengths.len() as f64);
        let mean = self.lengths.iter().sum::<f64>() / n.max(1.0);
        let width = weights.len().max(1);
        let score = |(length, row): (&f64, &[f32])| {
            let gains = self.gains(&weights, row, length / mean);
            gains.zip(row).map(|(gain, &x)| gain * f64::from(x)).sum()
        };
        let mut scores: Vec<f64> = self.lengths.iter().zip(self.frequencies.chunks(width)).map(score).collect();
        scores.resize(self.lengths.len(), 0.0);
        scores
    }

    /// What a similarity of 1 with each of the query's tokens adds to the score of a document with the soft term frequencies `frequencies`,
    /// whose length is `length` times the mean: `w(t) / (x(t, d) + k1 (1 - b + b |d| / mean |d|))`.
    fn gains<'a>(&'a self, weights: &'a [f64], frequencies: &'a [f32], length: f64) -> impl Iterator<Item = f64> + 'a {
        let present = K1 * (1.0 - B + B * length);
        let absent = K1_ABSENT * (1.0 - B_ABSENT + B_ABSENT * length);
        let tokens = weights.iter().zip(frequencies).zip(&self.query.absent);
        tokens.map(move |((weight, &x), &is_absent)| weight / (f64::from(x) + if is_absent { absent } else { present }))
    }

    /// Returns the share of each token of a document in the document's score. `document` is the index of the document among those that were
    /// matched, and `ids` are its tokens. The sum is 1, or 0 if the document has the score 0.
    ///
    /// The query's token `t` adds `w(t) x(t, d) / (x(t, d) + k)` to the score, which is divided among the document's tokens in proportion to
    /// their similarities with `t`.
    ///
    /// # Errors
    /// When a device fails, the table's file was changed, or `at` ends the work.
    pub fn shares(
        &self,
        embedder: &Embedder,
        document: usize,
        ids: &[u32],
        at: &dyn YieldPoint,
    ) -> Result<Vec<f32>, EmbedError> {
        let (weights, width) = (self.weights(), self.query.ids.len());
        let frequencies = self.frequencies.get(document * width..(document + 1) * width).unwrap_or_default();
        let mean = self.lengths.iter().sum::<f64>() / (self.lengths.len() as f64).max(1.0);
        let length = self.lengths.get(document).copied().unwrap_or(1.0);
        let each: Vec<f64> = self.gains(&weights, frequencies, length / mean).collect();
        let score = each.iter().zip(frequencies).map(|(each, &x)| each * f64::from(x)).sum::<f64>();
        if score <= 0.0 {
            return Ok(vec![0.0; ids.len()]);
        }
        let mut places = Places::new(ids.len(), embedder.rows());
        let numbers: Vec<u32> = ids.iter().map(|&id| places.number(id)).collect();
        let similar = SimilarTokens::new(embedder, &self.query, places.ids(), at)?;
        let share = |number: u32| {
            let row = similar.row(number).map(<[_]>::as_flattened).unwrap_or_default();
            (each.iter().zip(row).map(|(each, &similarity)| each * f64::from(similarity)).sum::<f64>() / score) as f32
        };
        Ok(numbers.into_iter().map(share).collect())
    }

    /// The weight of each of the query's tokens; their sum is 1.
    pub(super) fn weights(&self) -> Vec<f64> {
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

/// The tokens of texts, each replaced by the number of the distinct token that it is.
struct NumberedTokens {
    places: Places,
    /// The numbers of all tokens of all texts.
    numbers: Vec<u32>,
}

impl NumberedTokens {
    fn new(embedder: &Embedder, texts: &[&[u32]], at: &dyn YieldPoint) -> Result<Self, EmbedError> {
        let tokens = texts.iter().map(|text| text.len()).sum();
        let mut places = Places::new(tokens, embedder.rows());
        let mut numbers = Vec::with_capacity(tokens);
        for (text, i) in texts.iter().zip(1..) {
            for ids in text.chunks(STEP) {
                numbers.extend(ids.iter().map(|&id| places.number(id)));
                if i % DOCUMENTS_A_STEP == 0 || ids.len() == STEP {
                    at.reached()?;
                }
            }
        }
        Ok(Self { places, numbers })
    }
}

/// The distinct tokens of the documents that are similar to a token of the query.
struct SimilarTokens {
    /// For each distinct token, the index of its row plus 1. 0 stands for a token that is similar to none of the query's tokens; most are.
    rows: Vec<u32>,
    /// The similarities, `[similar tokens, blocks]`, where the query's tokens are divided into `blocks` blocks of [`LANES`].
    similarities: Vec<[f32; LANES]>,
    blocks: usize,
}

impl SimilarTokens {
    /// Compares each token of `ids` with each token of the query.
    fn new(embedder: &Embedder, query: &QueryTokens, ids: &[u32], at: &dyn YieldPoint) -> Result<Self, EmbedError> {
        let mut comparison = QueryComparison::new(embedder, &query.ids, &query.units)?;
        comparison.scale(query.absent.iter().map(|&absent| if absent { SCALE_ABSENT } else { 1.0 }));
        let places: HashMap<u32, usize> = query.ids.iter().copied().zip(0..).collect();
        let blocks = comparison.blocks();
        let mut found = Self { rows: Vec::with_capacity(ids.len()), similarities: Vec::new(), blocks };
        let mut rows = vec![[0.0f32; LANES]; BLOCK * blocks];
        let mut similar = [false; BLOCK];
        for ids in ids.chunks(BLOCK) {
            comparison.similarities(ids, &mut rows, &mut similar, at)?;
            for ((id, row), similar) in ids.iter().zip(rows.chunks_mut(blocks)).zip(similar) {
                let equal = places.get(id).and_then(|&place| row.as_flattened_mut().get_mut(place));
                let similar = similar || equal.is_some();
                if let Some(equal) = equal {
                    *equal = 1.0;
                }
                if similar {
                    found.similarities.extend_from_slice(row);
                }
                found.rows.push(if similar { (found.similarities.len() / blocks) as u32 } else { 0 });
            }
            at.reached()?;
        }
        Ok(found)
    }

    /// Returns the similarities of the distinct token with this number, or `None` if all are 0.
    fn row(&self, number: u32) -> Option<&[[f32; LANES]]> {
        let row = self.rows.get(number as usize)?.checked_sub(1)? as usize;
        self.similarities.get(row * self.blocks..(row + 1) * self.blocks)
    }
}

impl QueryTokens {
    /// Returns the soft term frequencies of the query's tokens in each text, `[texts, query tokens]`. `numbered` has the tokens of the texts.
    fn frequencies(
        &self,
        embedder: &Embedder,
        texts: &[&[u32]],
        numbered: &NumberedTokens,
        at: &dyn YieldPoint,
    ) -> Result<Vec<f32>, EmbedError> {
        let width = self.ids.len();
        let mut frequencies = vec![0.0; width * texts.len()];
        if width == 0 {
            return Ok(frequencies);
        }
        let similar = SimilarTokens::new(embedder, self, numbered.places.ids(), at)?;

        let kernel = kernel::best();
        let mut sums = vec![[0.0f32; LANES]; width.div_ceil(LANES)];
        let mut indices = Vec::with_capacity(STEP);
        let mut rest = numbered.numbers.as_slice();
        let mut since_report = 0;
        for (text, frequencies) in texts.iter().zip(frequencies.chunks_mut(width)) {
            let of_text = rest.split_off(..text.len()).unwrap_or_default();
            sums.fill([0.0; LANES]);
            for numbers in of_text.chunks(STEP) {
                indices.clear();
                indices.extend(numbers.iter().filter_map(|&number| similar.rows.get(number as usize)?.checked_sub(1)));
                kernel.add_rows(&indices, &similar.similarities, &mut sums);
                since_report += numbers.len();
                if since_report >= STEP {
                    since_report = 0;
                    at.reached()?;
                }
            }
            for (frequency, sum) in frequencies.iter_mut().zip(sums.as_flattened()) {
                *frequency = *sum;
            }
        }
        Ok(frequencies)
    }

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
        let (dimensions, kernel) = (embedder.table_dimensions(), kernel::best());
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
            absent: vec![false; found.len()],
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
