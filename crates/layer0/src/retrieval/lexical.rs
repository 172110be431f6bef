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

use super::terms::{for_each_cased_term, for_each_term};
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
    let mut query_terms = QueryTerms::default();
    for_each_term(query, at, |term| query_terms.add(term))?;
    let query_counts = &query_terms.counts;
    // For each document, how often each term of the query occurs in it.
    let mut counts = vec![0u32; documents.len() * query_counts.len()];
    let mut lengths = Vec::with_capacity(documents.len());
    let mut bytes = 0;
    let width = query_counts.len().max(1);
    let mut rows = counts.chunks_mut(width);
    for document in documents {
        let row = rows.next().unwrap_or_default();
        let mut length = 0usize;
        for_each_cased_term(document, at, |term| {
            length += 1;
            if let Some(count) = query_terms.place(term).and_then(|place| row.get_mut(place)) {
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

/// The distinct terms of a query.
///
/// Most terms of a document are none of them. So terms are told apart by their outlines first (first byte, last byte and length), and need no
/// hash unless several terms of the query have the same outline.
struct QueryTerms {
    /// The terms in lower case.
    terms: Vec<String>,
    /// How often each occurs in the query.
    counts: Vec<f64>,
    /// The place of each term.
    places: HashMap<String, usize>,
    /// The terms with each outline.
    outlines: [Outlined; OUTLINES],
}

const OUTLINES: usize = 256;

/// The terms that have an outline.
#[derive(Clone, Copy)]
enum Outlined {
    None,
    One(usize),
    Several,
}

impl Default for QueryTerms {
    fn default() -> Self {
        let (terms, counts, places) = (Vec::new(), Vec::new(), HashMap::default());
        Self { terms, counts, places, outlines: [Outlined::None; OUTLINES] }
    }
}

impl QueryTerms {
    /// Adds a term in lower case.
    fn add(&mut self, term: &str) {
        if let Some(count) = self.places.get(term).and_then(|&place| self.counts.get_mut(place)) {
            *count += 1.0;
            return;
        }
        let place = self.terms.len();
        if let Some(outlined) = self.outlines.get_mut(outline(term)) {
            *outlined = if matches!(outlined, Outlined::None) { Outlined::One(place) } else { Outlined::Several };
        }
        self.places.insert(term.to_owned(), place);
        self.terms.push(term.to_owned());
        self.counts.push(1.0);
    }

    /// Returns the place of a term, whose ASCII letters may be in upper case.
    fn place(&self, term: &str) -> Option<usize> {
        match self.outlines.get(outline(term))? {
            Outlined::None => None,
            Outlined::One(place) => self.terms.get(*place)?.eq_ignore_ascii_case(term).then_some(*place),
            Outlined::Several if term.bytes().any(|byte| byte.is_ascii_uppercase()) => {
                self.places.get(&term.to_ascii_lowercase()).copied()
            }
            Outlined::Several => self.places.get(term).copied(),
        }
    }
}

/// Returns the outline of a term, which is the same in upper and in lower case.
fn outline(term: &str) -> usize {
    /// The bit in which the two cases of an ASCII letter differ.
    const CASE: u8 = 0x20;
    let byte = |byte: Option<&u8>| usize::from(byte.copied().unwrap_or_default() | CASE);
    let (first, last) = (byte(term.as_bytes().first()), byte(term.as_bytes().last()));
    (first.wrapping_mul(7) ^ last.wrapping_mul(29) ^ term.len().wrapping_mul(83)) % OUTLINES
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
    fn words_match_in_upper_and_lower_case() {
        let documents = ["the CAT", "The Cat", "tHE cat", "a dog"];
        for query in ["the cat", "THE CAT", "The caT"] {
            let scores = scores(query, &documents, &Undisturbed).unwrap();
            assert!(scores[0] > 0.0 && scores[..3].iter().all(|score| *score == scores[0]), "{scores:?}");
            assert_eq!(scores[3], 0.0);
        }
    }

    /// Among this many terms of two letters, outlines have none, one or several terms.
    #[test]
    fn every_term_of_a_query_is_found_whatever_its_outline() {
        let mut query = QueryTerms::default();
        let terms: Vec<String> =
            (0..300).map(|i| format!("{}x{}", char::from(b'a' + (i % 26) as u8), i / 26)).collect();
        for (place, term) in terms.iter().enumerate() {
            query.add(term);
            query.add(term);
            assert_eq!((query.place(term), query.counts[place]), (Some(place), 2.0));
        }
        let is = |of: fn(&Outlined) -> bool| query.outlines.iter().any(of);
        assert!(is(|o| matches!(o, Outlined::None)) && is(|o| matches!(o, Outlined::One(_))));
        for (place, term) in terms.iter().enumerate() {
            assert_eq!([query.place(term), query.place(&term.to_uppercase())], [Some(place); 2]);
            assert_eq!(query.place(&term.replace('x', "y")), None);
        }
    }

    #[test]
    fn a_query_without_terms_matches_nothing() {
        assert_eq!(scores("?!", &["a", ""], &Undisturbed).unwrap(), [0.0, 0.0]);
        assert!(scores("a", &[], &Undisturbed).unwrap().is_empty());
    }
}
