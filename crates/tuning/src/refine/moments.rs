//! Computes the weighted mean and covariance of rows, and the principal axes of the covariance.

use faer::linalg::matmul::{matmul, triangular};
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use rayon::prelude::*;

use super::SHRINKAGE;
use super::rows::{Block, NormedRows, subtract};
use layer0::progress::Progress;

/// The number of rows that one task sums. It is fixed, so that the sum does not depend on the number of cores.
const ROWS_A_SUM: usize = 512;

/// The weighted moments: `mean = sum q_t e_t`, and the lower triangle of `covariance = sum q_t (e_t - mean)(e_t -
/// mean)^T`.
pub struct Moments {
    pub mean: Vec<f64>,
    covariance: Mat<f64>,
}

/// The principal axes in descending order of variance: column `j` of `directions` has variance `variances[j]`.
///
/// The sign of an eigenvector is arbitrary. Here the component with the largest absolute value is made positive; of
/// several equal components, the first one decides.
pub struct Axes {
    pub variances: Vec<f64>,
    pub directions: Mat<f64>,
}

impl Moments {
    /// Computes the moments in two passes over the rows. `shares` must sum to 1. Blocks are multiplied in f32 and
    /// accumulated in f64.
    pub fn of(rows: &NormedRows<'_>, shares: &[f64], progress: &dyn Progress) -> Self {
        let mean = mean(rows, shares, progress);
        let mut gram = Gram::new(rows.dimensions());
        progress.start_counted("finding the covariance", rows.len() as u64);
        for block in rows.blocks() {
            let size = block.len() as u64;
            let centred = rows.read(block, |index, row| {
                subtract(row, &mean);
                let root = shares.get(index).copied().unwrap_or(0.0).sqrt();
                for x in row {
                    *x = (f64::from(*x) * root) as f32;
                }
            });
            gram.add(&centred);
            progress.advance(size);
        }
        progress.finish();
        Self { mean, covariance: gram.sum }
    }

    pub fn is_finite(&self) -> bool {
        let dimensions = self.mean.len();
        (0..dimensions).all(|j| (j..dimensions).all(|i| self.covariance[(i, j)].is_finite()))
    }

    /// Returns the principal axes, or `None` if the decomposition does not converge.
    pub fn axes(&self) -> Option<Axes> {
        let found = self.covariance.self_adjoint_eigen(Side::Lower).ok()?;
        let dimensions = self.mean.len();
        let ascending = found.S().column_vector();
        // Rounding can turn a variance of zero into a slightly negative number.
        let variances: Vec<f64> = (0..dimensions).rev().map(|j| ascending[j].max(0.0)).collect();
        let mut directions = Mat::<f64>::zeros(dimensions, dimensions);
        for j in 0..dimensions {
            let column = found.U().col(dimensions - 1 - j);
            let largest =
                (0..dimensions).fold(0.0f64, |max, i| if column[i].abs() > max.abs() { column[i] } else { max });
            let sign = if largest < 0.0 { -1.0 } else { 1.0 };
            for i in 0..dimensions {
                directions[(i, j)] = sign * column[i];
            }
        }
        Some(Axes { variances, directions })
    }
}

/// The lower triangle of `sum X^T X` over blocks of rows. Each block is multiplied in f32 and accumulated in f64.
pub struct Gram {
    pub sum: Mat<f64>,
    product: Mat<f32>,
}

impl Gram {
    pub fn new(dimensions: usize) -> Self {
        Self { sum: Mat::zeros(dimensions, dimensions), product: Mat::zeros(dimensions, dimensions) }
    }

    pub fn add(&mut self, block: &Block) {
        let x = block.matrix();
        triangular::matmul(
            self.product.as_mut(),
            triangular::BlockStructure::TriangularLower,
            Accum::Replace,
            x.transpose(),
            triangular::BlockStructure::Rectangular,
            x,
            triangular::BlockStructure::Rectangular,
            1.0,
            Par::rayon(0),
        );
        for j in 0..self.sum.ncols() {
            for i in j..self.sum.nrows() {
                self.sum[(i, j)] += f64::from(self.product[(i, j)]);
            }
        }
    }
}

/// Returns the factor that scales each axis: `(v + 1e-3 mean(v))^(-g/2)`.
pub fn whitening(variances: &[f64], g: f64) -> Vec<f64> {
    let shrinkage = SHRINKAGE * variances.iter().sum::<f64>() / variances.len() as f64;
    // If no axis has any variance, every factor is zero.
    variances.iter().map(|v| v + shrinkage).map(|v| if v > 0.0 { v.powf(-g / 2.0) } else { 0.0 }).collect()
}

fn mean(rows: &NormedRows<'_>, shares: &[f64], progress: &dyn Progress) -> Vec<f64> {
    let dimensions = rows.dimensions();
    let mut mean = vec![0.0f64; dimensions];
    progress.start_counted("finding the centre", rows.len() as u64);
    for block in rows.blocks() {
        let size = block.len() as u64;
        let shares = shares.get(block.clone()).unwrap_or_default();
        let normed = rows.read(block, |_, _| {});
        let sums: Vec<Vec<f64>> = normed
            .numbers
            .par_chunks(ROWS_A_SUM * dimensions)
            .zip(shares.par_chunks(ROWS_A_SUM))
            .map(|(numbers, shares)| {
                let mut sum = vec![0.0f64; dimensions];
                for (row, share) in numbers.chunks(dimensions).zip(shares) {
                    for (sum, x) in sum.iter_mut().zip(row) {
                        *sum += share * f64::from(*x);
                    }
                }
                sum
            })
            .collect();
        for sum in sums {
            for (mean, sum) in mean.iter_mut().zip(sum) {
                *mean += sum;
            }
        }
        progress.advance(size);
    }
    progress.finish();
    mean
}

impl Block {
    pub fn matrix(&self) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(&self.numbers, self.numbers.len() / self.dimensions, self.dimensions)
    }
}

/// Computes `out = block * projection`, row-major.
pub fn multiply(block: &Block, projection: MatRef<'_, f32>, out: &mut [f32]) {
    let rows = block.numbers.len() / block.dimensions;
    let out = MatMut::from_row_major_slice_mut(out, rows, projection.ncols());
    matmul(out, Accum::Replace, block.matrix(), projection, 1.0, Par::rayon(0));
}
