//! The command `embedding-server embed`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, ValueEnum};

use super::choice::choice;
use super::output::{Failure, say, warn};
use super::progress::Bar;
use crate::builtin::open_checkpoint;
use crate::bulk::output::{EmbeddingDtype, Layout, OutputFormat};
use crate::bulk::sparse::{SparseKind, SparseLayout};
use crate::bulk::{self, Options};
use crate::config::ModelConfig;
use crate::config::layers::{Flags, effective};
use layer0::embedder::Embedder;
use layer0::location::Location;
use layer0::progress::counted;
use layer0::retrieval::sparse::DEFAULT_NEIGHBORS;
use layer0_records::{InputFormat, MaxSkipped, Source};

#[derive(Args)]
pub struct EmbedArgs {
    /// The input files, or quoted patterns ("data/*.parquet"): .jsonl, .json, .csv, .tsv and .parquet. A file with any
    /// other name holds one text per line. All formats but Parquet may be compressed: .gz, .zst, .bz2, .xz, .lz4. "-"
    /// is standard input, which is also read if no file is given.
    inputs: Vec<PathBuf>,
    /// The file to write: .jsonl, .parquet, .npy or .safetensors. Without it, JSON lines go to standard output. To
    /// continue an interrupted run, repeat the command.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A checkpoint or a Hub ID, or with --config the name of a model [default: the default model of the server]
    #[arg(long, short, value_name = "PATH")]
    model: Option<String>,
    /// The server's configuration file. The model is used with the settings in this file.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The field or column that holds the text. A dot selects a field within an object or struct: "a.b"
    /// [default: text]
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
    /// The format of the inputs [default: by the file name]
    #[arg(long, value_parser = choice(&InputFormat::ALL, InputFormat::name))]
    input_format: Option<InputFormat>,
    /// The format of the output [default: by the file name]
    #[arg(long, value_parser = choice(&OutputFormat::ALL, OutputFormat::name))]
    format: Option<OutputFormat>,
    /// The field or column to write the vector to.
    #[arg(long, value_name = "NAME", default_value = "embedding")]
    embedding_field: String,
    /// Also write a sparse vector for each text, as POST /v1/sparse-embeddings returns it: of a document, or with
    /// --sparse=query of a query. npy files cannot hold sparse vectors.
    #[arg(long, value_enum, value_name = "KIND", num_args = 0..=1, require_equals = true, default_missing_value = "document")]
    sparse: Option<Sparse>,
    /// The field or column to write the sparse vector to.
    #[arg(long, value_name = "NAME", default_value = "sparse_embedding")]
    sparse_field: String,
    /// The type of the numbers. int8 and uint8 are whole numbers, and binary and ubinary have eight numbers in each byte, as for
    /// output_dtype of the API. JSON has no float16. The numbers of sparse vectors are always float32.
    #[arg(long, value_parser = choice(&EmbeddingDtype::ALL, EmbeddingDtype::name), default_value = EmbeddingDtype::Float32.name())]
    embedding_dtype: EmbeddingDtype,
    /// The number of dimensions to keep. The shortened vectors are scaled to length 1 again [default: all]
    #[arg(long, value_name = "K")]
    dimensions: Option<u64>,
    /// The number of columns of the lexical tail, which follow the columns of the table [default: as in the configuration]
    #[arg(long, value_name = "COLUMNS")]
    lexical_dimensions: Option<usize>,
    /// The length of a token's lexical tail, as a multiple of the length of the token's vector [default: as in the
    /// configuration]
    #[arg(long, value_name = "WEIGHT")]
    lexical_weight: Option<f64>,
    /// The inputs are batch files of OpenAI's API, JSON lines of {"custom_id", "method", "url", "body"}, and the output has one
    /// answer for each request. The model in a request is ignored.
    #[arg(long, conflicts_with_all = ["field", "sparse", "dimensions", "embedding_dtype", "embedding_field"])]
    openai_batch: bool,
    /// The treatment of a record that is damaged, has no text, or is longer than the model accepts.
    #[arg(long, value_enum, default_value_t = OnError::Fail)]
    on_error: OnError,
    /// With --on-error skip, the largest share of the records of a file that may be left out.
    #[arg(long, value_name = "SHARE", default_value = "10%")]
    max_skipped: MaxSkipped,
    /// Read only every Nth input file, starting with file number I (counted from 0), to divide the work among N
    /// machines.
    #[arg(long, value_name = "I/N", value_parser = shard)]
    shard: Option<(usize, usize)>,
    /// The number of threads. 0 uses all processors that are available to the process.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// The device that computes the vectors: auto, cpu, cuda[:N] or metal[:N] [default: as in the configuration]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Replace the output, and discard the parts of an interrupted run.
    #[arg(long)]
    force: bool,
    /// Do nothing if the output exists. An output never exists before it is complete.
    #[arg(long, requires = "output", conflicts_with = "force")]
    skip_existing: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Sparse {
    Document,
    Query,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum OnError {
    Fail,
    Skip,
}

pub fn run(args: &EmbedArgs) -> Result<String, Failure> {
    let started = Instant::now();
    let output = args.output.clone().filter(|output| output != Path::new("-"));
    if let Some(output) = output.as_deref().filter(|output| args.skip_existing && output.exists()) {
        say(&format!("{} exists already: nothing to do", output.display()));
        return Ok(String::new());
    }
    let format = format(args, output.as_deref())?;
    let sources = sources(args)?;
    if let Some(plain) = sources.iter().find(|source| args.field.is_some() && source.format() == InputFormat::Text) {
        return Err(format!(
            "{} is read as a text a line, which has no --field: give --input-format",
            plain.name().display()
        )
        .into());
    }
    if args.openai_batch
        && let Some(other) = sources.iter().find(|source| source.format() != InputFormat::Jsonl)
    {
        return Err(format!(
            "{} is not read as JSON lines, which a batch file consists of: give --input-format jsonl",
            other.name().display()
        )
        .into());
    }
    let bar = Bar::new();
    let embedder = embedder(args, &bar)?;
    let options = Options {
        sources,
        field: args.field.clone().unwrap_or_else(|| "text".to_owned()),
        out: output,
        layout: Layout {
            format,
            dtype: args.embedding_dtype,
            dimensions: embedder.resolve_dimensions(args.dimensions)?,
            column: args.embedding_field.clone(),
            sparse: args.sparse.map(|kind| SparseLayout {
                column: args.sparse_field.clone(),
                kind: match kind {
                    Sparse::Document => SparseKind::Documents,
                    Sparse::Query => SparseKind::Queries(DEFAULT_NEIGHBORS),
                },
                vocabulary: embedder.rows(),
            }),
            fingerprint: embedder.fingerprint(),
        },
        openai_batch: args.openai_batch,
        skip: args.on_error == OnError::Skip,
        max_skipped: args.max_skipped,
        threads: match args.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        },
        force: args.force,
    };
    let done = bulk::run(&embedder, &options, &bar)?;
    let seconds = started.elapsed().as_secs_f64();
    let left_out = if done.skipped > 0 { format!(", {} left out", done.skipped) } else { String::new() };
    let resumed = if done.resumed > 0 { format!(", {} by an earlier run", done.resumed) } else { String::new() };
    say(&format!("{} embedded{left_out}{resumed}; {} in {seconds:.1} s", done.rows, counted(done.tokens, "token")));
    Ok(String::new())
}

fn format(args: &EmbedArgs, output: Option<&Path>) -> Result<OutputFormat, Failure> {
    let format = match (args.format, output) {
        (Some(format), _) => format,
        (None, None) => OutputFormat::Jsonl,
        (None, Some(output)) => {
            let extension = output.extension().and_then(|extension| extension.to_str());
            extension.and_then(OutputFormat::from_extension).ok_or_else(|| {
                let [others @ .., last] = OutputFormat::ALL.map(|format| format!(".{}", format.name()));
                format!(
                    "the output's name does not say its format: end it in {} or {last}, or give --format",
                    others.join(", ")
                )
            })?
        }
    };
    if output.is_none() && format != OutputFormat::Jsonl {
        return Err("standard output takes JSON lines only: give --output FILE".into());
    }
    if args.openai_batch && format != OutputFormat::Jsonl {
        return Err("the answers to a batch file are JSON lines: write .jsonl, or to standard output".into());
    }
    if format.is_text() && args.embedding_dtype == EmbeddingDtype::Float16 {
        return Err("--embedding-dtype float16 is for Parquet, npy and safetensors; JSON's numbers have no size".into());
    }
    if format == OutputFormat::Npy && args.sparse.is_some() {
        return Err("an npy file cannot hold the vectors of --sparse: write .safetensors, .parquet or .jsonl".into());
    }
    if args.sparse.is_some() && args.sparse_field == args.embedding_field {
        return Err("--sparse-field and --embedding-field name the same column: name two".into());
    }
    Ok(format)
}

fn sources(args: &EmbedArgs) -> Result<Vec<Source>, Failure> {
    let mut paths = Vec::new();
    for input in &args.inputs {
        match input.to_str().filter(|text| !input.exists() && text.contains(['*', '?', '['])) {
            None => paths.push(input.clone()),
            Some(pattern) => {
                let found = glob::glob(pattern).map_err(Failure::run)?;
                let found = found.collect::<Result<Vec<_>, _>>().map_err(Failure::run)?;
                if found.is_empty() {
                    return Err(format!("no file is named {pattern}").into());
                }
                paths.extend(found);
            }
        }
    }
    if paths.is_empty() {
        paths.push("-".into());
    }
    if let Some((shard, shards)) = args.shard {
        let mut number = 0..;
        paths.retain(|_| number.next().is_some_and(|n: usize| n % shards == shard));
    }
    Ok(paths.iter().map(|path| Source::new(path, args.input_format)).collect::<Result<_, _>>()?)
}

fn embedder(args: &EmbedArgs, bar: &Bar) -> Result<Embedder, Failure> {
    let model = model(args)?;
    let overrides = model.overrides();
    let path = Location::of(&model.path).directory(&overrides, bar)?;
    let checkpoint = open_checkpoint(&path, &overrides)?;
    for warning in &checkpoint.warnings {
        warn(warning);
    }
    let embedder = Embedder::new(checkpoint, model.settings())?;
    if let Some(reason) = embedder.why_cpu() {
        warn(&format!("embedding on the CPU: {reason}"));
    }
    Ok(embedder)
}

fn model(args: &EmbedArgs) -> Result<ModelConfig, Failure> {
    let models = match &args.model {
        Some(path) if args.config.is_none() => vec![path.clone()],
        _ => Vec::new(),
    };
    let settings = args.device.iter().map(|device| ("--device", device.clone())).collect();
    let flags = Flags { config: args.config.clone(), settings, models };
    let config = effective(&flags, std::iter::empty::<(String, String)>()).map_err(Failure::run)?.config;
    let name = match &args.model {
        Some(name) if args.config.is_some() => name.clone(),
        _ => config.default_model().to_owned(),
    };
    let named = |model: &ModelConfig| model.id == name || model.aliases.contains(&name);
    let found = config.models.into_iter().find(named).map(|model| ModelConfig {
        lexical_dimensions: args.lexical_dimensions.or(model.lexical_dimensions),
        lexical_weight: args.lexical_weight.or(model.lexical_weight),
        ..model.on(&config.server)
    });
    found.ok_or_else(|| format!("the configuration has no model {name:?}").into())
}

fn shard(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    numbers
        .filter(|(i, n)| i < n)
        .ok_or_else(|| format!("{text:?} is no shard: 0/4, 1/4, 2/4 and 3/4 are the four of four"))
}
