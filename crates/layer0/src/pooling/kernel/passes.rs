//! The operations on a finished sum: mostly loops that the compiler vectorizes for each instruction set. All versions give the
//! same bits.

use super::floats::Lanes;
use super::signs::add_signs;

/// The loops, compiled for one instruction set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passes {
    /// Reorders blocks of even columns followed by odd columns to the order of the columns.
    pub order: fn(&mut [f32]),
    pub weigh: fn(&mut [f32], &[f32], f32),
    pub squares: fn(&[f32]) -> f64,
    pub scale: fn(&mut [f32], f32),
    pub add_signs: fn(&[u32], &[f32], &mut [f32]),
    pub similarities: fn(&[f32], &Similarity<'_>, &mut [f32]) -> bool,
    pub add_rows: fn(&[u32], &[Lanes], &mut [Lanes]),
}

/// How the products of a row become similarities.
#[derive(Debug, Clone, Copy)]
pub struct Similarity<'a> {
    /// The factors whose product with a row's product is the cosine: that of the row, and that of each other row.
    pub factor: f32,
    pub factors: &'a [f32],
    /// Cosines up to the threshold become 0. Above it, a similarity grows by `slope` times the cosine.
    pub threshold: f32,
    pub slope: f32,
}

pub(super) const PORTABLE: Passes = Passes { order: |_| {}, weigh, squares, scale, add_signs, similarities, add_rows };

/// Multiplies by the weights and by `share`.
#[inline(always)]
pub(super) fn weigh(sums: &mut [f32], weights: &[f32], share: f32) {
    for (x, weight) in sums.iter_mut().zip(weights) {
        *x *= weight * share;
    }
}

/// Returns the sum of squares. Four squares at a time are added in f32, with an error of at most 1e-7 of the sum, and these sums
/// are added in f64.
#[inline(always)]
pub(super) fn squares(numbers: &[f32]) -> f64 {
    let (blocks, rest) = numbers.as_chunks::<64>();
    let mut total = [0.0f64; 16];
    for block in blocks {
        let mut lanes = [0.0f32; 16];
        for numbers in block.as_chunks::<16>().0 {
            for (lane, x) in lanes.iter_mut().zip(numbers) {
                *lane += x * x;
            }
        }
        for (total, lane) in total.iter_mut().zip(lanes) {
            *total += f64::from(lane);
        }
    }
    total.iter().sum::<f64>() + rest.iter().map(|x| f64::from(x * x)).sum::<f64>()
}

#[inline(always)]
pub(super) fn scale(numbers: &mut [f32], factor: f32) {
    for x in numbers {
        *x *= factor;
    }
}

/// Writes `slope * max(0, cosine - threshold)` for the products of one row. Returns whether any of the numbers is above 0.
#[inline(always)]
pub(super) fn similarities(products: &[f32], by: &Similarity<'_>, out: &mut [f32]) -> bool {
    let mut sums = [0.0f32; 16];
    let lanes = products.as_chunks::<16>().0.iter().zip(by.factors.as_chunks::<16>().0);
    for (out, (products, factors)) in out.as_chunks_mut::<16>().0.iter_mut().zip(lanes) {
        for ((out, sum), (&product, factor)) in out.iter_mut().zip(&mut sums).zip(products.iter().zip(factors)) {
            *out = by.slope * (product * by.factor * factor - by.threshold).max(0.0);
            *sum += *out;
        }
    }
    sums.iter().any(|sum| *sum > 0.0)
}

/// Adds the rows with these indices to `sums`, in order. A row has as many [`Lanes`] as there are sums, and an index past the rows adds
/// nothing.
#[inline(always)]
pub(super) fn add_rows(indices: &[u32], rows: &[Lanes], sums: &mut [Lanes]) {
    // The sums of a fixed number of lanes stay in registers.
    match sums {
        [sum] => add_fixed_rows(indices, rows, std::array::from_mut(sum)),
        [_, _] => {
            if let Some(sums) = sums.first_chunk_mut::<2>() {
                add_fixed_rows(indices, rows, sums);
            }
        }
        _ => {
            for &index in indices {
                let row = rows.chunks_exact(sums.len().max(1)).nth(index as usize).unwrap_or_default();
                for (sum, row) in sums.iter_mut().zip(row) {
                    add(sum, row);
                }
            }
        }
    }
}

#[inline(always)]
fn add_fixed_rows<const BLOCKS: usize>(indices: &[u32], rows: &[Lanes], sums: &mut [Lanes; BLOCKS]) {
    let (rows, _) = rows.as_chunks::<BLOCKS>();
    let mut total = *sums;
    for &index in indices {
        if let Some(row) = rows.get(index as usize) {
            for (sum, row) in total.iter_mut().zip(row) {
                add(sum, row);
            }
        }
    }
    *sums = total;
}

#[inline(always)]
fn add(sum: &mut Lanes, row: &Lanes) {
    for (sum, x) in sum.iter_mut().zip(row) {
        *sum += x;
    }
}
