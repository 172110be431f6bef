//! Records of files, in chunks whose bounds follow from the input alone: a second run cuts them the same.

mod csv;

use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_array::RecordBatch;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sha2::{Digest, Sha256};

use crate::error::LoadError;
use crate::files;

/// A longer line is a bad record: it is passed over, not held.
pub const MAX_LINE: usize = 64 << 20;

/// What a file's records are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputFormat {
    /// A text a line.
    Text,
    /// A JSON object a line.
    Jsonl,
    Csv,
    Tsv,
    Parquet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A file up to this size is part of a run's identity with all of its bytes. It takes about as many seconds as it has GB.
const WHOLE: u64 = 1 << 30;
/// Of a larger file, so many blocks.
const SAMPLES: u64 = 256;
const BLOCK: u64 = 64 << 10;

/// What tells an input from another one, and from itself before it was changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub size: u64,
    pub digest: String,
}

/// One input: a file, or standard input.
#[derive(Debug, Clone)]
pub struct Source {
    path: Option<PathBuf>,
    format: InputFormat,
    compression: Compression,
}

/// How large a chunk may become; it holds at least one record.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub rows: usize,
    pub bytes: usize,
}

/// Records that follow each other in one input.
pub struct Chunk {
    pub rows: Rows,
    /// Bytes of the file, as it lies on the disk, that were read for it.
    pub bytes: u64,
}

pub enum Rows {
    Lines {
        /// Each is a JSON object; else each is a text.
        json: bool,
        lines: Vec<Line>,
    },
    Batch {
        /// The position of the first row, from 1.
        first: u64,
        batch: RecordBatch,
    },
}

pub struct Line {
    /// The line's number in its file, from 1.
    pub position: u64,
    /// Without its end; or what is wrong with it.
    pub content: Result<Vec<u8>, String>,
}

/// Takes chunks; `false` wants no more.
type Emit<'a> = dyn FnMut(Chunk) -> Result<bool, LoadError> + 'a;

impl Source {
    /// Standard input for `-`; the format by the name's extension unless one is given, a text a line if it says nothing.
    ///
    /// # Errors
    /// For Parquet on standard input, which cannot be read from its end.
    pub fn new(path: &Path, format: Option<InputFormat>) -> Result<Self, LoadError> {
        let mut stem = path.to_owned();
        let compression = match extension(path).as_deref() {
            Some("gz") => Compression::Gzip,
            Some("zst") => Compression::Zstd,
            _ => Compression::None,
        };
        if compression != Compression::None {
            stem.set_extension("");
        }
        let format = format.unwrap_or_else(|| match extension(&stem).as_deref() {
            Some("jsonl" | "ndjson") => InputFormat::Jsonl,
            Some("csv") => InputFormat::Csv,
            Some("tsv") => InputFormat::Tsv,
            Some("parquet") => InputFormat::Parquet,
            _ => InputFormat::Text,
        });
        let stdin = path == Path::new("-");
        if format == InputFormat::Parquet && (stdin || compression != Compression::None) {
            return Err(LoadError::new(path, "is no plain file, which Parquet must be: its index is at its end")
                .remedy("give the .parquet file itself"));
        }
        Ok(Self { path: (!stdin).then(|| path.to_owned()), format, compression })
    }

