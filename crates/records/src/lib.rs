//! Reads the records of data files for all commands: plain text, JSON lines, JSON, CSV, TSV and Parquet, compressed or
//! not.
//!
//! The name of a file determines its format and its compression. Records are returned in chunks whose bounds depend on
//! the input alone, so a second run splits the input in the same way.

// These macros panic if their stream is closed or full.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![deny(missing_docs, missing_debug_implementations)]

pub mod delimited;
mod error;
pub mod json;
mod max_skipped;
pub mod open;
pub mod table;

use std::fs::{File, Metadata};
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::RecordBatch;
use sha2::{Digest, Sha256};

pub use error::{BadRecord, RecordsError, RecordsErrorKind, TableError};
use layer0_files::{self as files, FileError, FileErrorKind};
pub use max_skipped::{InvalidShare, MaxSkipped};
use open::Compression;

/// The size of the longest record, in bytes. A longer record counts as bad and is skipped without being held in memory.
pub const MAX_LINE: usize = 64 << 20;

/// The format of the records of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputFormat {
    /// Each line is a text.
    Text,
    /// Each line is a JSON object.
    Jsonl,
    /// The file is an array of JSON objects, or a sequence of JSON objects.
    Json,
    /// Fields that are separated by commas, under a header (RFC 4180).
    Csv,
    /// Fields that are separated by tabs, under a header.
    Tsv,
    /// An Apache Parquet file.
    Parquet,
}

impl InputFormat {
    /// All formats, in the order of the help.
    pub const ALL: [Self; 6] = [Self::Text, Self::Jsonl, Self::Json, Self::Csv, Self::Tsv, Self::Parquet];

    /// Returns the name of the format.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Jsonl => "jsonl",
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Tsv => "tsv",
            Self::Parquet => "parquet",
        }
    }

    fn of_extension(extension: &str) -> Option<Self> {
        match extension {
            "jsonl" | "ndjson" | "jsonlines" | "ldjson" => Some(Self::Jsonl),
            "json" => Some(Self::Json),
            "csv" => Some(Self::Csv),
            "tsv" | "tab" => Some(Self::Tsv),
            "parquet" | "parq" | "pq" => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// The size up to which all bytes of a file are hashed to identify it, in bytes. Hashing takes about one second per GB.
const WHOLE: u64 = 1 << 30;
/// The number of blocks of a larger file that are hashed.
const SAMPLES: u64 = 256;
const BLOCK: u64 = 64 << 10;

/// The identity of an input. It differs from that of other inputs, and changes when the input changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The name of the file.
    pub name: String,
    /// The size in bytes.
    pub size: u64,
    /// A digest of the content, or of samples of a large file.
    pub digest: String,
}

/// One input: a file, or standard input.
#[derive(Debug, Clone)]
pub struct Source {
    path: Option<PathBuf>,
    format: InputFormat,
    compression: Option<Compression>,
}

/// The largest size of a chunk. A chunk holds at least one record, even if the record exceeds the limit.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest number of records.
    pub rows: usize,
    /// The largest number of bytes of all records together.
    pub bytes: usize,
}

/// A chunk of consecutive records of one input.
#[derive(Debug)]
pub struct Chunk {
    /// The records.
    pub rows: Rows,
    /// The number of bytes of the file that were read for the chunk, before decompression.
    pub bytes: u64,
}

/// The records of a chunk.
#[derive(Debug)]
pub enum Rows {
    /// Records of all formats but Parquet.
    Lines {
        /// Whether each line is a JSON object. Otherwise each line is a text.
        json: bool,
        /// The records.
        lines: Vec<Line>,
    },
    /// Rows of a Parquet file.
    Batch {
        /// The position of the first row, counted from 1.
        first: u64,
        /// The rows.
        batch: RecordBatch,
    },
}

impl Rows {
    /// Returns the number of records, bad ones included.
    pub fn count(&self) -> usize {
        match self {
            Self::Lines { lines, .. } => lines.len(),
            Self::Batch { batch, .. } => batch.num_rows(),
        }
    }
}

