//! Cosines between the vectors of single tokens, computed from the rows as they are stored.

use super::kernel::floats::PackedVectors;
use super::kernel::integers::PackedRows;
use super::kernel::{Kernel, Similarity};
use crate::norm::CollapsedNorm;
use crate::table::EmbeddingTable;

/// The number of rows by which rows are prefetched before they are decoded.
const AHEAD: usize = 4;

/// The vectors of a few tokens, ready to be compared with the rows of other tokens of their table.
#[derive(Debug)]
pub struct Comparison<'a> {
    table: &'a EmbeddingTable,
    norm: &'a CollapsedNorm,
    kernel: Kernel,
    packed: Packed,
    /// For each lane, the factor of its products. It is 0 for a row of zeros and for a lane without a row.
    factors: Vec<f32>,
    /// The decoded rows of the tokens that are being compared, if they are decoded.
    decoded: Vec<f32>,
}

#[derive(Debug)]
enum Packed {
    /// Stored rows of integers, which are compared with stored rows. Their factor is the sign of the row's scale divided by the row's length.
    Integers(PackedRows),
    /// Vectors of length 1, which are compared with decoded rows.
    Vectors(PackedVectors),
}

impl<'a> Comparison<'a> {
    /// Packs the tokens `ids`, whose vectors at length 1 are `units`, `[ids, dimensions]`. Returns `None` if cosines cannot be computed from
    /// stored rows, because the norm adds something to them.
    ///
    /// Integers are compared without decoding them if the norm does nothing but scale each row.
    pub(super) fn new(
        table: &'a EmbeddingTable,
        norm: &'a CollapsedNorm,
        kernel: Kernel,
        ids: &[u32],
        units: &[f32],
    ) -> Option<Self> {
        if norm.bias.is_some() || !norm.corrections.is_empty() {
            return None;
        }
        let rows: Vec<&[u8]> = ids.iter().map(|&id| table.row(id)).collect::<Option<_>>()?;
        let is_uniform = norm.weight.first().is_some_and(|first| norm.weight.iter().all(|other| other == first));
        let integers = if is_uniform { kernel.pack(table.dtype(), table.dimensions(), &rows) } else { None };
        let Some(packed) = integers else {
            let packed = PackedVectors::new(table.dimensions(), units);
            let factors = vec![1.0; packed.width()];
            return Some(Self { table, norm, kernel, packed: Packed::Vectors(packed), factors, decoded: Vec::new() });
        };
        let (mut products, mut squares) = (vec![0.0; rows.len() * packed.width()], vec![0; rows.len()]);
        kernel.integer_products(&packed, &rows, &mut products, &mut squares);
        let mut factors: Vec<f32> =
            ids.iter().zip(squares).map(|(&id, squares)| factor(norm, id, squares.into())).collect();
        factors.resize(packed.width(), 0.0);
        Some(Self { table, norm, kernel, packed: Packed::Integers(packed), factors, decoded: Vec::new() })
    }

    /// Returns the factors by which the cosines with each of the tokens are multiplied.
    pub fn factors_mut(&mut self) -> &mut [f32] {
        &mut self.factors
    }

    /// Returns the number of similarities of each token: the number of packed rows, rounded up to a multiple of 16.
    pub fn width(&self) -> usize {
        self.factors.len()
    }

    /// Writes the similarities of each token in `ids` with each packed row to `out`, `[ids, width]`, and to `similar` whether any of them is
    /// above 0. A similarity is `slope * max(0, cosine - threshold)`. It is 0 past the packed rows, and for a token without a row or with a
    /// row of zeros, unless the threshold is below 0.
    pub fn similarities(&mut self, threshold: f32, slope: f32, ids: &[u32], out: &mut [f32], similar: &mut [bool]) {
        let rows: Vec<&[u8]> = ids.iter().map(|&id| self.table.row(id).unwrap_or_default()).collect();
        let width = self.width().max(1);
        let mut products = vec![0.0; rows.len() * width];
        let mut squares = vec![0.0; rows.len()];
        match &self.packed {
            Packed::Integers(packed) => {
                let mut integers = vec![0; rows.len()];
                self.kernel.integer_products(packed, &rows, &mut products, &mut integers);
                for (squares, integer) in squares.iter_mut().zip(integers) {
                    *squares = f64::from(integer);
                }
            }
            Packed::Vectors(packed) => {
                let dimensions = self.table.dimensions();
                self.decoded.clear();
                self.decoded.resize(rows.len() * dimensions, 0.0);
                let decoded = self.decoded.chunks_mut(dimensions.max(1));
                for (i, (vector, squares)) in decoded.zip(&mut squares).enumerate() {
                    let (row, ahead) = (rows.get(i..=i), rows.get(i + AHEAD..=i + AHEAD));
                    let dtype = self.table.dtype();
                    self.kernel.add(dtype, row.unwrap_or_default(), &[1.0], ahead.unwrap_or_default(), vector);
                    self.kernel.order(dtype, vector);
                    self.kernel.weigh(vector, &self.norm.weight, 1.0);
                    *squares = self.kernel.squares(vector);
                }
                self.kernel.float_products(packed, &self.decoded, &mut products);
            }
        }
        let rows = ids.iter().zip(products.chunks(width).zip(squares));
        for (((&id, (products, squares)), out), similar) in rows.zip(out.chunks_mut(width)).zip(similar) {
            let factor = factor(self.norm, id, squares);
            let by = Similarity { factor, factors: &self.factors, threshold, slope };
            *similar = self.kernel.similarities(products, &by, out);
        }
    }
}

/// Returns the sign of the row's scale divided by the row's length, whose square is given. Returns 0 for a token without a row.
fn factor(norm: &CollapsedNorm, id: u32, squares: f64) -> f32 {
    let scale = norm.scale.get(id as usize).copied().unwrap_or_default();
    if squares > 0.0 && scale != 0.0 { (f64::from(scale.signum()) / squares.sqrt()) as f32 } else { 0.0 }
}
