//! The command `embedding-server fit`.

mod pairs;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use super::choice::choice;
use super::output::{Failure, print, warn};
use super::progress::Bar;
use super::refine::existing;
use super::setting_flags::OverrideFlags;
use crate::builtin::open_checkpoint;
use crate::client::Client;
use layer0::checkpoint::Checkpoint;
use layer0::extract::staging;
use layer0::progress::{Progress, counted};
use layer0_files::FileError;
use layer0_records::MaxSkipped;
use layer0_tuning::contrastive::{self, Trained};
use layer0_tuning::corpus::Fields;
use layer0_tuning::fit::cache::{Cache, Identity};
use layer0_tuning::fit::teacher::Teacher;
use layer0_tuning::fit::vectors::{VectorFile, Vectors};
use layer0_tuning::fit::{self, Corpus, Fitted, Loss, Options, Summary, TeacherTexts, Unfitted};
use layer0_tuning::refine::Rows;
use layer0_tuning::refine::write::{self, Description, RowDtype};
use pairs::PairArgs;
use serde_json::{Map, Value};

const USAGE: &str =
    "embedding-server fit <CHECKPOINT> <OUT> --corpus <FILE> --teacher <URL> --teacher-model <NAME> [OPTIONS]
       embedding-server fit <CHECKPOINT> <OUT> --corpus <FILE> --teacher-vectors <FILE> [OPTIONS]
       embedding-server fit <CHECKPOINT> <OUT> --pairs <FILE> [OPTIONS]";

#[derive(Args)]
#[command(override_usage = USAGE)]
pub struct FitArgs {
    /// The checkpoint whose table is fitted. A checkpoint that `refine` wrote works best.
    checkpoint: PathBuf,
    /// The directory to write.
    out: PathBuf,
    /// A file of texts that resemble those to embed later: plain text, JSONL, JSON, CSV, TSV or Parquet, compressed or
    /// not. Can be given several times.
    #[arg(long, value_name = "FILE", required_unless_present = "pairs")]
    corpus: Vec<PathBuf>,
    /// The field or column of the corpus that holds the text, unless the corpus is plain text. A dot selects a field
    /// within an object: "a.b".
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,
    /// The largest share of the records of a file that may be left out because they cannot be read.
    #[arg(long, value_name = "SHARE", default_value = "10%")]
    max_skipped: MaxSkipped,
    /// The teacher: an OpenAI-compatible endpoint, such as "https://host/v1". The key is read from
    /// EMBEDDING_TEACHER_API_KEY, or else from OPENAI_API_KEY. The terms of the teacher's provider may restrict this
    /// use.
    #[arg(long, value_name = "URL", requires = "teacher_model", required_unless_present_any = ["teacher_vectors", "pairs"])]
    teacher: Option<String>,
    /// The name of the model to request from the teacher.
    #[arg(long, value_name = "NAME", requires = "teacher")]
    teacher_model: Option<String>,
    /// The prefix that the teacher expects before each text, such as "query: " [default: none]
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    teacher_prefix: String,
    /// The number of texts in one request to the teacher.
    #[arg(long, value_name = "N", default_value_t = 64)]
    teacher_batch: usize,
    /// The number of concurrent requests to the teacher.
    #[arg(long, value_name = "N", default_value_t = 4)]
    teacher_requests: usize,
    /// The directory that keeps the teacher's answers, so that no text is requested twice [default:
    /// embedding-server/teachers in XDG_CACHE_HOME or ~/.cache]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// A file that replaces --teacher. It holds the teacher's vectors of the texts of the corpus, in the same order:
    /// .npy, .npz, .safetensors, .parquet or .jsonl.
    #[arg(long, value_name = "FILE", conflicts_with = "teacher")]
    teacher_vectors: Option<PathBuf>,
    /// The strength with which the rows of rare tokens are kept close to the linear map. A small value trusts the
    /// corpus [default: chosen on the held-out texts]
    #[arg(long, value_name = "L")]
    lambda: Option<f32>,
    /// The degree to which the variances of the teacher's vectors are equalized, from 0 (not at all) to 1 (entirely).
    #[arg(long, value_name = "G", default_value_t = 0.75)]
    gamma: f64,
    /// The share of the corpus and of the pairs that is held out, to choose lambda and to measure the result.
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    held_out: f64,
    /// The largest number of steps of conjugate gradients.
    #[arg(long, value_name = "N", default_value_t = 50)]
    steps: usize,
    /// The number of columns of the result [default: that of the checkpoint, or that of the teacher if it has fewer]
    #[arg(long, value_name = "K")]
    dimensions: Option<usize>,
    /// The type in which the rows are stored. f16 and f32 make the result a Model2Vec model as well.
    #[arg(long, value_parser = choice(&RowDtype::ALL, RowDtype::name), default_value = RowDtype::Int8.name())]
    dtype: RowDtype,
    /// Replace OUT if it holds a checkpoint and nothing else.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    overrides: OverrideFlags,
    #[command(flatten)]
    pairs: PairArgs,
}