/// One record.
#[derive(Debug)]
pub struct Line {
    /// The number of the line on which the record begins, or in a JSON file the number of the record. Both are counted
    /// from 1.
    pub position: u64,
    /// The record without its line ending, or the problem of the record.
    pub content: Result<Vec<u8>, BadRecord>,
}

/// A callback that receives chunks. It returns `false` to stop. `E` is the error of the caller.
pub type Emit<'a, E> = dyn FnMut(Chunk) -> Result<bool, E> + 'a;

/// The facts about an input that are known once all of it was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// The columns of CSV and TSV. An input without records has them as well.
    pub columns: Option<Vec<String>>,
    /// The size of the input in bytes, before decompression.
    pub bytes: u64,
    /// The SHA-256 of the file in hexadecimal digits. It is empty unless [`Reading::digest`] is set.
    pub sha256: String,
}

/// The options for reading an input.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// The largest size of a chunk.
    pub limits: Limits,
    /// The field or column that holds the text. A dot selects a field within an object or struct.
    pub field: &'a str,
    /// A second field or column that holds text, if the records are pairs of texts.
    pub second_field: Option<&'a str>,
    /// Whether to read the other columns of a Parquet file as well.
    pub whole: bool,
    /// Whether to compute the SHA-256 of the file.
    pub digest: bool,
}

impl<'a> Reading<'a> {
    /// Returns the fields that hold text.
    fn fields(self) -> impl Iterator<Item = &'a str> {
        [self.field].into_iter().chain(self.second_field)
    }
}

impl Source {
    /// Creates an input from a path, or from standard input for `-`. If `format` is `None`, the extension of the name
    /// determines the format, and a name without a known extension is plain text.
    ///
    /// # Errors
    /// Fails for Parquet that comes from standard input or is compressed, because its end must be read first, and for
    /// an archive.
    pub fn new(path: &Path, format: Option<InputFormat>) -> Result<Self, RecordsError> {
        let outer = extension(path).unwrap_or_default();
        let compression = Compression::of_extension(&outer);
        if let "tgz" | "tbz2" | "txz" | "tar" | "zip" | "7z" | "rar" | "br" | "z" | "lzma" | "lz" | "lzo" =
            outer.as_str()
        {
            return Err(RecordsError::new(
                RecordsErrorKind::Unsupported,
                path,
                format!("is an archive or compressed in a format that is not read: .{outer}"),
            )
            .expected("a file as it is, or compressed by gzip, zstd, bzip2, xz or lz4"));
        }
        let stem = compression.map_or(path.to_owned(), |_| path.with_extension(""));
        let named = extension(&stem).and_then(|extension| InputFormat::of_extension(&extension));
        let format = format.or(named).unwrap_or(InputFormat::Text);
        let stdin = path == Path::new("-");
        if format == InputFormat::Parquet && (stdin || compression.is_some()) {
            let problem = "is no plain file, which Parquet must be: its index is at its end";
            return Err(
                RecordsError::new(RecordsErrorKind::Unsupported, path, problem).remedy("give the .parquet file itself")
            );
        }
        Ok(Self { path: (!stdin).then(|| path.to_owned()), format, compression })
    }

