//! Compares rows of a table of integers with a few other rows of the same table, without decoding them.
//!
//! The dot product of two rows of integers is an integer, so every implementation gives the same result. The rows that all others are
//! compared with are packed once: the bytes of four columns of 16 packed rows stand side by side, so that one instruction multiplies four
//! columns of a row with those of 16 packed rows.
//!
//! A row's numbers are multiplied as unsigned bytes, because the instruction needs one unsigned factor: a stored int4 is the number plus 8,
//! and an int8 becomes the number plus 128. For example, the rows `(3, -1)` and `(2, 5)` of int4 have the product `3*2 - 1*5 = 1`. Stored, the
//! first is `(11, 7)`. The instruction computes `11*2 + 7*5 = 57`, and `8 * (2 + 5)` is subtracted.

use crate::table::{TableDtype, for_each};
use layer0_tokenizers::prefetch::prefetch;

/// The number of packed rows that one vector register holds.
pub const LANES: usize = 16;
/// The number of columns that one instruction multiplies.
const COLUMNS: usize = 4;
/// The number of stored bytes of a row that are read at a time.
pub(super) const CHUNK: usize = 64;
/// The number of blocks of [`LANES`] packed rows that one pass multiplies at most.
pub(super) const MAX_BLOCKS: usize = 2;

/// Multiplies `rows` with the packed rows. Writes the products `[rows, width]` (see [`PackedRows::width`]) and the sum of squares of each row.
/// Every row has the length of a stored row. The sums are integers; only the finished product is rounded to f32.
pub(super) type Multiply = fn(packed: &PackedRows, rows: &[&[u8]], products: &mut [f32], squares: &mut [i32]);

/// Rows of integers in the order in which `Multiply` reads them.
#[derive(Debug)]
pub struct PackedRows {
    dtype: TableDtype,
    dimensions: usize,
    count: usize,
    /// For each pass: `[groups of columns, blocks, LANES]`, four columns in each number.
    pub(super) passes: Vec<Pass>,
}

#[derive(Debug)]
pub(super) struct Pass {
    pub blocks: usize,
    pub numbers: Vec<i32>,
    /// For each lane, the number to subtract from its products.
    pub excess: Vec<i32>,
}

impl PackedRows {
    /// Packs stored rows. Returns `None` for a dtype without integers, for an odd number of int4 columns, and for rows so long that a sum
    /// may exceed 32 bits.
    pub fn new(dtype: TableDtype, dimensions: usize, rows: &[&[u8]]) -> Option<Self> {
        const MOST_COLUMNS: usize = 1 << 16;
        let is_even = dtype == TableDtype::Int8 || dimensions.is_multiple_of(2);
        if !dtype.is_integer() || !is_even || dimensions == 0 || dimensions > MOST_COLUMNS {
            return None;
        }
        let order = order(dtype, dimensions);
        let decoded: Vec<Vec<i8>> = rows
            .iter()
            .map(|row| {
                let mut numbers = vec![0.0; dimensions];
                for_each(dtype, row, &mut numbers, |to, x| *to = x);
                order.iter().map(|&column| numbers.get(column).map_or(0, |&x| x as i8)).collect()
            })
            .collect();
        let passes = decoded.chunks(MAX_BLOCKS * LANES).map(|rows| Pass::new(dtype, order.len(), rows)).collect();
        Some(Self { dtype, dimensions, count: rows.len(), passes })
    }

    /// Returns the dtype of the rows.
    pub(super) fn dtype(&self) -> TableDtype {
        self.dtype
    }

    /// Returns the number of columns of a row.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Returns the number of products of each row: the number of packed rows, rounded up to [`LANES`]. The products of lanes without a row
    /// are zero.
    pub fn width(&self) -> usize {
        self.count.next_multiple_of(LANES)
    }
}

impl Pass {
    fn new(dtype: TableDtype, columns: usize, rows: &[Vec<i8>]) -> Self {
        let lanes = rows.len().next_multiple_of(LANES);
        let mut numbers = vec![0; columns / COLUMNS * lanes];
        for (lane, row) in rows.iter().enumerate() {
            for (four, to) in row.as_chunks::<COLUMNS>().0.iter().zip(numbers.iter_mut().skip(lane).step_by(lanes)) {
                *to = i32::from_le_bytes(four.map(i8::cast_unsigned));
            }
        }
        let offset = offset(dtype);
        let mut excess: Vec<i32> =
            rows.iter().map(|row| offset * row.iter().map(|&x| i32::from(x)).sum::<i32>()).collect();
        excess.resize(lanes, 0);
        Self { blocks: lanes / LANES, numbers, excess }
    }
}

