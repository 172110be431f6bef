//! Cosines between the vectors of single tokens, computed from the rows as they are stored.

use super::kernel::integers::PackedRows;
use super::kernel::{Kernel, Similarity};
use crate::norm::CollapsedNorm;
use crate::table::EmbeddingTable;

/// The rows of a few tokens, ready to be compared with other rows of their table.
#[derive(Debug)]
pub struct Comparison<'a> {
    table: &'a EmbeddingTable,
    /// The factor of each row, of which only the sign matters for a cosine.
    scales: &'a [f32],
    kernel: Kernel,
    packed: PackedRows,
    /// For each lane, the sign of its row's factor divided by the row's length. It is 0 for a row of zeros and for a lane without a row.
    factors: Vec<f32>,
}

impl<'a> Comparison<'a> {
    /// Packs the rows of `ids`. Returns `None` if the cosines cannot be computed from stored rows: if the numbers are floats, if this CPU
    /// has no instructions for integers, or if the norm does more than scale each row.
    pub(super) fn new(table: &'a EmbeddingTable, norm: &'a CollapsedNorm, kernel: Kernel, ids: &[u32]) -> Option<Self> {
        let scales_only = norm.bias.is_none() && norm.corrections.is_empty();
        let weight = norm.weight.first().copied().filter(|weight| *weight != 0.0)?;
        if !scales_only || norm.weight.iter().any(|other| *other != weight) {
            return None;
        }
        let rows: Vec<&[u8]> = ids.iter().map(|&id| table.row(id)).collect::<Option<_>>()?;
        let packed = kernel.pack(table.dtype(), table.dimensions(), &rows)?;
        let mut comparison = Self { table, scales: &norm.scale, kernel, packed, factors: Vec::new() };
        let (mut products, mut squares) = (vec![0; rows.len() * comparison.packed.width()], vec![0; rows.len()]);
        kernel.integer_products(&comparison.packed, &rows, &mut products, &mut squares);
        comparison.factors = ids.iter().zip(squares).map(|(&id, squares)| comparison.factor(id, squares)).collect();
        comparison.factors.resize(comparison.width(), 0.0);
        Some(comparison)
    }

    /// Returns the number of similarities of each token: the number of packed rows, rounded up to a multiple of 16.
    pub fn width(&self) -> usize {
        self.packed.width()
    }

    /// Writes the similarities of each token in `ids` with each packed row to `out`, `[ids, width]`, and to `similar` whether any of them is
    /// above 0. A similarity is `slope * max(0, cosine - threshold)`. It is 0 past the packed rows, and for a token without a row or with a
    /// row of zeros, unless the threshold is below 0.
    pub fn similarities(&self, threshold: f32, slope: f32, ids: &[u32], out: &mut [f32], similar: &mut [bool]) {
        let rows: Vec<&[u8]> = ids.iter().filter_map(|&id| self.table.row(id)).collect();
        let width = self.width().max(1);
        let (mut products, mut squares) = (vec![0; rows.len() * width], vec![0; rows.len()]);
        self.kernel.integer_products(&self.packed, &rows, &mut products, &mut squares);
        let mut found = products.chunks(width).zip(squares);
        let known = |id: u32| rows.len() == ids.len() || self.table.row(id).is_some();
        for ((&id, out), similar) in ids.iter().zip(out.chunks_mut(width)).zip(similar) {
            let Some((products, squares)) = Some(id).filter(|&id| known(id)).and_then(|_| found.next()) else {
                out.fill(0.0);
                *similar = false;
                continue;
            };
            let by = Similarity { factor: self.factor(id, squares), factors: &self.factors, threshold, slope };
            *similar = self.kernel.similarities(products, &by, out);
        }
    }

    fn factor(&self, id: u32, squares: i32) -> f32 {
        let scale = self.scales.get(id as usize).copied().unwrap_or_default();
        if squares > 0 && scale != 0.0 { scale.signum() / (squares as f32).sqrt() } else { 0.0 }
    }
}