    /// Returns the name of the input for messages.
    pub fn name(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new("standard input"))
    }

    /// Returns the format of the records.
    pub fn format(&self) -> InputFormat {
        self.format
    }

    /// Returns whether the input is standard input.
    pub fn is_stdin(&self) -> bool {
        self.path.is_none()
    }

    /// Returns the path if the input is a Parquet file.
    pub fn parquet(&self) -> Option<&Path> {
        self.path.as_deref().filter(|_| self.format == InputFormat::Parquet)
    }

    /// Returns the identity of this input, which changes if the input changes: its name, its size, and a digest. For a
    /// file of up to `WHOLE` bytes, the digest covers the whole content. For a larger file it covers `SAMPLES`
    /// blocks, including the first and the last one, and the time of the last modification.
    ///
    /// # Errors
    /// Fails if the file is missing, cannot be read, or is not a regular file.
    pub fn identity(&self) -> Result<Identity, RecordsError> {
        let Some(path) = &self.path else { return Ok(Identity::default()) };
        let failed = |e: io::Error| FileError::reading(path, &e);
        let mut file = self.file(path)?;
        let metadata = file.metadata().map_err(failed)?;
        let size = metadata.len();
        let mut digest = Sha256::new();
        if !metadata.is_file() {
            // An inherited pipe can be read only once, so it is not hashed here.
        } else if size <= WHOLE {
            io::copy(&mut file, &mut Hashing(&mut digest)).map_err(failed)?;
        } else {
            let modified = metadata.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
            digest.update(modified.map_or(0, |since| since.as_nanos()).to_le_bytes());
            for n in 0..SAMPLES {
                let start = u128::from(size - BLOCK) * u128::from(n) / u128::from(SAMPLES - 1);
                file.seek(SeekFrom::Start(start as u64)).map_err(failed)?;
                io::copy(&mut Read::take(&mut file, BLOCK), &mut Hashing(&mut digest)).map_err(failed)?;
            }
        }
        Ok(Identity { name: path.display().to_string(), size, digest: files::hexadecimal(&digest.finalize()) })
    }

    fn file(&self, path: &Path) -> Result<File, RecordsError> {
        let file = files::open(path).map_err(|e| FileError::reading(path, &e))?;
        if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Err(FileError::new(FileErrorKind::WrongType, path, "is a directory")
                .expected("a file")
                .remedy("give its files: \"DIR/*.parquet\"")
                .into());
        }
        Ok(file)
    }

    /// Tells whether `file` is the file of this input, even if the two were opened by different names or links.
    pub fn is_file(&self, file: &Metadata) -> bool {
        match &self.path {
            Some(path) => std::fs::metadata(path).is_ok_and(|input| files::is_same(&input, file)),
            None => stdin_metadata().is_some_and(|input| files::is_same(&input, file)),
        }
    }

    /// Opens the input as text. Parquet cannot be opened this way.
    ///
    /// # Errors
    /// Returns the errors of `open::text`.
    pub fn text(&self, digest: bool) -> Result<TextInput, RecordsError> {
        let digest = digest.then(|| Arc::new(Mutex::new(Sha256::new())));
        let raw: Box<dyn Read> = match &self.path {
            None => Box::new(io::stdin()),
            Some(path) => Box::new(self.file(path)?),
        };
        let read = Arc::new(AtomicU64::new(0));
        let raw = Counted { raw, read: Arc::clone(&read), digest: digest.clone() };
        Ok(TextInput { reader: Box::new(open::text(Box::new(raw), self.name(), self.compression)?), read, digest })
    }

    /// Reads the input in chunks.
    ///
    /// # Errors
    /// Fails if the file cannot be read, lacks the column, or is damaged beyond single records. Errors of `emit` are
    /// returned unchanged.
    pub fn read<E: From<RecordsError>>(&self, reading: Reading<'_>, emit: &mut Emit<'_, E>) -> Result<Ended, E> {
        if let Some(path) = self.parquet() {
            return table::read(self.file(path)?, path, reading, emit);
        }
        let mut input = self.text(reading.digest)?;
        let json = self.format != InputFormat::Text;
        let read = Arc::clone(&input.read);
        let mut pending = Pending {
            json,
            limits: reading.limits,
            lines: Vec::new(),
            size: 0,
            read: &read,
            said: 0,
            is_over: false,
            emit,
        };
        let columns = match self.format {
            InputFormat::Csv | InputFormat::Tsv => Some(self.rows(&mut input.reader, reading, &mut pending)?),
            InputFormat::Json => self.values(&mut input.reader, &mut pending)?,
            _ => self.lines(&mut input.reader, &mut pending)?,
        };
        if pending.is_over || !pending.flush()? {
            return Ok(Ended::default());
        }
        let ended = input.finish().map_err(|e| self.failed(&e))?;
        Ok(Ended { columns, ..ended })
    }

    fn lines<E: From<RecordsError>>(
        &self,
        reader: &mut dyn BufRead,
        pending: &mut Pending<'_, '_, E>,
    ) -> Result<Option<Vec<String>>, E> {
        for position in 1.. {
            let mut line = Vec::new();
            let read =
                Read::take(&mut *reader, MAX_LINE as u64).read_until(b'\n', &mut line).map_err(|e| self.failed(&e))?;
            if read == 0 {
                break;
            }
            let mut content = Ok(line);
            if read == MAX_LINE && content.as_ref().is_ok_and(|line| line.last() != Some(&b'\n')) {
                reader.skip_until(b'\n').map_err(|e| self.failed(&e))?;
                content = Err(BadRecord::new(format!("is longer than {} MiB", MAX_LINE >> 20)));
            }
            if let Ok(line) = &mut content {
                let end = if line.ends_with(b"\r\n") { 2 } else { usize::from(line.ends_with(b"\n")) };
                line.truncate(line.len() - end);
                if pending.json && line.trim_ascii().is_empty() {
                    continue;
                }
            }
            if !pending.push(Line { position, content })? {
                break;
            }
        }
        Ok(None)
    }

    fn values<E: From<RecordsError>>(
        &self,
        reader: &mut dyn BufRead,
        pending: &mut Pending<'_, '_, E>,
    ) -> Result<Option<Vec<String>>, E> {
        let mut values = json::Values::new(reader);
        for position in 1.. {
            let Some((line, content)) = values.read_value().map_err(|e| self.damaged(&e))? else { break };
            // JSON that spans several lines is joined to one line. JSON strings contain no raw line breaks, so they are
            // not changed.
            let content = content.map(|mut text| {
                text.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
                text
            });
            let content = content.map_err(|problem| BadRecord::new(format!("{problem}; it begins in line {line}")));
            if !pending.push(Line { position, content })? {
                break;
            }
        }
        Ok(None)
    }

    /// Reads each record as a JSON object of strings. Returns the columns.
    fn rows<E: From<RecordsError>>(
        &self,
        reader: &mut dyn BufRead,
        reading: Reading<'_>,
        pending: &mut Pending<'_, '_, E>,
    ) -> Result<Vec<String>, E> {
        let mut records = delimited::Records::new(reader, self.format == InputFormat::Tsv);
        let columns: Vec<String> = match records.read_record().map_err(|e| self.damaged(&e))? {
            Some(header) => {
                let wrong = |problem| {
                    let problem = format!("has a header that {problem}");
                    RecordsError::new(RecordsErrorKind::Damaged, self.name(), problem)
                };
                let names = header.fields.map_err(|problem| wrong(problem.to_string()))?;
                let names = names.iter().map(|name| String::from_utf8(name.to_vec()));
                names.collect::<Result<_, _>>().map_err(|_| wrong("is not UTF-8".to_owned()))?
            }
            None => Vec::new(),
        };
        for field in reading.fields() {
            has_column(self.name(), &columns, field, columns.iter().any(|column| column == field))?;
            if columns.iter().filter(|column| *column == field).count() > 1 {
                let problem = format!("has two columns {field:?}");
                return Err(RecordsError::new(RecordsErrorKind::DuplicateColumn, self.name(), problem).into());
            }
        }
        let columns = delimited::distinct(columns);
        while let Some(record) = records.read_record().map_err(|e| self.damaged(&e))? {
            let position = record.line;
            let content = record.fields.and_then(|fields| object(&columns, &fields));
            if !pending.push(Line { position, content })? {
                break;
            }
        }
        Ok(columns)
    }

    fn damaged(&self, error: &io::Error) -> RecordsError {
        match error.kind() {
            io::ErrorKind::InvalidData => RecordsError::new(RecordsErrorKind::Damaged, self.name(), error.to_string()),
            _ => self.failed(error),
        }
    }

    fn failed(&self, error: &io::Error) -> RecordsError {
        FileError::reading(self.name(), error).into()
    }
}

