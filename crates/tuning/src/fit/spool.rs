//! Stores rows on disk, so that the vectors of all texts of a corpus need not fit in memory.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::error::FitError;
use crate::refine::rows::Block;
use layer0::checkpoint::map::Map;
use layer0::table::{EmbeddingTable, TableDtype};
use layer0_files::{FileError, FileErrorKind};

/// A writer of f32 rows to an unnamed file. The operating system removes the file when the process ends, even if the
/// process is killed.
pub struct Spool {
    file: BufWriter<File>,
    dir: PathBuf,
    dimensions: usize,
    rows: usize,
}

/// The memory-mapped rows of a [`Spool`]. The operating system can evict their pages when it needs the memory.
pub struct Spooled {
    pub table: EmbeddingTable,
}

impl Spool {
    /// Creates an unnamed file in `dir` for rows of `dimensions` numbers.
    ///
    /// # Errors
    /// Fails if the file cannot be created.
    pub fn new(dir: &Path, dimensions: usize) -> Result<Self, FitError> {
        let file = tempfile::tempfile_in(dir).map_err(|e| FileError::writing(dir, &e))?;
        Ok(Self { file: BufWriter::with_capacity(1 << 20, file), dir: dir.to_owned(), dimensions, rows: 0 })
    }

    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Appends whole rows.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn push(&mut self, rows: &[f32]) -> Result<(), FitError> {
        self.rows += rows.len() / self.dimensions.max(1);
        // Embedding tables are little-endian.
        rows.iter()
            .try_for_each(|x| self.file.write_all(&x.to_le_bytes()))
            .map_err(|e| FileError::writing(&self.dir, &e).into())
    }

    /// Finishes writing, and returns the rows as a table.
    ///
    /// # Errors
    /// Fails if the file cannot be written or mapped, or if it holds no rows.
    pub fn finish(self) -> Result<Spooled, FitError> {
        let Self { file, dir, dimensions, rows } = self;
        let file = file.into_inner().map_err(|e| FileError::writing(&dir, e.error()))?;
        let table = EmbeddingTable::new(Map::of(&file, &dir)?.bytes(), TableDtype::F32, rows, dimensions);
        let table =
            table.ok_or_else(|| FileError::new(FileErrorKind::Io, &dir, "lost vectors that were written there"))?;
        Ok(Spooled { table })
    }
}

impl Spooled {
    /// Returns the rows of `range`, row-major.
    pub fn block(&self, range: Range<usize>) -> Block {
        let dimensions = self.table.dimensions();
        let mut numbers = vec![0.0; range.len() * dimensions];
        numbers.par_chunks_mut(dimensions).zip(range).for_each(|(row, index)| {
            for (slot, x) in row.iter_mut().zip(self.row(index)) {
                *slot = x;
            }
        });
        Block { numbers, dimensions }
    }

    /// Adds `weight` times row `index` to `sums`.
    #[inline]
    pub fn add(&self, index: u32, weight: f32, sums: &mut [f32]) {
        let numbers = self.table.row(index).unwrap_or_default().as_chunks().0;
        for (sum, &x) in sums.iter_mut().zip(numbers) {
            *sum += weight * f32::from_le_bytes(x);
        }
    }

    /// Returns the numbers of row `index`. The result is empty if there is no such row.
    pub fn row(&self, index: usize) -> impl Iterator<Item = f32> + use<'_> {
        let bytes = u32::try_from(index).ok().and_then(|index| self.table.row(index)).unwrap_or_default();
        bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x))
    }
}
