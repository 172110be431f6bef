//! Embeds whole files offline. The vectors are bit for bit those of the API.
//!
//! One thread reads records in chunks. The other threads tokenize, pool and encode one chunk each. The bounds of the
//! chunks depend on the input alone. The output of a chunk is a part, which is written to its final place in one atomic
//! step. A run that continues after an interruption therefore computes only the missing parts, and writes the same
//! file. At most two chunks per thread are in memory.

mod columns;
mod error;
mod openai_batch;
pub mod output;
mod parts;
mod run;
pub mod sparse;

use std::fs::Metadata;
use std::path::PathBuf;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;

use columns::Columns;
pub use error::BulkError;
use layer0::embedder::Embedder;
use layer0::progress::{Progress, counted};
use layer0_files::Diagnostic;
use layer0_records::{Identity, MaxSkipped, Source, table};
use output::{Layout, OutputFormat, Vectors};
use parts::{Part, Parts};
use run::{Run, Tally};

/// The options of a run: the inputs, the output, and the handling of bad records.
pub struct Options {
    pub sources: Vec<Source>,
    /// The name of the field or column that holds the text.
    pub field: String,
    /// The output file. With `None`, JSON lines go to standard output.
    pub out: Option<PathBuf>,
    pub layout: Layout,
    /// Whether the inputs are batch files of OpenAI's API. Each record is then a request, and the output has its answer.
    pub openai_batch: bool,
    /// Whether bad records are left out and reported. Otherwise the first bad record ends the run.
    pub skip: bool,
    /// The largest share of the records of a file that may be left out.
    pub max_skipped: MaxSkipped,
    pub threads: usize,
    /// Whether to replace an existing output, and to discard the parts of an interrupted run.
    pub force: bool,
}

/// The totals of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    pub rows: u64,
    pub skipped: u64,
    pub tokens: u64,
    /// The number of rows that an earlier, interrupted run had already finished. `rows` includes them.
    pub resumed: u64,
}

/// Embeds all files of `options.sources`, in order.
///
/// # Errors
/// Fails if a file cannot be read or written. Unless bad records are skipped, it also fails at the first record that
/// does not parse in its format, that has no text, or whose text the model refuses.
pub fn run(embedder: &Embedder, options: &Options, progress: &dyn Progress) -> Result<Summary, BulkError> {
    let identities = options.sources.iter().map(Source::identity).collect::<Result<Vec<_>, _>>()?;
    let total = identities.iter().map(|input| input.size).sum();
    check_output(options)?;
    let parts = match &options.out {
        None => None,
        Some(out) if out.exists() && !options.force => {
            return Err(BulkError::Exists(out.clone()));
        }
        Some(out) => {
            let restart = options.force || options.sources.iter().any(Source::is_stdin);
            Some(Parts::open(out, &identity(embedder, options, &identities), restart)?)
        }
    };
    if let Some(count) = parts.as_ref().map(Parts::count_of_earlier).filter(|&count| count > 0) {
        progress.note(&format!("going on after a run that was cut: {} done already", counted(count, "part")));
    }
    let schema = match options.layout.format {
        OutputFormat::Parquet => common_schema(&options.sources, &options.field)?,
        _ => None,
    };
    let run = Run::new(embedder, options, progress, parts, schema);
    progress.start_texts("embedding", total);
    let result = run.all();
    progress.finish();
    result?;
    let Tally { summary, skipped, columns, schema, parts } = run.ended();
    for (source, skipped) in options.sources.iter().zip(&skipped) {
        if skipped.records > 0 && skipped.count > 0 {
            let name = source.name().display();
            progress.note(&format!("{name}: left out {} of {} records", skipped.count, skipped.records));
            options.max_skipped.check(source.name(), skipped.count, skipped.records, &skipped.first)?;
        }
    }
    if let (Some(out), Some(parts)) = (&options.out, parts) {
        let mut files = parts.in_order()?;
        if files.is_empty() && options.layout.format == OutputFormat::Parquet {
            let rows = match schema {
                Some(schema) => RecordBatch::new_empty(schema),
                None => columns
                    .unwrap_or_else(|| Columns::of_strings(std::slice::from_ref(&options.field)))
                    .batch(&[])
                    .map_err(|e| BulkError::Rows(Diagnostic::new(out, e.to_string())))?,
            };
            let unwritable = |e: error::UnwritableRows| BulkError::Rows(Diagnostic::new(out, e.to_string()));
            let empty = options.layout.parquet(&rows, Vectors::default()).map_err(unwritable)?;
            parts.put(0, Part::default(), &empty)?;
            files = parts.in_order()?;
        }
        options.layout.join(&files, summary.rows, out)?;
        parts.remove()?;
    }
    Ok(summary)
}

/// Returns the columns that one file needs to hold the rows of all Parquet inputs, or `None` if no input is Parquet.
fn common_schema(sources: &[Source], text: &str) -> Result<Option<SchemaRef>, BulkError> {
    let mut found: Option<SchemaRef> = None;
    for path in sources.iter().filter_map(Source::parquet) {
        let schema = table::schema(path)?;
        found = Some(match found {
            None => schema,
            Some(found) => table::common(&found, &schema, text).map_err(|problem| {
                let remedy = "write JSONL, which takes any columns, or run the inputs apart";
                BulkError::Rows(Diagnostic::new(path, problem.to_string()).remedy(remedy))
            })?,
        });
    }
    Ok(found)
}

/// Refuses an output that would overwrite one of the inputs, or that is not a file.
fn check_output(options: &Options) -> Result<(), BulkError> {
    let Some(out) = &options.out else {
        let written = stdout_metadata().filter(Metadata::is_file);
        return match written.and_then(|written| options.sources.iter().find(|source| source.is_file(&written))) {
            Some(source) => {
                let problem = "is an input, and standard output is written to the same file";
                Err(BulkError::Output(Diagnostic::new(source.name(), problem).remedy("write to another file")))
            }
            None => Ok(()),
        };
    };
    let Ok(there) = std::fs::metadata(out) else { return Ok(()) };
    if !there.is_file() {
        let problem =
            if there.is_dir() { "is a directory" } else { "is no regular file, and would be replaced by one" };
        return Err(BulkError::Output(Diagnostic::new(out, problem).expected("the name of a file to write")));
    }
    match options.sources.iter().find(|source| source.is_file(&there)) {
        Some(source) => {
            let problem = format!("is the same file as the input {}", source.name().display());
            let expected = "another name: an output never replaces its own input";
            Err(BulkError::Output(Diagnostic::new(out, problem).expected(expected)))
        }
        None => Ok(()),
    }
}

/// Returns the metadata of the file to which standard output is redirected, if there is one.
fn stdout_metadata() -> Option<Metadata> {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd;
        std::fs::File::from(std::io::stdout().as_fd().try_clone_to_owned().ok()?).metadata().ok()
    }
    #[cfg(not(unix))]
    None
}

/// Returns a text that identifies a run. The parts of an interrupted run are reused only if the text is the same.
fn identity(embedder: &Embedder, options: &Options, inputs: &[Identity]) -> String {
    let inputs: Vec<_> =
        inputs.iter().map(|Identity { name, size, digest }| format!("{name} {size} {digest}")).collect();
    let identity = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": embedder.fingerprint(),
        "inputs": inputs,
        "field": options.field,
        "openai_batch": options.openai_batch,
        "layout": format!("{:?}", options.layout),
    });
    format!("{identity:#}\n")
}
