//! Embeds whole files: the offline twin of the API, the same vectors bit for bit.
//!
//! One thread reads records in chunks; the others tokenize, pool and encode a chunk each. A chunk's bounds follow from the
//! input alone and its output is a part that is moved to its place whole, so a run that was cut goes on with the parts that
//! are missing, and its file is the same. At most two chunks a thread are in memory.

mod columns;
pub mod input;
pub mod output;
mod parts;

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use arrow_array::cast::AsArray;
use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::{DataType, SchemaRef};
use serde_json::{Map, Value};

use crate::embedder::{Embedder, Input};
use crate::error::LoadError;
use crate::progress::{Progress, counted};
use columns::{Columns, is_text};
use input::{Chunk, Identity, Limits, Line, Rows, Source};
use output::{Layout, OutputFormat};
use parts::{Part, Parts};

/// Bytes of text in a chunk: a fraction of a second of work, and the memory of a thread.
const CHUNK_TEXT: usize = 4 << 20;
/// Bytes of vectors in a chunk; as JSON they take three times as many.
const CHUNK_VECTORS: usize = 16 << 20;
const CHUNK_JSON: usize = 4 << 20;
const CHUNK_ROWS: usize = 1 << 14;

/// What is embedded, and where it goes.
pub struct Options {
    pub sources: Vec<Source>,
    /// The field or column that holds the text.
    pub field: String,
    /// `None`: standard output, as JSON lines.
    pub out: Option<PathBuf>,
    pub layout: Layout,
    /// Leave bad records out, and say which; else the first one ends the run.
    pub skip: bool,
    pub threads: usize,
    /// Replace the output, and discard what a cut run left.
    pub force: bool,
}

/// What a run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    pub rows: u64,
    pub skipped: u64,
    pub tokens: u64,
    /// Of these rows, those that an earlier run had done.
    pub resumed: u64,
}

/// Embeds all of `options.sources`, in order.
///
/// # Errors
/// For a file that cannot be read or written, and, unless they are skipped, for the first bad record: one that is no
/// record of its format, has no text, or is one that the model does not take.
pub fn run(embedder: &Embedder, options: &Options, progress: &dyn Progress) -> Result<Summary, LoadError> {
    let identities = options.sources.iter().map(Source::identity).collect::<Result<Vec<_>, _>>()?;
    let total = identities.iter().map(|input| input.size).sum();
    check_output(options)?;
    let parts = match &options.out {
        None => None,
        Some(out) if out.exists() && !options.force => {
            return Err(LoadError::new(out, "exists already").remedy("give --force to replace it, or another name"));
        }
        Some(out) => {
            let restart = options.force || options.sources.iter().any(Source::is_stdin);
            Some(Parts::open(out, &identity(embedder, options, &identities)?, restart)?)
        }
    };
    if let Some(count) = parts.as_ref().map(Parts::count_of_earlier).filter(|&count| count > 0) {
        progress.note(&format!("going on after a run that was cut: {} done already", counted(count, "part")));
    }
    let run = Run {
        embedder,
        options,
        progress,
        parts,
        columns: OnceLock::new(),
        schema: OnceLock::new(),
        failed: Failed::default(),
        ordered: Ordered::default(),
        summary: Mutex::new(Summary::default()),
    };
    progress.start("embedding", 0, total);
    let result = run.all();
    progress.finish();
    result?;
    let summary = *lock(&run.summary);
    if let (Some(out), Some(parts)) = (&options.out, run.parts) {
        let files: Vec<PathBuf> = parts.in_order()?.into_iter().map(|(path, _)| path).collect();
        if files.is_empty() && options.layout.format == OutputFormat::Parquet {
            return Err(LoadError::new(out, "would have no columns: the inputs hold no record")
                .remedy("write JSONL, npy or safetensors, which may be empty"));
        }
        options.layout.join(&files, summary.rows, out)?;
        parts.remove()?;
    }
    Ok(summary)
}

