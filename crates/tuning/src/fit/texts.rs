//! Holds a corpus as token counts: the tokens of each text, and the texts that contain each token.

use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::spool::{Spool, Spooled};
use super::vectors::{Vectors, check};
use crate::corpus::{self, CorpusFile, Fields};
use crate::error::FitError;
use layer0::checkpoint::Checkpoint;
use layer0::progress::Progress;
use layer0_files::Diagnostic;

/// The number of texts whose vectors are in memory at once.
const TEXTS_AT_A_TIME: usize = 1024;

/// The texts of a fit.
#[derive(Debug, Clone, Copy)]
pub struct Corpus<'a> {
    /// The files, in the order in which they are read.
    pub files: &'a [PathBuf],
    /// How the files are read.
    pub fields: Fields<'a>,
    /// The share of the texts that is held out of the fit. The hash of a text decides whether the text is held out.
    pub held_out: f64,
}

/// The texts of a corpus as token positions, in 8 bytes per token, or 16 if the occurrences have weights. The position of a token is its index among the
/// tokens that occur in the corpus.
pub struct TokenCounts {
    /// The tokens that occur in the corpus, as row indices of the table in ascending order.
    pub tokens: Vec<u32>,
    /// The start of each text in `columns`: text `i` is `columns[starts[i]..starts[i + 1]]`.
    starts: Vec<usize>,
    columns: Vec<u32>,
    /// The weight of each entry of `columns`, or nothing if every occurrence weighs 1.
    weights: Vec<f32>,
    /// The start of each token's entries in `texts`. Token `t` occurs in the texts
    /// `texts[token_starts[t]..token_starts[t + 1]]`, in ascending order and once per occurrence. Held-out texts are
    /// left out.
    token_starts: Vec<usize>,
    texts: Vec<u32>,
    /// The weight of each entry of `texts`, or nothing if every occurrence weighs 1.
    text_weights: Vec<f32>,
    held_out: Vec<bool>,
}

/// The occurrences of the tokens of a text, or of a token in texts, with their weights.
#[derive(Clone, Copy)]
pub struct Occurrences<'a> {
    /// Positions of tokens, or indices of texts.
    indices: &'a [u32],
    /// The weight of each, or nothing if each weighs 1.
    weights: &'a [f32],
}

impl<'a> Occurrences<'a> {
    /// Returns the index and the weight of each occurrence.
    pub fn iter(self) -> impl Iterator<Item = (u32, f32)> + 'a {
        self.indices.iter().copied().zip(self.weights.iter().copied().chain(std::iter::repeat(1.0)))
    }

    /// Returns the sum of the weights.
    pub fn total(self) -> f64 {
        self.iter().map(|(_, weight)| f64::from(weight)).sum()
    }
}

/// A corpus that was read, with the teacher's vectors of its texts.
pub struct Read {
    pub counts: TokenCounts,
    /// The teacher's vectors, scaled to length 1: one per text of `counts`.
    pub vectors: Spooled,
    /// The texts of each file.
    pub ranges: Vec<Range<usize>>,
    pub files: Vec<CorpusFile>,
    /// The number of texts that were left out because none of their tokens has a row.
    pub without_tokens: u64,
}

impl TokenCounts {
    pub fn len(&self) -> usize {
        self.held_out.len()
    }

