//! Runs `embed`: one thread reads chunks, and the other threads make a part from each chunk.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::SchemaRef;

use super::columns::{self, Cell, Cells, Columns};
use super::error::{BulkError, RecordProblem, UnwritableRows};
use super::openai_batch;
use super::output::{OutputFormat, Vectors};
use super::parts::{Part, Parts};
use super::sparse::SparseKind;
use super::{Options, Summary};
use layer0::embedder::{Embedder, Input};
use layer0::progress::Progress;
use layer0::retrieval::sparse::SparseEncoder;
use layer0::yield_point::Undisturbed;
use layer0_files::json::NonFinite;
use layer0_files::{Diagnostic, Place};
use layer0_records::json::{Object, strict_object};
use layer0_records::{BadRecord, Chunk, Limits, Line, Reading, Rows, Source, table};

/// The bytes of text in a chunk. A chunk takes a fraction of a second, and determines the memory that a thread needs.
const CHUNK_TEXT: usize = 4 << 20;
/// The bytes of vectors in a chunk. Written as JSON, vectors take three times as many bytes.
const CHUNK_VECTORS: usize = 16 << 20;
const CHUNK_JSON: usize = 4 << 20;
const CHUNK_ROWS: usize = 1 << 14;

pub struct Run<'a> {
    embedder: &'a Embedder,
    /// Makes sparse vectors, if the output has them.
    encoder: Option<SparseEncoder<&'a Embedder>>,
    options: &'a Options,
    progress: &'a dyn Progress,
    parts: Option<Parts>,
    /// The columns of the Parquet output if the inputs are JSON objects.
    columns: OnceLock<Columns>,
    /// The columns of the Parquet output if the inputs are Parquet.
    schema: Option<SchemaRef>,
    failed: Failed,
    ordered: Ordered,
    summary: Mutex<Summary>,
    /// The bad records of each source.
    skipped: Mutex<Vec<Skipped>>,
}

/// The bad records of one source.
#[derive(Debug, Clone, Default)]
pub struct Skipped {
    pub count: u64,
    /// The number of all records, including the bad ones.
    pub records: u64,
    /// The problem of one of the bad records. It is empty if an earlier run found all of them.
    pub first: String,
}

/// The results of a run that has ended.
pub struct Tally {
    pub summary: Summary,
    pub skipped: Vec<Skipped>,
    pub columns: Option<Columns>,
    pub schema: Option<SchemaRef>,
    pub parts: Option<Parts>,
}

/// The first error. It makes all threads stop.
#[derive(Default)]
struct Failed {
    error: Mutex<Option<BulkError>>,
    is: AtomicBool,
}

/// The number of the chunk that may be written to standard output next.
#[derive(Default)]
struct Ordered {
    next: Mutex<usize>,
    turn: Condvar,
}

struct Numbered {
    number: usize,
    /// The index of the source among all sources. `source` is its name for messages.
    place: usize,
    source: PathBuf,
    chunk: Chunk,
}

/// A record whose text can be embedded.
struct Record {
    text: String,
    /// The whole record: `json` is its line of JSON, and `names` and `cells` are its values for columns. All are empty
    /// if only vectors are written.
    json: Vec<u8>,
    names: Vec<String>,
    cells: Cells,
}

/// The bad records of a chunk: the position of each, and its problem.
type Bad = BTreeMap<u64, RecordProblem>;

impl<'a> Run<'a> {
    pub fn new(
        embedder: &'a Embedder,
        options: &'a Options,
        progress: &'a dyn Progress,
        parts: Option<Parts>,
        schema: Option<SchemaRef>,
    ) -> Self {
        Self {
            embedder,
            encoder: options.layout.sparse.is_some().then(|| SparseEncoder::new(embedder)),
            options,
            progress,
            parts,
            columns: OnceLock::new(),
            schema,
            failed: Failed::default(),
            ordered: Ordered::default(),
            summary: Mutex::new(Summary::default()),
            skipped: Mutex::new(vec![Skipped::default(); options.sources.len()]),
        }
    }

    pub fn ended(self) -> Tally {
        let summary = *lock(&self.summary);
        let skipped = lock(&self.skipped).clone();
        Tally { summary, skipped, columns: self.columns.into_inner(), schema: self.schema, parts: self.parts }
    }

