//! Fits an embedding table to a teacher: finds rows whose sums approximate the vectors of a sentence encoder, in closed
//! form.
//!
//! ```text
//! F0  the checkpoint's rows [V x d0], scaled to a mean square of 1 over the tokens that occur in the corpus
//! X   the texts' token counts to the power p [N x V], each row scaled so that its prediction X F0 has length 1
//! Y   the teacher's vectors [N x d] of length 1;  U diag(v) U^T is their covariance, v in descending order
//! Z   unit( (Y - mean) U[:, :k] diag(v + 1e-3 * mean(v))^(-gamma/2) )
//! M   argmin |X F0 M - Z|^2 + 1e-3 (N / d0) |M|^2         one linear map
//! D   argmin |X (F0 M + D) - Z|^2 + lambda |D|^2          conjugate gradients; zero for tokens that the corpus lacks
//! F   F0 M + D
//! ```
//!
//! `p` is the checkpoint's exponent of token counts, which is 1 for most. The fitted table keeps it.
//!
//! As in `refine`, the vector of a text is the sum of the rows of `F` of its tokens, scaled to length 1, and the
//! columns are ordered by `v`.
//!
//! A share of the texts is held out of the fit. The held-out texts serve to choose `lambda`, and to measure how close
//! the fitted table comes to the teacher.
//!
//! Memory holds the new rows of the tokens that occur in the corpus (`4 k` bytes each), 8 bytes per token of the
//! corpus, `d0^2 + d^2` numbers, and panels of 32 columns (128 bytes per text, and 640 bytes per token that occurs).
//! The vectors of the texts are on disk (`4 (d + k)` bytes per text).

pub mod cache;
mod measure;
mod solve;
mod source;
pub(crate) mod spool;
mod target;
pub mod teacher;
mod teacher_texts;
pub(crate) mod texts;
pub mod vectors;

use std::io;
use std::iter::StepBy;
use std::ops::Range;
use std::path::Path;

use faer::linalg::matmul::matmul;
use faer::linalg::solvers::Solve;
use faer::{Accum, Mat, Par, Side};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::corpus::CorpusFile;
use crate::error::FitError;
use crate::refine::Rows;
use crate::refine::moments::{self, Gram};
use crate::refine::rows::Block;
use layer0::checkpoint::Checkpoint;
use layer0::progress::Progress;
use layer0_files::Diagnostic;
pub use measure::{Loss, Report};
use solve::{Lane, Matrix, PANEL};
use source::Source;
pub use source::Unfitted;
use spool::Spooled;
pub use teacher_texts::TeacherTexts;
pub use texts::Corpus;
use texts::TokenCounts;
use vectors::Vectors;

/// The ridge of `M`, as a share of the mean square of a column of `X F0`.
const RIDGE: f64 = 1e-3;
/// The values from which `lambda` is chosen.
const LAMBDAS: [f32; 5] = [3e-3, 1e-2, 3e-2, 1e-1, 3e-1];
/// The distance between the panels of columns on which `lambda` is chosen: every fourth panel is used, which saves
/// time.
const PANELS_APART: usize = 4;
/// The number of held-out texts that suffices to choose `lambda`.
const ENOUGH: usize = 20;
/// The number of rows or texts in one block of a matrix product.
const ROWS_AT_A_TIME: usize = 4096;

/// The options of a fit. `Default` is the recipe of docs/fit.md.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// The degree to which the variances of the teacher's vectors are equalized, from 0 (not at all) to 1 (entirely).
    pub gamma: f64,
    /// The ridge of the rows. With `None`, the fit takes the value of `LAMBDAS` whose vectors of the held-out texts
    /// come closest to the teacher's.
    pub lambda: Option<f32>,
    /// The largest number of steps of conjugate gradients.
    pub steps: usize,
    /// The number of columns of the result, `k`. With `None`, it is that of the checkpoint, or that of the teacher if
    /// the teacher has fewer.
    pub dimensions: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { gamma: 0.75, lambda: None, steps: 50, dimensions: None }
    }
}

/// The record of a completed fit. It becomes part of the config.json of the output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The description of the teacher.
    pub teacher: Value,
    /// The number of dimensions of the teacher's vectors.
    pub teacher_dimensions: usize,
    /// The exponent of the weights: see [`Options::gamma`].
    pub gamma: f64,
    /// The weight of the old rows: see [`Options::lambda`].
    pub lambda: f32,
    /// Whether `lambda` was chosen on the held-out texts.
    pub lambda_chosen: bool,
    /// The number of steps of the solver.
    pub steps: usize,
    /// The files of the corpus.
    pub files: Vec<CorpusFile>,
    /// The number of texts that the table was fitted to.
    pub texts: usize,
    /// The number of texts of which no token has a row.
    pub without_tokens: u64,
    /// The number of distinct tokens in the corpus.
    pub tokens_seen: usize,
    /// The measures on held-out texts, if there were any.
    pub held_out: Option<Report>,
}

