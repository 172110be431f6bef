//! Reads and tokenizes all pairs once, and returns them in random or in stored order.

use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use super::masks::digest;
use super::pairs::{self, Pair, PairFile, PairFiles};
use super::schedule::{self, Groups};
use super::store::{Store, Stored, TokenPair, Writer};
use crate::corpus;
use crate::error::FitError;
use crate::fit::texts::{encode, is_held_out};
use layer0::checkpoint::Checkpoint;
use layer0::progress::Progress;
use layer0_files::Diagnostic;

/// The smallest number of pairs that can be contrasted with each other.
pub const COMPARABLE: usize = 2;

/// The pairs of all files, as tokens.
#[derive(Debug)]
pub struct Data {
    pub files: Vec<PairFile>,
    pub training: Store,
    pub held_out: Store,
    /// The pairs of each file in `training`.
    pub groups: Vec<Range<usize>>,
    /// The pairs of each file in `held_out`.
    pub held_out_groups: Vec<Range<usize>>,
    /// For each row of the checkpoint's table, whether a pair has its token.
    pub seen: Vec<bool>,
    pub chances: Groups,
}

impl Data {
    /// Reads all files. The tokens are kept in unnamed files in the directory `scratch`.
    ///
    /// # Errors
    /// Fails if a file cannot be read, if the tokenizer refuses a text, or if no file has two pairs to train on.
    pub fn read(
        checkpoint: &Checkpoint,
        files: &PairFiles<'_>,
        scratch: &Path,
        progress: &dyn Progress,
    ) -> Result<Self, FitError> {
        let (mut training, mut held_out) = (Writer::new(scratch)?, Writer::new(scratch)?);
        let mut seen = vec![false; checkpoint.table.rows()];
        let (mut read, mut groups, mut held_out_groups) = (Vec::new(), Vec::new(), Vec::new());
        progress.start_texts("reading the pairs", corpus::size(files.files));
        for (number, path) in files.files.iter().enumerate() {
            let starts = (training.len(), held_out.len());
            let (mut tokens, mut without_tokens) = (0, 0);
            let file = pairs::read(path, files, progress, &mut |batch| {
                let encoded: Vec<(TokenPair, bool)> = batch
                    .pairs
                    .par_iter()
                    .map(|pair| encode_pair(checkpoint, path, pair, files.held_out))
                    .collect::<Result<_, FitError>>()?;
                progress.advance_texts(2 * batch.pairs.len() as u64, batch.bytes);
                for (pair, is_held_out) in encoded {
                    if pair.sides.iter().any(Vec::is_empty) {
                        without_tokens += 1;
                        continue;
                    }
                    for &id in pair.sides.iter().flatten() {
                        tokens += 1;
                        if let Some(seen) = seen.get_mut(id as usize) {
                            *seen = true;
                        }
                    }
                    if is_held_out { held_out.push(&pair)? } else { training.push(&pair)? }
                }
                Ok(())
            })?;
            let (in_training, in_held_out) = (starts.0..training.len(), starts.1..held_out.len());
            let pairs = in_training.len() + in_held_out.len();
            if in_training.len() < COMPARABLE {
                let problem = format!("has {} to train on", layer0::progress::counted(in_training.len(), "pair"));
                let problem = Diagnostic::new(path, problem).expected("at least 2, because pairs are compared");
                progress.note(&format!("{problem}; the file is left out"));
            }
            let weight = files.weights.get(number).copied().unwrap_or(1.0);
            let (pairs, held_out) = (pairs as u64, in_held_out.len() as u64);
            read.push(PairFile { weight, pairs, held_out, tokens, without_tokens, ..file });
            groups.push(in_training);
            held_out_groups.push(in_held_out);
        }
        progress.finish();
        let chance = |(group, file): (&Range<usize>, &PairFile)| {
            (group.len() >= COMPARABLE).then_some((group.len(), file.weight))
        };
        let chances = Groups::new(groups.iter().zip(&read).map(chance));
        if chances.is_empty() {
            let first = files.files.first().cloned().unwrap_or_else(|| "the pairs".into());
            let problem = Diagnostic::new(first, "leaves no pairs to train on");
            return Err(FitError::NothingToFit(problem.expected("a file with at least 2 pairs whose sides are text")));
        }
        let (training, held_out) = (training.finish()?, held_out.finish()?);
        Ok(Self { files: read, training, held_out, groups, held_out_groups, seen, chances })
    }

    /// Returns the next pairs of a group, up to `size`, after `drawn` pairs of the group were drawn.
    pub fn draw(&self, seed: u64, group: usize, drawn: u64, size: usize) -> Vec<Stored<'_>> {
        let range = self.groups.get(group).cloned().unwrap_or_default();
        let size = size.min(range.len()) as u64;
        (drawn..drawn + size)
            .filter_map(|drawn| self.training.pair(range.start + schedule::item(seed, group, drawn, range.len())))
            .collect()
    }
}

fn encode_pair(
    checkpoint: &Checkpoint,
    path: &Path,
    pair: &Pair,
    held_out: f64,
) -> Result<(TokenPair, bool), FitError> {
    let side = |text: &str| {
        let mut ids = encode(checkpoint, path, text)?;
        ids.sort_unstable();
        Ok::<_, FitError>(ids)
    };
    let sides = [side(&pair.anchor)?, side(&pair.positive)?];
    let digests = [digest(&pair.anchor), digest(&pair.positive)];
    Ok((TokenPair { sides, digests }, is_held_out(&pair.anchor, held_out)))
}