    /// Reads all inputs and writes all parts.
    ///
    /// # Errors
    /// Returns the first error of any thread.
    pub fn all(&self) -> Result<(), BulkError> {
        let (sender, receiver) = sync_channel::<Numbered>(self.options.threads);
        let receiver = Mutex::new(receiver);
        thread::scope(|scope| {
            // The sender is dropped when the reader has finished, so that the worker threads end.
            let sender = sender;
            for _ in 0..self.options.threads {
                scope.spawn(|| self.work(&receiver));
            }
            let mut number = 0;
            let mut columns = None;
            for (place, source) in self.options.sources.iter().enumerate() {
                let mut emit = |chunk: Chunk| {
                    self.prepare(source, &chunk)?;
                    let next = Numbered { number, place, source: source.name().to_owned(), chunk };
                    number += 1;
                    Ok(!self.failed.is.load(Ordering::Relaxed) && sender.send(next).is_ok())
                };
                let layout = &self.options.layout;
                let whole = layout.writes_records();
                let reading = Reading {
                    limits: self.limits(),
                    field: &self.options.field,
                    second_field: None,
                    whole,
                    digest: false,
                };
                match source.read(reading, &mut emit) {
                    Ok(ended) => columns = columns.or(ended.columns),
                    Err(error) => self.fail(error),
                }
                if self.failed.is.load(Ordering::Relaxed) {
                    break;
                }
            }
            // If no input has a record, the header of the first input determines the columns.
            if let Some(columns) = columns {
                self.columns.get_or_init(|| Columns::of_strings(&columns));
            }
        });
        lock(&self.failed.error).take().map_or(Ok(()), Err)
    }

    fn limits(&self) -> Limits {
        if self.options.openai_batch {
            // One request can have thousands of inputs, and an input of a few bytes has a vector of thousands.
            return Limits { rows: 256, bytes: 128 << 10 };
        }
        let layout = &self.options.layout;
        let vectors = if layout.format.is_text() { CHUNK_JSON } else { CHUNK_VECTORS };
        Limits { rows: (vectors / (4 * layout.dimensions)).clamp(1, CHUNK_ROWS), bytes: CHUNK_TEXT }
    }

    /// Determines what all chunks have in common from the first chunk, before any thread receives a chunk.
    fn prepare(&self, source: &Source, chunk: &Chunk) -> Result<(), BulkError> {
        let layout = &self.options.layout;
        match &chunk.rows {
            Rows::Lines { json, lines } => {
                if layout.format == OutputFormat::Parquet && self.columns.get().is_none() {
                    if self.schema.is_some() {
                        let problem = "is not Parquet as other inputs are: write JSONL, or run them apart";
                        return Err(BulkError::Rows(Diagnostic::new(source.name(), problem)));
                    }
                    let mut bad = Bad::new();
                    let records = self.records(lines, *json, &mut bad);
                    let records = records.iter().map(|record| (record.names.as_slice(), &record.cells));
                    let _ = self.columns.set(Columns::infer(records));
                }
            }
            Rows::Batch { batch, .. } => {
                let schema = batch.schema();
                let taken = |column: &&str| layout.writes_records() && schema.field_with_name(column).is_ok();
                if let Some(column) = layout.columns().find(taken) {
                    let problem = format!("has a column {column:?} already");
                    return Err(BulkError::NameTaken(Diagnostic::new(source.name(), problem)));
                }
            }
        }
        Ok(())
    }

    fn work(&self, chunks: &Mutex<Receiver<Numbered>>) {
        loop {
            let next = lock(chunks).recv();
            let Ok(next) = next else { return };
            // After an error, the threads still empty the channel, so that the reader is not blocked forever.
            if self.failed.is.load(Ordering::Relaxed) {
                continue;
            }
            let (texts, bytes) = (next.chunk.rows.count() as u64, next.chunk.bytes);
            match self.chunk(next) {
                Ok(()) => self.progress.advance_texts(texts, bytes),
                Err(error) => self.fail(error),
            }
        }
    }

    fn fail(&self, error: BulkError) {
        lock(&self.failed.error).get_or_insert(error);
        self.failed.is.store(true, Ordering::Relaxed);
        // A thread that is about to wait for its turn either has seen the flag or holds this lock. Taking the lock once
        // therefore ensures that the notification below reaches every waiting thread.
        drop(lock(&self.ordered.next));
        self.ordered.turn.notify_all();
    }

