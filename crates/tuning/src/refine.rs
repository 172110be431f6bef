//! Improves the rows of an embedding table without training: token weights, a frequency-weighted mean, and whitening.
//!
//! All of these steps are linear in a row. They therefore combine to one new row per token, and serving remains one
//! gather and one sum:
//!
//! ```text
//! e_t = E_t / sqrt(mean(E_t^2) + eps)                 the RMS norm without its weight
//! w_t = a / (a + p_t)                                 SIF, Arora et al. 2017, https://openreview.net/forum?id=SyK00v5xx
//! q_t ~ (p_t + 1e-9) * w_t, sum 1                     the expected share of a token in a text
//! mu  = sum q_t e_t
//! C   = sum q_t (e_t - mu)(e_t - mu)^T = U diag(v) U^T, v descending
//! F_t = w_t * (e_t - mu) U[:, :k] diag(v + 1e-3 * mean(v))^(-g/2)
//! ```
//!
//! `p_t` is the probability of token `t` in natural text, from [`frequency`]. The vector of a text is the sum of the
//! rows of `F` of its tokens without special tokens, scaled to length 1. The columns are ordered by `v`, so the first
//! columns of a vector are its best shortened form.

pub mod frequency;
pub(crate) mod moments;
pub(crate) mod rows;
pub mod write;

use std::io;

use faer::Mat;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::RefineError;
use frequency::Frequencies;
use layer0::checkpoint::Checkpoint;
use layer0::norm::NormKind;
use layer0::progress::Progress;
use layer0_files::Diagnostic;
use moments::Moments;
use rows::NormedRows;

/// The addend of the variances before the whitening, as a share of their mean. It keeps the whitening from amplifying
/// directions that have almost no variance.
pub const SHRINKAGE: f64 = 1e-3;
/// The addend of each probability in `q`. It gives a share to tokens that do not occur in the text.
const UNSEEN: f64 = 1e-9;
/// The epsilon for rows of a checkpoint that has no RMS norm.
const DEFAULT_EPS: f64 = 1e-6;

/// The options of a refinement. `Default` is the recipe of docs/refine.md.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// The parameter `a` of SIF. With `None`, it is the result of [`default_a`].
    pub a: Option<f64>,
    /// The exponent `g` of the whitening: 0 keeps the variances, 1 makes them equal.
    pub whitening: f64,
    /// The number of columns to keep. With `None`, all columns are kept.
    pub dimensions: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { a: None, whitening: 1.0, dimensions: None }
    }
}

/// The parameters that a refinement used. They become part of the config.json of the output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Parameters {
    /// The constant in the weight `a / (a + p)` of a token with the probability `p`.
    pub a: f64,
    /// The exponent of the whitening: see [`Options::whitening`].
    pub whitening: f64,
    /// The addend of the variances, as a share of their mean.
    pub shrinkage: f64,
    /// The number that is added to the mean square of a row, as in the RMS norm of the model.
    pub eps: f64,
    /// The share of the variance that the kept columns had before the whitening.
    pub explained_variance: f64,
}

/// A fitted refinement. It computes the rows of the new table from the rows of the old one.
pub struct Refinement<'a> {
    rows: NormedRows<'a>,
    weights: Vec<f64>,
    mean: Vec<f64>,
    /// The matrix `[old dimensions, new dimensions]`.
    projection: Mat<f32>,
    parameters: Parameters,
}

impl std::fmt::Debug for Refinement<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Refinement").finish_non_exhaustive()
    }
}

/// Returns the default of SIF's `a` for a vocabulary of `rows` tokens: 1e-3 up to 50,000 rows, 3e-4 from 250,000 rows
/// on, and between them a straight line in the logarithms. A larger vocabulary spreads the same text over more tokens,
/// so each token is rarer.
pub fn default_a(rows: usize) -> f64 {
    const SMALL: f64 = 50_000.0;
    const LARGE: f64 = 250_000.0;
    let share = ((rows as f64 / SMALL).ln() / (LARGE / SMALL).ln()).clamp(0.0, 1.0);
    1e-3 * 0.3f64.powf(share)
}

/// The rows of a new table, which are computed on demand.
pub trait Rows {
    /// Returns the number of rows. It is that of the old table.
    fn rows(&self) -> usize;

    /// Returns the number of columns of the new table.
    fn dimensions(&self) -> usize;

    /// Calls `take(first row, block)` for all rows in order, one block at a time. A block is row-major and holds a
    /// number of rows times `dimensions` numbers.
    ///
    /// # Errors
    /// Returns the first error of `take`.
    fn for_each_block(&self, take: &mut dyn FnMut(usize, &[f32]) -> io::Result<()>) -> io::Result<()>;
}