/// Refuses an output that would destroy one of its own inputs, or that is no file.
fn check_output(options: &Options) -> Result<(), LoadError> {
    let Some(out) = &options.out else {
        let written = stdout_metadata().filter(Metadata::is_file);
        return match written.and_then(|written| options.sources.iter().find(|source| source.is_file(&written))) {
            Some(source) => {
                Err(LoadError::new(source.name(), "is an input, and standard output is written to the same file")
                    .remedy("write to another file"))
            }
            None => Ok(()),
        };
    };
    let Ok(there) = std::fs::metadata(out) else { return Ok(()) };
    if !there.is_file() {
        let problem =
            if there.is_dir() { "is a directory" } else { "is no regular file, and would be replaced by one" };
        return Err(LoadError::new(out, problem).expected("the name of a file to write"));
    }
    match options.sources.iter().find(|source| source.is_file(&there)) {
        Some(source) => {
            let problem = format!("is the same file as the input {}", source.name().display());
            Err(LoadError::new(out, problem).expected("another name: an output never replaces its own input"))
        }
        None => Ok(()),
    }
}

/// What standard output is, where it is redirected to a file.
fn stdout_metadata() -> Option<Metadata> {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd;
        File::from(std::io::stdout().as_fd().try_clone_to_owned().ok()?).metadata().ok()
    }
    #[cfg(not(unix))]
    None
}

/// What must be the same for the parts of two runs to be parts of one output. The model is told by vectors that it makes.
fn identity(embedder: &Embedder, options: &Options, inputs: &[Identity]) -> Result<String, LoadError> {
    const PROBES: [&str; 3] = ["", "Hello, world!", "안녕하세요, 세계! 0123456789"];
    let mut probes = vec![0.0; PROBES.len() * options.layout.dimensions];
    let tokens = PROBES.iter().map(|text| embedder.tokens(0, &Input::Text((*text).to_owned())));
    let tokens = tokens.collect::<Result<Vec<_>, _>>().unwrap_or_default();
    let made = probes.get_mut(..tokens.len() * options.layout.dimensions).unwrap_or_default();
    embedder.pool(&tokens, options.layout.dimensions, made).map_err(|e| LoadError::new("the model", e.to_string()))?;
    let digest = <sha2::Sha256 as sha2::Digest>::digest(bytemuck::cast_slice::<f32, u8>(&probes));
    let inputs: Vec<_> =
        inputs.iter().map(|Identity { name, size, digest }| format!("{name} {size} {digest}")).collect();
    let identity = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        "inputs": inputs,
        "field": options.field,
        "layout": format!("{:?}", options.layout),
    });
    Ok(format!("{identity:#}\n"))
}

struct Run<'a> {
    embedder: &'a Embedder,
    options: &'a Options,
    progress: &'a dyn Progress,
    parts: Option<Parts>,
    /// Of JSON objects that become Parquet.
    columns: OnceLock<Columns>,
    /// Of Parquet inputs.
    schema: OnceLock<SchemaRef>,
    failed: Failed,
    ordered: Ordered,
    summary: Mutex<Summary>,
}

/// The first error; all threads end after it.
#[derive(Default)]
struct Failed {
    error: Mutex<Option<LoadError>>,
    is: AtomicBool,
}

/// Whose turn it is to write to standard output.
#[derive(Default)]
struct Ordered {
    next: Mutex<usize>,
    turn: Condvar,
}

struct Numbered {
    number: usize,
    source: PathBuf,
    chunk: Chunk,
}

/// One record that can be embedded.
struct Record {
    text: String,
    /// The whole record: its line of JSON, or its values for columns. Neither where only vectors are written.
    json: Vec<u8>,
    values: Map<String, Value>,
}

/// The bad records of a chunk: where, and what is wrong.
type Bad = BTreeMap<u64, String>;