    fn chunk(&self, next: Numbered) -> Result<(), BulkError> {
        let Numbered { number, place, source, chunk } = next;
        if let Some(part) = self.parts.as_ref().and_then(|parts| parts.earlier(number)) {
            self.count(place, part, part.rows, String::new());
            return Ok(());
        }
        let mut bad = Bad::new();
        let (bytes, part) = match chunk.rows {
            Rows::Lines { json, lines } => self.lines(&lines, json, &mut bad),
            Rows::Batch { first, batch } => self.batch(&batch, first, &mut bad),
        }
        .map_err(|e| BulkError::Rows(Diagnostic::new(&source, e.to_string())))?;
        for (position, problem) in &bad {
            let at = Place::Record { file: source.clone(), position: *position };
            if !self.options.skip {
                let kind = match problem {
                    RecordProblem::Bad(_) => BulkError::BadRecord,
                    RecordProblem::NameTaken(_) => BulkError::NameTaken,
                };
                return Err(kind(Diagnostic::new(at, problem.to_string())));
            }
            self.progress.note(&format!("left out {at}: it {problem}"));
        }
        let part = Part { skipped: bad.len() as u64, ..part };
        match &self.parts {
            Some(parts) => parts.put(number, part, &bytes)?,
            None => self.print(number, &bytes)?,
        }
        let first = bad.into_iter().next().map(|(position, problem)| format!("is at {position}: it {problem}"));
        self.count(place, &part, 0, first.unwrap_or_default());
        Ok(())
    }

    fn count(&self, place: usize, part: &Part, resumed: u64, first: String) {
        if let Some(skipped) = lock(&self.skipped).get_mut(place) {
            skipped.count += part.skipped;
            skipped.records += part.rows + part.skipped;
            if skipped.first.is_empty() {
                skipped.first = first;
            }
        }
        let mut summary = lock(&self.summary);
        summary.rows += part.rows;
        summary.skipped += part.skipped;
        summary.tokens += part.tokens;
        summary.resumed += resumed;
    }