/// The number that is added to each number of a row to make it an unsigned byte.
pub(super) const fn offset(dtype: TableDtype) -> i32 {
    if matches!(dtype, TableDtype::Int4) { 8 } else { 128 }
}

/// A group of `rows` rows that were unpacked to `bytes` bytes each.
#[derive(Clone, Copy)]
pub(super) struct Unpacked<'a> {
    pub dtype: TableDtype,
    pub numbers: &'a [u8],
    pub bytes: usize,
}

/// The products of a group of rows, `[rows, width]`, of which one pass writes the lanes from `first` on.
pub(super) struct Products<'a> {
    pub numbers: &'a mut [f32],
    pub width: usize,
    pub first: usize,
}

/// Unpacks `ROWS` rows at a time by `unpack`, which returns the sum of squares, and multiplies them by `multiply` with the packed rows of
/// each pass. Meanwhile the rows of the next group are prefetched. The last group may have fewer rows: `multiply` then gets fewer products.
#[inline(always)]
pub(super) fn in_groups<const ROWS: usize>(
    packed: &PackedRows,
    rows: &[&[u8]],
    products: &mut [f32],
    squares: &mut [i32],
    unpack: impl Fn(&[u8], &mut [u8]) -> i32,
    multiply: impl Fn(&Pass, Unpacked<'_>, &mut Products<'_>),
) {
    let (dtype, width) = (packed.dtype, packed.width());
    let stored = dtype.row_bytes(packed.dimensions).unwrap_or_default();
    let bytes = stored.div_ceil(CHUNK) * if dtype == TableDtype::Int4 { 2 * CHUNK } else { CHUNK };
    let mut unpacked = vec![0u8; ROWS * bytes];
    let mut groups = rows.chunks(ROWS);
    let mut next = groups.next();
    for (products, squares) in products.chunks_mut(ROWS * width.max(1)).zip(squares.chunks_mut(ROWS)) {
        let Some(group) = next else { return };
        next = groups.next();
        for row in next.unwrap_or_default() {
            for line in (0..row.len()).step_by(64) {
                prefetch(row, line);
            }
        }
        for ((row, unpacked), square) in group.iter().zip(unpacked.chunks_mut(bytes.max(1))).zip(squares) {
            *square = unpack(row.get(..stored).unwrap_or_default(), unpacked);
        }
        let mut first = 0;
        for pass in &packed.passes {
            let unpacked = Unpacked { dtype, numbers: &unpacked, bytes };
            multiply(pass, unpacked, &mut Products { numbers: products, width, first });
            first += pass.blocks * LANES;
        }
    }
}

/// Writes the numbers of a row as unsigned bytes, in the order of [`order`]. Returns the sum of squares of the numbers.
#[inline(always)]
pub(super) fn unpack(dtype: TableDtype, row: &[u8], out: &mut [u8]) -> i32 {
    let mut squares = 0;
    let square = |stored: u8| (i32::from(stored) - offset(dtype)).pow(2);
    match dtype {
        TableDtype::Int4 => {
            for (bytes, to) in row.chunks(CHUNK).zip(out.chunks_mut(2 * CHUNK)) {
                let (even, odd) = to.split_at_mut_checked(CHUNK).unwrap_or_default();
                for ((&byte, even), odd) in bytes.iter().zip(even).zip(odd) {
                    (*even, *odd) = (byte & 0xf, byte >> 4);
                    squares += square(*even) + square(*odd);
                }
            }
        }
        _ => {
            for (&byte, to) in row.iter().zip(out) {
                *to = byte ^ 0x80;
                squares += square(*to);
            }
        }
    }
    squares
}