    /// For messages.
    pub fn name(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new("standard input"))
    }

    pub fn is_plain_text(&self) -> bool {
        self.format == InputFormat::Text
    }

    pub fn is_stdin(&self) -> bool {
        self.path.is_none()
    }

    /// What tells this input from a changed one: its name, its size, and a digest. Up to [`WHOLE`] bytes, the digest is of the
    /// whole content; of a larger file it is of [`SAMPLES`] blocks, the first and the last among them, and of the time of
    /// its last change.
    ///
    /// # Errors
    /// When the file is missing, cannot be read, or is no regular file.
    pub fn identity(&self) -> Result<Identity, LoadError> {
        let Some(path) = &self.path else { return Ok(Identity::default()) };
        let failed = |e: io::Error| LoadError::io(path, &e);
        let mut file = files::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(LoadError::new(path, "is a directory").remedy("give its files: \"DIR/*.parquet\""));
        }
        let size = metadata.len();
        let mut digest = Sha256::new();
        if !metadata.is_file() {
            // An inherited pipe can be read only once, and never again.
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
        let digest = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Identity { name: path.display().to_string(), size, digest })
    }

    /// Whether `file` is this input's file, by whatever names and links the two were found.
    pub fn is_file(&self, file: &Metadata) -> bool {
        match &self.path {
            Some(path) => std::fs::metadata(path).is_ok_and(|input| files::is_same(&input, file)),
            None => stdin_metadata().is_some_and(|input| files::is_same(&input, file)),
        }
    }

    /// Reads it in chunks. `field` is the column of CSV and Parquet that must be there.
    ///
    /// # Errors
    /// When the file cannot be read, lacks the column, or is damaged beyond single records; and those of `emit`.
    pub fn read(&self, limits: Limits, field: &str, emit: &mut Emit<'_>) -> Result<(), LoadError> {
        if let (InputFormat::Parquet, Some(path)) = (self.format, &self.path) {
            return parquet(path, limits, field, emit);
        }
        let read = Arc::new(AtomicU64::new(0));
        let raw: Box<dyn Read> = match &self.path {
            None => Box::new(io::stdin().lock()),
            Some(path) => {
                let file = files::open(path).map_err(|e| LoadError::io(path, &e))?;
                Box::new(Counted { file, read: Arc::clone(&read) })
            }
        };
        let reader: Box<dyn Read> = match self.compression {
            Compression::None => raw,
            Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(raw)),
            Compression::Zstd => {
                Box::new(zstd::stream::read::Decoder::new(raw).map_err(|e| LoadError::io(self.name(), &e))?)
            }
        };
        let json = self.format != InputFormat::Text;
        let mut pending = Pending { json, limits, lines: Vec::new(), size: 0, read: &read, said: 0, emit };
        let reader = BufReader::with_capacity(1 << 20, reader);
        match self.format {
            InputFormat::Csv => self.records(reader, b',', field, &mut pending)?,
            InputFormat::Tsv => self.records(reader, b'\t', field, &mut pending)?,
            _ => self.lines(reader, &mut pending)?,
        }
        pending.flush().map(|_| ())
    }

    fn lines(&self, mut reader: impl BufRead, pending: &mut Pending<'_, '_>) -> Result<(), LoadError> {
        for position in 1.. {
            let mut line = Vec::new();
            let read = (&mut reader)
                .take(MAX_LINE as u64)
                .read_until(b'\n', &mut line)
                .map_err(|e| LoadError::io(self.name(), &e))?;
            if read == 0 {
                break;
            }
            let mut content = Ok(line);
            if read == MAX_LINE && content.as_ref().is_ok_and(|line| line.last() != Some(&b'\n')) {
                reader.skip_until(b'\n').map_err(|e| LoadError::io(self.name(), &e))?;
                content = Err(format!("is longer than {} MiB", MAX_LINE >> 20));
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
        Ok(())
    }

    /// Each record as a JSON object of strings.
    fn records(
        &self,
        reader: impl BufRead,
        delimiter: u8,
        field: &str,
        pending: &mut Pending<'_, '_>,
    ) -> Result<(), LoadError> {
        let failed = |e: io::Error| LoadError::io(self.name(), &e);
        let mut records = csv::Records::new(reader, delimiter);
        let columns: Vec<String> = match records.next().map_err(failed)? {
            Some(header) => {
                let wrong = |problem| LoadError::new(self.name(), format!("has a header that {problem}"));
                let names = header.fields.map_err(wrong)?;
                let names = names.iter().map(|name| String::from_utf8(name.to_vec()));
                names.collect::<Result<_, _>>().map_err(|_| wrong("is not UTF-8".to_owned()))?
            }
            None => Vec::new(),
        };
        has_column(self.name(), &columns, field)?;
        if let Some(twice) = columns.iter().enumerate().find(|(i, c)| columns.iter().take(*i).any(|d| d == *c)) {
            return Err(LoadError::new(self.name(), format!("has two columns {:?}", twice.1)));
        }
        while let Some(record) = records.next().map_err(failed)? {
            let position = record.line;
            let content = record.fields.and_then(|fields| object(&columns, &fields));
            if !pending.push(Line { position, content })? {
                break;
            }
        }
        Ok(())
    }
}

fn object(columns: &[String], record: &csv::Fields<'_>) -> Result<Vec<u8>, String> {
    if record.len() != columns.len() {
        return Err(format!("is damaged: it has {} fields, and the header has {}", record.len(), columns.len()));
    }
    let mut json = Vec::with_capacity(record.size() + 16 * columns.len() + 2);
    let mut separator = b'{';
    for (column, value) in columns.iter().zip(record.iter()) {
        let value = str::from_utf8(value).map_err(|_| format!("is not UTF-8 in the column {column:?}"))?;
        json.push(separator);
        separator = b',';
        for (text, after) in [(column.as_str(), &b":"[..]), (value, b"")] {
            serde_json::to_writer(&mut json, text).map_err(|e| e.to_string())?;
            json.extend_from_slice(after);
        }
    }
    json.push(b'}');
    Ok(json)
}

fn has_column(path: &Path, columns: &[String], field: &str) -> Result<(), LoadError> {
    if columns.iter().any(|column| column == field) {
        return Ok(());
    }
    Err(LoadError::new(path, format!("has no column {field:?}"))
        .expected(format!("one of its columns: {}", columns.join(", ")))
        .remedy("name the column of the texts with --field"))
}

fn parquet(path: &Path, limits: Limits, field: &str, emit: &mut Emit<'_>) -> Result<(), LoadError> {
    let damaged = |e: &dyn std::fmt::Display| LoadError::new(path, format!("is no Parquet file that can be read: {e}"));
    let file = files::open(path).map_err(|e| LoadError::io(path, &e))?;
    let size = file.metadata().map_err(|e| LoadError::io(path, &e))?.len();
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(&e))?;
    let columns: Vec<String> = builder.schema().fields().iter().map(|field| field.name().clone()).collect();
    has_column(path, &columns, field)?;
    let groups = builder.metadata().row_groups();
    // A batch is decoded whole, so its rows are counted by what the file says a row takes.
    let rows = groups.iter().map(|group| u64::try_from(group.num_rows()).unwrap_or(0)).sum::<u64>().max(1);
    let bytes = groups.iter().map(|group| u64::try_from(group.total_byte_size()).unwrap_or(0)).sum::<u64>();
    let fitting = (limits.bytes as u64 / (bytes / rows).max(1)).clamp(1, limits.rows as u64);
    let reader = builder.with_batch_size(fitting as usize).build().map_err(|e| damaged(&e))?;
    let mut first = 1;
    for batch in reader {
        let batch = batch.map_err(|e| damaged(&e))?;
        let count = batch.num_rows() as u64;
        let share = (u128::from(size) * u128::from(count) / u128::from(rows)) as u64;
        if !emit(Chunk { rows: Rows::Batch { first, batch }, bytes: share })? {
            break;
        }
        first += count;
    }
    Ok(())
}

