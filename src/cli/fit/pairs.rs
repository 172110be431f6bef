//! The part of `embedding-server fit` that trains the table on pairs of texts.

use std::fmt::Write;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use layer0::checkpoint::Checkpoint;
use layer0::progress::{Progress, counted};
use layer0_records::MaxSkipped;
use layer0_tuning::FitError;
use layer0_tuning::contrastive::{Options, PairFiles, Summary, Trained, Trainer};
use layer0_tuning::fit::TeacherTexts;
use layer0_tuning::refine::Rows;
use layer0_tuning::refine::write::RowDtype;

use crate::cli::output::Failure;
use crate::cli::progress::Bar;

/// The time between two saved states.
const SAVED_EVERY: Duration = Duration::from_secs(60);
/// The time between two descriptions of the progress on a terminal.
const SHOWN_EVERY: Duration = Duration::from_millis(200);
/// The number of reports of the progress if standard error is no terminal.
const REPORTS: u64 = 10;
/// The share of the old mean loss that a step keeps.
const SMOOTHING: f64 = 0.95;

#[derive(Args)]
#[command(next_help_heading = "Training on pairs")]
pub struct PairArgs {
    /// A file of pairs of texts that mean the same or answer each other: JSONL, JSON, CSV, TSV or Parquet with two
    /// fields, or plain text with a tab between the two, compressed or not. Can be given several times. The pairs of a
    /// batch come from one file, so make a file for each source and each pair of languages.
    #[arg(long, value_name = "FILE")]
    pub pairs: Vec<PathBuf>,
    /// The weight of a file of pairs. Give it once for each --pairs, in the same order [default: 1 for each]
    #[arg(long, value_name = "W")]
    pair_weight: Vec<f64>,
    /// The field or column that holds the first text of a pair.
    #[arg(long, value_name = "NAME", default_value = "anchor")]
    anchor_field: String,
    /// The field or column that holds the second text of a pair.
    #[arg(long, value_name = "NAME", default_value = "positive")]
    positive_field: String,
    /// Train from the checkpoint's own rows, not from the closed-form fit to the teacher. The teacher's similarities
    /// are still learned.
    #[arg(long, requires = "pairs")]
    skip_closed_form: bool,
    /// The number of pairs in a batch.
    #[arg(long, value_name = "N", default_value_t = Options::default().batch)]
    batch: usize,
    /// The number of steps [default: until each pair was drawn 20 times, but 100 to 1,500]
    #[arg(long, value_name = "N")]
    train_steps: Option<u64>,
    /// The length of the first change of a row, where a typical number of the table is 1.
    #[arg(long, value_name = "RATE", default_value_t = Options::default().rate)]
    rate: f32,
    /// The number of steps in which the rate rises to its full value.
    #[arg(long, value_name = "N", default_value_t = Options::default().warm_up)]
    warm_up: u64,
    /// The factor of the cosines in the contrastive loss, at most 40.
    #[arg(long, value_name = "S", default_value_t = Options::default().scale)]
    scale: f32,
    /// The weight of the loss that draws the similarities of the corpus's texts toward the teacher's.
    #[arg(long, value_name = "W", default_value_t = Options::default().teacher_weight)]
    similarity_weight: f32,
    /// The number of texts in a batch of that loss.
    #[arg(long, value_name = "N", default_value_t = Options::default().teacher_texts)]
    similarity_batch: usize,
    /// The number of batches of that loss in each step.
    #[arg(long, value_name = "N", default_value_t = Options::default().teacher_batches)]
    similarity_batches: usize,
    /// The weight of the loss that keeps the similarities of the starting table.
    #[arg(long, value_name = "W", default_value_t = Options::default().keep_weight)]
    keep_weight: f32,
    /// Compute the vectors during the training from rows that are rounded to --dtype.
    #[arg(long)]
    quantization_aware: bool,
    /// The seed of the order of pairs and texts.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Continue an interrupted training of the same pairs with the same options. Its state is beside OUT, and is saved
    /// every minute.
    #[arg(long, requires = "pairs")]
    resume: bool,
}

impl PairArgs {
    pub fn is_given(&self) -> bool {
        !self.pairs.is_empty()
    }

    pub fn starts_from_the_teacher(&self) -> bool {
        !self.skip_closed_form
    }

    fn options(&self, dtype: RowDtype) -> Options {
        Options {
            batch: self.batch,
            steps: self.train_steps,
            rate: self.rate,
            warm_up: self.warm_up,
            scale: self.scale,
            teacher_weight: self.similarity_weight,
            teacher_texts: self.similarity_batch,
            teacher_batches: self.similarity_batches,
            keep_weight: self.keep_weight,
            rounded: self.quantization_aware.then_some(dtype),
            seed: self.seed,
        }
    }
}

/// What a training starts from.
pub struct Start<'a> {
    pub checkpoint: &'a Checkpoint,
    pub rows: &'a dyn Rows,
    pub teacher: Option<&'a TeacherTexts>,
    pub dtype: RowDtype,
    pub held_out: f64,
    pub max_skipped: MaxSkipped,
}

