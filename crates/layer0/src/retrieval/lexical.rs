//! Exact matching: BM25 over the terms of one request.
//!
//! The formula is Okapi BM25 with Lucene's inverse document frequency (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25
//! and Beyond", 2009, and `BM25Similarity.java` of Lucene 9), over the statistics of the documents of the request:
//!
//! ```text
//! idf(t)  =  ln(1 + (N - n(t) + 0.5) / (n(t) + 0.5))
//! B(d)    =  sum over t of  qtf(t) idf(t) * tf / (tf + k1 (1 - b + b |d| / mean |d|))   /   sum over t of  qtf(t) idf(t)
//! ```
//!
//! A document that repeated every term of the query without end would have the score 1.

use foldhash::HashMap;

use super::terms::for_each_term;
use layer0_tokenizers::yield_point::{Stopped, YieldPoint};

const K1: f64 = 1.2;
const B: f64 = 0.75;
/// Bytes of short documents between two calls of the yield point.
const STEP: usize = 16 << 10;

/// The score of each document, between 0 and 1.
///
/// # Errors
/// When `at` ends the work.
pub fn scores(query: &str, documents: &[&str], at: &dyn YieldPoint) -> Result<Vec<f64>, Stopped> {
    let mut places: HashMap<String, usize> = HashMap::default();
    let mut query_counts: Vec<f64> = Vec::new();
    for_each_term(query, at, |term| {
        let place = *places.entry(term.to_owned()).or_insert_with(|| {
            query_counts.push(0.0);
            query_counts.len() - 1
        });
        if let Some(count) = query_counts.get_mut(place) {
            *count += 1.0;
        }
    })?;
    let outlines = places.keys().fold([0; OUTLINES], |outlines, term| with_outline(outlines, term));
    // For each document, how often each term of the query occurs in it.
    let mut counts = vec![0u32; documents.len() * query_counts.len()];
    let mut lengths = Vec::with_capacity(documents.len());
    let mut bytes = 0;
    let width = query_counts.len().max(1);
    let mut rows = counts.chunks_mut(width);
    for document in documents {
        let row = rows.next().unwrap_or_default();
        let mut length = 0usize;
        for_each_term(document, at, |term| {
            length += 1;
            let place = if has_outline(&outlines, term) { places.get(term) } else { None };
            if let Some(count) = place.and_then(|&place| row.get_mut(place)) {
                *count += 1;
            }
        })?;
        lengths.push(length.max(1) as f64);
        bytes += document.len();
        if bytes > STEP {
            bytes = 0;
            at.reached()?;
        }
    }
    let n = documents.len() as f64;
    let mean = lengths.iter().sum::<f64>() / n.max(1.0);
    let mut containing = vec![0.0; query_counts.len()];
    for row in counts.chunks(width) {
        for (containing, &count) in containing.iter_mut().zip(row) {
            *containing += f64::from(u8::from(count > 0));
        }
    }
    let weights: Vec<f64> = query_counts.iter().zip(&containing).map(|(count, &df)| count * idf(n, df)).collect();
    let all = weights.iter().sum::<f64>().max(1e-12);
    let score = |(length, row): (&f64, &[u32])| {
        let saturation = K1 * (1.0 - B + B * length / mean);
        let score = |(weight, &tf): (&f64, &u32)| weight * f64::from(tf) / (f64::from(tf) + saturation);
        weights.iter().zip(row).map(score).sum::<f64>() / all
    };
    let mut found: Vec<f64> = lengths.iter().zip(counts.chunks(width)).map(score).collect();
    found.resize(documents.len(), 0.0);
    Ok(found)
}

/// A set of outlines (first byte, last byte and length) of terms. A term without an outline in the set is none of the query's terms, and
/// needs no hash.
type Outlines = [u64; OUTLINES];
const OUTLINES: usize = 4;

fn with_outline(mut outlines: Outlines, term: &str) -> Outlines {
    let (word, bit) = outline(term);
    if let Some(word) = outlines.get_mut(word) {
        *word |= bit;
    }
    outlines
}

fn has_outline(outlines: &Outlines, term: &str) -> bool {
    let (word, bit) = outline(term);
    outlines.get(word).is_some_and(|word| word & bit != 0)
}

fn outline(term: &str) -> (usize, u64) {
    let byte = |byte: Option<&u8>| usize::from(byte.copied().unwrap_or_default());
    let (first, last) = (byte(term.as_bytes().first()), byte(term.as_bytes().last()));
    let mixed = first.wrapping_mul(7) ^ last.wrapping_mul(29) ^ term.len().wrapping_mul(83);
    (mixed / 64 % OUTLINES, 1 << (mixed % 64))
}

/// Lucene's inverse document frequency of a term that `df` of `n` documents contain.
pub(super) fn idf(n: f64, df: f64) -> f64 {
    ((n - df + 0.5) / (df + 0.5)).ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer0_tokenizers::yield_point::Undisturbed;

    #[test]
    fn a_rare_term_counts_more_than_a_common_one_and_a_short_document_more_than_a_long_one() {
        let documents =
            ["the cat", "the dog", "the cow in long grass on a green meadow", "the dog and the cat and more words"];
        let scores = scores("the cat", &documents, &Undisturbed).unwrap();
        assert!(scores[0] > scores[3] && scores[3] > scores[1] && scores[1] > scores[2], "{scores:?}");
        assert!(scores.iter().all(|score| (0.0..1.0).contains(score)));
    }

    #[test]
    fn a_query_without_terms_matches_nothing() {
        assert_eq!(scores("?!", &["a", ""], &Undisturbed).unwrap(), [0.0, 0.0]);
        assert!(scores("a", &[], &Undisturbed).unwrap().is_empty());
    }
}