/// Lines that wait to be a chunk.
struct Pending<'a, 'e> {
    json: bool,
    limits: Limits,
    lines: Vec<Line>,
    size: usize,
    read: &'a AtomicU64,
    said: u64,
    emit: &'a mut Emit<'e>,
}

impl Pending<'_, '_> {
    fn push(&mut self, line: Line) -> Result<bool, LoadError> {
        let size = line.content.as_ref().map_or(0, Vec::len);
        let full = self.lines.len() >= self.limits.rows || self.size + size > self.limits.bytes;
        if full && !self.lines.is_empty() && !self.flush()? {
            return Ok(false);
        }
        self.size += size;
        self.lines.push(line);
        Ok(true)
    }

    fn flush(&mut self) -> Result<bool, LoadError> {
        let read = self.read.load(Ordering::Relaxed);
        let bytes = read - std::mem::replace(&mut self.said, read);
        let lines = std::mem::take(&mut self.lines);
        self.size = 0;
        if lines.is_empty() {
            return Ok(true);
        }
        (self.emit)(Chunk { rows: Rows::Lines { json: self.json, lines }, bytes })
    }
}

/// Counts what is read of the file itself, before it is decompressed.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// What standard input is, where it is a file.
fn stdin_metadata() -> Option<Metadata> {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd;
        File::from(io::stdin().as_fd().try_clone_to_owned().ok()?).metadata().ok()
    }
    #[cfg(not(unix))]
    None
}

/// A digest as something to write to.
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