/// Returns a problem of the corpus.
fn few(corpus: &Corpus<'_>, problem: String) -> Diagnostic {
    Diagnostic::new(corpus.files.first().cloned().unwrap_or_default(), problem)
}

/// The table that a fit has found.
#[derive(Debug)]
pub struct Fitted<'a> {
    source: Source<'a>,
    map: Mat<f32>,
    /// The texts that the table was fitted to. `rows` holds the new rows of their tokens.
    texts: TeacherTexts,
    rows: Vec<f32>,
    summary: Summary,
}

/// Fits the table of `checkpoint` to the vectors that `teacher` has for the texts of `corpus`. The vectors are kept in
/// temporary files in the directory `scratch` during the fit.
///
/// # Errors
/// Fails if an option is out of range, if the corpus or the vectors cannot be read, or if the table is not finite.
pub fn fit<'a>(
    checkpoint: &'a Checkpoint,
    corpus: &Corpus<'_>,
    teacher: &mut dyn Vectors,
    options: &Options,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<Fitted<'a>, FitError> {
    check(checkpoint, corpus, options)?;
    let mut source = Source::new(checkpoint)?;
    let texts =
        TeacherTexts::read(checkpoint, corpus, teacher, (options.gamma, options.dimensions), scratch, progress)?;
    let TeacherTexts { counts, target, vectors, .. } = &texts;
    let held_out = counts.held_out();
    if options.lambda.is_none() && held_out < ENOUGH {
        let problem = few(corpus, format!("leaves {held_out} texts to choose lambda on"));
        return Err(FitError::TooFewHeldOut(problem.expected(format!("at least {ENOUGH}"))));
    }
    let dimensions = target.table.dimensions();
    source.scale = unit_scale(&source, &counts.tokens);
    let (map, scales) = linear_map(&source, counts, target, progress)
        .ok_or_else(|| FitError::NoSolution(few(corpus, "gives a linear map that could not be found".to_owned())))?;
    let mut rows = mapped(&source, &counts.tokens, &map);

    let before = measure::measure(&source, counts, &rows, target, vectors);
    let matrix = Matrix { counts, scales: &scales };
    let problem = Problem { matrix: &matrix, target, dimensions, steps: options.steps };
    let lambda = match options.lambda {
        Some(lambda) => lambda,
        None => problem.best_lambda(&rows, progress),
    };
    problem.solve(&mut rows, lambda, progress);
    let held_out = before.map(|before| before.and_after(measure::measure(&source, counts, &rows, target, vectors)));

    let summary = Summary {
        teacher: texts.description.clone(),
        teacher_dimensions: vectors.table.dimensions(),
        gamma: options.gamma,
        lambda,
        lambda_chosen: options.lambda.is_none(),
        steps: options.steps,
        files: texts.files.clone(),
        texts: counts.len() - counts.held_out(),
        without_tokens: texts.without_tokens,
        tokens_seen: counts.tokens.len(),
        held_out,
    };
    Ok(Fitted { source, map, texts, rows, summary })
}

fn check(checkpoint: &Checkpoint, corpus: &Corpus<'_>, options: &Options) -> Result<(), FitError> {
    let wrong = |problem: String, expected: &str| {
        Err(FitError::OutOfRange(Diagnostic::new(&checkpoint.path, problem).expected(expected)))
    };
    if !(0.0..=2.0).contains(&options.gamma) {
        return wrong(format!("cannot be fitted with gamma = {}", options.gamma), "between 0 and 1; at most 2");
    }
    if options.lambda.is_some_and(|lambda| !(lambda > 0.0 && lambda.is_finite())) {
        return wrong("cannot be fitted with that lambda".to_owned(), "a positive number such as 0.02");
    }
    if !(0.0..=0.5).contains(&corpus.held_out) {
        return wrong(format!("cannot be fitted with a held-out share of {}", corpus.held_out), "between 0 and 0.5");
    }
    if options.dimensions == Some(0) {
        return wrong("cannot be fitted to 0 dimensions".to_owned(), "at least 1");
    }
    Ok(())
}

/// Returns the factor that scales the rows of `tokens` to a mean square of 1.
fn unit_scale(source: &Source<'_>, tokens: &[u32]) -> f32 {
    let (mut squares, mut numbers) = (0.0f64, 0usize);
    for tokens in tokens.chunks(ROWS_AT_A_TIME) {
        let block = source.rows(tokens.par_iter().copied());
        squares += block.numbers.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        numbers += block.numbers.len();
    }
    let scale = (squares / numbers.max(1) as f64).sqrt().recip();
    if scale.is_finite() { scale as f32 } else { 1.0 }
}