    /// Returns the tokens of text `index`, as positions in `tokens`, once per occurrence.
    pub fn text(&self, index: usize) -> Occurrences<'_> {
        Occurrences {
            indices: slice(&self.columns, &self.starts, index),
            weights: slice(&self.weights, &self.starts, index),
        }
    }

    /// Returns the tokens of text `index`, as row indices of the table.
    pub fn ids(&self, index: usize) -> impl Iterator<Item = u32> {
        let columns = slice(&self.columns, &self.starts, index);
        columns.iter().filter_map(|&column| self.tokens.get(column as usize).copied())
    }

    /// Returns the positions of the tokens of text `index` in `tokens`, once per occurrence.
    pub fn columns(&self, index: usize) -> &[u32] {
        slice(&self.columns, &self.starts, index)
    }

    /// Returns the fitted texts that contain the token at position `column`, once per occurrence.
    pub fn texts_with(&self, column: usize) -> Occurrences<'_> {
        Occurrences {
            indices: slice(&self.texts, &self.token_starts, column),
            weights: slice(&self.text_weights, &self.token_starts, column),
        }
    }

    pub fn is_held_out(&self, index: usize) -> bool {
        self.held_out.get(index).copied().unwrap_or(false)
    }

    pub fn held_out(&self) -> usize {
        self.held_out.iter().filter(|held_out| **held_out).count()
    }

    /// Builds the counts from the token IDs of all texts, one text after another. `rows` is larger than every ID. The `n` occurrences of a
    /// token in a text weigh `n^exponent` together.
    fn of(ids: &[u32], starts: Vec<usize>, held_out: Vec<bool>, rows: usize, exponent: f64) -> Self {
        let mut column_of = vec![u32::MAX; rows];
        for &id in ids {
            if let Some(column) = column_of.get_mut(id as usize) {
                *column = 0;
            }
        }
        let mut tokens = Vec::new();
        for (id, column) in (0..).zip(&mut column_of) {
            if *column == 0 {
                *column = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
                tokens.push(id);
            }
        }
        let columns: Vec<u32> = ids.iter().filter_map(|&id| column_of.get(id as usize).copied()).collect();
        let weights = if exponent == 1.0 { Vec::new() } else { weights(&columns, &starts, tokens.len(), exponent) };
        let mut counts = Self {
            tokens,
            starts,
            columns,
            weights,
            token_starts: Vec::new(),
            texts: Vec::new(),
            text_weights: Vec::new(),
            held_out,
        };
        counts.transpose();
        counts
    }

    fn transpose(&mut self) {
        let fitted = |index: &usize| !self.is_held_out(*index);
        let mut ends = vec![0usize; self.tokens.len() + 1];
        for (column, _) in (0..self.len()).filter(fitted).flat_map(|index| self.text(index).iter()) {
            if let Some(count) = ends.get_mut(column as usize + 1) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for end in &mut ends {
            sum += *end;
            *end = sum;
        }
        let mut next = ends.clone();
        let mut texts = vec![0u32; sum];
        let mut text_weights = vec![1.0; if self.weights.is_empty() { 0 } else { sum }];
        for index in (0..self.len()).filter(fitted) {
            for (column, weight) in self.text(index).iter() {
                let Some(next) = next.get_mut(column as usize) else { continue };
                if let Some(text) = texts.get_mut(*next) {
                    *text = u32::try_from(index).unwrap_or(u32::MAX);
                }
                if let Some(to) = text_weights.get_mut(*next) {
                    *to = weight;
                }
                *next += 1;
            }
        }
        (self.token_starts, self.texts, self.text_weights) = (ends, texts, text_weights);
    }
}

/// Returns the weight of each occurrence in `columns`: `n^(exponent - 1)` for each of the `n` occurrences of a token in a text.
fn weights(columns: &[u32], starts: &[usize], tokens: usize, exponent: f64) -> Vec<f32> {
    let mut weights = Vec::with_capacity(columns.len());
    let mut counts = vec![0u32; tokens];
    for text in 0..starts.len().saturating_sub(1) {
        let text = slice(columns, starts, text);
        for &column in text {
            if let Some(count) = counts.get_mut(column as usize) {
                *count += 1;
            }
        }
        let count = |column: u32| counts.get(column as usize).copied().unwrap_or(1);
        weights.extend(text.iter().map(|&column| f64::from(count(column)).powf(exponent - 1.0) as f32));
        for &column in text {
            if let Some(count) = counts.get_mut(column as usize) {
                *count = 0;
            }
        }
    }
    weights
}

fn slice<'a, T>(all: &'a [T], starts: &[usize], index: usize) -> &'a [T] {
    match starts.get(index..index + 2) {
        Some(&[start, end]) => all.get(Range { start, end }).unwrap_or_default(),
        _ => &[],
    }
}