impl<'a> Refinement<'a> {
    /// Fits a refinement to the rows of `checkpoint` under `frequencies`. The fit reads the table twice, and holds
    /// `dimensions^2` numbers in memory.
    ///
    /// # Errors
    /// Fails if an option is out of range, or if the table is not finite.
    pub fn fit(
        checkpoint: &'a Checkpoint,
        frequencies: &Frequencies,
        options: &Options,
        progress: &dyn Progress,
    ) -> Result<Self, RefineError> {
        let table = &checkpoint.table;
        let problem = |problem: String| Diagnostic::new(&checkpoint.path, problem);
        let a = options.a.unwrap_or_else(|| default_a(table.rows()));
        let kept = options.dimensions.unwrap_or(table.dimensions());
        if !(1..=table.dimensions()).contains(&kept) {
            let expected = format!("between 1 and {}, the columns of its table", table.dimensions());
            let problem = problem(format!("cannot be refined to {kept} dimensions"));
            return Err(RefineError::OutOfRange(problem.expected(expected)));
        }
        if !(a > 0.0 && a.is_finite()) {
            let problem = problem(format!("cannot be refined with a = {a}"));
            return Err(RefineError::OutOfRange(problem.expected("a positive number such as 1e-3")));
        }
        if !(0.0..=2.0).contains(&options.whitening) {
            let problem = problem(format!("cannot be refined with whitening = {}", options.whitening));
            return Err(RefineError::OutOfRange(problem.expected("between 0 (none) and 1 (full); at most 2")));
        }
        let eps = match checkpoint.norm.norm.kind {
            NormKind::Rms | NormKind::RmsPlusOne => checkpoint.norm.norm.eps / checkpoint.norm.embedding_scale.powi(2),
            NormKind::Layer | NormKind::LayerPlusOne | NormKind::None => DEFAULT_EPS,
        };
        let rows = NormedRows::new(table, eps);
        let weights: Vec<f64> = frequencies.probabilities().iter().map(|p| a / (a + p)).collect();
        let shares = shares(frequencies.probabilities(), &weights);
        let moments = Moments::of(&rows, &shares, progress);
        if !moments.is_finite() {
            let problem = format!("holds a number that is not finite in {}", checkpoint.table_source.name);
            let problem = Diagnostic::new(&checkpoint.table_source.path, problem);
            return Err(RefineError::NotFinite(problem.expected("a finite table")));
        }
        progress.start_counted("finding the axes", 1);
        let no_axes = || problem("has a covariance whose eigenvectors could not be found".to_owned());
        let axes = moments.axes().ok_or_else(|| RefineError::NoSolution(no_axes()))?;
        progress.finish();
        let total: f64 = axes.variances.iter().sum();
        let scales = moments::whitening(&axes.variances, options.whitening);
        let projection = Mat::from_fn(table.dimensions(), kept, |i, j| {
            (axes.directions[(i, j)] * scales.get(j).copied().unwrap_or(0.0)) as f32
        });
        let explained: f64 = axes.variances.iter().take(kept).sum();
        let parameters = Parameters {
            a,
            whitening: options.whitening,
            shrinkage: SHRINKAGE,
            eps,
            explained_variance: if total > 0.0 { explained / total } else { 1.0 },
        };
        Ok(Self { rows, weights, mean: moments.mean, projection, parameters })
    }

    /// Returns the parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Returns the entries about the refinement for the config.json of the output.
    pub fn description(&self, frequencies: &Frequencies) -> Map<String, Value> {
        [("parameters", json!(self.parameters)), ("frequencies", json!(frequencies.source()))]
            .map(|(key, value)| (key.to_owned(), value))
            .into_iter()
            .collect()
    }
}

impl Rows for Refinement<'_> {
    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn dimensions(&self) -> usize {
        self.projection.ncols()
    }

    fn for_each_block(&self, take: &mut dyn FnMut(usize, &[f32]) -> io::Result<()>) -> io::Result<()> {
        let mut out = Vec::new();
        for block in self.rows.blocks() {
            let first = block.start;
            let centred = self.rows.read(block.clone(), |_, row| rows::subtract(row, &self.mean));
            out.clear();
            out.resize(block.len() * self.dimensions(), 0.0);
            moments::multiply(&centred, self.projection.as_ref(), &mut out);
            for (row, weight) in out.chunks_mut(self.dimensions()).zip(self.weights.iter().skip(first)) {
                for x in row {
                    *x *= *weight as f32;
                }
            }
            take(first, &out)?;
        }
        Ok(())
    }
}

/// Returns `q` of the module documentation.
fn shares(probabilities: &[f64], weights: &[f64]) -> Vec<f64> {
    let shares: Vec<f64> = probabilities.iter().zip(weights).map(|(p, w)| (p + UNSEEN) * w).collect();
    let total: f64 = shares.iter().sum();
    shares.into_iter().map(|q| q / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follows_the_vocabulary() {
        assert!((default_a(49_152) - 1e-3).abs() < 1e-12);
        assert!((default_a(262_144) - 3e-4).abs() < 1e-12);
        assert!((3.1e-4..9.9e-4).contains(&default_a(128_256)));
        assert!(default_a(100_000) > default_a(128_256));
    }

    #[test]
    fn shares_sum_to_one_and_keep_unseen_tokens() {
        let p = [0.5, 0.5, 0.0];
        let q = shares(&p, &[1.0, 0.5, 1.0]);
        assert!((q.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!((q[0] / q[1] - 2.0).abs() < 1e-6 && q[2] > 0.0);
    }
}