/// Runs the command: fits the table, writes the result, and returns the report.
///
/// # Errors
/// Fails if there is no result. Also fails, after printing the report, if the result is worse than the checkpoint on
/// the held-out texts.
pub fn run(args: &FitArgs) -> Result<String, Failure> {
    let started = Instant::now();
    let existing = existing(args.force);
    // The directory is checked before hours of work. `write` checks it again, in case another process creates it in the
    // meantime.
    existing.check(&args.out)?;
    let overrides = args.overrides.overrides();
    let checkpoint = open_checkpoint(&args.checkpoint, &overrides)?;
    for warning in &checkpoint.warnings {
        warn(warning);
    }
    staging::protect(&args.out, &write::sources(&checkpoint))?;
    let files = args.corpus.iter().chain(&args.teacher_vectors).chain(&args.pairs.pairs).chain(&overrides.config);
    staging::protect(&args.out, &files.map(PathBuf::as_path).collect::<Vec<_>>())?;
    let has_teacher = args.teacher.is_some() || args.teacher_vectors.is_some();
    pairs::check(&args.pairs, !args.corpus.is_empty(), has_teacher)?;
    let progress = Bar::new();
    // The files are large, so they are created beside OUT. /tmp may be in memory.
    let parent = args.out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(|e| FileError::reading(parent, &e))?;
    let found = if has_teacher { Some(of_teacher(args, &checkpoint, parent, &progress)?) } else { None };
    let unfitted = Unfitted::new(&checkpoint)?;
    let (rows, texts): (&dyn Rows, _) = match &found {
        Some(OfTeacher::Fitted(fitted)) => (fitted.as_ref(), Some(fitted.texts())),
        Some(OfTeacher::Texts(texts)) => (&unfitted, Some(texts.as_ref())),
        None => (&unfitted, None),
    };
    let trained = match args.pairs.is_given() {
        true => {
            let (dtype, held_out, max_skipped) = (args.dtype, args.held_out, args.max_skipped);
            let start = pairs::Start { checkpoint: &checkpoint, rows, teacher: texts, dtype, held_out, max_skipped };
            Some(pairs::train(&args.pairs, &start, &args.out, parent, &progress)?)
        }
        false => None,
    };
    let fit = found.as_ref().and_then(OfTeacher::summary);
    let pairs = trained.as_ref().map(Trained::summary);
    let report = [fit.map(report), pairs.map(pairs::report)].into_iter().flatten().collect::<String>();
    let made = match &trained {
        Some(trained) => trained,
        None => rows,
    };
    let card = card(args, made, fit, pairs, &report);
    let mut description = found.as_ref().map(OfTeacher::description).unwrap_or_default();
    description.extend(trained.iter().flat_map(Trained::description));
    let description = Description { made: description, card: Some(&card) };
    write::write(&args.out, existing, args.dtype, &checkpoint, made, &description, &progress)?;
    if args.pairs.is_given() {
        pairs::delete_state(&args.out);
    }
    let text = format!(
        "{}: {} rows of {} dimensions in {}, in {:.1} s\n{report}",
        args.out.display(),
        made.rows(),
        made.dimensions(),
        args.dtype.name(),
        started.elapsed().as_secs_f64(),
    );
    let worse: Vec<String> = fit.and_then(worse).into_iter().chain(pairs.and_then(pairs::worse)).collect();
    if worse.is_empty() {
        return Ok(text);
    }
    print(&text)?;
    Err(Failure::Worse(format!(
        "{}. {} was written all the same; `embedding-server eval` shows which of the two tables is better for your purpose",
        worse.join(". "),
        args.out.display()
    )))
}

