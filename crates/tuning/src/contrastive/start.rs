//! The rows from which a training starts: those of the tokens that occur in the texts, scaled so that a typical number
//! is 1.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::FitError;
use crate::fit::spool::{Spool, Spooled};
use crate::refine::Rows;
use layer0::progress::Progress;
use layer0_files::{Diagnostic, FileError};

/// The starting rows.
pub struct Start<'a> {
    rows: &'a dyn Rows,
    /// The factor that gives the rows of `tokens` a mean square of 1.
    pub scale: f32,
    /// The tokens that occur in the texts, in ascending order. Each has a trained row.
    pub tokens: Vec<u32>,
    /// For each token, the index of its trained row, or `u32::MAX`.
    pub positions: Vec<u32>,
    /// The checkpoint, for messages.
    pub path: PathBuf,
}

impl<'a> Start<'a> {
    /// Measures the scale of the rows of the tokens that occur.
    ///
    /// # Errors
    /// Fails if the rows cannot be read, or hold no number but zero.
    pub fn new(rows: &'a dyn Rows, seen: &[bool], path: &Path, progress: &dyn Progress) -> Result<Self, FitError> {
        let mut positions = vec![u32::MAX; seen.len()];
        let mut tokens = Vec::new();
        for (id, (position, _)) in (0..).zip(positions.iter_mut().zip(seen)).filter(|(_, (_, seen))| **seen) {
            *position = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
            tokens.push(id);
        }
        let mut start = Self { rows, scale: 1.0, tokens, positions, path: path.to_owned() };
        let mut squares = 0.0f64;
        progress.start_counted("reading the rows", rows.rows() as u64);
        start.for_each_seen(&mut |row| {
            squares += row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
            Ok(())
        })?;
        progress.finish();
        let numbers = (start.tokens.len() * rows.dimensions()).max(1) as f64;
        start.scale = (squares / numbers).sqrt().recip() as f32;
        if !start.scale.is_finite() {
            let problem = Diagnostic::new(path, "has only zeros in the rows of the texts' tokens");
            return Err(FitError::NoSolution(problem.expected("a table of finite numbers")));
        }
        Ok(start)
    }

    pub fn dimensions(&self) -> usize {
        self.rows.dimensions()
    }

    /// Returns the rows in memory, the same rows in a file in the directory `scratch`, and their digest.
    ///
    /// # Errors
    /// Fails if the rows cannot be read, or if the file cannot be written.
    pub fn rows(&self, scratch: &Path) -> Result<(Vec<f32>, Spooled, Vec<u8>), FitError> {
        let mut rows = Vec::with_capacity(self.tokens.len() * self.dimensions());
        self.for_each_seen(&mut |row| {
            rows.extend(row.iter().map(|x| x * self.scale));
            Ok(())
        })?;
        let mut spool = Spool::new(scratch, self.dimensions())?;
        let mut digest = Sha256::new();
        for row in rows.chunks(self.dimensions().max(1)) {
            spool.push(row)?;
            row.iter().for_each(|x| digest.update(x.to_le_bytes()));
        }
        Ok((rows, spool.finish()?, digest.finalize().to_vec()))
    }

    fn for_each_seen(&self, take: &mut dyn FnMut(&[f32]) -> io::Result<()>) -> Result<(), FitError> {
        let dimensions = self.dimensions().max(1);
        let read = self.for_each_block(&mut |first, block| {
            let positions = self.positions.iter().skip(first);
            for (row, _) in block.chunks(dimensions).zip(positions).filter(|(_, at)| **at != u32::MAX) {
                take(row)?;
            }
            Ok(())
        });
        read.map_err(|e| FileError::reading(&self.path, &e).into())
    }

    /// Calls `take` with all starting rows, without the scale.
    ///
    /// # Errors
    /// Returns the first error of `take`.
    pub fn for_each_block(&self, take: &mut dyn FnMut(usize, &[f32]) -> io::Result<()>) -> io::Result<()> {
        self.rows.for_each_block(take)
    }

    /// Returns the number of rows of the checkpoint.
    pub fn len(&self) -> usize {
        self.rows.rows()
    }
}
