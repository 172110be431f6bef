//! Trains an embedding table on pairs of texts: sentences and their translations, questions and passages.
//!
//! The vector of a text is `u = s / |s|` with `s = sum over its distinct tokens of n^p T[t]`, where token `t` occurs
//! `n` times, and `p` is the checkpoint's exponent of token counts, mostly 1. Training minimizes, by steps on batches of `B` pairs `(a_i, p_i)`:
//!
//! ```text
//! L  = InfoNCE(u(a), u(p))                        logits scale * u(a_i) . u(p_j), both directions, in-batch negatives
//!    + teacher_weight * KL(z || u)                similarities of texts of the corpus to those by the teacher's vectors
//!    + keep_weight * KL(u0 || u)                  similarities of texts of the pairs to those by the starting table
//! T[t] = T[t] - rate * g_t / sqrt(v_t)            rows of the batch only, one second moment for each row (`table.rs`)
//! ```
//!
//! The pairs of a batch come from one file, so that the negatives are of the same domain and languages. Two pairs of a
//! batch that share a text are not negatives of each other. `KL(z || u)` compares `softmax(10 z_i . z_j)` with
//! `softmax(10 u_i . u_j)` over the other texts `j` of the batch, so the teacher's space needs no map.
//!
//! Texts are tokenized once, into files on disk. Memory holds the rows of the tokens that occur, in f32, and the
//! matrices of a step. Every sum has a fixed order, so the result depends on the seed and the data, but not on the
//! number of threads. An interrupted training continues from a saved state to the same result.
//!
//! ```
//! use std::path::PathBuf;
//! use layer0::{Checkpoint, Overrides};
//! use layer0::progress::Silent;
//! use layer0_tuning::contrastive::{Options, PairFiles, Trainer};
//! use layer0_tuning::fit::Unfitted;
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("pairs.jsonl");
//! # let line = r#"{"anchor": "the sea", "positive": "blue fish"}
//! # {"anchor": "a bird", "positive": "the old tree"}"#;
//! # std::fs::write(&path, line)?;
//! # let model = "../../tests/fixtures/refined/table";
//! let checkpoint = Checkpoint::open(model.as_ref(), &Overrides::default())?;
//! let start = Unfitted::new(&checkpoint)?;
//! let pairs = PairFiles {
//!     files: &[path],
//!     weights: &[],
//!     anchor: "anchor",
//!     positive: "positive",
//!     max_skipped: Default::default(),
//!     held_out: 0.0,
//! };
//! let options = Options { steps: Some(20), ..Options::default() };
//! let mut trainer = Trainer::new(&checkpoint, &start, &pairs, None, &options, dir.path(), &Silent)?;
//! let mut last = f64::INFINITY;
//! while let Some(losses) = trainer.step()? {
//!     last = losses.pairs;
//! }
//! assert!(last < 0.1);
//! let trained = trainer.finish();
//! assert_eq!(trained.summary().steps, 20);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batch;
mod data;
mod lanes;
mod losses;
mod masks;
mod measure;
mod pairs;
mod products;
mod schedule;
mod start;
mod state;
mod step;
mod store;
mod table;
mod trained;

use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::error::FitError;
use crate::fit::TeacherTexts;
use crate::fit::spool::Spooled;
use crate::refine::Rows;
use crate::refine::write::RowDtype;
use data::Data;
use layer0::checkpoint::Checkpoint;
use layer0::progress::Progress;
use layer0_files::{self as files, Diagnostic};
pub use measure::{Measured, Report};
pub use pairs::{Pair, PairFile, PairFiles};
use start::Start;
use state::Header;
pub use step::Losses;
use step::{Step, Teacher};
use table::Table;
pub use trained::{Summary, Trained};

/// The largest logit scale. `e^(-2 * scale)` must be a number that f32 can hold.
const LARGEST_SCALE: f32 = 40.0;
/// The largest number of steps that is chosen for few pairs, and the smallest.
const STEPS: [u64; 2] = [100, 1500];
/// The number of times that each pair is drawn, unless the pairs are very many or very few.
const ROUNDS: u64 = 20;

/// The options of a training. `Default` is the recipe of docs/fit.md.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// The number of pairs in a batch.
    pub batch: usize,
    /// The number of steps. With `None`, it is the number of steps in which each pair is drawn 20 times, but at least
    /// 100 and at most 1,500.
    pub steps: Option<u64>,
    /// The length of a row's first change, in the unit of a typical number of the table.
    pub rate: f32,
    /// The number of steps in which the rate rises to its full value.
    pub warm_up: u64,
    /// The factor of the cosines in the contrastive loss.
    pub scale: f32,
    /// The weight of the teacher's similarities.
    pub teacher_weight: f32,
    /// The number of texts in a batch of the teacher's similarities.
    pub teacher_texts: usize,
    /// The number of batches of the teacher's similarities in a step.
    pub teacher_batches: usize,
    /// The weight of the starting table's similarities.
    pub keep_weight: f32,
    /// The type to which rows are rounded whenever vectors are computed from them, so that the training knows the
    /// rounding of the result.
    pub rounded: Option<RowDtype>,
    /// The seed of the order of the pairs and texts.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            batch: 768,
            steps: None,
            rate: 0.03,
            warm_up: 50,
            scale: 20.0,
            teacher_weight: 6.0,
            teacher_texts: 512,
            teacher_batches: 1,
            keep_weight: 0.05,
            rounded: None,
            seed: 0,
        }
    }
}

