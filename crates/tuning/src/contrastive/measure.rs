//! Measures a table on pairs that are held out of the training.

use std::ops::Range;

use serde::Serialize;

use super::batch::{Texts, Vectors};
use super::data::{COMPARABLE, Data};
use super::losses::{self, Scratch};
use super::masks;
use super::products::{matrix, multiply};
use super::store::Stored;
use super::table::Table;

/// The largest number of held-out pairs that are measured, over all files. This many pairs determine two digits.
const MEASURED: usize = 20_000;

/// The measures of a table on held-out pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Measured {
    /// The number of pairs.
    pub pairs: usize,
    /// The share of texts whose nearest text among the other sides of its batch is that of its own pair, over both
    /// directions.
    pub accuracy: f64,
    /// The contrastive loss.
    pub loss: f64,
}

/// The measures before and after a training, on the same pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Report {
    /// The number of pairs.
    pub pairs: usize,
    /// The accuracy of the starting table: see [`Measured::accuracy`].
    pub accuracy_before: f64,
    /// The accuracy of the trained table.
    pub accuracy_after: f64,
    /// The contrastive loss of the starting table.
    pub loss_before: f64,
    /// The contrastive loss of the trained table.
    pub loss_after: f64,
}

impl Report {
    pub(super) fn new(before: Measured, after: Measured) -> Self {
        Self {
            pairs: before.pairs,
            accuracy_before: before.accuracy,
            accuracy_after: after.accuracy,
            loss_before: before.loss,
            loss_after: after.loss,
        }
    }

    /// Returns whether fewer texts find their pair after the training than before it, by a difference that four digits
    /// show.
    pub fn is_worse(&self) -> bool {
        self.accuracy_before - self.accuracy_after > 5e-5
    }
}

impl Measured {
    /// Returns the mean over measures, weighted by their pairs.
    pub fn mean(measures: &[Self]) -> Option<Self> {
        let pairs: usize = measures.iter().map(|measured| measured.pairs).sum();
        let share = |measured: &Self| measured.pairs as f64 / pairs as f64;
        (pairs > 0).then(|| Self {
            pairs,
            accuracy: measures.iter().map(|measured| share(measured) * measured.accuracy).sum(),
            loss: measures.iter().map(|measured| share(measured) * measured.loss).sum(),
        })
    }
}

/// How texts become vectors, and how vectors are compared.
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    pub positions: &'a [u32],
    pub exponent: f32,
    pub batch: usize,
    pub scale: f32,
}

/// Measures `table` on the held-out pairs of each file.
pub fn measure(data: &Data, table: &Table, comparison: Comparison<'_>) -> Vec<Measured> {
    let most = (MEASURED / data.held_out_groups.len().max(1)).max(comparison.batch);
    data.held_out_groups
        .iter()
        .map(|group| {
            let group = group.start..group.end.min(group.start + most);
            let batches: Vec<Measured> =
                batches(group, comparison.batch).map(|batch| measure_batch(data, table, comparison, batch)).collect();
            Measured::mean(&batches).unwrap_or_default()
        })
        .collect()
}

/// Splits a range into the fewest parts of at most `size`, of almost the same length. A part is empty if it would be a
/// single pair, which has nothing to be compared with.
fn batches(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = range.len().div_ceil(size.max(1));
    let edge = move |part: usize| range.start + range.len() * part / parts.max(1);
    (0..parts).map(move |part| edge(part)..edge(part + 1)).filter(|batch| batch.len() >= COMPARABLE)
}

fn measure_batch(data: &Data, table: &Table, comparison: Comparison<'_>, batch: Range<usize>) -> Measured {
    let pairs: Vec<Stored<'_>> = batch.filter_map(|index| data.held_out.pair(index)).collect();
    let count = pairs.len();
    let mut texts = Texts::new();
    push_sides(&mut texts, &pairs, comparison.positions, comparison.exponent);
    let mut vectors = Vectors::default();
    texts.vectors(0..2 * count, table.dimensions, |sum, entry| table.add(sum, entry), &mut vectors);
    let digests: Vec<[u64; 2]> = pairs.iter().map(|pair| pair.1).collect();
    let masked = masks::shared(&digests);
    let (anchors, positives) = (vectors.range(0..count), vectors.range(count..2 * count));
    let dimensions = table.dimensions;
    let mut logits = vec![0.0f32; count * count];
    multiply(&mut logits, matrix(anchors, dimensions), matrix(positives, dimensions).transpose(), 1.0);
    for &(i, j) in &masked {
        if let Some(logit) = logits.get_mut(i as usize * count + j as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    let own: Vec<f32> = logits.iter().step_by(count + 1).copied().collect();
    // A text is found if its similarity to its pair is higher than all others in the row, or in the column.
    let (mut by_row, mut by_column) = (vec![true; count], vec![true; count]);
    for ((index, row), (found, matched)) in logits.chunks(count).enumerate().zip(by_row.iter_mut().zip(&own)) {
        let columns = row.iter().zip(&own).zip(&mut by_column).enumerate();
        for (_, ((logit, own), in_column)) in columns.filter(|(other, _)| *other != index) {
            *found &= logit < matched;
            *in_column &= logit < own;
        }
    }
    let right = by_row.iter().chain(&by_column).filter(|found| **found).count();
    let (mut a, mut p) = (vec![0.0; anchors.len()], vec![0.0; positives.len()]);
    let pairs = losses::Pairs { anchors, positives, dimensions, masked: &masked };
    let mut gradients = losses::PairGradients { anchors: &mut a, positives: &mut p };
    let loss = losses::contrast(pairs, comparison.scale, &mut gradients, &mut Scratch::default());
    Measured { pairs: count, accuracy: right as f64 / (2 * count).max(1) as f64, loss }
}

/// Appends the anchors of `pairs`, and then the positives. `positions` maps the rows of the checkpoint to trained rows.
pub fn push_sides(texts: &mut Texts, pairs: &[Stored<'_>], positions: &[u32], exponent: f32) {
    let row = |id: &[u8; 4]| positions.get(u32::from_le_bytes(*id) as usize).copied();
    for ([anchor, _], _) in pairs {
        texts.push(anchor.iter().filter_map(row), exponent);
    }
    for ([_, positive], _) in pairs {
        texts.push(positive.iter().filter_map(row), exponent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_cover_all_pairs_in_parts_of_almost_the_same_length() {
        let of = |range: Range<usize>, size| batches(range, size).collect::<Vec<_>>();
        assert_eq!(of(3..10, 4), [3..6, 6..10]);
        assert_eq!(of(0..8, 4), [0..4, 4..8]);
        assert_eq!((of(5..6, 4), of(5..5, 4)), (vec![], vec![]));
    }
}
