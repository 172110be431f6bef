//! The embedding table: rows of numbers in the format in which they are stored, in memory or in a memory map.

use std::sync::Arc;

use bytes::Bytes;

use layer0_tokenizers::large_pages::LargePages;

/// The format of one number of a table. All formats are little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableDtype {
    Bf16,
    F16,
    F32,
    /// Two's complement. The number is the integer times the scale of its row, if the rows have scales.
    Int8,
    /// Two numbers in each byte, with the even column in the low four bits. Each is stored plus 8, and multiplied by the scale of
    /// its row.
    Int4,
}

impl TableDtype {
    /// Returns the number of bytes of a row of `dimensions` numbers, or `None` if it exceeds `usize`.
    pub const fn row_bytes(self, dimensions: usize) -> Option<usize> {
        match self {
            Self::Bf16 | Self::F16 => dimensions.checked_mul(2),
            Self::F32 => dimensions.checked_mul(4),
            Self::Int8 => Some(dimensions),
            Self::Int4 => Some(dimensions.div_ceil(2)),
        }
    }

    /// Returns whether rows are integers, each with a scale.
    pub const fn is_integer(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

/// A matrix of `[rows, dimensions]` numbers in their stored format: a slice of a memory map, or of memory.
///
/// Several tokens can share a row. `rows` then counts token IDs, and a mapping gives the stored row of each ID.
#[derive(Debug, Clone)]
pub struct EmbeddingTable {
    bytes: Bytes,
    dtype: TableDtype,
    stored_rows: usize,
    dimensions: usize,
    /// The number of bytes of one row.
    width: usize,
    mapping: Option<Arc<[u32]>>,
    /// The scale of each stored row, `[stored_rows]`, if the numbers are integers with scales.
    row_scales: Option<Arc<[f32]>>,
}

impl EmbeddingTable {
    /// Creates a table. Returns `None` unless `bytes` is exactly `rows * dimensions` numbers of `dtype`, and both are greater
    /// than zero.
    pub fn new(bytes: Bytes, dtype: TableDtype, rows: usize, dimensions: usize) -> Option<Self> {
        Self::from_parts(bytes, dtype, rows, dimensions, None)
    }

    /// Copies the table into memory of its own, in large pages if the system supports them.
    #[must_use]
    pub fn copied(self) -> Self {
        let bytes = match LargePages::zeroed(self.bytes.len()) {
            Some(mut pages) => {
                pages.copy_from_slice(&self.bytes);
                Bytes::from_owner(pages)
            }
            None => Bytes::copy_from_slice(&self.bytes),
        };
        Self { bytes, ..self }
    }

    /// Creates a table of integers. `row_scales[t]` is the size of one step in row `t`. Returns `None` as [`EmbeddingTable::new`]
    /// does, and for a `dtype` that is not an integer.
    pub fn quantized(bytes: Bytes, dtype: TableDtype, dimensions: usize, row_scales: Vec<f32>) -> Option<Self> {
        dtype.is_integer().then_some(())?;
        Self::from_parts(bytes, dtype, row_scales.len(), dimensions, Some(row_scales.into()))
    }

    fn from_parts(
        bytes: Bytes,
        dtype: TableDtype,
        stored_rows: usize,
        dimensions: usize,
        row_scales: Option<Arc<[f32]>>,
    ) -> Option<Self> {
        let width = dtype.row_bytes(dimensions)?;
        let size = stored_rows.checked_mul(width)?;
        (size == bytes.len() && size > 0).then_some(Self {
            bytes,
            dtype,
            stored_rows,
            dimensions,
            width,
            mapping: None,
            row_scales,
        })
    }

    /// Returns the table whose row `id` is the stored row `mapping[id]`, or `None` if a row in `mapping` does not exist.
    #[must_use]
    pub fn with_mapping(self, mapping: Arc<[u32]>) -> Option<Self> {
        let exists = |&row: &u32| (row as usize) < self.stored_rows;
        (!mapping.is_empty() && mapping.iter().all(exists)).then_some(Self { mapping: Some(mapping), ..self })
    }

    pub fn dtype(&self) -> TableDtype {
        self.dtype
    }

    /// Returns the number of token IDs that have a row.
    pub fn rows(&self) -> usize {
        self.mapping.as_ref().map_or(self.stored_rows, |mapping| mapping.len())
    }

    /// Returns the number of rows in [`EmbeddingTable::bytes`].
    pub fn stored_rows(&self) -> usize {
        self.stored_rows
    }

    /// Returns the stored row of each token ID, or `None` if every ID is its own row.
    pub fn mapping(&self) -> Option<&[u32]> {
        self.mapping.as_deref()
    }

    /// Returns the number of columns.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Returns all stored rows, in row-major order.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns the stored bytes of the row of token `id`, or `None` if `id` is past the last row.
    pub fn row(&self, id: u32) -> Option<&[u8]> {
        let start = self.stored_row(id)?.checked_mul(self.width)?;
        self.bytes.get(start..start.checked_add(self.width)?)
    }

    fn stored_row(&self, id: u32) -> Option<usize> {
        match &self.mapping {
            None => Some(id as usize),
            Some(mapping) => Some(*mapping.get(id as usize)? as usize),
        }
    }

    /// Returns the factor by which the numbers that [`for_each`] reads from the row of token `id` must be multiplied. It is 1
    /// except for integers with scales.
    pub fn row_scale(&self, id: u32) -> f32 {
        let of = |scales: &Arc<[f32]>| self.stored_row(id).and_then(|row| scales.get(row).copied()).unwrap_or(0.0);
        self.row_scales.as_ref().map_or(1.0, of)
    }

    /// Decodes one row into `out`, `[dimensions]`. Returns false if `id` is past the last row.
    pub fn read_row(&self, id: u32, out: &mut [f32]) -> bool {
        let Some(row) = self.row(id) else { return false };
        let scale = self.row_scale(id);
        for_each(self.dtype, row, out, |out, x| *out = scale * x);
        true
    }
}

/// Calls `f(out[i], x)` with each number `x` of the row, for as many numbers as `out` has. Integers are not multiplied by the
/// scale of their row.
///
/// This is the only place that knows how numbers are stored. The compiler vectorizes the loop of each match arm.
#[inline]
pub fn for_each(dtype: TableDtype, row: &[u8], out: &mut [f32], mut f: impl FnMut(&mut f32, f32)) {
    match dtype {
        TableDtype::Bf16 => {
            let (row, _) = row.as_chunks();
            for (out, &x) in out.iter_mut().zip(row) {
                // bf16 is the upper half of an f32. The conversion in the crate half also quiets NaNs, by a branch that prevents
                // vectorization.
                f(out, f32::from_bits(u32::from(u16::from_le_bytes(x)) << 16));
            }
        }
        TableDtype::F16 => {
            let (row, _) = row.as_chunks();
            for (out, &x) in out.iter_mut().zip(row) {
                f(out, f16_to_f32(u16::from_le_bytes(x)));
            }
        }
        TableDtype::F32 => {
            let (row, _) = row.as_chunks();
            for (out, &x) in out.iter_mut().zip(row) {
                f(out, f32::from_le_bytes(x));
            }
        }
        TableDtype::Int8 => {
            for (out, &x) in out.iter_mut().zip(row) {
                f(out, f32::from(x.cast_signed()));
            }
        }
        TableDtype::Int4 => {
            let (pairs, last) = out.as_chunks_mut();
            for ([even, odd], &x) in pairs.iter_mut().zip(row) {
                f(even, f32::from(x & 0xf) - INT4_OFFSET);
                f(odd, f32::from(x >> 4) - INT4_OFFSET);
            }
            if let ([even], Some(&x)) = (last, row.get(pairs.len())) {
                f(even, f32::from(x & 0xf) - INT4_OFFSET);
            }
        }
    }
}

/// The number that is added to an int4 before it is stored: -8 to 7 are stored as 0 to 15.
const INT4_OFFSET: f32 = 8.0;

/// Converts an f16 to f32, exactly, without the branches and calls of the crate half's conversion, which prevent vectorization.
///
/// A multiplication corrects the bias of the exponent, and also turns subnormal numbers into normal ones
/// (<https://fgiesen.wordpress.com/2012/03/28/half-to-float-done-quic/>).
#[inline]
fn f16_to_f32(x: u16) -> f32 {
    const BIAS: f32 = f32::from_bits((127 + 127 - 15) << 23);
    let magnitude = u32::from(x & 0x7fff) << 13;
    let special = if x & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    let sign = u32::from(x & 0x8000) << 16;
    f32::from_bits((f32::from_bits(magnitude) * BIAS).to_bits() | special | sign)
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    fn table(dtype: TableDtype, numbers: &[f32]) -> EmbeddingTable {
        let bytes: Vec<u8> = match dtype {
            TableDtype::Bf16 => numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            TableDtype::F16 => numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            TableDtype::F32 => numbers.iter().flat_map(|&x| x.to_le_bytes()).collect(),
            TableDtype::Int8 => numbers.iter().map(|&x| x as i8 as u8).collect(),
            TableDtype::Int4 => unreachable!("its rows are not whole bytes"),
        };
        EmbeddingTable::new(bytes.into(), dtype, 2, 3).unwrap()
    }

    #[test]
    fn rows_decode_in_every_dtype_and_end_with_the_table() {
        for dtype in [TableDtype::Bf16, TableDtype::F16, TableDtype::F32] {
            let table = table(dtype, &[1.0, -2.0, 0.5, 3.0, 0.0, -0.25]);
            let mut row = [0.0; 3];
            assert!(table.read_row(1, &mut row), "{dtype:?}");
            assert_eq!(row, [3.0, 0.0, -0.25], "{dtype:?}");
            assert!(!table.read_row(2, &mut row));
            assert!(!table.read_row(u32::MAX, &mut row));
        }
    }

    #[test]
    fn whole_numbers_keep_their_sign() {
        let mut row = [0.0; 3];
        assert!(table(TableDtype::Int8, &[0.0, 0.0, 0.0, 127.0, -128.0, -1.0]).read_row(1, &mut row));
        assert_eq!(row, [127.0, -128.0, -1.0]);
    }

    #[test]
    fn every_f16_is_decoded_as_half_does() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(
                ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(),
                "{bits:#06x}: {ours} {theirs}"
            );
        }
    }

