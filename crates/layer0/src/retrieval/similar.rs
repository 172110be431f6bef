//! Similarities between the tokens of a query and other tokens, from the rows of the embedding table.

use crate::embedder::Embedder;
use crate::error::EmbedError;
use crate::pooling::Comparison;
use crate::pooling::kernel::{self, Kernel, integers::LANES};
use layer0_tokenizers::yield_point::YieldPoint;

/// The weight of similar tokens beside equal ones.
const LAMBDA: f32 = 0.5;
/// The cosine from which on tokens count as similar, in a table of [`THETA_COLUMNS`] columns.
const THETA: f32 = 0.3;
const THETA_COLUMNS: f32 = 384.0;
/// The largest number of tokens that are compared at a time.
pub(super) const BLOCK: usize = 64;

/// The cosine from which on tokens count as similar.
///
/// The cosines of unrelated rows shrink with the square root of the number of columns, and so does the threshold: 0.3 at 384 columns, 0.23
/// at 640. It never exceeds 0.3, because tables of fewer columns were not measured.
fn theta(columns: usize) -> f32 {
    (THETA * (THETA_COLUMNS / columns.max(1) as f32).sqrt()).min(THETA)
}

/// The tokens of a query, ready to be compared with others.
pub(super) struct QueryComparison<'a> {
    embedder: &'a Embedder,
    /// The rows as they are stored, if cosines can be computed from them.
    stored: Option<Comparison<'a>>,
    /// The vectors at length 1, `[count, dimensions]`.
    units: &'a [f32],
    count: usize,
    kernel: Kernel,
    theta: f32,
    /// The vectors of the tokens that are being compared, if cosines cannot be computed from stored rows.
    vectors: Vec<f32>,
}

impl<'a> QueryComparison<'a> {
    /// Prepares the tokens `ids`, whose vectors at length 1 are `units`.
    pub fn new(embedder: &'a Embedder, ids: &[u32], units: &'a [f32]) -> Result<Self, EmbedError> {
        let stored = embedder.comparison(ids)?;
        let dimensions = embedder.max_dimensions();
        let vectors = vec![0.0; if stored.is_some() { 0 } else { BLOCK * dimensions }];
        let (kernel, theta) = (kernel::best(), theta(dimensions));
        Ok(Self { embedder, stored, units, count: ids.len(), kernel, theta, vectors })
    }

    /// Returns the number of blocks of [`LANES`] similarities that each token has.
    pub fn blocks(&self) -> usize {
        self.count.div_ceil(LANES)
    }

    /// Writes the similarities of up to [`BLOCK`] tokens to `rows`, `[ids, blocks]`, and to `similar` whether any of a token's similarities
    /// is above 0. The similarity is `lambda * max(0, (cosine - theta) / (1 - theta))`, also of a token with itself. `rows` must be zeros, or
    /// an earlier result: lanes without a token of the query are not always written.
    pub fn similarities(
        &mut self,
        ids: &[u32],
        rows: &mut [[f32; LANES]],
        similar: &mut [bool],
        at: &dyn YieldPoint,
    ) -> Result<(), EmbedError> {
        let (theta, slope) = (self.theta, LAMBDA / (1.0 - self.theta));
        if let Some(stored) = &self.stored {
            stored.similarities(theta, slope, ids, rows.as_flattened_mut(), similar);
            return self.embedder.damage().map_or(Ok(()), Err);
        }
        let dimensions = self.embedder.max_dimensions();
        self.embedder.token_vectors(ids, &mut self.vectors, at)?;
        let found = self.vectors.chunks(dimensions).zip(rows.chunks_mut(self.count.div_ceil(LANES))).zip(similar);
        for ((vector, row), similar) in found.take(ids.len()) {
            let norm = self.kernel.squares(vector).sqrt().max(1e-12) as f32;
            let row = row.as_flattened_mut().get_mut(..self.count).unwrap_or_default();
            self.kernel.products(vector, self.units, row);
            row.iter_mut().for_each(|product| *product = slope * (*product / norm - theta).max(0.0));
            *similar = row.iter().any(|similarity| *similarity > 0.0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::theta;

    #[test]
    fn the_threshold_follows_the_number_of_columns() {
        assert_eq!(theta(384), 0.3);
        assert!((theta(640) - 0.232).abs() < 1e-3);
        assert_eq!((theta(64), theta(0)), (0.3, 0.3));
    }
}