/// Returns the linear map `M`, and the scale of the token counts of each text: `1 / |sum F0|`, or zero if that sum has
/// no direction. Returns `None` if the equations for `M` cannot be solved.
fn linear_map(
    source: &Source<'_>,
    counts: &TokenCounts,
    target: &Spooled,
    progress: &dyn Progress,
) -> Option<(Mat<f32>, Vec<f32>)> {
    let (from, to) = (source.dimensions(), target.table.dimensions());
    let mut gram = Gram::new(from);
    let mut cross = Mat::<f64>::zeros(from, to);
    let mut product = Mat::<f32>::zeros(from, to);
    let mut scales = Vec::with_capacity(counts.len());
    progress.start_counted("finding the linear map", counts.len() as u64);
    for texts in blocks(counts.len(), ROWS_AT_A_TIME) {
        let mut predicted = vec![0.0; texts.len() * from];
        let found: Vec<f32> = predicted
            .par_chunks_mut(from)
            .zip(texts.clone())
            .map(|(row, text)| {
                let ids: Vec<u32> = counts.ids(text).collect();
                source.mean(&ids, row);
                let length = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
                // A typical row has length sqrt(d0). A sum that is far shorter than that consists of rounding errors.
                let inverse = if length > 1e-6 { length.recip() } else { 0.0 };
                // Held-out texts have a scale as well, because their predictions need one.
                let weight = if counts.is_held_out(text) { 0.0 } else { inverse };
                for x in row {
                    *x = (f64::from(*x) * weight) as f32;
                }
                (inverse / counts.text(text).total().max(1.0)) as f32
            })
            .collect();
        scales.extend(found);
        let predicted = Block { numbers: predicted, dimensions: from };
        let wanted = target.block(texts.clone());
        gram.add(&predicted);
        matmul(product.as_mut(), Accum::Replace, predicted.matrix().transpose(), wanted.matrix(), 1.0, Par::rayon(0));
        for j in 0..to {
            for i in 0..from {
                cross[(i, j)] += f64::from(product[(i, j)]);
            }
        }
        progress.advance(texts.len() as u64);
    }
    progress.finish();
    let mut gram = gram.sum;
    let trace: f64 = (0..from).map(|i| gram[(i, i)]).sum();
    let ridge = RIDGE * trace / from as f64;
    for i in 0..from {
        gram[(i, i)] += ridge.max(f64::MIN_POSITIVE);
    }
    let map = gram.llt(Side::Lower).ok()?.solve(&cross);
    Some((Mat::from_fn(from, to, |i, j| map[(i, j)] as f32), scales))
}

/// Returns `F0 M` for `tokens`, row-major.
fn mapped(source: &Source<'_>, tokens: &[u32], map: &Mat<f32>) -> Vec<f32> {
    let mut rows = vec![0.0; tokens.len() * map.ncols()];
    for (tokens, rows) in tokens.chunks(ROWS_AT_A_TIME).zip(rows.chunks_mut(ROWS_AT_A_TIME * map.ncols())) {
        moments::multiply(&source.rows(tokens.par_iter().copied()), map.as_ref(), rows);
    }
    rows
}

fn blocks(rows: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(size).map(move |first| first..rows.min(first + size))
}

/// The equations for `D`, which are solved one panel of columns at a time.
struct Problem<'a> {
    matrix: &'a Matrix<'a>,
    target: &'a Spooled,
    dimensions: usize,
    steps: usize,
}

