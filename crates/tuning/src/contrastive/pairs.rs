//! Reads pairs of texts from data files.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{CorpusError, FitError};
use layer0::progress::Progress;
use layer0_files::json::NonFinite;
use layer0_records::json::{Object, strict_object};
use layer0_records::{BadRecord, Limits, MaxSkipped, Reading, RecordsError, Rows, Source, table};

/// The largest size of a batch of records.
const LIMITS: Limits = Limits { rows: 4096, bytes: 1 << 20 };

/// The files of pairs, and how they are read.
#[derive(Debug, Clone, Copy)]
pub struct PairFiles<'a> {
    /// The files. Each file is a group: the pairs of a batch come from the same file, so that the other pairs of the
    /// batch, which serve as negatives, are of the same domain and languages.
    pub files: &'a [PathBuf],
    /// The weight of each file. An empty list gives every file the weight 1.
    pub weights: &'a [f64],
    /// The field or column of the first text of a pair, in formats that have fields.
    pub anchor: &'a str,
    /// The field or column of the second text of a pair.
    pub positive: &'a str,
    /// The largest share of the records of a file that may be left out.
    pub max_skipped: MaxSkipped,
    /// The share of the pairs that is held out of the training, to measure it. The hash of the anchor decides whether a
    /// pair is held out.
    pub held_out: f64,
}

/// Two texts that mean the same, or that answer each other: a sentence and its translation, a question and a passage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The first text.
    pub anchor: String,
    /// The second text.
    pub positive: String,
}

/// The record of one file of pairs.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PairFile {
    /// The file's name without its directory.
    pub name: String,
    /// The size in bytes, before decompression.
    pub bytes: u64,
    /// The SHA-256 in hexadecimal digits.
    pub sha256: String,
    /// The weight of the file. The probability that a batch comes from the file is proportional to it.
    pub weight: f64,
    /// The number of pairs of which both sides have tokens.
    pub pairs: u64,
    /// The number of these pairs that are held out.
    pub held_out: u64,
    /// The number of pairs that were left out because a side has no token with a row.
    pub without_tokens: u64,
    /// The number of records that could not be read, are not UTF-8, or lack a field.
    pub skipped: u64,
    /// The number of tokens of all pairs.
    pub tokens: u64,
}

/// Pairs to tokenize, and the number of bytes that they took up in the file.
pub struct Batch {
    pub pairs: Vec<Pair>,
    pub bytes: u64,
}

/// Reads the pairs of one file. The number of records that were left out is reported to `progress`.
///
/// # Errors
/// Fails if the file cannot be read, has no such columns, or has too many bad records. Errors of `take` are returned
/// unchanged.
pub fn read(
    path: &Path,
    files: &PairFiles<'_>,
    progress: &dyn Progress,
    take: &mut dyn FnMut(Batch) -> Result<(), FitError>,
) -> Result<PairFile, FitError> {
    let result = read_records(path, files, progress, take);
    // `?` makes any error of reading records an error of a corpus.
    result.map_err(|error| match error {
        FitError::Corpus(CorpusError::Records(error)) => FitError::Pairs(error),
        other => other,
    })
}

fn read_records(
    path: &Path,
    files: &PairFiles<'_>,
    progress: &dyn Progress,
    take: &mut dyn FnMut(Batch) -> Result<(), FitError>,
) -> Result<PairFile, FitError> {
    let source = Source::new(path, None)?;
    let mut found = PairFile {
        name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        ..PairFile::default()
    };
    let (mut records, mut first) = (0u64, String::new());
    let reading =
        Reading { limits: LIMITS, field: files.anchor, second_field: Some(files.positive), whole: false, digest: true };
    let ended = source.read::<FitError>(reading, &mut |chunk| {
        let mut batch = Batch { pairs: Vec::new(), bytes: chunk.bytes };
        let mut add = |position: u64, pair: Result<Pair, BadRecord>| {
            records += 1;
            match pair {
                Ok(pair) => batch.pairs.push(pair),
                Err(problem) => {
                    found.skipped += 1;
                    if first.is_empty() {
                        first = format!("is at {position}: it {problem}");
                    }
                }
            }
        };
        match chunk.rows {
            Rows::Lines { json: true, lines } => {
                for line in lines {
                    add(line.position, line.content.and_then(|record| of_object(&record, files)));
                }
            }
            Rows::Lines { json: false, lines } => {
                let is_blank = |line: &[u8]| line.trim_ascii().is_empty();
                for line in lines.into_iter().filter(|line| !line.content.as_ref().is_ok_and(|line| is_blank(line))) {
                    add(line.position, line.content.and_then(|line| of_line(&line)));
                }
            }
            Rows::Batch { first, batch } => {
                let texts =
                    |field| table::texts(&batch, field).map_err(|e| RecordsError::from_table(source.name(), &e));
                let pairs = texts(files.anchor)?.into_iter().zip(texts(files.positive)?);
                for (position, (anchor, positive)) in (first..).zip(pairs) {
                    add(position, anchor.and_then(|anchor| Ok(Pair { anchor, positive: positive? })));
                }
            }
        }
        take(batch)?;
        Ok(true)
    })?;
    (found.bytes, found.sha256) = (ended.bytes, ended.sha256);
    if found.skipped > 0 {
        progress.note(&format!("{}: left out {} of {records} records", path.display(), found.skipped));
        files.max_skipped.check(path, found.skipped, records, &first)?;
    }
    Ok(found)
}

fn of_object(record: &[u8], files: &PairFiles<'_>) -> Result<Pair, BadRecord> {
    let json = strict_object(record, NonFinite::Kept)?;
    let object = Object::parse(&json)?;
    Ok(Pair { anchor: object.text(files.anchor)?, positive: object.text(files.positive)? })
}

/// Returns the first two columns of a line of plain text.
fn of_line(line: &[u8]) -> Result<Pair, BadRecord> {
    let line = str::from_utf8(line).map_err(|e| BadRecord::new(format!("is not UTF-8: {e}")))?;
    let mut columns = line.split('\t').map(|column| column.trim().to_owned());
    match (columns.next(), columns.next()) {
        (Some(anchor), Some(positive)) => Ok(Pair { anchor, positive }),
        _ => Err(BadRecord::new("has no tab between two texts")),
    }
}
