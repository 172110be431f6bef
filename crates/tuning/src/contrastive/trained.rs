//! The result of a training: the new rows, and the record of how they were made.

use std::io;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::measure::{Measured, Report};
use super::pairs::PairFile;
use super::start::Start;
use super::table::Table;
use crate::refine::Rows;

/// The record of a training. It becomes part of the config.json of the output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The files of pairs.
    pub files: Vec<MeasuredFile>,
    /// The description of the teacher whose similarities were learnt.
    pub teacher: Option<Value>,
    /// The number of pairs in a batch.
    pub batch: usize,
    /// The number of steps.
    pub steps: u64,
    /// The rate: see [`Options::rate`](super::Options::rate).
    pub rate: f32,
    /// The number of steps in which the rate rose.
    pub warm_up: u64,
    /// The factor of the cosines in the contrastive loss.
    pub scale: f32,
    /// The weight of the teacher's similarities.
    pub teacher_weight: f32,
    /// The weight of the starting table's similarities.
    pub keep_weight: f32,
    /// The type to which rows were rounded during the training.
    pub rounded: Option<&'static str>,
    /// The seed.
    pub seed: u64,
    /// The number of distinct tokens in the pairs and in the corpus.
    pub tokens_seen: usize,
    /// The measures on held-out pairs, if there were any.
    pub held_out: Option<Report>,
}

/// A file of pairs, with the measures on the pairs that were held out of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MeasuredFile {
    /// The file.
    #[serde(flatten)]
    pub file: PairFile,
    /// The measures, if pairs were held out.
    pub measured: Option<Report>,
}

/// A trained table.
pub struct Trained<'a> {
    pub(super) start: Start<'a>,
    pub(super) table: Table,
    pub(super) summary: Summary,
}

impl std::fmt::Debug for Trained<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trained").field("summary", &self.summary).finish_non_exhaustive()
    }
}

impl Trained<'_> {
    /// Returns the record of the training.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Returns the entries about the training for the config.json of the output.
    pub fn description(&self) -> Map<String, Value> {
        [("pairs".to_owned(), json!(self.summary))].into_iter().collect()
    }
}

impl Rows for Trained<'_> {
    fn rows(&self) -> usize {
        self.start.len()
    }

    fn dimensions(&self) -> usize {
        self.start.dimensions()
    }

    fn for_each_block(&self, take: &mut dyn FnMut(usize, &[f32]) -> io::Result<()>) -> io::Result<()> {
        let dimensions = self.dimensions().max(1);
        self.start.for_each_block(&mut |first, block| {
            let mut rows: Vec<f32> = block.iter().map(|x| x * self.start.scale).collect();
            for (row, position) in rows.chunks_mut(dimensions).zip(self.start.positions.iter().skip(first)) {
                let start = *position as usize * dimensions;
                if let Some(trained) = self.table.rows.get(start..start + dimensions) {
                    row.copy_from_slice(trained);
                }
            }
            take(first, &rows)
        })
    }
}

/// Joins the files with their measures before and after the training.
pub fn measured_files(files: Vec<PairFile>, before: &[Measured], after: &[Measured]) -> Vec<MeasuredFile> {
    let report = |(before, after): (&Measured, &Measured)| (before.pairs > 0).then(|| Report::new(*before, *after));
    let reports = before.iter().zip(after).map(report);
    files.into_iter().zip(reports).map(|(file, measured)| MeasuredFile { file, measured }).collect()
}
