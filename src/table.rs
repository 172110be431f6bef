//! The embedding table: rows of numbers as they are stored, wherever they live.

use std::sync::Arc;

use bytes::Bytes;

/// How one number of a table is stored, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableDtype {
    Bf16,
    F16,
    F32,
    /// Whole numbers from -128 to 127, without a scale: Model2Vec's quantization.
    I8,
}

impl TableDtype {
    /// Bytes per number.
    pub const fn size(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
            Self::I8 => 1,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::I8 => "int8",
        }
    }
}

/// `rows` x `dimensions` numbers, kept as stored: a slice of a memory map, or of memory.
///
/// Tokens can share rows: then `rows` counts token ids, and a mapping tells each id's stored row.
#[derive(Debug, Clone)]
pub struct EmbeddingTable {
    bytes: Bytes,
    dtype: TableDtype,
    stored_rows: usize,
    dimensions: usize,
    mapping: Option<Arc<[u32]>>,
}

impl EmbeddingTable {
    /// `None` unless `bytes` is exactly `rows * dimensions` numbers of `dtype`, and neither is zero.
    pub fn new(bytes: Bytes, dtype: TableDtype, rows: usize, dimensions: usize) -> Option<Self> {
        let size = rows.checked_mul(dimensions)?.checked_mul(dtype.size())?;
        (size == bytes.len() && size > 0).then_some(Self { bytes, dtype, stored_rows: rows, dimensions, mapping: None })
    }

    /// The table whose row `id` is the stored row `mapping[id]`. `None` unless every one of those exists.
    #[must_use]
    pub fn with_mapping(self, mapping: Arc<[u32]>) -> Option<Self> {
        let exists = |&row: &u32| (row as usize) < self.stored_rows;
        (!mapping.is_empty() && mapping.iter().all(exists)).then_some(Self { mapping: Some(mapping), ..self })
    }

    pub fn dtype(&self) -> TableDtype {
        self.dtype
    }

    /// The number of token ids that have a row.
    pub fn rows(&self) -> usize {
        self.mapping.as_ref().map_or(self.stored_rows, |mapping| mapping.len())
    }

    /// The number of rows in [`EmbeddingTable::bytes`].
    pub fn stored_rows(&self) -> usize {
        self.stored_rows
    }

    /// Each token id's stored row; `None` where they are the same.
    pub fn mapping(&self) -> Option<&[u32]> {
        self.mapping.as_deref()
    }

    /// The number of columns.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// All stored rows, row-major.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The stored bytes of token `id`'s row, or `None` past the last.
    pub fn row(&self, id: u32) -> Option<&[u8]> {
        let row = match &self.mapping {
            None => id,
            Some(mapping) => *mapping.get(id as usize)?,
        };
        let width = self.dimensions * self.dtype.size();
        let start = (row as usize).checked_mul(width)?;
        self.bytes.get(start..start.checked_add(width)?)
    }

    /// Decodes one row into `out` (`dimensions` numbers); `false` past the last row.
    pub fn read_row(&self, id: u32, out: &mut [f32]) -> bool {
        let Some(row) = self.row(id) else { return false };
        for_each(self.dtype, row, out, |out, x| *out = x);
        true
    }
}

/// Calls `f(out[i], number i of row)` for as many numbers as `out` takes.
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
                f(out, f16_to_f32(u16::from_le_bytes(x)));
            }
        }
        TableDtype::F32 => {
            let (row, _) = row.as_chunks();
            for (out, &x) in out.iter_mut().zip(row) {
                f(out, f32::from_le_bytes(x));
            }
        }
        TableDtype::I8 => {
            for (out, &x) in out.iter_mut().zip(row) {
                f(out, f32::from(x.cast_signed()));
            }
        }
    }
}

/// An f16 as f32, exactly, without the branches and calls of half's conversion, which stop vectorization.
///
/// The exponent's bias is mended by a multiplication, which also makes normal numbers of subnormal ones
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
            TableDtype::I8 => numbers.iter().map(|&x| x as i8 as u8).collect(),
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
        assert!(table(TableDtype::I8, &[0.0, 0.0, 0.0, 127.0, -128.0, -1.0]).read_row(1, &mut row));
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
}