/// An input that is read as text.
pub struct TextInput {
    /// The decompressed text.
    pub reader: Box<dyn BufRead>,
    /// The number of bytes that were read from the file, before decompression.
    pub read: Arc<AtomicU64>,
    digest: Option<Arc<Mutex<Sha256>>>,
}

impl std::fmt::Debug for TextInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextInput").field("read", &self.read).finish_non_exhaustive()
    }
}

impl TextInput {
    /// Reads to the end of the input, and returns the facts about it.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn finish(mut self) -> io::Result<Ended> {
        io::copy(&mut self.reader, &mut io::sink())?;
        let digest = self.digest.map(|digest| digest.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let sha256 = digest.map(|digest| files::hexadecimal(&digest.finalize())).unwrap_or_default();
        Ok(Ended { columns: None, bytes: self.read.load(Ordering::Relaxed), sha256 })
    }
}

fn object(columns: &[String], record: &delimited::Fields<'_>) -> Result<Vec<u8>, BadRecord> {
    if record.count() != columns.len() {
        let (found, expected) = (record.count(), columns.len());
        return Err(BadRecord::new(format!("is damaged: it has {found} fields, and the header has {expected}")));
    }
    let mut json = Vec::with_capacity(record.size() + 16 * columns.len() + 2);
    let mut separator = b'{';
    for (column, value) in columns.iter().zip(record.iter()) {
        let value =
            str::from_utf8(value).map_err(|_| BadRecord::new(format!("is not UTF-8 in the column {column:?}")))?;
        json.push(separator);
        separator = b',';
        for (text, after) in [(column.as_str(), &b":"[..]), (value, b"")] {
            serde_json::to_writer(&mut json, text).map_err(|e| BadRecord::new(e.to_string()))?;
            json.extend_from_slice(after);
        }
    }
    json.push(b'}');
    Ok(json)
}

