//! Reads rows of a table, normalized by the RMS norm without its weight, in blocks that all cores fill.

use std::ops::Range;

use rayon::prelude::*;

use layer0::table::EmbeddingTable;

/// The number of values in a block. 8 Mi values take 32 MiB of f32. That is enough for the matrix kernels, and it
/// bounds the memory for every width of table.
const NUMBERS_AT_A_TIME: usize = 8 << 20;
const MAX_ROWS_AT_A_TIME: usize = 8192;

/// The rows of a table after the RMS norm without its weight: `e_t = E_t / sqrt(mean(E_t^2) + eps)`.
pub struct NormedRows<'a> {
    table: &'a EmbeddingTable,
    eps: f64,
}

/// A block of rows, row-major.
pub struct Block {
    pub numbers: Vec<f32>,
    pub dimensions: usize,
}

impl<'a> NormedRows<'a> {
    pub fn new(table: &'a EmbeddingTable, eps: f64) -> Self {
        Self { table, eps }
    }

    pub fn len(&self) -> usize {
        self.table.rows()
    }

    pub fn dimensions(&self) -> usize {
        self.table.dimensions()
    }

    /// Returns the ranges of all rows, in order, in blocks of bounded size.
    pub fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let size = (NUMBERS_AT_A_TIME / self.dimensions()).clamp(1, MAX_ROWS_AT_A_TIME);
        let rows = self.len();
        (0..rows).step_by(size).map(move |first| first..rows.min(first + size))
    }

    /// Reads the rows of `range`. `change` is called with the index and the normalized values of each row, and may
    /// modify the values.
    pub fn read(&self, range: Range<usize>, change: impl Fn(usize, &mut [f32]) + Sync) -> Block {
        let dimensions = self.dimensions();
        let mut numbers = vec![0.0; range.len() * dimensions];
        numbers.par_chunks_mut(dimensions).zip(range).for_each(|(row, index)| {
            if let Ok(id) = u32::try_from(index) {
                self.table.read_row(id, row);
            }
            let squares: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let inverse = 1.0 / (squares / dimensions as f64 + self.eps).sqrt();
            // A row of zeros has no direction if eps is zero. Such a row stays zero.
            let inverse = if inverse == f64::INFINITY { 0.0 } else { inverse };
            for x in &mut *row {
                *x = (f64::from(*x) * inverse) as f32;
            }
            change(index, row);
        });
        Block { numbers, dimensions }
    }
}

/// Subtracts `mean` from `row`.
pub fn subtract(row: &mut [f32], mean: &[f64]) {
    for (x, mean) in row.iter_mut().zip(mean) {
        *x = (f64::from(*x) - mean) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer0::table::TableDtype;

    #[test]
    fn blocks_cover_every_row_once() {
        for (rows, dimensions) in [(1, 3), (8192, 2), (8193, 2), (70, 1 << 20)] {
            let bytes = bytes::Bytes::from(vec![0; rows * dimensions]);
            let table = EmbeddingTable::quantized(bytes, TableDtype::Int8, dimensions, vec![1.0; rows]).unwrap();
            let blocks: Vec<Range<usize>> = NormedRows::new(&table, 0.0).blocks().collect();
            assert!(blocks.iter().all(|b| b.len() * dimensions <= NUMBERS_AT_A_TIME));
            assert!(blocks.into_iter().flatten().eq(0..rows));
        }
    }

    #[test]
    fn rows_have_a_mean_square_of_one_and_zero_stays_zero() {
        let numbers = [3.0f32, 4.0, 0.0, 0.0];
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let table = EmbeddingTable::new(bytes.into(), TableDtype::F32, 2, 2).unwrap();
        let block = NormedRows::new(&table, 0.0).read(0..2, |_, _| {});
        let expected = [3.0 / 12.5f32.sqrt(), 4.0 / 12.5f32.sqrt(), 0.0, 0.0];
        assert!(block.numbers.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{:?}", block.numbers);
    }
}
