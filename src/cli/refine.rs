//! The command `embedding-server refine`.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use super::choice::choice;
use super::output::{Failure, warn};
use super::progress::Bar;
use super::setting_flags::OverrideFlags;
use crate::builtin::open_checkpoint;
use layer0::extract::staging::{self, Existing};
use layer0_records::MaxSkipped;
use layer0_tuning::corpus::Fields;
use layer0_tuning::refine::frequency::Frequencies;
use layer0_tuning::refine::write::{self, Description, RowDtype};
use layer0_tuning::refine::{Options, Refinement, Rows};

#[derive(Args)]
pub struct RefineArgs {
    /// The checkpoint whose table is refined.
    checkpoint: PathBuf,
    /// The directory to write.
    out: PathBuf,
    /// A file of text in the languages and the domain of the texts to embed later: plain text, JSONL, JSON, CSV, TSV or
    /// Parquet, compressed or not. Can be given several times [default: the scores of a Unigram tokenizer, or else a
    /// small sample of many languages]
    #[arg(long, value_name = "FILE")]
    corpus: Vec<PathBuf>,
    /// The field or column of the corpus that holds the text, unless the corpus is plain text. A dot selects a field
    /// within an object: "a.b".
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,
    /// The largest share of the records of a file that may be left out because they cannot be read.
    #[arg(long, value_name = "SHARE", default_value = "10%")]
    max_skipped: MaxSkipped,
    /// The share of the token frequencies that comes from the built-in sample if --corpus is given. 0 uses the corpus
    /// alone.
    #[arg(long, value_name = "SHARE", default_value_t = 0.25)]
    sample_share: f64,
    /// The number of columns to keep, in descending order of variance [default: all]
    #[arg(long, value_name = "K")]
    dimensions: Option<usize>,
    /// The type in which the rows are stored. f16 and f32 make the result a Model2Vec model as well.
    #[arg(long, value_parser = choice(&RowDtype::ALL, RowDtype::name), default_value = RowDtype::Int8.name())]
    dtype: RowDtype,
    /// The probability p at which a token has half its weight: weight = a / (a + p) [default: by the size of the
    /// vocabulary]
    #[arg(long, value_name = "A")]
    a: Option<f64>,
    /// The degree to which the variances are equalized, from 0 (not at all) to 1 (entirely).
    #[arg(long, value_name = "G", default_value_t = 1.0)]
    whitening: f64,
    #[command(flatten)]
    overrides: OverrideFlags,
    /// Replace OUT if it holds a checkpoint and nothing else.
    #[arg(long)]
    force: bool,
}

/// Runs the command: refines the table, writes the result, and returns the report.
pub fn run(args: &RefineArgs) -> Result<String, Failure> {
    let existing = existing(args.force);
    // The directory is checked before the work. `write` checks it again, in case another process creates it in the
    // meantime.
    existing.check(&args.out)?;
    let started = Instant::now();
    let overrides = args.overrides.overrides();
    let checkpoint = open_checkpoint(&args.checkpoint, &overrides)?;
    for warning in &checkpoint.warnings {
        warn(warning);
    }
    if let Some(prompt) = &checkpoint.prompt {
        warn(&format!("the model puts {prompt:?} before each text; the refined table takes texts as they are"));
    }
    staging::protect(&args.out, &write::sources(&checkpoint))?;
    staging::protect(&args.out, &overrides.config.as_deref().into_iter().collect::<Vec<_>>())?;
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
    write::write(&args.out, existing, args.dtype, &checkpoint, &refinement, &description, &progress)?;
    Ok(format!(
        "{}: {} rows of {} dimensions in {}, a = {:.1e}, from {}, in {:.1} s\n",
        args.out.display(),
        refinement.rows(),
        refinement.dimensions(),
        args.dtype.name(),
        refinement.parameters().a,
        frequencies.source(),
        started.elapsed().as_secs_f64(),
    ))
}

/// Returns the treatment of an existing output: with `force`, it is replaced.
pub fn existing(force: bool) -> Existing {
    if force { Existing::Replace } else { Existing::Refuse }
}
