//! Reads a matrix of floating-point numbers from a file, a few rows at a time.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use half::{bf16, f16};

/// The type of the numbers in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    F16,
    Bf16,
    F32,
    F64,
}

impl Number {
    pub const fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// Decodes numbers. Bytes after the last whole number are ignored.
    fn decode(self, bytes: &[u8], big_endian: bool) -> Vec<f32> {
        fn each<const N: usize>(bytes: &[u8], big_endian: bool, number: fn([u8; N]) -> f32) -> Vec<f32> {
            let swapped = |&(mut bytes): &[u8; N]| {
                if big_endian {
                    bytes.reverse();
                }
                number(bytes)
            };
            bytes.as_chunks::<N>().0.iter().map(swapped).collect()
        }
        match self {
            Self::F16 => each(bytes, big_endian, |x| f16::from_le_bytes(x).to_f32()),
            Self::Bf16 => each(bytes, big_endian, |x| bf16::from_le_bytes(x).to_f32()),
            Self::F32 => each(bytes, big_endian, f32::from_le_bytes),
            Self::F64 => each(bytes, big_endian, |x| f64::from_le_bytes(x) as f32),
        }
    }
}

/// The layout of a matrix, as the header of its file states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub number: Number,
    pub big_endian: bool,
    /// Whether the matrix is stored column by column (Fortran order) instead of row by row.
    pub by_columns: bool,
    pub rows: u64,
    pub dimensions: usize,
}

/// A matrix in a file whose header has been read.
pub struct Matrix {
    layout: Layout,
    reader: BufReader<File>,
    /// The offset of the first number, in bytes. It is set only for matrices that are stored by columns, because
    /// reading their rows requires seeking.
    start: u64,
    read: u64,
}

impl Matrix {
    /// Creates the reader of a matrix from a file that is positioned at the end of its header.
    ///
    /// # Errors
    /// Fails if the matrix is stored by columns and the file does not support seeking.
    pub fn new(mut reader: BufReader<File>, layout: Layout) -> io::Result<Self> {
        let start = if layout.by_columns { reader.stream_position()? } else { 0 };
        Ok(Self { layout, reader, start, read: 0 })
    }

    /// Returns the next `count` rows, or fewer at the end of the matrix.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or if it ends before the last row that its header announces.
    pub fn next(&mut self, count: usize) -> io::Result<Vec<Vec<f32>>> {
        let Layout { number, big_endian, by_columns, rows, dimensions } = self.layout;
        let count = usize::try_from(rows - self.read).unwrap_or(usize::MAX).min(count);
        let mut block: Vec<Vec<f32>> = Vec::with_capacity(count);
        if by_columns {
            block.resize_with(count, || Vec::with_capacity(dimensions));
            let size = number.size() as u64;
            let mut bytes = vec![0; count * number.size()];
            for column in 0..dimensions as u64 {
                let place = column.checked_mul(rows).and_then(|before| (before + self.read).checked_mul(size));
                let place = place.and_then(|place| place.checked_add(self.start));
                self.reader.seek(SeekFrom::Start(place.ok_or(io::ErrorKind::UnexpectedEof)?))?;
                self.reader.read_exact(&mut bytes)?;
                for (row, x) in block.iter_mut().zip(number.decode(&bytes, big_endian)) {
                    row.push(x);
                }
            }
            self.read += count as u64;
        } else {
            let mut bytes = vec![0; dimensions * number.size()];
            for _ in 0..count {
                self.reader.read_exact(&mut bytes)?;
                block.push(number.decode(&bytes, big_endian));
                self.read += 1;
            }
        }
        Ok(block)
    }

    /// Returns the number of rows that have been read.
    pub fn position(&self) -> u64 {
        self.read
    }
}
