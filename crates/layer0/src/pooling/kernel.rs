//! The inner loop of pooling: adds scaled rows to a sum, in vector registers if the CPU has them.
//!
//! Rows come in groups of up to [`GROUP`]. Each group is summed in registers, column by column, and added to the total once. The
//! total is therefore read and written an eighth as often as rows are, and its rounding error grows with the number of groups
//! instead of tokens. While a group is summed, the rows of the next group are prefetched at the same columns: rows are far apart
//! in memory, and the hardware prefetcher cannot predict the next one.

#[cfg(target_arch = "x86_64")]
mod avx2;
pub mod floats;
pub mod integers;
#[cfg(target_arch = "aarch64")]
mod neon;
mod passes;
mod signs;
#[cfg(target_arch = "x86_64")]
mod vnni;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::LazyLock;

use crate::table::{TableDtype, for_each};
use floats::PackedVectors;
use integers::PackedRows;
use passes::Passes;
pub use passes::Similarity;
pub use signs::sign;

/// The largest number of rows in one call.
pub const GROUP: usize = 8;

/// One implementation of adding rows. All implementations give the same results up to f32 rounding.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// The name of the instruction set.
    pub name: &'static str,
    /// The dtypes for which the kernel keeps each block as its even columns, then its odd columns: see [`Kernel::order`].
    pairs: &'static [TableDtype],
    add: Add,
    passes: Passes,
    /// Multiplies rows of integers without decoding them. The portable kernel has no fast way to do this.
    integers: Option<integers::Multiply>,
    /// Multiplies vectors of floats.
    floats: floats::Multiply,
}