/// The column of each unpacked byte. Past the last column, the number of columns stands for padding.
///
/// A chunk of 64 bytes of int4 is unpacked to its 64 even columns, followed by its 64 odd columns.
fn order(dtype: TableDtype, dimensions: usize) -> Vec<usize> {
    let chunks = dtype.row_bytes(dimensions).unwrap_or_default().div_ceil(CHUNK);
    let column = |column: usize| column.min(dimensions);
    match dtype {
        TableDtype::Int4 => (0..chunks)
            .flat_map(|chunk| {
                let bytes = chunk * CHUNK..(chunk + 1) * CHUNK;
                bytes.clone().map(move |byte| column(2 * byte)).chain(bytes.map(move |byte| column(2 * byte + 1)))
            })
            .collect(),
        _ => (0..chunks * CHUNK).map(column).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::available;
    use super::*;

    fn decoded(dtype: TableDtype, row: &[u8], dimensions: usize) -> Vec<i32> {
        let mut numbers = vec![0.0; dimensions];
        for_each(dtype, row, &mut numbers, |to, x| *to = x);
        numbers.into_iter().map(|x| x as i32).collect()
    }

    proptest! {
        /// Every kernel that multiplies integers, both dtypes, widths with and without padding, unaligned rows, the extreme numbers.
        #[test]
        fn products_are_those_of_the_plain_loop(
            seed in any::<u64>(), packed in 1usize..70, rows in 0usize..11, dimensions in 1usize..400, shift in 0usize..5,
        ) {
            let mut rng = fastrand::Rng::with_seed(seed);
            for dtype in [TableDtype::Int4, TableDtype::Int8] {
                let width = dtype.row_bytes(dimensions).unwrap();
                let mut bytes = |count: usize| -> Vec<u8> {
                    (0..shift + count * width).map(|_| if rng.bool() { rng.u8(..) } else { 0x80 }).collect()
                };
                let (a, b) = (bytes(packed), bytes(rows));
                let (a, b): (Vec<&[u8]>, Vec<&[u8]>) = (a[shift..].chunks(width).collect(), b[shift..].chunks(width).collect());
                let Some(made) = PackedRows::new(dtype, dimensions, &a) else {
                    prop_assert!(dtype == TableDtype::Int4 && dimensions % 2 == 1);
                    continue;
                };
                for kernel in available() {
                    let (mut products, mut squares) = (vec![7.0; rows * made.width()], vec![7; rows]);
                    let Some(multiply) = kernel.integers else { continue };
                    multiply(&made, &b, &mut products, &mut squares);
                    for (row, (products, square)) in b.iter().zip(products.chunks(made.width()).zip(&squares)) {
                        let row = decoded(dtype, row, dimensions);
                        let dot = |other: &[i32]| row.iter().zip(other).map(|(x, y)| x * y).sum::<i32>();
                        prop_assert_eq!(*square, dot(&row));
                        for (product, other) in products.iter().zip(&a) {
                            prop_assert_eq!(*product, dot(&decoded(dtype, other, dimensions)) as f32, "{} {:?}", kernel.name, dtype);
                        }
                        prop_assert!(products[a.len()..].iter().all(|product| *product == 0.0));
                    }
                }
            }
        }
    }

    /// The sums of 16 bits that one instruction set uses do not overflow, whatever the numbers are.
    #[test]
    fn long_rows_of_the_largest_numbers_have_exact_products() {
        for (dtype, byte, number) in [
            (TableDtype::Int4, 0x00, -8i64),
            (TableDtype::Int4, 0xff, 7),
            (TableDtype::Int8, 0x80, -128),
            (TableDtype::Int8, 0x7f, 127),
        ] {
            let dimensions = 5000;
            let low = vec![if dtype == TableDtype::Int4 { 0x00 } else { 0x80 }; dtype.row_bytes(dimensions).unwrap()];
            let row = vec![byte; low.len()];
            let least = if dtype == TableDtype::Int4 { -8 } else { -128 };
            let packed = PackedRows::new(dtype, dimensions, &[&low]).unwrap();
            for kernel in available() {
                let (mut products, mut squares) = (vec![0.0; packed.width()], [0]);
                let Some(multiply) = kernel.integers else { continue };
                multiply(&packed, &[&row], &mut products, &mut squares);
                assert_eq!(products[0], (dimensions as i64 * least * number) as f32, "{} {dtype:?}", kernel.name);
                assert_eq!(i64::from(squares[0]), dimensions as i64 * number * number, "{} {dtype:?}", kernel.name);
            }
        }
    }

    #[test]
    fn floats_are_not_packed() {
        for dtype in [TableDtype::Bf16, TableDtype::F16, TableDtype::F32] {
            assert!(PackedRows::new(dtype, 4, &[]).is_none());
        }
        assert!(PackedRows::new(TableDtype::Int8, 0, &[]).is_none());
    }
}
