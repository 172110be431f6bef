//! The embedding table: rows of numbers as they are stored, wherever they live.

use std::sync::Arc;

use bytes::Bytes;
use half::f16;

/// How one number of a table is stored, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableDtype {
    Bf16,
    F16,
    F32,
    /// Two's complement; the number is the integer times its row's scale.
    Int8,
    /// Two numbers a byte, the even column in the low four bits, each stored plus 8; times the row's scale.
    Int4,
}

impl TableDtype {
    /// The bytes of one row of `dimensions` numbers; `None` past `usize`.
    pub const fn row_bytes(self, dimensions: usize) -> Option<usize> {
        match self {
            Self::Bf16 | Self::F16 => dimensions.checked_mul(2),
            Self::F32 => dimensions.checked_mul(4),
            Self::Int8 => Some(dimensions),
            Self::Int4 => Some(dimensions.div_ceil(2)),
        }
    }

    /// Whether rows are integers, and each has a scale.
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

/// `rows` x `dimensions` numbers, kept as stored: a slice of a memory map, or of memory.
#[derive(Debug, Clone)]
pub struct EmbeddingTable {
    bytes: Bytes,
    dtype: TableDtype,
    rows: usize,
    dimensions: usize,
    width: usize,
    /// `rows` numbers where the dtype is of integers.
    row_scales: Option<Arc<[f32]>>,
}

impl EmbeddingTable {
    /// `None` unless `bytes` is exactly `rows * dimensions` numbers of `dtype`, and neither is zero; and for integers,
    /// which need [`EmbeddingTable::quantized`].
    pub fn new(bytes: Bytes, dtype: TableDtype, rows: usize, dimensions: usize) -> Option<Self> {
        (!dtype.is_integer()).then_some(())?;
        Self::of(bytes, dtype, rows, dimensions, None)
    }

    /// A table of integers, with `row_scales[t]` the size of one step in row `t`. `None` as for [`EmbeddingTable::new`].
    pub fn quantized(bytes: Bytes, dtype: TableDtype, dimensions: usize, row_scales: Vec<f32>) -> Option<Self> {
        dtype.is_integer().then_some(())?;
        Self::of(bytes, dtype, row_scales.len(), dimensions, Some(row_scales.into()))
    }

    fn of(
        bytes: Bytes,
        dtype: TableDtype,
        rows: usize,
        dimensions: usize,
        row_scales: Option<Arc<[f32]>>,
    ) -> Option<Self> {
        let width = dtype.row_bytes(dimensions)?;
        let size = rows.checked_mul(width)?;
        (size == bytes.len() && size > 0).then_some(Self { bytes, dtype, rows, dimensions, width, row_scales })
    }

    pub fn dtype(&self) -> TableDtype {
        self.dtype
    }

    /// The number of vocabulary rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// All rows, row-major, as stored.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The stored bytes of one row, or `None` past the last.
    pub fn row(&self, id: u32) -> Option<&[u8]> {
        let start = (id as usize).checked_mul(self.width)?;
        self.bytes.get(start..start.checked_add(self.width)?)
    }

    /// What [`for_each`]'s numbers of row `id` are to be multiplied with: 1 but for integers.
    pub fn row_scale(&self, id: u32) -> f32 {
        self.row_scales.as_ref().map_or(1.0, |scales| scales.get(id as usize).copied().unwrap_or(0.0))
    }

    /// Decodes one row into `out` (`dimensions` numbers); `false` past the last row.
    pub fn read_row(&self, id: u32, out: &mut [f32]) -> bool {
        let Some(row) = self.row(id) else { return false };
        let scale = self.row_scale(id);
        for_each(self.dtype, row, out, |out, x| *out = scale * x);
        true
    }
}

/// Calls `f(out[i], number i of row)` for as many numbers as `out` takes. Integers come without their row's scale.
///
/// The one place that knows how a number is stored; the compiler makes a loop over vectors of each arm.
#[inline]
pub fn for_each(dtype: TableDtype, row: &[u8], out: &mut [f32], mut f: impl FnMut(&mut f32, f32)) {
    match dtype {
        TableDtype::Bf16 => {
            let (row, _) = row.as_chunks();
            for (out, &x) in out.iter_mut().zip(row) {
                // bf16 is the upper half of an f32. half's conversion also quiets NaNs, by a branch that stops vectorization.
                f(out, f32::from_bits(u32::from(u16::from_le_bytes(x)) << 16));
            }
        }
        TableDtype::F16 => {
            let (row, _) = row.as_chunks();
            for (out, &x) in out.iter_mut().zip(row) {
                f(out, f16::from_le_bytes(x).to_f32());
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

/// Four bits hold -8 to 7, stored as 0 to 15.
const INT4_OFFSET: f32 = 8.0;

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn table(dtype: TableDtype, numbers: &[f32]) -> EmbeddingTable {
        let bytes: Vec<u8> = match dtype {
            TableDtype::Bf16 => numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            TableDtype::F16 => numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            TableDtype::F32 => numbers.iter().flat_map(|&x| x.to_le_bytes()).collect(),
            TableDtype::Int8 | TableDtype::Int4 => unreachable!("integers have scales"),
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
    fn integers_need_scales_and_floats_take_none() {
        let bytes = Bytes::from(vec![0; 24]);
        assert!(EmbeddingTable::new(bytes.clone(), TableDtype::Int8, 6, 4).is_none());
        assert!(EmbeddingTable::quantized(bytes.clone(), TableDtype::F32, 3, vec![1.0; 2]).is_none());
        assert!(EmbeddingTable::quantized(bytes.clone(), TableDtype::Int8, 4, vec![1.0; 5]).is_none());
        assert!(EmbeddingTable::quantized(bytes, TableDtype::Int4, 7, vec![1.0; 6]).is_some());
    }
}