    #[test]
    fn tokens_share_rows_by_a_mapping_that_must_hold() {
        let stored = table(TableDtype::F32, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mapped = stored.clone().with_mapping([1, 0, 1].into()).unwrap();
        assert_eq!((mapped.rows(), mapped.stored_rows()), (3, 2));
        let mut row = [0.0; 3];
        for (id, first) in [(0, 4.0), (1, 1.0), (2, 4.0)] {
            assert!(mapped.read_row(id, &mut row));
            assert_eq!(row[0], first);
        }
        assert!(!mapped.read_row(3, &mut row));
        assert!(stored.clone().with_mapping([0, 2].into()).is_none());
        assert!(stored.with_mapping([].into()).is_none());
    }

    #[test]
    fn bytes_of_another_size_are_no_table() {
        let bytes = Bytes::from(vec![0; 24]);
        assert!(EmbeddingTable::new(bytes.clone(), TableDtype::F32, 2, 3).is_some());
        assert!(EmbeddingTable::new(bytes.clone(), TableDtype::F32, 3, 3).is_none());
        assert!(EmbeddingTable::new(bytes.clone(), TableDtype::Bf16, usize::MAX, 2).is_none());
        assert!(EmbeddingTable::new(Bytes::new(), TableDtype::Bf16, 0, 3).is_none());
    }

    #[test]
    fn integers_are_numbers_of_their_rows_step() {
        let int8 = Bytes::from(vec![1i8, -127, 0, -128, 127, 3].into_iter().map(i8::cast_unsigned).collect::<Vec<_>>());
        let table = EmbeddingTable::quantized(int8, TableDtype::Int8, 3, vec![0.5, 2.0]).unwrap();
        let mut row = [0.0; 3];
        assert!(table.read_row(0, &mut row));
        assert_eq!(row, [0.5, -63.5, 0.0]);
        assert!(table.read_row(1, &mut row));
        assert_eq!(row, [-256.0, 254.0, 6.0]);
        assert!(!table.read_row(2, &mut row));
    }

    #[test]
    fn four_bits_are_low_first_and_an_odd_row_ends_in_half_a_byte() {
        // Columns -8, 7, 0 and 1, -1, -7, then a half that no column reads.
        let int4 = Bytes::from(vec![0xf0, 0x08, 0x79, 0xf1]);
        let table = EmbeddingTable::quantized(int4, TableDtype::Int4, 3, vec![1.0, 0.25]).unwrap();
        let mut row = [9.0; 3];
        assert!(table.read_row(0, &mut row));
        assert_eq!(row, [-8.0, 7.0, 0.0]);
        assert!(table.read_row(1, &mut row));
        assert_eq!(row, [0.25, -0.25, -1.75]);
        let mut prefix = [9.0; 1];
        assert!(table.read_row(1, &mut prefix));
        assert_eq!(prefix, [0.25]);
    }

    #[test]
    fn floats_take_no_scales_and_every_row_has_one() {
        let bytes = Bytes::from(vec![0; 24]);
        assert!(EmbeddingTable::quantized(bytes.clone(), TableDtype::F32, 3, vec![1.0; 2]).is_none());
        assert!(EmbeddingTable::quantized(bytes.clone(), TableDtype::Int8, 4, vec![1.0; 5]).is_none());
        assert!(EmbeddingTable::quantized(bytes, TableDtype::Int4, 7, vec![1.0; 6]).is_some());
    }
}
