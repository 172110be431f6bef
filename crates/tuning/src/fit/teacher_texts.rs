//! The texts of a corpus with the vectors of a teacher, read and transformed once for all that use them.

use std::ops::Range;
use std::path::Path;

use serde_json::Value;

use super::spool::Spooled;
use super::texts::{self, Corpus, TokenCounts};
use super::vectors::Vectors;
use super::{few, target};
use crate::corpus::CorpusFile;
use crate::error::FitError;
use layer0::checkpoint::Checkpoint;
use layer0::progress::Progress;

/// The texts of a corpus with the vectors of a teacher.
pub struct TeacherTexts {
    pub(crate) counts: TokenCounts,
    /// `Z` of the module documentation.
    pub(crate) target: Spooled,
    pub(super) vectors: Spooled,
    /// The texts of each file of the corpus.
    pub(crate) ranges: Vec<Range<usize>>,
    pub(super) files: Vec<CorpusFile>,
    pub(super) without_tokens: u64,
    pub(super) description: Value,
}

impl std::fmt::Debug for TeacherTexts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TeacherTexts").field("files", &self.files).finish_non_exhaustive()
    }
}

impl TeacherTexts {
    /// Reads `corpus`, and gets the vectors of its texts from `teacher`. The vectors are kept in temporary files in the
    /// directory `scratch`. They are centered and whitened to the degree `gamma`. With `dimensions`, only their first
    /// principal axes are kept, otherwise as many as the checkpoint has columns.
    ///
    /// # Errors
    /// Fails if the corpus or the vectors cannot be read, if all texts are held out, or if `dimensions` is more than the
    /// teacher has.
    pub fn read(
        checkpoint: &Checkpoint,
        corpus: &Corpus<'_>,
        teacher: &mut dyn Vectors,
        (gamma, dimensions): (f64, Option<usize>),
        scratch: &Path,
        progress: &dyn Progress,
    ) -> Result<Self, FitError> {
        let read = texts::read(checkpoint, corpus, teacher, scratch, progress)?;
        if read.counts.len() == read.counts.held_out() {
            return Err(FitError::NothingToFit(few(corpus, "leaves no text to fit on".to_owned())));
        }
        let of_teacher = read.vectors.table.dimensions();
        let dimensions = dimensions.unwrap_or(of_teacher.min(checkpoint.table.dimensions()));
        if dimensions > of_teacher {
            let problem = few(corpus, format!("cannot be fitted to {dimensions} dimensions"));
            return Err(FitError::OutOfRange(problem.expected(format!("at most {of_teacher}, the teacher's"))));
        }
        let target = target::target(&read.vectors, &read.counts, gamma, dimensions, scratch, progress)?;
        Ok(Self {
            counts: read.counts,
            target,
            vectors: read.vectors,
            ranges: read.ranges,
            files: read.files,
            without_tokens: read.without_tokens,
            description: teacher.description(),
        })
    }

    /// Returns the description of the teacher.
    pub fn description(&self) -> &Value {
        &self.description
    }

    /// Returns the records of the files of the corpus.
    pub fn files(&self) -> &[CorpusFile] {
        &self.files
    }
}