    /// Writes to standard output after all chunks before this one were written.
    fn print(&self, number: usize, bytes: &[u8]) -> Result<(), BulkError> {
        let mut next = lock(&self.ordered.next);
        while *next != number {
            if self.failed.is.load(Ordering::Relaxed) {
                return Ok(());
            }
            next = self.ordered.turn.wait(next).unwrap_or_else(PoisonError::into_inner);
        }
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| BulkError::StandardOutput(e.kind()))?;
        *next += 1;
        drop(next);
        self.ordered.turn.notify_all();
        Ok(())
    }

    fn lines(&self, lines: &[Line], json: bool, bad: &mut Bad) -> Result<(Vec<u8>, Part), UnwritableRows> {
        if self.options.openai_batch {
            return Ok(self.answers(lines, bad));
        }
        let layout = &self.options.layout;
        let mut records = self.records(lines, json, bad);
        let positions: Vec<u64> = lines.iter().map(|line| line.position).filter(|p| !bad.contains_key(p)).collect();
        let texts = records.iter_mut().map(|record| std::mem::take(&mut record.text));
        let Embedded { vectors, kept, part } = self.embed(positions.into_iter().zip(texts), bad)?;
        let mut kept = kept.into_iter();
        records.retain(|_| kept.next().unwrap_or(false));
        let bytes = match layout.format {
            OutputFormat::Jsonl => layout.json(records.iter().map(|record| record.json.as_slice()), &vectors),
            OutputFormat::Npy | OutputFormat::Safetensors => layout.raw(&vectors),
            OutputFormat::Parquet => {
                let cells: Vec<_> = records.into_iter().map(|record| record.cells).collect();
                let columns = self.columns.get().ok_or_else(no_columns)?;
                layout.parquet(&columns.batch(&cells)?, vectors)?
            }
        };
        Ok((bytes, part))
    }

    /// Returns the answers to the requests of a batch file, and adds the lines that are not requests to `bad`.
    fn answers(&self, lines: &[Line], bad: &mut Bad) -> (Vec<u8>, Part) {
        let (mut out, mut part) = (Vec::new(), Part::default());
        for line in lines {
            let answered = line.content.as_ref().map_err(Clone::clone);
            let answered =
                answered.and_then(|content| openai_batch::answer(self.embedder, content, line.position, &mut out));
            match answered {
                Ok(tokens) => {
                    part.rows += 1;
                    part.tokens += tokens as u64;
                }
                Err(problem) => drop(bad.insert(line.position, problem.into())),
            }
        }
        (out, part)
    }

    /// Returns the valid records of `lines`, and adds the others to `bad`.
    fn records(&self, lines: &[Line], json: bool, bad: &mut Bad) -> Vec<Record> {
        let mut records = Vec::with_capacity(lines.len());
        for line in lines {
            let record = match &line.content {
                Ok(content) => self.record(content, json),
                Err(problem) => Err(problem.clone().into()),
            };
            match record {
                Ok(record) => records.push(record),
                Err(problem) => drop(bad.insert(line.position, problem)),
            }
        }
        records
    }

    fn record(&self, content: &[u8], json: bool) -> Result<Record, RecordProblem> {
        let Options { field, layout, .. } = self.options;
        let (is_jsonl, is_parquet) = (layout.format == OutputFormat::Jsonl, layout.format == OutputFormat::Parquet);
        if !json {
            let text = str::from_utf8(content).map_err(|e| BadRecord::new(format!("is not UTF-8: {e}")))?.to_owned();
            let json = if is_jsonl { serde_json::json!({ field: text }).to_string() } else { String::new() };
            let (mut names, mut cells) = (Vec::new(), Cells::new());
            if is_parquet {
                names.push(field.clone());
                cells.insert(field.clone(), Cell::String(text.clone()));
            }
            return Ok(Record { text, json: json.into_bytes(), names, cells });
        }
        let content = strict_object(content, if is_parquet { NonFinite::Kept } else { NonFinite::Null })?;
        let object = Object::parse(&content)?;
        let text = object.text(field)?;
        let is_taken = |column: &&str| layout.writes_records() && object.get(column).is_some();
        if let Some(column) = layout.columns().find(is_taken) {
            return Err(RecordProblem::NameTaken(column.to_owned()));
        }
        let (names, cells) = if is_parquet { columns::cells(&object)? } else { Default::default() };
        if let Some(problem) = self.columns.get().and_then(|columns| columns.misfit(&cells)) {
            return Err(problem.into());
        }
        let json = if is_jsonl { content.into_owned().into_bytes() } else { Vec::new() };
        Ok(Record { text, json, names, cells })
    }

    fn batch(&self, batch: &RecordBatch, first: u64, bad: &mut Bad) -> Result<(Vec<u8>, Part), UnwritableRows> {
        let layout = &self.options.layout;
        let texts = table::texts(batch, &self.options.field)?;
        let rows = texts.len();
        let mut good = Vec::with_capacity(rows);
        for (position, text) in (first..).zip(texts) {
            match text {
                Ok(text) => good.push((position, text)),
                Err(problem) => drop(bad.insert(position, problem.into())),
            }
        }
        let Embedded { vectors, part, .. } = self.embed(good.into_iter(), bad)?;
        let kept: BooleanArray = (first..).take(rows).map(|p| Some(!bad.contains_key(&p))).collect();
        let rows =
            arrow_select::filter::filter_record_batch(batch, &kept).map_err(|e| UnwritableRows(e.to_string()))?;
        let bytes = match layout.format {
            OutputFormat::Jsonl => layout.json_of_batch(&rows, &vectors)?,
            OutputFormat::Parquet => {
                let schema = self.schema.as_ref().ok_or_else(no_columns)?;
                layout.parquet(&table::cast(&rows, schema)?, vectors)?
            }
            OutputFormat::Npy | OutputFormat::Safetensors => layout.raw(&vectors),
        };
        Ok((bytes, part))
    }

    /// Computes the vectors of the texts that the model accepts, and adds the other texts to `bad`.
    fn embed(&self, texts: impl Iterator<Item = (u64, String)>, bad: &mut Bad) -> Result<Embedded, UnwritableRows> {
        let dimensions = self.options.layout.dimensions;
        let mut made = Embedded::default();
        let mut taken = Vec::new();
        for (position, text) in texts {
            let tokens = match self.embedder.tokens(0, &Input::Text(text)) {
                Ok(tokens) => tokens,
                Err(error) => {
                    bad.insert(position, BadRecord::new(format!("is not taken by the model: {error}")).into());
                    made.kept.push(false);
                    continue;
                }
            };
            made.kept.push(true);
            made.part.rows += 1;
            made.part.tokens += tokens.len() as u64;
            taken.push(tokens);
        }
        made.vectors.dense.resize(taken.len() * dimensions, 0.0);
        self.embedder.pool(&taken, dimensions, &mut made.vectors.dense)?;
        if let (Some(encoder), Some(sparse)) = (&self.encoder, &self.options.layout.sparse) {
            let vector = |tokens| match sparse.kind {
                SparseKind::Documents => encoder.document(tokens, &Undisturbed),
                SparseKind::Queries(neighbors) => encoder.query(tokens, neighbors, &Undisturbed),
            };
            made.vectors.sparse = taken.iter().map(vector).collect::<Result<_, _>>()?;
        }
        Ok(made)
    }
}

fn no_columns() -> UnwritableRows {
    UnwritableRows("has no columns".to_owned())
}

#[derive(Default)]
struct Embedded {
    vectors: Vectors,
    /// For each text, whether it has a vector.
    kept: Vec<bool>,
    part: Part,
}

/// Locks the mutex even if it is poisoned. The guarded data is consistent after every statement, so a panic of another
/// thread cannot leave it half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