impl Options {
    fn check(&self, files: &PairFiles<'_>) -> Result<(), FitError> {
        let place = files.files.first().cloned().unwrap_or_else(|| "the pairs".into());
        let is_weight = |weight: f32| weight >= 0.0 && weight.is_finite();
        let weights = files.weights.iter().all(|weight| *weight >= 0.0 && weight.is_finite());
        let checks = [
            (self.batch >= data::COMPARABLE, "batch", self.batch.to_string(), "at least 2 pairs"),
            (self.batch <= 1 << 15, "batch", self.batch.to_string(), "at most 32768 pairs"),
            (self.steps != Some(0), "number of steps", "0".to_owned(), "at least 1"),
            (self.rate > 0.0 && self.rate.is_finite(), "rate", self.rate.to_string(), "a positive number such as 0.03"),
            (
                self.scale > 0.0 && self.scale <= LARGEST_SCALE,
                "scale",
                self.scale.to_string(),
                "a positive number up to 40",
            ),
            (is_weight(self.teacher_weight), "weight of the teacher", self.teacher_weight.to_string(), "0 or more"),
            (is_weight(self.keep_weight), "weight of the old table", self.keep_weight.to_string(), "0 or more"),
            (self.teacher_texts <= 1 << 15, "batch of texts", self.teacher_texts.to_string(), "at most 32768 texts"),
            (self.teacher_batches <= 64, "number of batches", self.teacher_batches.to_string(), "at most 64"),
            (weights, "weight of a file", format!("{:?}", files.weights), "0 or more"),
            (
                files.weights.is_empty() || files.weights.len() == files.files.len(),
                "list of weights",
                format!("{:?}", files.weights),
                "one weight for each file of pairs",
            ),
            ((0.0..=0.5).contains(&files.held_out), "held-out share", files.held_out.to_string(), "between 0 and 0.5"),
        ];
        for (is_right, name, value, expected) in checks {
            if !is_right {
                let problem = format!("cannot be trained on with a {name} of {value}");
                return Err(FitError::OutOfRange(Diagnostic::new(place, problem).expected(expected)));
            }
        }
        Ok(())
    }
}

/// A training in progress.
pub struct Trainer<'a> {
    start: Start<'a>,
    data: Data,
    teacher: Option<Teacher<'a>>,
    options: Options,
    /// The exponent of the number of times that a token occurs in a text.
    exponent: f32,
    steps: u64,
    table: Table,
    /// The rows at the start of the training.
    initial: Spooled,
    step: Step,
    header: Header,
    before: Vec<Measured>,
}

impl std::fmt::Debug for Trainer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer").field("options", &self.options).field("header", &self.header).finish_non_exhaustive()
    }
}

impl<'a> Trainer<'a> {
    /// Reads the pairs, and prepares the first step. `start` has the rows of `checkpoint` from which the training starts,
    /// and `teacher` the texts whose similarities it learns. Files in the directory `scratch` hold the tokens and the
    /// starting rows. They have no names, and disappear with the process.
    ///
    /// # Errors
    /// Fails if an option is out of range, if the pairs cannot be read, or if there are too few of them.
    pub fn new(
        checkpoint: &'a Checkpoint,
        start: &'a dyn Rows,
        pairs: &PairFiles<'_>,
        teacher: Option<&'a TeacherTexts>,
        options: &Options,
        scratch: &Path,
        progress: &dyn Progress,
    ) -> Result<Self, FitError> {
        options.check(pairs)?;
        let data = Data::read(checkpoint, pairs, scratch, progress)?;
        let mut seen = data.seen.clone();
        for &token in teacher.into_iter().flat_map(|texts| &texts.counts.tokens) {
            if let Some(seen) = seen.get_mut(token as usize) {
                *seen = true;
            }
        }
        let start = Start::new(start, &seen, &checkpoint.path, progress)?;
        let (rows, initial, digest) = start.rows(scratch)?;
        let dimensions = start.dimensions();
        let table = Table::new(rows, dimensions, options.rounded);
        let teacher = teacher.map(|texts| Teacher::new(texts, &start.positions));
        let trained: usize = data.training.len();
        let steps = options.steps.unwrap_or_else(|| {
            let [fewest, most] = STEPS;
            (ROUNDS * trained as u64).div_ceil(options.batch as u64).clamp(fewest, most)
        });
        let exponent = checkpoint.conventions.token_count_exponent as f32;
        let header = Header {
            training: identity((options, steps, exponent), pairs, &data, teacher.as_ref(), &digest),
            step: 0,
            drawn: vec![0; data.groups.len()],
            texts_drawn: vec![0; teacher.as_ref().map_or(0, Teacher::files)],
            rows: start.tokens.len(),
            dimensions,
        };
        let step = Step::new(start.tokens.len());
        let mut trainer = Self {
            start,
            data,
            teacher,
            options: *options,
            exponent,
            steps,
            table,
            initial,
            step,
            header,
            before: Vec::new(),
        };
        trainer.before = trainer.measure();
        Ok(trainer)
    }