/// What a teacher gave: a table that was fitted to its vectors, or only texts with vectors.
enum OfTeacher<'a> {
    Fitted(Box<Fitted<'a>>),
    Texts(Box<TeacherTexts>),
}

impl OfTeacher<'_> {
    fn summary(&self) -> Option<&Summary> {
        match self {
            Self::Fitted(fitted) => Some(fitted.summary()),
            Self::Texts(_) => None,
        }
    }

    fn description(&self) -> Map<String, Value> {
        match self {
            Self::Fitted(fitted) => fitted.description(),
            Self::Texts(_) => Map::new(),
        }
    }
}

fn of_teacher<'a>(
    args: &FitArgs,
    checkpoint: &'a Checkpoint,
    scratch: &Path,
    progress: &Bar,
) -> Result<OfTeacher<'a>, Failure> {
    let client = client(args)?;
    let mut teacher = teacher(args, client.as_ref(), progress)?;
    let fields = Fields { field: &args.field, max_skipped: args.max_skipped };
    let corpus = Corpus { files: &args.corpus, fields, held_out: args.held_out };
    let options = Options { gamma: args.gamma, lambda: args.lambda, steps: args.steps, dimensions: args.dimensions };
    if args.pairs.starts_from_the_teacher() {
        let fitted = fit::fit(checkpoint, &corpus, teacher.as_mut(), &options, scratch, progress)?;
        return Ok(OfTeacher::Fitted(Box::new(fitted)));
    }
    let target = (args.gamma, args.dimensions);
    let texts = TeacherTexts::read(checkpoint, &corpus, teacher.as_mut(), target, scratch, progress)?;
    Ok(OfTeacher::Texts(Box::new(texts)))
}

/// Returns the message for a fit that made the table worse on the held-out texts.
fn worse(summary: &Summary) -> Option<String> {
    let report = summary.held_out.as_ref()?;
    let losses: Vec<String> = report
        .losses()
        .iter()
        .map(|Loss { measure, before, after }| format!("the {measure} fell from {before:.4} to {after:.4}"))
        .collect();
    (!losses.is_empty()).then(|| {
        format!(
            "the fit made the table worse on the {} held out from it: {}. More text, or a larger --lambda, may help",
            counted(report.texts as u64, "text"),
            losses.join(", and ")
        )
    })
}

fn client(args: &FitArgs) -> Result<Option<Client>, Failure> {
    let (Some(url), Some(model)) = (&args.teacher, &args.teacher_model) else { return Ok(None) };
    let key = |name: &str| std::env::var(name).ok().filter(|key| !key.trim().is_empty());
    let key = key("EMBEDDING_TEACHER_API_KEY").or_else(|| key("OPENAI_API_KEY"));
    let client = Client::new(url, model, key).map(|client| client.with_notify(|text| warn(&text)));
    client.map(Some).map_err(|problem| Failure::Run(format!("--teacher: {problem}")))
}

fn teacher<'a>(
    args: &FitArgs,
    client: Option<&'a Client>,
    progress: &dyn Progress,
) -> Result<Box<dyn Vectors + 'a>, Failure> {
    if let Some(path) = &args.teacher_vectors {
        return Ok(Box::new(VectorFile::open(path)?));
    }
    let client = client.ok_or("--teacher: is missing (give a URL, or --teacher-vectors)")?;
    let identity = Identity {
        url: client.url().to_owned(),
        model: client.model().to_owned(),
        prefix: args.teacher_prefix.clone(),
    };
    let cache = Cache::open(&cache_dir(args)?, identity.clone(), progress)?;
    Ok(Box::new(Teacher { ask: client, identity, cache, batch: args.teacher_batch, requests: args.teacher_requests }))
}