/// Adds the rows of the group to `sums`, in whole blocks. Returns the number of columns that were added, which is 0 for a dtype
/// that is left to the portable loop.
type Add = fn(dtype: TableDtype, group: &Group<'_>, sums: &mut [f32]) -> usize;

/// Returns the fastest kernel for this CPU.
pub fn best() -> Kernel {
    static BEST: LazyLock<Kernel> = LazyLock::new(|| available().into_iter().next().unwrap_or(PORTABLE));
    *BEST
}

/// Returns every kernel that this CPU can run, fastest first.
pub fn available() -> Vec<Kernel> {
    let mut kernels = Vec::new();
    #[cfg(target_arch = "x86_64")]
    kernels.extend(x86::available());
    #[cfg(target_arch = "aarch64")]
    kernels.extend(neon::available());
    kernels.push(PORTABLE);
    kernels
}

/// The rows of one call, and the rows of the next call.
struct Group<'a> {
    rows: [&'a [u8]; GROUP],
    scales: [f32; GROUP],
    /// The number of rows.
    count: usize,
    /// The rows of the next call, which some kernels prefetch.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    ahead: &'a [&'a [u8]],
}

impl<'a> Group<'a> {
    /// Creates a group. Leaves out rows of fewer than `width` bytes.
    fn new(rows: &[&'a [u8]], scales: &[f32], ahead: &'a [&'a [u8]], width: usize) -> Self {
        let mut group = Self { rows: [&[]; GROUP], scales: [0.0; GROUP], count: 0, ahead };
        let whole = rows.iter().zip(scales).filter(|(row, _)| row.len() >= width);
        for ((row, scale), to) in whole.zip(group.rows.iter_mut().zip(&mut group.scales)) {
            (*to.0, *to.1) = (row, *scale);
            group.count += 1;
        }
        group
    }

    /// Returns the rows with their scales.
    fn rows(&self) -> impl Iterator<Item = (&'a [u8], f32)> {
        self.rows.into_iter().zip(self.scales).take(self.count)
    }
}

/// The number of columns that the portable loop sums at a time. Their sums stay in the L1 cache.
const PORTABLE_COLUMNS: usize = 64;

const PORTABLE: Kernel = Kernel {
    name: "portable",
    pairs: &[],
    add: |_, _, _| 0,
    passes: passes::PORTABLE,
    integers: None,
    floats: floats::multiply_portable,
};

impl Kernel {
    /// Adds `scales[i] * rows[i]` to `sums`, for up to [`GROUP`] rows. `ahead` are the rows of the next call.
    ///
    /// `sums` has the length of the requested dimensions, a prefix of each row. It stays in the kernel's own order until
    /// [`Kernel::order`] is called. A row that is shorter than `sums` adds nothing, nor do rows past [`GROUP`].
    pub fn add(&self, dtype: TableDtype, rows: &[&[u8]], scales: &[f32], ahead: &[&[u8]], sums: &mut [f32]) {
        let group = Group::new(rows, scales, ahead, dtype.row_bytes(sums.len()).unwrap_or(usize::MAX));
        let done = (self.add)(dtype, &group, sums);
        for (i, sums) in sums.get_mut(done..).unwrap_or_default().chunks_mut(PORTABLE_COLUMNS).enumerate() {
            let at = dtype.row_bytes(done + i * PORTABLE_COLUMNS).unwrap_or(usize::MAX);
            let mut total = [0.0; PORTABLE_COLUMNS];
            for (row, scale) in group.rows() {
                for_each(dtype, row.get(at..).unwrap_or_default(), &mut total, |sum, x| *sum += scale * x);
            }
            for (sum, total) in sums.iter_mut().zip(total) {
                *sum += total;
            }
        }
    }

    /// Puts the sums into the order of the columns.
    ///
    /// Two bf16 or two int4 are decoded from one 32-bit lane: one by a shift, the other by a mask. Only the finished sum is
    /// reordered.
    pub fn order(&self, dtype: TableDtype, sums: &mut [f32]) {
        if self.pairs.contains(&dtype) {
            (self.passes.order)(sums);
        }
    }

    /// Multiplies each number by its weight and by `share`.
    pub fn weigh(&self, sums: &mut [f32], weights: &[f32], share: f32) {
        (self.passes.weigh)(sums, weights, share);
    }

    /// Returns the sum of squares. If a square is out of the range of f32, so is the sum.
    pub fn squares(&self, numbers: &[f32]) -> f64 {
        (self.passes.squares)(numbers)
    }

    /// Multiplies each number by `factor`.
    pub fn scale(&self, numbers: &mut [f32], factor: f32) {
        (self.passes.scale)(numbers, factor);
    }

    /// Adds `lengths[i]` times the signs of the token `ids[i]` ([`sign`]) to `sums`, for up to [`GROUP`] tokens. All kernels give the same bits.
    pub fn add_signs(&self, ids: &[u32], lengths: &[f32], sums: &mut [f32]) {
        (self.passes.add_signs)(ids, lengths, sums);
    }

    /// Packs rows of integers, to compare other rows with them by [`Kernel::integer_products`]. Returns `None` if the kernel does not multiply
    /// integers, or the rows are not integers.
    pub fn pack(&self, dtype: TableDtype, dimensions: usize, rows: &[&[u8]]) -> Option<PackedRows> {
        self.integers.and_then(|_| PackedRows::new(dtype, dimensions, rows))
    }

    /// Writes the products of `rows` with the packed rows to `products`, `[rows, packed.width()]`, and the sum of squares of each row to
    /// `squares`. Every row must be a whole stored row.
    pub fn integer_products(&self, packed: &PackedRows, rows: &[&[u8]], products: &mut [f32], squares: &mut [i32]) {
        if let Some(multiply) = self.integers {
            multiply(packed, rows, products, squares);
        }
    }

    /// Writes the products of `rows`, `[rows, dimensions]`, with the packed vectors to `products`, `[rows, packed.width()]`.
    pub fn float_products(&self, packed: &PackedVectors, rows: &[f32], products: &mut [f32]) {
        (self.floats)(packed, rows, products);
    }

    /// Writes the similarities of one row, of which the products with the packed rows are given. Returns whether any is above 0.
    pub fn similarities(&self, products: &[f32], by: &Similarity<'_>, out: &mut [f32]) -> bool {
        (self.passes.similarities)(products, by, out)
    }

    /// Adds the rows with these indices to `sums`, in order. `rows` is `[rows, sums.len()]`, and an index past the rows adds nothing.
    pub fn add_rows(&self, indices: &[u32], rows: &[floats::Lanes], sums: &mut [floats::Lanes]) {
        (self.passes.add_rows)(indices, rows, sums);
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::*;

    fn stored(dtype: TableDtype, numbers: &[f32]) -> Vec<u8> {
        match dtype {
            TableDtype::Bf16 => numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            TableDtype::F16 => numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            TableDtype::F32 => numbers.iter().flat_map(|&x| x.to_le_bytes()).collect(),
            TableDtype::Int4 => {
                let half = |x: f32| (x * 7.0) as i8 + 8;
                numbers.chunks(2).map(|p| (half(p[0]) | half(*p.get(1).unwrap_or(&0.0)) << 4).cast_unsigned()).collect()
            }
            TableDtype::Int8 => numbers.iter().map(|&x| ((x * 127.0) as i8).cast_unsigned()).collect(),
        }
    }

    fn sum(kernel: Kernel, dtype: TableDtype, rows: &[&[u8]], scales: &[f32], dimensions: usize) -> Vec<f32> {
        let mut sums = vec![0.0; dimensions];
        for (i, (rows_now, scales)) in rows.chunks(GROUP).zip(scales.chunks(GROUP)).enumerate() {
            let ahead = rows.chunks(GROUP).nth(i + 1).unwrap_or_default();
            kernel.add(dtype, rows_now, scales, ahead, &mut sums);
        }
        kernel.order(dtype, &mut sums);
        sums
    }

    proptest! {
        /// Every kernel of this CPU, every dtype, widths with and without a rest, prefixes, unaligned rows.
        #[test]
        fn every_kernel_equals_the_portable_one(
            seed in any::<u64>(), count in 0usize..40, width in 1usize..200, less in 0usize..200, shift in 0usize..5,
        ) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let dimensions = width - less % width;
            let scales: Vec<f32> = (0..count).map(|_| rng.f32() * 4.0 - 2.0).collect();
            for dtype in [TableDtype::Bf16, TableDtype::F16, TableDtype::F32, TableDtype::Int8, TableDtype::Int4] {
                let mut bytes = vec![0; shift];
                for _ in 0..count {
                    let numbers: Vec<f32> = (0..width).map(|_| rng.f32() * 2.0 - 1.0).collect();
                    bytes.extend(stored(dtype, &numbers));
                }
                let rows: Vec<&[u8]> = bytes[shift..].chunks(dtype.row_bytes(width).unwrap()).collect();
                let expected = sum(PORTABLE, dtype, &rows, &scales, dimensions);
                let length = expected.iter().map(|x| x * x).sum::<f32>().sqrt().max(1.0);
                for kernel in available() {
                    let found = sum(kernel, dtype, &rows, &scales, dimensions);
                    for (found, expected) in found.iter().zip(&expected) {
                        prop_assert!((found - expected).abs() <= 1e-6 * length, "{} {dtype:?}", kernel.name);
                    }
                }
            }
        }
    }

    /// All kernels give the same results, and so do vectors that were stored by another machine.
    #[test]
    fn every_pass_gives_the_bits_of_the_portable_one() {
        let mut rng = fastrand::Rng::with_seed(5);
        for length in [0, 1, 15, 16, 17, 63, 64, 65, 640, 1000] {
            let numbers: Vec<f32> = (0..length).map(|_| rng.f32() - 0.5).collect();
            let weights: Vec<f32> = (0..length).map(|_| rng.f32() + 0.5).collect();
            let all = |kernel: Kernel| {
                let (mut weighed, mut scaled) = (numbers.clone(), numbers.clone());
                kernel.weigh(&mut weighed, &weights, 0.3);
                kernel.scale(&mut scaled, 1.7);
                (weighed, scaled, kernel.squares(&numbers))
            };
            let (weighed, scaled, squares) = all(PORTABLE);
            assert!(weighed.iter().zip(&numbers).zip(&weights).all(|((y, x), w)| *y == x * (w * 0.3)));
            assert!(scaled.iter().zip(&numbers).all(|(y, x)| *y == x * 1.7));
            let exact: f64 = numbers.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            assert!((squares - exact).abs() <= 1e-7 * exact, "{squares} {exact}");
            for kernel in available() {
                assert_eq!(all(kernel), (weighed.clone(), scaled.clone(), squares), "{}", kernel.name);
            }
        }
    }

    #[test]
    fn similarities_grow_from_the_threshold_on_and_are_found_in_every_lane() {
        let factors: Vec<f32> = (0..32).map(|lane| 0.5 + lane as f32 / 64.0).collect();
        for kernel in available() {
            let by = Similarity { factor: 0.01, factors: &factors, threshold: 0.3, slope: 0.7 };
            for lane in 0..32 {
                let mut products = vec![-50.0; 32];
                let mut out = vec![9.0; 32];
                assert!(!kernel.similarities(&products, &by, &mut out));
                assert_eq!(out, [0.0; 32]);
                products[lane] = 90.0;
                assert!(kernel.similarities(&products, &by, &mut out), "{} {lane}", kernel.name);
                let expected = 0.7 * (90.0 * 0.01 * factors[lane] - 0.3);
                assert!((out[lane] - expected).abs() < 1e-6 && out.iter().filter(|x| **x > 0.0).count() == 1);
            }
        }
    }

    #[test]
    fn rows_are_added_in_order_for_any_number_of_blocks_on_every_kernel() {
        let mut rng = fastrand::Rng::with_seed(7);
        for blocks in [1, 2, 3, 16] {
            let rows: Vec<floats::Lanes> = (0..10 * blocks).map(|_| std::array::from_fn(|_| rng.f32() - 0.5)).collect();
            let indices: Vec<u32> = (0..50).map(|_| rng.u32(..11)).chain([u32::MAX]).collect();
            let mut expected = vec![[1.0f32; integers::LANES]; blocks];
            for row in indices.iter().filter_map(|&index| rows.chunks(blocks).nth(index as usize)) {
                for (sum, x) in expected.as_flattened_mut().iter_mut().zip(row.as_flattened()) {
                    *sum += x;
                }
            }
            for kernel in available() {
                let mut sums = vec![[1.0f32; integers::LANES]; blocks];
                kernel.add_rows(&indices, &rows, &mut sums);
                assert_eq!(sums, expected, "{} {blocks}", kernel.name);
            }
        }
    }

    /// Nothing is read past the end of a row, or past the last row of a group.
    #[test]
    fn a_short_row_adds_nothing() {
        for dtype in [TableDtype::Bf16, TableDtype::F16, TableDtype::F32] {
            let (long, short) = (stored(dtype, &[1.0; 128]), stored(dtype, &[1.0; 127]));
            let column: Vec<f32> = (0..128).map(|i| i as f32).collect();
            let counted = stored(dtype, &column);
            for kernel in available() {
                let rows: [&[u8]; 4] = [&long, &short, &counted, &[]];
                let expected: Vec<f32> = column.iter().map(|x| x + 2.0).collect();
                assert_eq!(
                    sum(kernel, dtype, &rows, &[2.0, 5.0, 1.0, 7.0], 128),
                    expected,
                    "{} {dtype:?}",
                    kernel.name
                );
            }
        }
    }
}