/// Trains on the pairs. The state is saved beside `out`, in the directory `scratch`.
///
/// # Errors
/// Fails if there is no result.
pub fn train<'a>(
    args: &PairArgs,
    start: &Start<'a>,
    out: &Path,
    scratch: &Path,
    progress: &Bar,
) -> Result<Trained<'a>, FitError> {
    let files = PairFiles {
        files: &args.pairs,
        weights: &args.pair_weight,
        anchor: &args.anchor_field,
        positive: &args.positive_field,
        max_skipped: start.max_skipped,
        held_out: start.held_out,
    };
    let options = args.options(start.dtype);
    let mut trainer = Trainer::new(start.checkpoint, start.rows, &files, start.teacher, &options, scratch, progress)?;
    let state = state_path(out);
    if args.resume {
        match trainer.resume(&state)? {
            true => progress.note(&format!("continuing after step {} of {}", trainer.steps_done(), trainer.steps())),
            false => progress.note(&format!("{} does not exist: starting anew", state.display())),
        }
    }
    progress.start_counted("training", trainer.steps());
    progress.advance(trainer.steps_done());
    let mut shown = Shown::new();
    let mut saved = Instant::now();
    while let Some(losses) = trainer.step()? {
        shown.add(losses.batch, losses.pairs);
        progress.advance(1);
        shown.show(trainer.steps_done(), trainer.steps(), progress);
        if saved.elapsed() >= SAVED_EVERY {
            trainer.save(&state)?;
            saved = Instant::now();
        }
    }
    trainer.save(&state)?;
    progress.finish();
    Ok(trainer.finish())
}

/// Deletes the state of a training whose result was written.
pub fn delete_state(out: &Path) {
    // A state that stays behind does no harm: only --resume reads it, and it then has no steps left.
    let _ = std::fs::remove_file(state_path(out));
}

fn state_path(out: &Path) -> PathBuf {
    let name = out.file_name().unwrap_or(out.as_os_str()).to_string_lossy();
    out.with_file_name(format!(".{name}.training"))
}

/// The loss and the speed since the last report.
struct Shown {
    loss: Option<f64>,
    pairs: usize,
    since: Instant,
    is_terminal: bool,
}

impl Shown {
    fn new() -> Self {
        Self { loss: None, pairs: 0, since: Instant::now(), is_terminal: std::io::stderr().is_terminal() }
    }

    fn add(&mut self, pairs: usize, loss: f64) {
        self.pairs += pairs;
        self.loss = Some(self.loss.map_or(loss, |mean| SMOOTHING * mean + (1.0 - SMOOTHING) * loss));
    }

    fn show(&mut self, step: u64, steps: u64, progress: &Bar) {
        let elapsed = self.since.elapsed();
        let is_due = match self.is_terminal {
            true => elapsed >= SHOWN_EVERY,
            false => step == steps || step.is_multiple_of(steps.div_ceil(REPORTS)),
        };
        if !is_due {
            return;
        }
        let speed = self.pairs as f64 / elapsed.as_secs_f64().max(1e-9);
        let text = format!("loss {:.3}, {speed:.0} pairs/s", self.loss.unwrap_or_default());
        match self.is_terminal {
            true => progress.describe(&format!("training: {text}")),
            false => progress.note(&format!("step {step} of {steps}: {text}")),
        }
        (self.pairs, self.since) = (0, Instant::now());
    }
}

/// Returns the report of a training, line by line.
pub fn report(summary: &Summary) -> String {
    let mut text = String::new();
    let pairs: u64 = summary.files.iter().map(|file| file.file.pairs - file.file.held_out).sum();
    let _ = writeln!(
        text,
        "trained on {} of {} with {} different tokens, {} of up to {} pairs",
        counted(pairs, "pair"),
        counted(summary.files.len(), "file"),
        summary.tokens_seen,
        counted(summary.steps, "step"),
        summary.batch
    );
    let without: u64 = summary.files.iter().map(|file| file.file.without_tokens).sum();
    if without > 0 {
        let _ =
            writeln!(text, "{} with a side that has no token of this vocabulary left out", counted(without, "pair"));
    }
    let Some(held_out) = &summary.held_out else {
        text.push_str("no pairs were held out, so it is not known whether the table is better than before\n");
        return text;
    };
    let _ = writeln!(text, "on {} held out:", counted(held_out.pairs, "pair"));
    let _ = writeln!(
        text,
        "  accuracy in batches of {:<5} {:.4} -> {:.4}   (both directions: the nearest text is that of the pair)",
        summary.batch, held_out.accuracy_before, held_out.accuracy_after
    );
    let _ = writeln!(text, "  contrastive loss             {:.4} -> {:.4}", held_out.loss_before, held_out.loss_after);
    if summary.files.len() > 1 {
        for file in &summary.files {
            if let Some(measured) = &file.measured {
                let _ = writeln!(
                    text,
                    "    {:<26} {:.4} -> {:.4}   ({})",
                    file.file.name,
                    measured.accuracy_before,
                    measured.accuracy_after,
                    counted(measured.pairs, "pair")
                );
            }
        }
    }
    if held_out.is_worse() {
        text.push_str("the accuracy is worse than before\n");
    }
    text
}

/// Returns the message for a training that made the table worse on the held-out pairs.
pub fn worse(summary: &Summary) -> Option<String> {
    let held_out = summary.held_out.as_ref().filter(|held_out| held_out.is_worse())?;
    let (before, after) = (held_out.accuracy_before, held_out.accuracy_after);
    Some(format!(
        "the training made the table worse on the {} held out from it: the accuracy fell from {before:.4} to {after:.4}. More pairs, fewer \
         --train-steps or a smaller --rate may help",
        counted(held_out.pairs, "pair")
    ))
}

/// Checks what the flags cannot express.
///
/// # Errors
/// Fails if texts are given without a teacher.
pub fn check(args: &PairArgs, has_corpus: bool, has_teacher: bool) -> Result<(), Failure> {
    match (args.is_given(), has_corpus, has_teacher) {
        (false, _, _) | (_, true, true) | (_, false, false) => Ok(()),
        (_, true, false) => Err("--corpus: needs a teacher (give --teacher or --teacher-vectors)".into()),
        (_, false, true) => Err("--corpus: is missing (give texts for the teacher, or no teacher)".into()),
    }
}