impl Problem<'_> {
    fn panels(&self) -> StepBy<Range<usize>> {
        (0..self.dimensions).step_by(PANEL)
    }

    /// Returns the panel of `rows` that begins at column `first`.
    fn panel(&self, rows: &[f32], first: usize) -> Vec<Lane> {
        rows.par_chunks(self.dimensions).map(|row| lane(row.iter().skip(first).copied())).collect()
    }

    /// Returns the panel of the target of text `index` that begins at column `first`.
    fn wanted(&self, index: usize, first: usize) -> Lane {
        lane(self.target.row(index).skip(first))
    }

    /// Returns `X^T (Z - X panel)`, the right-hand side of the equations for `D`.
    fn right_side(&self, panel: &[Lane], first: usize) -> Vec<Lane> {
        self.matrix.transposed(|index| {
            let mut residual = self.wanted(index, first);
            for (x, predicted) in residual.iter_mut().zip(self.matrix.predict(panel, index)) {
                *x -= predicted;
            }
            residual
        })
    }

    /// Adds `D` to `rows`.
    fn solve(&self, rows: &mut [f32], lambda: f32, progress: &dyn Progress) {
        progress.start_counted("fitting the rows", self.panels().count() as u64);
        for first in self.panels() {
            let right = self.right_side(&self.panel(rows, first), first);
            let found = self.matrix.solve(&right, lambda, self.steps);
            rows.par_chunks_mut(self.dimensions).zip(&found).for_each(|(row, found)| {
                for (x, found) in row.iter_mut().skip(first).zip(found) {
                    *x += found;
                }
            });
            progress.advance(1);
        }
        progress.finish();
    }

    /// Returns the value of [`LAMBDAS`] whose predictions for the held-out texts have the largest mean cosine to their
    /// targets. To save time, only the columns of every fourth panel are compared.
    fn best_lambda(&self, rows: &[f32], progress: &dyn Progress) -> f32 {
        let counts = self.matrix.counts;
        let held_out: Vec<usize> = (0..counts.len()).filter(|&index| counts.is_held_out(index)).collect();
        let panels = self.panels().step_by(PANELS_APART);
        progress.start_counted("choosing lambda", (panels.clone().count() * LAMBDAS.len()) as u64);
        // For each lambda and text, `sums` holds the dot product of prediction and target, and the square of each.
        let mut sums = LAMBDAS.map(|lambda| (lambda, vec![[0.0f64; 3]; held_out.len()]));
        for first in panels {
            let panel = self.panel(rows, first);
            let right = self.right_side(&panel, first);
            for (lambda, sums) in &mut sums {
                let mut found = self.matrix.solve(&right, *lambda, self.steps);
                found.par_iter_mut().zip(&panel).for_each(|(found, panel)| {
                    for (x, before) in found.iter_mut().zip(panel) {
                        *x += before;
                    }
                });
                sums.par_iter_mut().zip(&held_out).for_each(|(sums, &index)| {
                    for (x, z) in self.matrix.predict(&found, index).into_iter().zip(self.wanted(index, first)) {
                        let (x, z) = (f64::from(x), f64::from(z));
                        let [dot, a, b] = sums;
                        (*dot, *a, *b) = (*dot + x * z, *a + x * x, *b + z * z);
                    }
                });
                progress.advance(1);
            }
        }
        progress.finish();
        let cosine = |&[dot, a, b]: &[f64; 3]| if a * b > 0.0 { dot / (a * b).sqrt() } else { 0.0 };
        let total = |sums: &[[f64; 3]]| sums.iter().map(cosine).sum::<f64>();
        let best = sums.iter().max_by(|a, b| total(&a.1).total_cmp(&total(&b.1)));
        best.map_or(1e-2, |(lambda, _)| *lambda)
    }
}

/// Returns a lane that begins with `numbers`. The rest of the lane is filled with zeros.
fn lane(numbers: impl Iterator<Item = f32>) -> Lane {
    let mut lane = [0.0; PANEL];
    for (slot, x) in lane.iter_mut().zip(numbers) {
        *slot = x;
    }
    lane
}

impl Fitted<'_> {
    /// Returns the texts that the table was fitted to, with the vectors of the teacher.
    pub fn texts(&self) -> &TeacherTexts {
        &self.texts
    }

    /// Returns the record of the fit.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Returns the entries about the fit for the config.json of the output.
    pub fn description(&self) -> Map<String, Value> {
        [("fit".to_owned(), json!(self.summary))].into_iter().collect()
    }
}

impl Rows for Fitted<'_> {
    fn rows(&self) -> usize {
        self.source.checkpoint.table.rows()
    }

    fn dimensions(&self) -> usize {
        self.map.ncols()
    }

    fn for_each_block(&self, take: &mut dyn FnMut(usize, &[f32]) -> io::Result<()>) -> io::Result<()> {
        let dimensions = self.dimensions();
        let mut seen = self.texts.counts.tokens.iter().zip(self.rows.chunks(dimensions)).peekable();
        for block in blocks(self.rows(), ROWS_AT_A_TIME) {
            let first = block.start;
            let ids = block.clone().into_par_iter().map(|id| u32::try_from(id).unwrap_or(u32::MAX));
            let mut rows = vec![0.0; block.len() * dimensions];
            moments::multiply(&self.source.rows(ids), self.map.as_ref(), &mut rows);
            while let Some((&id, new)) = seen.next_if(|(id, _)| (**id as usize) < block.end) {
                let start = (id as usize - first) * dimensions;
                if let Some(row) = rows.get_mut(start..start + dimensions) {
                    row.copy_from_slice(new);
                }
            }
            take(first, &rows)?;
        }
        Ok(())
    }
}