fn has_column(path: &Path, columns: &[String], field: &str, has: bool) -> Result<(), RecordsError> {
    if has {
        return Ok(());
    }
    Err(RecordsError::new(RecordsErrorKind::MissingColumn, path, format!("has no column {field:?}"))
        .expected(format!("one of its columns: {}", columns.join(", "))))
}

/// Lines that were read but not yet emitted as a chunk.
struct Pending<'a, 'e, E> {
    json: bool,
    limits: Limits,
    lines: Vec<Line>,
    size: usize,
    read: &'a AtomicU64,
    said: u64,
    /// Whether `emit` asked to stop.
    is_over: bool,
    emit: &'a mut Emit<'e, E>,
}

impl<E> Pending<'_, '_, E> {
    fn push(&mut self, line: Line) -> Result<bool, E> {
        let size = line.content.as_ref().map_or(0, Vec::len);
        let full = self.lines.len() >= self.limits.rows || self.size + size > self.limits.bytes;
        if full && !self.lines.is_empty() && !self.flush()? {
            return Ok(false);
        }
        self.size += size;
        self.lines.push(line);
        Ok(true)
    }

    fn flush(&mut self) -> Result<bool, E> {
        let read = self.read.load(Ordering::Relaxed);
        let bytes = read - std::mem::replace(&mut self.said, read);
        let lines = std::mem::take(&mut self.lines);
        self.size = 0;
        if lines.is_empty() {
            return Ok(true);
        }
        self.is_over = !(self.emit)(Chunk { rows: Rows::Lines { json: self.json, lines }, bytes })?;
        Ok(!self.is_over)
    }
}

/// A reader that counts, and optionally hashes, the bytes of a file before decompression.
struct Counted {
    raw: Box<dyn Read>,
    read: Arc<AtomicU64>,
    digest: Option<Arc<Mutex<Sha256>>>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.raw.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        if let Some(digest) = &self.digest {
            let mut digest = digest.lock().unwrap_or_else(PoisonError::into_inner);
            digest.update(buffer.get(..read).unwrap_or_default());
        }
        Ok(read)
    }
}

/// Returns the metadata of standard input if it is a file.
fn stdin_metadata() -> Option<Metadata> {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd;
        File::from(io::stdin().as_fd().try_clone_to_owned().ok()?).metadata().ok()
    }
    #[cfg(not(unix))]
    None
}

/// A digest that implements `Write`.
struct Hashing<'d>(&'d mut Sha256);

impl io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn extension(path: &Path) -> Option<String> {
    path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase)
}
