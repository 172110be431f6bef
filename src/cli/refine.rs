//! `embedding-server refine`

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};

use super::output::warn;
use super::overrides::OverrideArgs;
use super::progress::Bar;
use crate::checkpoint::Checkpoint;
use crate::corpus::Fields;
use crate::error::LoadError;
use crate::extract::staging::{self, Existing};
use crate::records::MaxSkipped;
use crate::refine::frequency::Frequencies;
use crate::refine::write::{self, Description, RowDtype};
use crate::refine::{Options, Refinement, Rows};

#[derive(Args)]
pub struct RefineArgs {
    /// The checkpoint whose table is refined.
    checkpoint: PathBuf,
    /// The directory to write.
    out: PathBuf,
    /// Text of the languages and the domain that will be embedded: plain text, JSONL, JSON, CSV, TSV or Parquet, compressed or not.
    /// Without it the tokenizer's own Unigram scores are taken, or else a small sample of many languages. Repeatable.
    #[arg(long, value_name = "FILE")]
    corpus: Vec<PathBuf>,
    /// The field or column of the corpus that holds the text, unless it is plain text. A dot leads into objects: "a.b".
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,
    /// The largest share of a file's records that may be left out because they cannot be read.
    #[arg(long, value_name = "SHARE", default_value = "10%")]
    max_skipped: MaxSkipped,
    /// How much of the token frequencies the sample keeps beside --corpus: 0 takes the corpus alone.
    #[arg(long, value_name = "SHARE", default_value_t = 0.25)]
    sample_share: f64,
    /// Columns to keep: those of the most variance. All by default.
    #[arg(long, value_name = "K")]
    dimensions: Option<usize>,
    /// How to store the rows. f16 and f32 make a Model2Vec model as well.
    #[arg(long, value_enum, default_value_t = Dtype::Int8)]
    dtype: Dtype,
    /// How rare a token must be to count in full: weight = a / (a + p). Follows the vocabulary's size by default.
    #[arg(long, value_name = "A")]
    a: Option<f64>,
    /// How far variances are made equal, from 0 to 1.
    #[arg(long, value_name = "G", default_value_t = 1.0)]
    whitening: f64,
    #[command(flatten)]
    overrides: OverrideArgs,
    /// Replace OUT if it holds a checkpoint and nothing else.
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Dtype {
    Int4,
    Int8,
    F16,
    F32,
}

impl From<Dtype> for RowDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Int4 => Self::Int4,
            Dtype::Int8 => Self::Int8,
            Dtype::F16 => Self::F16,
            Dtype::F32 => Self::F32,
        }
    }
}

/// Refines, writes, and gives back the report.
pub fn run(args: &RefineArgs) -> Result<String, LoadError> {
    let existing = existing(args.force);
    // Before the work, and again by `write` for who made the directory meanwhile.
    existing.check(&args.out)?;
    let started = Instant::now();
    let checkpoint = Checkpoint::open(&args.checkpoint, &args.overrides.overrides())?;
    let checkpoint = Checkpoint { tokenizer: checkpoint.tokenizer.settle(), ..checkpoint };
    for warning in &checkpoint.warnings {
        warn(warning);
    }
    if let Some(prompt) = &checkpoint.prompt {
        warn(&format!("the model puts {prompt:?} before each text; the refined table takes texts as they are"));
    }
    staging::protect(&args.out, &write::sources(&checkpoint))?;
    staging::protect(&args.out, &args.overrides.config.as_deref().into_iter().collect::<Vec<_>>())?;
    staging::protect(&args.out, &args.corpus.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
    let progress = Bar::new();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let fields = Fields { field: &args.field, max_skipped: args.max_skipped };
    let frequencies = if args.corpus.is_empty() {
        match Frequencies::of_unigram(&checkpoint) {
            Some(frequencies) => frequencies,
            None => Frequencies::of_sample(&checkpoint, threads, &progress)?,
        }
    } else {
        Frequencies::of_corpus(&checkpoint, &args.corpus, fields, threads, &progress)?.with_sample(
            &checkpoint,
            args.sample_share,
            threads,
            &progress,
        )?
    };
    let options = Options { a: args.a, whitening: args.whitening, dimensions: args.dimensions };
    let refinement = Refinement::fit(&checkpoint, &frequencies, &options, &progress)?;
    let description = Description { made: refinement.description(&frequencies), card: None };
    write::write(&args.out, existing, args.dtype.into(), &checkpoint, &refinement, &description, &progress)?;
    Ok(format!(
        "{}: {} rows of {} dimensions in {}, a = {:.1e}, from {}, in {:.1} s\n",
        args.out.display(),
        refinement.rows(),
        refinement.dimensions(),
        RowDtype::from(args.dtype).name(),
        refinement.parameters().a,
        frequencies.source(),
        started.elapsed().as_secs_f64(),
    ))
}

/// What `--force` stands for.
pub fn existing(force: bool) -> Existing {
    if force { Existing::Replace } else { Existing::Refuse }
}