fn cache_dir(args: &FitArgs) -> Result<PathBuf, Failure> {
    if let Some(dir) = &args.cache {
        return Ok(dir.clone());
    }
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let home = home.ok_or("--cache: is missing, and there is no HOME (give a directory)")?;
    Ok(home.join("embedding-server/teachers"))
}

/// Returns the report of a fit, line by line.
fn report(summary: &Summary) -> String {
    let mut text = String::new();
    let chosen = if summary.lambda_chosen { ", chosen on the texts held out" } else { "" };
    let _ = writeln!(
        text,
        "fitted to {} texts with {} different tokens, lambda = {}{chosen}",
        summary.texts, summary.tokens_seen, summary.lambda
    );
    if summary.without_tokens > 0 {
        let _ = writeln!(text, "{} texts have no token of this vocabulary and were left out", summary.without_tokens);
    }
    let Some(held_out) = &summary.held_out else {
        text.push_str("no texts were held out, so it is not known whether the table is better than before\n");
        return text;
    };
    let _ = writeln!(text, "on {} held out:", counted(held_out.texts as u64, "text"));
    let _ = writeln!(
        text,
        "  cosine to the teacher        {:.4} -> {:.4}   (before: the best linear map of the checkpoint's vectors)",
        held_out.cosine_before, held_out.cosine_after
    );
    let _ = writeln!(
        text,
        "  correlation of cosines       {:.4} -> {:.4}   (Spearman, pairs of texts; before: the checkpoint itself)",
        held_out.correlation_before, held_out.correlation_after
    );
    for Loss { measure, .. } in held_out.losses() {
        let _ = writeln!(text, "the {measure} is worse than before");
    }
    text
}

/// Returns the README.md of the result.
fn card(
    args: &FitArgs,
    made: &dyn Rows,
    fit: Option<&Summary>,
    pairs: Option<&contrastive::Summary>,
    report: &str,
) -> String {
    let title = if fit.is_some() { "A table fitted to a teacher" } else { "A table trained on pairs of texts" };
    let mut card = format!("---\ntags:\n- embeddings\n- static-embeddings\n---\n\n# {title}\n\n");
    let name = args.checkpoint.file_name().unwrap_or(args.checkpoint.as_os_str()).to_string_lossy();
    let _ = writeln!(
        card,
        "{} rows of {} dimensions ({}), made from `{name}`.\n",
        made.rows(),
        made.dimensions(),
        args.dtype.name()
    );
    if let Some(summary) = fit {
        let _ = writeln!(card, "* Teacher: `{}`, {} dimensions", summary.teacher, summary.teacher_dimensions);
        for file in &summary.files {
            let _ = writeln!(card, "* Corpus: {}, {} texts, sha256 {}", file.name, file.texts, file.sha256);
        }
        let _ = writeln!(card, "* gamma {}, lambda {}, {} steps", summary.gamma, summary.lambda, summary.steps);
    }
    if let Some(summary) = pairs {
        if let (None, Some(teacher)) = (fit, &summary.teacher) {
            let _ = writeln!(card, "* Teacher: `{teacher}`");
        }
        for file in summary.files.iter().map(|file| &file.file) {
            let _ = writeln!(card, "* Pairs: {}, {} pairs, sha256 {}", file.name, file.pairs, file.sha256);
        }
        let _ = writeln!(card, "* {} steps at rate {}, seed {}", summary.steps, summary.rate, summary.seed);
    }
    let _ = writeln!(card, "* Made by embedding-server {}\n\n```text\n{report}```\n", env!("CARGO_PKG_VERSION"));
    card.push_str(match fit {
        Some(_) => "The licence of the source and the terms of the teacher's provider hold for these files too.\n",
        None => "The licences of the source and of the pairs hold for these files too.\n",
    });
    card
}