impl Run<'_> {
    fn all(&self) -> Result<(), LoadError> {
        let (sender, receiver) = sync_channel::<Numbered>(self.options.threads);
        let receiver = Mutex::new(receiver);
        thread::scope(|scope| {
            // Dropped at the end of the scope's work, so that the threads end.
            let sender = sender;
            for _ in 0..self.options.threads {
                scope.spawn(|| self.work(&receiver));
            }
            let mut number = 0;
            for source in &self.options.sources {
                let mut emit = |chunk: Chunk| {
                    self.prepare(source, &chunk)?;
                    let next = Numbered { number, source: source.name().to_owned(), chunk };
                    number += 1;
                    Ok(!self.failed.is.load(Ordering::Relaxed) && sender.send(next).is_ok())
                };
                if let Err(error) = source.read(self.limits(), &self.options.field, &mut emit) {
                    self.fail(error);
                }
                if self.failed.is.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        lock(&self.failed.error).take().map_or(Ok(()), Err)
    }

    fn limits(&self) -> Limits {
        let layout = &self.options.layout;
        let vectors = if layout.format == OutputFormat::Jsonl { CHUNK_JSON } else { CHUNK_VECTORS };
        Limits { rows: (vectors / (4 * layout.dimensions)).clamp(1, CHUNK_ROWS), bytes: CHUNK_TEXT }
    }

    /// What the first chunk decides for all: done before any thread has one.
    fn prepare(&self, source: &Source, chunk: &Chunk) -> Result<(), LoadError> {
        let wrong = |problem: &str| Err(LoadError::new(source.name(), problem));
        let layout = &self.options.layout;
        match &chunk.rows {
            Rows::Lines { json, lines } => {
                if layout.format == OutputFormat::Parquet && self.columns.get().is_none() {
                    if self.schema.get().is_some() {
                        return wrong("is not Parquet as the inputs before it: write JSONL, or run them apart");
                    }
                    let mut bad = Bad::new();
                    let records = self.records(lines, *json, &mut bad);
                    let columns = Columns::infer(records.iter().map(|record| &record.values));
                    let _ = self.columns.set(columns);
                }
            }
            Rows::Batch { batch, .. } => {
                let schema = self.schema.get_or_init(|| batch.schema());
                if layout.format == OutputFormat::Parquet
                    && (self.columns.get().is_some() || schema.fields() != batch.schema().fields())
                {
                    return wrong("has other columns than the inputs before it: write JSONL, or run them apart");
                }
                let schema = batch.schema();
                let Ok(field) = schema.field_with_name(&self.options.field) else { return Ok(()) };
                if !is_text(field.data_type()) {
                    return wrong(&format!("has {} in the column {:?}, not text", field.data_type(), field.name()));
                }
                if layout.writes_records() && schema.field_with_name(&layout.column).is_ok() {
                    return wrong(&format!(
                        "has a column {:?} already: name another with --embedding-field",
                        layout.column
                    ));
                }
            }
        }
        Ok(())
    }

    fn work(&self, chunks: &Mutex<Receiver<Numbered>>) {
        loop {
            let next = lock(chunks).recv();
            let Ok(next) = next else { return };
            // After an error the channel is emptied, so that the reader is not left waiting.
            if self.failed.is.load(Ordering::Relaxed) {
                continue;
            }
            let bytes = next.chunk.bytes;
            match self.chunk(next) {
                Ok(()) => self.progress.advance(bytes),
                Err(error) => self.fail(error),
            }
        }
    }

    fn fail(&self, error: LoadError) {
        lock(&self.failed.error).get_or_insert(error);
        self.failed.is.store(true, Ordering::Relaxed);
        // A thread that is about to wait for its turn has either seen the flag or holds this lock.
        drop(lock(&self.ordered.next));
        self.ordered.turn.notify_all();
    }

    fn chunk(&self, next: Numbered) -> Result<(), LoadError> {
        let Numbered { number, source, chunk } = next;
        if let Some(part) = self.parts.as_ref().and_then(|parts| parts.earlier(number)) {
            self.count(part, part.rows);
            return Ok(());
        }
        let mut bad = Bad::new();
        let (bytes, part) = match chunk.rows {
            Rows::Lines { json, lines } => self.lines(&lines, json, &mut bad),
            Rows::Batch { first, batch } => self.batch(&batch, first, &mut bad),
        }
        .map_err(|e| LoadError::new(&source, e))?;
        for (position, problem) in &bad {
            let at = format!("{}:{position}", source.display());
            if !self.options.skip {
                return Err(LoadError::new(at, problem.clone()).remedy(
                    "name the field of the texts with --field, or leave bad records out with --on-error skip",
                ));
            }
            self.progress.note(&format!("left out {at}: it {problem}"));
        }
        let part = Part { skipped: bad.len() as u64, ..part };
        match &self.parts {
            Some(parts) => parts.put(number, part, &bytes)?,
            None => self.print(number, &bytes)?,
        }
        self.count(&part, 0);
        Ok(())
    }

    fn count(&self, part: &Part, resumed: u64) {
        let mut summary = lock(&self.summary);
        summary.rows += part.rows;
        summary.skipped += part.skipped;
        summary.tokens += part.tokens;
        summary.resumed += resumed;
    }

    /// To standard output, after the chunks before this one.
    fn print(&self, number: usize, bytes: &[u8]) -> Result<(), LoadError> {
        let mut next = lock(&self.ordered.next);
        while *next != number {
            if self.failed.is.load(Ordering::Relaxed) {
                return Ok(());
            }
            next = self.ordered.turn.wait(next).unwrap_or_else(PoisonError::into_inner);
        }
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| LoadError::of_standard_output(&e))?;
        *next += 1;
        drop(next);
        self.ordered.turn.notify_all();
        Ok(())
    }

    fn lines(&self, lines: &[Line], json: bool, bad: &mut Bad) -> Result<(Vec<u8>, Part), String> {
        let layout = &self.options.layout;
        let mut records = self.records(lines, json, bad);
        let positions: Vec<u64> = lines.iter().map(|line| line.position).filter(|p| !bad.contains_key(p)).collect();
        let texts = records.iter_mut().map(|record| std::mem::take(&mut record.text));
        let Vectors { vectors, kept, part } = self.embed(positions.into_iter().zip(texts), bad)?;
        let mut kept = kept.into_iter();
        records.retain(|_| kept.next().unwrap_or(false));
        let bytes = match layout.format {
            OutputFormat::Jsonl => layout.json(records.iter().map(|record| record.json.as_slice()), &vectors),
            OutputFormat::Npy | OutputFormat::Safetensors => layout.raw(&vectors),
            OutputFormat::Parquet => {
                let values: Vec<_> = records.into_iter().map(|record| record.values).collect();
                let columns = self.columns.get().ok_or("has no columns")?;
                layout.parquet(&columns.batch(&values)?, vectors)?
            }
        };
        Ok((bytes, part))
    }

    /// The good records of `lines`.
    fn records(&self, lines: &[Line], json: bool, bad: &mut Bad) -> Vec<Record> {
        let mut records = Vec::with_capacity(lines.len());
        for line in lines {
            let record = match &line.content {
                Ok(content) => self.record(content, json),
                Err(problem) => Err(problem.clone()),
            };
            match record {
                Ok(record) => records.push(record),
                Err(problem) => drop(bad.insert(line.position, problem)),
            }
        }
        records
    }

    fn record(&self, content: &[u8], json: bool) -> Result<Record, String> {
        let Options { field, layout, .. } = self.options;
        if !json {
            let text = str::from_utf8(content).map_err(|e| format!("is not UTF-8: {e}"))?.to_owned();
            let values = Map::from_iter([("text".to_owned(), Value::String(text.clone()))]);
            let json = if layout.format == OutputFormat::Jsonl {
                Value::Object(values.clone()).to_string()
            } else {
                String::new()
            };
            return Ok(Record { text, json: json.into_bytes(), values });
        }
        let values: Map<String, Value> =
            serde_json::from_slice(content).map_err(|e| format!("is no JSON object: {e}"))?;
        let text = match values.get(field) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => return Err(format!("has {other} in {field:?}, not a string")),
            None => return Err(format!("has no field {field:?}")),
        };
        if layout.writes_records() && values.contains_key(&layout.column) {
            return Err(format!("has a field {:?} already; name another with --embedding-field", layout.column));
        }
        if let Some(problem) = self.columns.get().and_then(|columns| columns.misfit(&values)) {
            return Err(problem);
        }
        Ok(Record { text, json: content.to_vec(), values })
    }

    fn batch(&self, batch: &RecordBatch, first: u64, bad: &mut Bad) -> Result<(Vec<u8>, Part), String> {
        let layout = &self.options.layout;
        let column = batch.column_by_name(&self.options.field).ok_or("has lost its column")?;
        let texts: Vec<Option<&str>> = match column.data_type() {
            DataType::LargeUtf8 => column.as_string::<i64>().iter().collect(),
            DataType::Utf8View => column.as_string_view().iter().collect(),
            _ => column.as_string::<i32>().iter().collect(),
        };
        for (position, text) in (first..).zip(&texts) {
            if text.is_none() {
                bad.insert(position, "has no text".to_owned());
            } else if text.is_some_and(|text| text.len() > input::MAX_LINE) {
                bad.insert(position, format!("has a text that is longer than {} MiB", input::MAX_LINE >> 20));
            }
        }
        let good = (first..).zip(&texts).filter(|(position, _)| !bad.contains_key(position));
        let good: Vec<_> = good.filter_map(|(position, text)| Some((position, (*text)?.to_owned()))).collect();
        let Vectors { vectors, part, .. } = self.embed(good.into_iter(), bad)?;
        let kept: BooleanArray = (first..).take(texts.len()).map(|p| Some(!bad.contains_key(&p))).collect();
        let rows = arrow_select::filter::filter_record_batch(batch, &kept).map_err(|e| e.to_string())?;
        let bytes = match layout.format {
            OutputFormat::Jsonl => layout.json_of_batch(&rows, &vectors)?,
            OutputFormat::Parquet => layout.parquet(&rows, vectors)?,
            OutputFormat::Npy | OutputFormat::Safetensors => layout.raw(&vectors),
        };
        Ok((bytes, part))
    }

    /// The vectors of the texts that the model takes; the others are bad.
    fn embed(&self, texts: impl Iterator<Item = (u64, String)>, bad: &mut Bad) -> Result<Vectors, String> {
        let dimensions = self.options.layout.dimensions;
        let mut made = Vectors::default();
        let mut taken = Vec::new();
        for (position, text) in texts {
            let tokens = match self.embedder.tokens(0, &Input::Text(text)) {
                Ok(tokens) => tokens,
                Err(error) => {
                    bad.insert(position, format!("is not taken by the model: {error}"));
                    made.kept.push(false);
                    continue;
                }
            };
            made.kept.push(true);
            made.part.rows += 1;
            made.part.tokens += tokens.len() as u64;
            taken.push(tokens);
        }
        made.vectors.resize(taken.len() * dimensions, 0.0);
        self.embedder.pool(&taken, dimensions, &mut made.vectors).map_err(|e| e.to_string())?;
        Ok(made)
    }
}

#[derive(Default)]
struct Vectors {
    vectors: Vec<f32>,
    /// By text: whether it has a vector.
    kept: Vec<bool>,
    part: Part,
}

/// A poisoned lock is taken all the same: what it guards is whole after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
