//! The rows of a checkpoint under its own norm, from which fits and trainings start.

use std::io;

use rayon::prelude::*;

use super::{ROWS_AT_A_TIME, blocks};
use crate::error::FitError;
use crate::refine::Rows;
use crate::refine::rows::Block;
use layer0::checkpoint::Checkpoint;
use layer0::pooling::{CpuPooling, Pooling};

/// The rows of the checkpoint, scaled: `F0` of the documentation of `fit`.
#[derive(Debug)]
pub struct Source<'a> {
    pub checkpoint: &'a Checkpoint,
    pooling: CpuPooling,
    pub scale: f32,
}

impl<'a> Source<'a> {
    pub fn new(checkpoint: &'a Checkpoint) -> Result<Self, FitError> {
        let threads = rayon::current_num_threads();
        let pooling = CpuPooling::new(checkpoint.table.clone(), checkpoint.collapsed_norm(threads)?)
            .with_token_count_exponent(checkpoint.conventions.token_count_exponent);
        Ok(Self { checkpoint, pooling, scale: 1.0 })
    }

    pub fn dimensions(&self) -> usize {
        self.checkpoint.table.dimensions()
    }

    /// Returns the vector of a text.
    pub fn vector(&self, ids: &[u32]) -> Vec<f32> {
        let mut vector = vec![0.0; self.dimensions()];
        self.mean(ids, &mut vector);
        vector
    }

    /// Writes the weighted mean of the rows of `ids` to `out`.
    pub fn mean(&self, ids: &[u32], out: &mut [f32]) {
        // Pooling on the CPU cannot fail.
        let _ = self.pooling.mean(&[ids], out.len(), out);
        for x in out {
            *x *= self.scale;
        }
    }

    /// Returns the rows of `ids`. The row of a token that is never pooled consists of zeros.
    pub fn rows(&self, ids: impl IndexedParallelIterator<Item = u32>) -> Block {
        let dimensions = self.dimensions();
        let mut numbers = vec![0.0; ids.len() * dimensions];
        numbers.par_chunks_mut(dimensions).zip(ids).for_each(|(row, id)| {
            if Some(id) != self.checkpoint.conventions.left_out {
                self.mean(&[id], row);
            }
        });
        Block { numbers, dimensions }
    }
}

/// The rows of a checkpoint under its own norm. Fitting has not changed them.
#[derive(Debug)]
pub struct Unfitted<'a> {
    source: Source<'a>,
}

impl<'a> Unfitted<'a> {
    /// Creates the rows.
    ///
    /// # Errors
    /// Fails if the table is not finite.
    pub fn new(checkpoint: &'a Checkpoint) -> Result<Self, FitError> {
        Ok(Self { source: Source::new(checkpoint)? })
    }
}

impl Rows for Unfitted<'_> {
    fn rows(&self) -> usize {
        self.source.checkpoint.table.rows()
    }

    fn dimensions(&self) -> usize {
        self.source.dimensions()
    }

    fn for_each_block(&self, take: &mut dyn FnMut(usize, &[f32]) -> io::Result<()>) -> io::Result<()> {
        for block in blocks(self.rows(), ROWS_AT_A_TIME) {
            let first = block.start;
            let ids = block.into_par_iter().map(|id| u32::try_from(id).unwrap_or(u32::MAX));
            take(first, &self.source.rows(ids).numbers)?;
        }
        Ok(())
    }
}
