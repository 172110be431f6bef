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

/// The texts of a corpus as token positions, in 8 bytes per token. The position of a token is its index among the
/// tokens that occur in the corpus.
pub struct TokenCounts {
    /// The tokens that occur in the corpus, as row indices of the table in ascending order.
    pub tokens: Vec<u32>,
    /// The start of each text in `columns`: text `i` is `columns[starts[i]..starts[i + 1]]`.
    starts: Vec<usize>,
    columns: Vec<u32>,
    /// The start of each token's entries in `texts`. Token `t` occurs in the texts
    /// `texts[token_starts[t]..token_starts[t + 1]]`, in ascending order and once per occurrence. Held-out texts are
    /// left out.
    token_starts: Vec<usize>,
    texts: Vec<u32>,
    held_out: Vec<bool>,
}

/// A corpus that was read, with the teacher's vectors of its texts.
pub struct Read {
    pub counts: TokenCounts,
    /// The teacher's vectors, scaled to length 1: one per text of `counts`.
    pub vectors: Spooled,
    pub files: Vec<CorpusFile>,
    /// The number of texts that were left out because none of their tokens has a row.
    pub without_tokens: u64,
}

impl TokenCounts {
    pub fn len(&self) -> usize {
        self.held_out.len()
    }

    /// Returns the tokens of text `index`, as positions in `tokens`.
    pub fn text(&self, index: usize) -> &[u32] {
        slice(&self.columns, &self.starts, index)
    }

    /// Returns the tokens of text `index`, as row indices of the table.
    pub fn ids(&self, index: usize) -> impl Iterator<Item = u32> {
        self.text(index).iter().filter_map(|&column| self.tokens.get(column as usize).copied())
    }

    /// Returns the fitted texts that contain the token at position `column`, once per occurrence.
    pub fn texts_with(&self, column: usize) -> &[u32] {
        slice(&self.texts, &self.token_starts, column)
    }

    pub fn is_held_out(&self, index: usize) -> bool {
        self.held_out.get(index).copied().unwrap_or(false)
    }

    pub fn held_out(&self) -> usize {
        self.held_out.iter().filter(|held_out| **held_out).count()
    }

    /// Builds the counts from the token IDs of all texts, one text after another. `rows` is larger than every ID.
    fn of(ids: &[u32], starts: Vec<usize>, held_out: Vec<bool>, rows: usize) -> Self {
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
        let mut counts = Self { tokens, starts, columns, token_starts: Vec::new(), texts: Vec::new(), held_out };
        counts.transpose();
        counts
    }

    fn transpose(&mut self) {
        let fitted = |index: &usize| !self.is_held_out(*index);
        let mut ends = vec![0usize; self.tokens.len() + 1];
        for &column in (0..self.len()).filter(fitted).flat_map(|index| self.text(index)) {
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
        for index in (0..self.len()).filter(fitted) {
            for &column in self.text(index) {
                let Some(next) = next.get_mut(column as usize) else { continue };
                if let Some(text) = texts.get_mut(*next) {
                    *text = u32::try_from(index).unwrap_or(u32::MAX);
                }
                *next += 1;
            }
        }
        (self.token_starts, self.texts) = (ends, texts);
    }
}

fn slice<'a>(all: &'a [u32], starts: &[usize], index: usize) -> &'a [u32] {
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
    let (mut files, mut without_tokens, mut number) = (Vec::new(), 0, 0);
    progress.start_texts("reading the corpus", corpus::size(corpus.files));
    for path in corpus.files {
        let mut tokens = 0;
        let file = corpus::read::<FitError>(path, corpus.fields, progress, &mut |batch| {
            let encoded: Vec<Vec<u32>> = batch
                .texts
                .par_iter()
                .map(|text| encode(checkpoint, text))
                .collect::<Result<_, String>>()
                .map_err(|e| format!("holds a text that could not be tokenized: {e}"))
                .map_err(|problem| FitError::Tokenizer(Diagnostic::new(path, problem)))?;
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
    }
    progress.finish();
    let Some(spool) = spool else { return Err(corpus::without_text(&files, corpus.files, corpus.fields).into()) };
    teacher.finish()?;
    let counts = TokenCounts::of(&ids, starts, held_out, rows);
    Ok(Read { counts, vectors: spool.finish()?, files, without_tokens })
}

/// Returns the tokens of `text` that have a row and are pooled.
fn encode(checkpoint: &Checkpoint, text: &str) -> Result<Vec<u32>, String> {
    let mut ids = Vec::new();
    checkpoint.tokenizer.choice.implementation.encode(text, false, &mut ids).map_err(|error| error.to_string())?;
    ids.retain(|&id| (id as usize) < checkpoint.table.rows() && Some(id) != checkpoint.conventions.left_out);
    Ok(ids)
}

/// Tells whether a text is held out. Only the text itself decides, so the order of the corpus and its other texts do
/// not matter.
fn is_held_out(text: &str, share: f64) -> bool {
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
        let counts = TokenCounts::of(&ids, vec![0, 3, 4, 6], vec![false, true, false], 10);
        assert_eq!(counts.tokens, [0, 3, 7, 9]);
        assert_eq!((counts.text(0), counts.text(1), counts.text(2)), (&[2, 1, 1][..], &[3][..], &[2, 0][..]));
        // Text 1 is held out.
        let with: Vec<&[u32]> = (0..4).map(|column| counts.texts_with(column)).collect();
        assert_eq!(with, [&[2][..], &[0, 0], &[0, 2], &[]]);
        assert_eq!((counts.len(), counts.held_out()), (3, 1));
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
