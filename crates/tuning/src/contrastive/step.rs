//! One step of a training: the texts of a batch, their losses, and the change of the rows.

use sha2::{Digest, Sha256};

use super::Options;
use super::batch::{ByRow, Texts, Vectors};
use super::data::Data;
use super::losses::{self, PairGradients, Pairs, Scratch};
use super::schedule::{self, Groups};
use super::state::Header;
use super::table::Table;
use super::{masks, measure};
use crate::fit::TeacherTexts;
use crate::fit::spool::Spooled;
use layer0_files as files;
use serde_json::Value;

/// The factor of the cosines whose softmax is compared with the teacher's or the starting table's.
const SIMILARITY_SCALE: f32 = 10.0;
/// The largest number of texts whose similarities are compared with those of the starting table.
const KEPT_TEXTS: usize = 384;
/// What a random number is for.
const PAIRS: u64 = 0;
const TEXTS: u64 = 1;

/// The losses of one step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Losses {
    /// The number of pairs in the batch.
    pub batch: usize,
    /// The contrastive loss.
    pub pairs: f64,
    /// The divergence from the teacher's similarities.
    pub teacher: f64,
    /// The divergence from the starting table's similarities.
    pub kept: f64,
}

impl Losses {
    /// Returns the sum, which is finite if all losses are.
    pub(super) fn total(&self) -> f64 {
        self.pairs + self.teacher + self.kept
    }
}

/// The teacher's texts that are trained on.
pub struct Teacher<'a> {
    texts: &'a TeacherTexts,
    /// For each token of the corpus, its trained row.
    rows: Vec<u32>,
    /// The texts of each file that are not held out.
    groups: Vec<Vec<u32>>,
    chances: Groups,
}

impl<'a> Teacher<'a> {
    /// Creates the texts. `positions` maps tokens to trained rows.
    pub fn new(texts: &'a TeacherTexts, positions: &[u32]) -> Self {
        let position = |&token: &u32| positions.get(token as usize).copied().unwrap_or(u32::MAX);
        let trained = |index: &u32| !texts.counts.is_held_out(*index as usize);
        let group = |range: &std::ops::Range<usize>| -> Vec<u32> {
            range.clone().filter_map(|index| u32::try_from(index).ok()).filter(trained).collect()
        };
        let groups: Vec<Vec<u32>> = texts.ranges.iter().map(group).collect();
        let chances = Groups::new(groups.iter().map(|group| (group.len() > 1).then_some((group.len(), 1.0))));
        Self { texts, rows: texts.counts.tokens.iter().map(position).collect(), groups, chances }
    }

    pub fn files(&self) -> usize {
        self.groups.len()
    }

    pub fn description(&self) -> &Value {
        self.texts.description()
    }

    /// Returns a digest of the texts and of their vectors.
    pub fn digest(&self) -> String {
        let mut digest = Sha256::new();
        digest.update(self.texts.target.table.bytes());
        self.texts.files().iter().for_each(|file| digest.update(&file.sha256));
        self.groups.iter().flatten().for_each(|text| digest.update(text.to_le_bytes()));
        files::hexadecimal(&digest.finalize())
    }
}

/// Where a step takes its texts from.
pub struct Source<'a> {
    pub data: &'a Data,
    pub teacher: Option<&'a Teacher<'a>>,
    pub positions: &'a [u32],
    pub initial: &'a Spooled,
    pub options: &'a Options,
    /// The exponent of the number of times that a token occurs in a text.
    pub exponent: f32,
}

/// The memory of a step, which is reused from step to step.
pub struct Step {
    texts: Texts,
    vectors: Vectors,
    initial: Vectors,
    gradients: Vec<f32>,
    wanted: Vec<f32>,
    by_row: ByRow,
    scratch: Scratch,
}

impl Step {
    /// Allocates the memory for a table of `rows` rows.
    pub fn new(rows: usize) -> Self {
        Self {
            texts: Texts::new(),
            vectors: Vectors::default(),
            initial: Vectors::default(),
            gradients: Vec::new(),
            wanted: Vec::new(),
            by_row: ByRow::new(rows),
            scratch: Scratch::default(),
        }
    }

