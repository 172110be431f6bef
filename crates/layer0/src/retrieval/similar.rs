//! Similarities between the tokens of a query and other tokens, from the rows of the embedding table.

use crate::embedder::Embedder;
use crate::error::EmbedError;
use crate::pooling::Comparison;
use crate::pooling::kernel::{self, Kernel, Similarity, floats::PackedVectors, integers::LANES};
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
    cosines: Cosines<'a>,
    count: usize,
    kernel: Kernel,
    theta: f32,
}

/// How cosines are computed.
enum Cosines<'a> {
    /// From the rows as they are stored.
    Stored(Comparison<'a>),
    /// From the vectors of the tokens, which are computed first.
    Computed {
        units: PackedVectors,
        /// The vectors of the tokens that are being compared, and their products with the units.
        vectors: Vec<f32>,
        products: Vec<f32>,
        /// The factor of the cosines with each of the units.
        factors: Vec<f32>,
    },
}

impl<'a> QueryComparison<'a> {
    /// Prepares the tokens `ids`, whose vectors at length 1 are `units`.
    pub fn new(embedder: &'a Embedder, ids: &[u32], units: &[f32]) -> Result<Self, EmbedError> {
        let dimensions = embedder.table_dimensions();
        let cosines = match embedder.comparison(ids, units)? {
            Some(comparison) => Cosines::Stored(comparison),
            None => {
                let units = PackedVectors::new(dimensions, units);
                let (products, factors) = (vec![0.0; BLOCK * units.width()], vec![1.0; units.width()]);
                Cosines::Computed { units, vectors: vec![0.0; BLOCK * dimensions], products, factors }
            }
        };
        Ok(Self { embedder, cosines, count: ids.len(), kernel: kernel::best(), theta: theta(dimensions) })
    }

    /// Multiplies the cosines with each of the tokens by its factor in `scales`.
    pub fn scale(&mut self, scales: impl Iterator<Item = f32>) {
        let factors = match &mut self.cosines {
            Cosines::Stored(stored) => stored.factors_mut(),
            Cosines::Computed { factors, .. } => factors,
        };
        for (factor, scale) in factors.iter_mut().zip(scales) {
            *factor *= scale;
        }
    }

    /// Returns the number of blocks of [`LANES`] similarities that each token has.
    pub fn blocks(&self) -> usize {
        self.count.div_ceil(LANES)
    }

    /// Writes the similarities of up to [`BLOCK`] tokens to `rows`, `[ids, blocks]`, and to `similar` whether any of a token's similarities
    /// is above 0. The similarity is `lambda * max(0, (cosine - theta) / (1 - theta))`, also of a token with itself.
    pub fn similarities(
        &mut self,
        ids: &[u32],
        rows: &mut [[f32; LANES]],
        similar: &mut [bool],
        at: &dyn YieldPoint,
    ) -> Result<(), EmbedError> {
        let (threshold, slope) = (self.theta, LAMBDA / (1.0 - self.theta));
        match &mut self.cosines {
            Cosines::Stored(stored) => {
                stored.similarities(threshold, slope, ids, rows.as_flattened_mut(), similar);
                self.embedder.damage().map_or(Ok(()), Err)
            }
            Cosines::Computed { units, vectors, products, factors } => {
                self.embedder.token_vectors(ids, vectors, at)?;
                self.kernel.float_products(units, vectors, products);
                let (dimensions, width) = (self.embedder.table_dimensions(), units.width());
                let found = vectors.chunks(dimensions).zip(products.chunks(width));
                let out = rows.as_flattened_mut().chunks_mut(width).zip(similar);
                for ((vector, products), (out, similar)) in found.zip(out).take(ids.len()) {
                    let factor = (1.0 / self.kernel.squares(vector).sqrt().max(1e-12)) as f32;
                    let by = Similarity { factor, factors, threshold, slope };
                    *similar = self.kernel.similarities(products, &by, out);
                }
                Ok(())
            }
        }
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
