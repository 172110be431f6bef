//! The embedding table: rows of numbers as they are stored, wherever they live.

use bytes::Bytes;
use half::f16;

/// How one number of a table is stored, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableDtype {
    Bf16,
    F16,
    F32,
}

impl TableDtype {
    /// Bytes per number.
    pub const fn size(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
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
}

impl EmbeddingTable {
    /// `None` unless `bytes` is exactly `rows * dimensions` numbers of `dtype`, and neither is zero.
    pub fn new(bytes: Bytes, dtype: TableDtype, rows: usize, dimensions: usize) -> Option<Self> {
        let size = rows.checked_mul(dimensions)?.checked_mul(dtype.size())?;
        (size == bytes.len() && size > 0).then_some(Self { bytes, dtype, rows, dimensions })
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
        let width = self.dimensions * self.dtype.size();
        let start = (id as usize).checked_mul(width)?;
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
                f(out, f16::from_le_bytes(x).to_f32());
            }
        }
        TableDtype::F32 => {
            let (row, _) = row.as_chunks();
            for (out, &x) in out.iter_mut().zip(row) {
                f(out, f32::from_le_bytes(x));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn table(dtype: TableDtype, numbers: &[f32]) -> EmbeddingTable {
        let bytes: Vec<u8> = match dtype {
            TableDtype::Bf16 => numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            TableDtype::F16 => numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            TableDtype::F32 => numbers.iter().flat_map(|&x| x.to_le_bytes()).collect(),
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
}