    /// Draws a batch, computes its losses, and changes the table. `header` counts what was drawn.
    pub fn run(&mut self, source: &Source<'_>, table: &mut Table, header: &mut Header, rate: f32) -> Losses {
        let (data, options) = (source.data, source.options);
        let dimensions = table.dimensions;
        let mut random = schedule::random(options.seed, header.step, PAIRS);
        let group = data.chances.draw(&mut random);
        let drawn = header.drawn.get(group).copied().unwrap_or(0);
        let pairs = data.draw(options.seed, group, drawn, options.batch);
        let count = pairs.len();
        if let Some(drawn) = header.drawn.get_mut(group) {
            *drawn += count as u64;
        }
        let digests: Vec<[u64; 2]> = pairs.iter().map(|pair| pair.1).collect();
        let masked = masks::shared(&digests);
        self.texts.clear();
        measure::push_sides(&mut self.texts, &pairs, source.positions, source.exponent);
        let teacher = source.teacher.filter(|teacher| !teacher.chances.is_empty() && options.teacher_weight > 0.0);
        let batches = match teacher {
            Some(teacher) => self.push_texts(teacher, source, header),
            None => Vec::new(),
        };
        self.texts.vectors(0..self.texts.len(), dimensions, |sum, entry| table.add(sum, entry), &mut self.vectors);
        self.gradients.clear();
        self.gradients.resize(self.texts.len() * dimensions, 0.0);

        let Self { texts, vectors, initial, gradients, wanted, by_row, scratch } = self;
        let losses = || {
            let (of_pairs, mut of_texts) = gradients.split_at_mut(2 * count * dimensions);
            let (anchors, positives) = of_pairs.split_at_mut(count * dimensions);
            let mut losses = Losses { batch: count, ..Losses::default() };
            let batch = Pairs {
                anchors: vectors.range(0..count),
                positives: vectors.range(count..2 * count),
                dimensions,
                masked: &masked,
            };
            let mut of_sides = PairGradients { anchors, positives };
            losses.pairs = losses::contrast(batch, options.scale, &mut of_sides, scratch);
            if options.keep_weight > 0.0 {
                // The sides take turns, so that both keep their similarities.
                let is_even = header.step.is_multiple_of(2);
                let (first, side) =
                    if is_even { (0, &mut *of_sides.anchors) } else { (count, &mut *of_sides.positives) };
                let range = first..first + count.min(KEPT_TEXTS);
                let add =
                    |sum: &mut [f32], entry: super::batch::Entry| source.initial.add(entry.row, entry.weight, sum);
                texts.vectors(range.clone(), dimensions, add, initial);
                let side = side.get_mut(..range.len() * dimensions).unwrap_or_default();
                losses.kept = losses::similarities(
                    (vectors.range(range), dimensions),
                    (&initial.unit, dimensions),
                    SIMILARITY_SCALE,
                    options.keep_weight,
                    side,
                    scratch,
                );
            }
            let mut first = 2 * count;
            for (batch, teacher) in batches.iter().zip(std::iter::repeat(teacher)) {
                let Some(teacher) = teacher else { break };
                let target = &teacher.texts.target;
                wanted.clear();
                batch.iter().for_each(|&text| wanted.extend(target.row(text as usize)));
                let (own, rest) = std::mem::take(&mut of_texts).split_at_mut(batch.len() * dimensions);
                of_texts = rest;
                losses.teacher += losses::similarities(
                    (vectors.range(first..first + batch.len()), dimensions),
                    (wanted, target.table.dimensions()),
                    SIMILARITY_SCALE,
                    options.teacher_weight,
                    own,
                    scratch,
                ) / batches.len() as f64;
                first += batch.len();
            }
            vectors.through_the_scaling(gradients);
            losses
        };
        let (losses, ()) = rayon::join(losses, || by_row.fill(texts));
        table.change(by_row, gradients, rate);
        losses
    }

    /// Draws the batches of the teacher's texts, and appends their tokens. Returns the texts of each batch.
    fn push_texts(&mut self, teacher: &Teacher<'_>, source: &Source<'_>, header: &mut Header) -> Vec<Vec<u32>> {
        let options = source.options;
        let mut random = schedule::random(options.seed, header.step, TEXTS);
        let mut batches = Vec::new();
        for _ in 0..options.teacher_batches {
            let group = teacher.chances.draw(&mut random);
            let (Some(texts), Some(drawn)) = (teacher.groups.get(group), header.texts_drawn.get_mut(group)) else {
                continue;
            };
            let size = options.teacher_texts.min(texts.len()) as u64;
            // The groups of texts come after those of pairs, so that their orders differ.
            let number = usize::MAX - group;
            let batch: Vec<u32> = (*drawn..*drawn + size)
                .filter_map(|drawn| texts.get(schedule::item(options.seed, number, drawn, texts.len())).copied())
                .collect();
            *drawn += size;
            for &text in &batch {
                let mut columns = teacher.texts.counts.columns(text as usize).to_vec();
                columns.sort_unstable();
                let row = |&column: &u32| teacher.rows.get(column as usize).copied();
                self.texts.push(columns.iter().filter_map(row), source.exponent);
            }
            batches.push(batch);
        }
        batches
    }
}