    /// Returns the number of steps that are done.
    pub fn steps_done(&self) -> u64 {
        self.header.step
    }

    /// Returns the number of steps of the whole training.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Returns the number of pairs to train on.
    pub fn pairs(&self) -> usize {
        self.data.training.len()
    }

    /// Trains on one batch, and returns the losses before the change of the table. Returns `None` after the last step.
    ///
    /// # Errors
    /// Fails if a loss is not finite.
    pub fn step(&mut self) -> Result<Option<Losses>, FitError> {
        if self.header.step >= self.steps {
            return Ok(None);
        }
        let rate = schedule::rate(self.options.rate, self.header.step, self.options.warm_up, self.steps);
        let texts = step::Source {
            data: &self.data,
            teacher: self.teacher.as_ref(),
            positions: &self.start.positions,
            initial: &self.initial,
            options: &self.options,
            exponent: self.exponent,
        };
        let losses = self.step.run(&texts, &mut self.table, &mut self.header, rate);
        if !losses.total().is_finite() {
            let problem = format!("gives a loss that is not finite in step {}", self.header.step);
            let place = self.start.path.clone();
            return Err(FitError::NoSolution(Diagnostic::new(place, problem).expected("a smaller rate")));
        }
        self.header.step += 1;
        Ok(Some(losses))
    }

    /// Writes the state of the training to `path`, from which [`Trainer::resume`] continues.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), FitError> {
        state::save(path, &self.header, &self.table)
    }

    /// Continues from the state that [`Trainer::save`] wrote. Returns false if there is no such file.
    ///
    /// # Errors
    /// Fails if the file is damaged, or if it is the state of a training with other pairs, other options or another
    /// checkpoint.
    pub fn resume(&mut self, path: &Path) -> Result<bool, FitError> {
        let Some(header) = state::load(path, &self.header, &mut self.table)? else { return Ok(false) };
        self.header = header;
        self.table.round(self.options.rounded);
        Ok(true)
    }

    /// Measures the table on the held-out pairs, and returns the new rows.
    pub fn finish(mut self) -> Trained<'a> {
        self.table.round(self.options.rounded);
        let after = self.measure();
        let files = trained::measured_files(self.data.files, &self.before, &after);
        let held_out = Measured::mean(&self.before).zip(Measured::mean(&after));
        let summary = Summary {
            files,
            teacher: self.teacher.map(|teacher| teacher.description().clone()),
            batch: self.options.batch,
            steps: self.header.step,
            rate: self.options.rate,
            warm_up: self.options.warm_up,
            scale: self.options.scale,
            teacher_weight: self.options.teacher_weight,
            keep_weight: self.options.keep_weight,
            rounded: self.options.rounded.map(RowDtype::name),
            seed: self.options.seed,
            tokens_seen: self.start.tokens.len(),
            held_out: held_out.map(|(before, after)| Report::new(before, after)),
        };
        Trained { start: self.start, table: self.table, summary }
    }

    fn measure(&self) -> Vec<Measured> {
        let comparison = measure::Comparison {
            positions: &self.start.positions,
            exponent: self.exponent,
            batch: self.options.batch,
            scale: self.options.scale,
        };
        measure::measure(&self.data, &self.table, comparison)
    }
}

/// Returns a digest of everything that determines the result of a training.
fn identity(
    (options, steps, exponent): (&Options, u64, f32),
    pairs: &PairFiles<'_>,
    data: &Data,
    teacher: Option<&Teacher<'_>>,
    rows: &[u8],
) -> String {
    #[derive(Serialize)]
    struct Identity<'a> {
        options: String,
        steps: u64,
        exponent: f32,
        fields: [&'a str; 2],
        held_out: f64,
        files: &'a [PairFile],
        teacher: Option<String>,
    }
    let identity = Identity {
        options: format!("{options:?}"),
        steps,
        exponent,
        fields: [pairs.anchor, pairs.positive],
        held_out: pairs.held_out,
        files: &data.files,
        teacher: teacher.map(Teacher::digest),
    };
    let mut digest = Sha256::new();
    digest.update(serde_json::to_vec(&identity).unwrap_or_default());
    digest.update(rows);
    files::hexadecimal(&digest.finalize())
}
