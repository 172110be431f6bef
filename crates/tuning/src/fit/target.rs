//! Transforms the teacher's vectors into the target of a fit: the vectors are centered, projected onto their principal
//! axes, and their variances are equalized in part.

use std::path::Path;

use faer::Mat;
use rayon::prelude::*;

use super::spool::{Spool, Spooled};
use super::teacher::problem as teacher;
use super::texts::TokenCounts;
use crate::error::FitError;
use crate::refine::moments::{self, Moments, whitening};
use crate::refine::rows::{NormedRows, subtract};
use layer0::pooling::normalize;
use layer0::progress::Progress;

/// Computes `Z = unit( (Y - mean) U[:, :k] diag(v + 1e-3 mean(v))^(-gamma/2) )`, one row per text. The mean and the
/// axes are computed from the texts that are fitted to, without the held-out texts.
///
/// # Errors
/// Fails if a file cannot be read or written, or if the eigendecomposition of the covariance does not converge.
pub fn target(
    vectors: &Spooled,
    counts: &TokenCounts,
    gamma: f64,
    dimensions: usize,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<Spooled, FitError> {
    // The rows are scaled to length sqrt(d). A factor that all rows have in common does not change Z.
    let rows = NormedRows::new(&vectors.table, 0.0);
    let share = 1.0 / (counts.len() - counts.held_out()).max(1) as f64;
    let shares: Vec<f64> = (0..counts.len()).map(|text| if counts.is_held_out(text) { 0.0 } else { share }).collect();
    let moments = Moments::of(&rows, &shares, progress);
    let axes = moments
        .axes()
        .ok_or_else(|| FitError::NoSolution(teacher("gave vectors whose axes could not be found".to_owned())))?;
    let scales = whitening(&axes.variances, gamma);
    let projection = Mat::from_fn(rows.dimensions(), dimensions, |i, j| {
        (axes.directions[(i, j)] * scales.get(j).copied().unwrap_or(0.0)) as f32
    });
    let mut spool = Spool::new(scratch, dimensions)?;
    let mut out = Vec::new();
    for block in rows.blocks() {
        let centred = rows.read(block.clone(), |_, row| subtract(row, &moments.mean));
        out.clear();
        out.resize(block.len() * dimensions, 0.0);
        moments::multiply(&centred, projection.as_ref(), &mut out);
        out.par_chunks_mut(dimensions).try_for_each(normalize).map_err(|problem| {
            FitError::Vectors(teacher(format!("gave vectors of which one cannot be scaled: {problem}")))
        })?;
        spool.push(&out)?;
    }
    spool.finish()
}