/// Reads `corpus` once. Returns the tokens of each text, and the vectors that `teacher` has for the texts, spooled in
/// the directory `scratch`.
///
/// # Errors
/// Fails if a file cannot be read, if the tokenizer refuses a text, if a vector is invalid, or if the corpus has no
/// text.
pub fn read(
    checkpoint: &Checkpoint,
    corpus: &Corpus<'_>,
    teacher: &mut dyn Vectors,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<Read, FitError> {
    let rows = checkpoint.table.rows();
    let (mut ids, mut starts, mut held_out) = (Vec::new(), vec![0], Vec::new());
    let mut spool: Option<Spool> = None;
    let (mut files, mut ranges, mut without_tokens, mut number) = (Vec::new(), Vec::new(), 0, 0);
    progress.start_texts("reading the corpus", corpus::size(corpus.files));
    for path in corpus.files {
        let (mut tokens, first) = (0, held_out.len());
        let file = corpus::read::<FitError>(path, corpus.fields, progress, &mut |batch| {
            let encoded: Vec<Vec<u32>> =
                batch.texts.par_iter().map(|text| encode(checkpoint, path, text)).collect::<Result<_, FitError>>()?;
            for (texts, encoded) in batch.texts.chunks(TEXTS_AT_A_TIME).zip(encoded.chunks(TEXTS_AT_A_TIME)) {
                for ((text, mut vector), encoded) in texts.iter().zip(teacher.of(texts, progress)?).zip(encoded) {
                    let spool = match &mut spool {
                        Some(spool) => spool,
                        none => none.insert(Spool::new(scratch, vector.len())?),
                    };
                    check(&vector, spool.dimensions()).map_err(|problem| teacher.wrong(number, text, &problem))?;
                    number += 1;
                    if encoded.is_empty() {
                        without_tokens += 1;
                        continue;
                    }
                    layer0::pooling::normalize(&mut vector)
                        .map_err(|problem| teacher.wrong(number, text, &problem.to_string().into()))?;
                    spool.push(&vector)?;
                    tokens += encoded.len() as u64;
                    ids.extend(encoded);
                    starts.push(ids.len());
                    held_out.push(is_held_out(text, corpus.held_out));
                }
            }
            // The teacher has already reported the bytes of the texts. The bytes between the texts remain to be
            // reported.
            let texts: u64 = batch.texts.iter().map(|text| text.len() as u64).sum();
            progress.advance_texts(0, batch.bytes.saturating_sub(texts));
            Ok(true)
        })?;
        files.push(CorpusFile { tokens, ..file });
        ranges.push(first..held_out.len());
    }
    progress.finish();
    let Some(spool) = spool else { return Err(corpus::without_text(&files, corpus.files, corpus.fields).into()) };
    teacher.finish()?;
    let exponent = checkpoint.conventions.token_count_exponent;
    let counts = TokenCounts::of(&ids, starts, held_out, rows, exponent);
    Ok(Read { counts, vectors: spool.finish()?, ranges, files, without_tokens })
}

/// Returns the tokens of a text of the file `path` that have a row and are pooled.
pub fn encode(checkpoint: &Checkpoint, path: &Path, text: &str) -> Result<Vec<u32>, FitError> {
    let mut ids = Vec::new();
    checkpoint.tokenizer.choice.implementation.encode(text, false, &mut ids).map_err(|error| {
        let problem = format!("holds a text that could not be tokenized: {error}");
        FitError::Tokenizer(Diagnostic::new(path, problem))
    })?;
    ids.retain(|&id| (id as usize) < checkpoint.table.rows() && Some(id) != checkpoint.conventions.left_out);
    Ok(ids)
}

/// Tells whether a text is held out. Only the text itself decides, so the order of the corpus and its other texts do
/// not matter.
pub fn is_held_out(text: &str, share: f64) -> bool {
    let digest = Sha256::digest(text.as_bytes());
    let hash = digest.iter().take(8).fold(0u64, |hash, &byte| hash << 8 | u64::from(byte));
    (hash as f64) < share * 2f64.powi(64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_tokens_are_each_others_transpose() {
        let ids = [7, 3, 3, 9, 7, 0];
        let counts = TokenCounts::of(&ids, vec![0, 3, 4, 6], vec![false, true, false], 10, 1.0);
        assert_eq!(counts.tokens, [0, 3, 7, 9]);
        let [texts, with] = read(&counts);
        assert_eq!(texts, [vec![(2, 1.0), (1, 1.0), (1, 1.0)], vec![(3, 1.0)], vec![(2, 1.0), (0, 1.0)]]);
        // Text 1 is held out.
        assert_eq!(with, [vec![(2, 1.0)], vec![(0, 1.0), (0, 1.0)], vec![(0, 1.0), (2, 1.0)], vec![]]);
        assert_eq!((counts.len(), counts.held_out()), (3, 1));
        assert!(counts.weights.is_empty() && counts.text_weights.is_empty());
        assert_eq!(counts.text(0).total(), 3.0);
    }

    /// Returns the occurrences in each text, and of each token.
    fn read(counts: &TokenCounts) -> [Vec<Vec<(u32, f32)>>; 2] {
        let texts = (0..counts.len()).map(|index| counts.text(index).iter().collect());
        let tokens = (0..counts.tokens.len()).map(|column| counts.texts_with(column).iter().collect());
        [texts.collect(), tokens.collect()]
    }

    #[test]
    fn the_occurrences_of_a_token_in_a_text_weigh_a_power_of_their_number() {
        let ids = [3, 7, 3, 3, 3, 7, 3];
        let counts = TokenCounts::of(&ids, vec![0, 5, 7], vec![false, false], 10, 0.5);
        let half = 0.5;
        assert_eq!(
            read(&counts),
            [
                vec![vec![(0, half), (1, 1.0), (0, half), (0, half), (0, half)], vec![(1, 1.0), (0, 1.0)]],
                vec![vec![(0, half), (0, half), (0, half), (0, half), (1, 1.0)], vec![(0, 1.0), (1, 1.0)]],
            ]
        );
        assert_eq!(counts.text(0).total(), 3.0, "4^0.5 + 1");
    }

    #[test]
    fn a_share_of_texts_is_held_out_and_the_same_ones_of_a_smaller_share() {
        let texts: Vec<String> = (0..10_000).map(|n| format!("text {n}")).collect();
        let held = |share| texts.iter().filter(move |text| is_held_out(text, share));
        assert!((450..550).contains(&held(0.05).count()), "{}", held(0.05).count());
        assert!(held(0.05).all(|text| is_held_out(text, 0.1)));
        assert_eq!((held(0.0).count(), held(1.0).count()), (0, 10_000));
    }
}
