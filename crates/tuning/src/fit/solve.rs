//! Solves many ridge regressions that share one sparse matrix, by conjugate gradients.
//!
//! Minimizing `|X D - R|^2 + lambda |D|^2` means solving `(X^T X + lambda) D = X^T R`, for each column of `R`
//! separately (Hestenes and Stiefel 1952, <https://doi.org/10.6028/jres.049.044>). A row of `X` is the weighted token
//! counts of a text times the scale of the text. All cores work on the same panel of columns. Every sum is added in a fixed
//! order, so the result does not depend on the number of cores.

use rayon::prelude::*;

use super::texts::{Occurrences, TokenCounts};

/// The number of columns that are solved at once. The numbers of one token then fill two cache lines.
pub const PANEL: usize = 32;
/// The number of rows in a partial sum.
const ROWS_A_SUM: usize = 4096;
/// The reduction of the squared residual at which a column counts as solved.
const SOLVED: f64 = 1e-12;

/// One row of a panel.
pub type Lane = [f32; PANEL];
const ZERO: Lane = [0.0; PANEL];

/// The matrix `X`. Row `i` is the counts of text `i` times `scales[i]`.
pub struct Matrix<'a> {
    pub counts: &'a TokenCounts,
    pub scales: &'a [f32],
}

impl Matrix<'_> {
    /// Returns `X^T residual`, one row per token. Only the texts that are fitted to contribute; `residual(i)` is the
    /// residual of text `i`.
    pub fn transposed(&self, residual: impl Fn(usize) -> Lane + Sync) -> Vec<Lane> {
        let scaled = self.for_each_text(|index, scale| residual(index).map(|x| scale * x));
        let mut sums = vec![ZERO; self.counts.tokens.len()];
        self.gather(&scaled, &mut sums);
        sums
    }

    /// Returns `X panel` for text `index`.
    pub fn predict(&self, panel: &[Lane], index: usize) -> Lane {
        let scale = self.scales.get(index).copied().unwrap_or_default();
        sum(panel, self.counts.text(index)).map(|x| scale * x)
    }

    fn for_each_text(&self, row: impl Fn(usize, f32) -> Lane + Sync) -> Vec<Lane> {
        (0..self.counts.len())
            .into_par_iter()
            .map(|index| row(index, self.scales.get(index).copied().unwrap_or_default()))
            .collect()
    }

    /// Computes `out[t] = sum of rows[i]` over the texts `i` that contain token `t`.
    fn gather(&self, rows: &[Lane], out: &mut [Lane]) {
        out.par_iter_mut().enumerate().for_each(|(token, out)| *out = sum(rows, self.counts.texts_with(token)));
    }

    /// Returns `(X^T X + lambda)^-1 right`, approximated by at most `steps` steps that start from zero. Only the texts
    /// that are fitted to contribute to `X`.
    pub fn solve(&self, right: &[Lane], lambda: f32, steps: usize) -> Vec<Lane> {
        let mut found = vec![ZERO; right.len()];
        let mut residual = right.to_vec();
        let mut direction = right.to_vec();
        let mut product = vec![ZERO; right.len()];
        let mut square = dots(&residual, &residual);
        let first = square;
        for _ in 0..steps {
            if square.iter().zip(&first).all(|(now, first)| *now <= SOLVED * first) {
                break;
            }
            let texts =
                self.for_each_text(|index, scale| sum(&direction, self.counts.text(index)).map(|x| scale * scale * x));
            self.gather(&texts, &mut product);
            product
                .par_iter_mut()
                .zip(&direction)
                .for_each(|(product, direction)| add(product, direction, &[lambda; PANEL]));
            let curvature = dots(&direction, &product);
            let alpha = ratios(&square, &curvature);
            found.par_iter_mut().zip(&direction).for_each(|(found, direction)| add(found, direction, &alpha));
            residual
                .par_iter_mut()
                .zip(&product)
                .for_each(|(residual, product)| add(residual, product, &alpha.map(|x| -x)));
            let next = dots(&residual, &residual);
            let beta = ratios(&next, &square);
            direction.par_iter_mut().zip(&residual).for_each(|(direction, residual)| {
                for ((direction, residual), beta) in direction.iter_mut().zip(residual).zip(&beta) {
                    *direction = residual + beta * *direction;
                }
            });
            square = next;
        }
        found
    }
}

fn sum(rows: &[Lane], occurrences: Occurrences<'_>) -> Lane {
    let mut sum = ZERO;
    for (row, weight) in occurrences.iter().filter_map(|(index, weight)| Some((rows.get(index as usize)?, weight))) {
        for (sum, x) in sum.iter_mut().zip(row) {
            *sum += weight * x;
        }
    }
    sum
}

/// Computes `to += factors * from`, column by column.
fn add(to: &mut Lane, from: &Lane, factors: &[f32; PANEL]) {
    for ((to, from), factor) in to.iter_mut().zip(from).zip(factors) {
        *to += factor * from;
    }
}

/// Returns the dot product of each column of `a` with the same column of `b`.
fn dots(a: &[Lane], b: &[Lane]) -> [f64; PANEL] {
    let partial = |(a, b): (&[Lane], &[Lane])| {
        let mut sums = [0.0f64; PANEL];
        for (a, b) in a.iter().zip(b) {
            for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                *sum += f64::from(*a) * f64::from(*b);
            }
        }
        sums
    };
    let partials: Vec<[f64; PANEL]> = a.par_chunks(ROWS_A_SUM).zip(b.par_chunks(ROWS_A_SUM)).map(partial).collect();
    let mut total = [0.0f64; PANEL];
    for partial in partials {
        for (total, x) in total.iter_mut().zip(partial) {
            *total += x;
        }
    }
    total
}

/// Returns `over / under` for each column. The ratio is zero where `under` is zero, so a column that is already solved,
/// or zero from the start, stays unchanged.
fn ratios(over: &[f64; PANEL], under: &[f64; PANEL]) -> [f32; PANEL] {
    let mut ratios = [0.0; PANEL];
    for ((ratio, over), under) in ratios.iter_mut().zip(over).zip(under) {
        *ratio = if *under > 0.0 { (over / under) as f32 } else { 0.0 };
    }
    ratios
}
