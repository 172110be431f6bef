//! Compares vectors of floats with a few other vectors.
//!
//! The vectors that all others are compared with are packed once: the numbers of 16 vectors stand side by side, column by column, so that one
//! instruction multiplies a column of a row with those of 16 vectors. For example, of the vectors `(1, 2)` and `(3, 4)` the packed columns
//! are `(1, 3, 0, ...)` and `(2, 4, 0, ...)`, and the row `(5, 6)` has the products `5 * (1, 3, 0, ...) + 6 * (2, 4, 0, ...)`.

use super::integers::LANES;

/// One column of [`LANES`] packed vectors, or a sum for each of them.
pub type Lanes = [f32; LANES];

/// Vectors in the order in which `Multiply` reads them.
#[derive(Debug)]
pub struct PackedVectors {
    dimensions: usize,
    /// For each block of [`LANES`] vectors, their columns.
    blocks: Vec<Vec<Lanes>>,
}

/// Multiplies rows `[rows, dimensions]` with the packed vectors, and writes the products `[rows, width]` (see [`PackedVectors::width`]). All
/// implementations give the same results up to f32 rounding.
pub(super) type Multiply = fn(packed: &PackedVectors, rows: &[f32], products: &mut [f32]);

impl PackedVectors {
    /// Packs vectors `[count, dimensions]`.
    pub fn new(dimensions: usize, vectors: &[f32]) -> Self {
        let dimensions = dimensions.max(1);
        let pack = |vectors: &[f32]| {
            let mut columns = vec![[0.0; LANES]; dimensions];
            for (lane, vector) in vectors.chunks(dimensions).enumerate() {
                for (column, &x) in columns.iter_mut().zip(vector) {
                    if let Some(to) = column.get_mut(lane) {
                        *to = x;
                    }
                }
            }
            columns
        };
        Self { dimensions, blocks: vectors.chunks(LANES * dimensions).map(pack).collect() }
    }

    /// Returns the number of products of each row: the number of vectors, rounded up to [`LANES`]. The products of lanes without a vector
    /// are zero.
    pub fn width(&self) -> usize {
        self.blocks.len() * LANES
    }
}

/// Multiplies `ROWS` rows at a time with the columns of one block, by `multiply`. Its rows have as many numbers as there are columns. If
/// fewer rows are left, some of the rows that `multiply` gets are the same.
#[inline(always)]
pub(super) fn in_groups<const ROWS: usize>(
    packed: &PackedVectors,
    rows: &[f32],
    products: &mut [f32],
    multiply: impl Fn(&[Lanes], [&[f32]; ROWS]) -> [Lanes; ROWS],
) {
    let (dimensions, width) = (packed.dimensions, packed.width().max(1));
    for (group, products) in rows.chunks(ROWS * dimensions).zip(products.chunks_mut(ROWS * width)) {
        let mut whole = group.chunks_exact(dimensions);
        let first = whole.next().unwrap_or_default();
        let mut rows = [first; ROWS];
        for (row, next) in rows.iter_mut().skip(1).zip(whole) {
            *row = next;
        }
        for (block, columns) in packed.blocks.iter().enumerate() {
            let columns = columns.get(..first.len()).unwrap_or_default();
            for (found, out) in multiply(columns, rows).iter().zip(products.chunks_mut(width)) {
                for (out, &found) in out.iter_mut().skip(block * LANES).zip(found) {
                    *out = found;
                }
            }
        }
    }
}

/// Multiplies like every other implementation, in a loop that any CPU can run.
pub(super) fn multiply_portable(packed: &PackedVectors, rows: &[f32], products: &mut [f32]) {
    in_groups::<1>(packed, rows, products, |columns, [row]| {
        let mut sums = [0.0; LANES];
        for (column, x) in columns.iter().zip(row) {
            for (sum, y) in sums.iter_mut().zip(column) {
                *sum += x * y;
            }
        }
        [sums]
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::available;
    use super::*;

    proptest! {
        /// Every kernel, widths with and without a rest, any number of rows and of vectors.
        #[test]
        fn products_are_those_of_the_plain_loop(
            seed in any::<u64>(), packed in 0usize..40, rows in 0usize..20, dimensions in 1usize..300,
        ) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut numbers = |count: usize| -> Vec<f32> { (0..count * dimensions).map(|_| rng.f32() - 0.5).collect() };
            let (a, b) = (numbers(packed), numbers(rows));
            let made = PackedVectors::new(dimensions, &a);
            prop_assert_eq!(made.width(), packed.next_multiple_of(LANES));
            for kernel in available() {
                let mut products = vec![7.0; rows * made.width()];
                (kernel.floats)(&made, &b, &mut products);
                for (row, products) in b.chunks(dimensions).zip(products.chunks(made.width().max(1))) {
                    for (product, other) in products.iter().zip(a.chunks(dimensions)) {
                        let exact: f64 = row.iter().zip(other).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
                        prop_assert!((f64::from(*product) - exact).abs() < 1e-5, "{} {product} {exact}", kernel.name);
                    }
                    prop_assert!(products.iter().skip(packed).all(|product| *product == 0.0), "{}", kernel.name);
                }
            }
        }
    }
}
