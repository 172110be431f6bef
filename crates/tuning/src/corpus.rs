//! Reads the texts of corpus files in batches. The memory of a batch is bounded, whatever the files contain.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::error::CorpusError;
use layer0::progress::Progress;
use layer0_files::json::NonFinite;
use layer0_files::{self as files, FileError};
use layer0_records::json::{Object, strict_object};
use layer0_records::{BadRecord, InputFormat, Limits, MaxSkipped, Reading, RecordsError, Rows, Source, table};

/// The bytes of text after which a batch is complete.
const BATCH: usize = 256 << 10;
const ROWS: usize = 4096;
/// The size of the pieces into which a longer line of plain text is split, in bytes.
const MAX_PIECE: usize = 64 << 10;

/// The options for reading the files of a corpus.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    /// The field or column that holds the text, in formats that have fields.
    pub field: &'a str,
    /// The largest share of the records of a file that may be left out.
    pub max_skipped: MaxSkipped,
}

/// Texts to tokenize, and the number of bytes that they took up in the file.
#[derive(Debug, Default)]
pub struct Batch {
    /// The texts.
    pub texts: Vec<String>,
    /// The number of bytes that the texts took up in the file.
    pub bytes: u64,
}

/// The record of one corpus file that was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CorpusFile {
    /// The file's name without its directory.
    pub name: String,
    /// The size in bytes, before decompression.
    pub bytes: u64,
    /// The SHA-256 in hexadecimal digits.
    pub sha256: String,
    /// The number of texts.
    pub texts: u64,
    /// The number of records that could not be read, are not UTF-8, or lack the field.
    pub skipped: u64,
    /// The number of tokens of all texts.
    pub tokens: u64,
}

/// Returns the total size of `files` in bytes. A file that cannot be read counts as zero.
pub fn size(files: &[PathBuf]) -> u64 {
    files.iter().map(|path| std::fs::metadata(path).map_or(0, |m| m.len())).sum()
}

/// Returns the error for a corpus that holds no text.
pub fn without_text(read: &[CorpusFile], files: &[PathBuf], fields: Fields<'_>) -> CorpusError {
    CorpusError::NoText {
        file: files.first().cloned().unwrap_or_else(|| "the corpus".into()),
        skipped: read.iter().map(|file| file.skipped).sum(),
        field: fields.field.to_owned(),
    }
}

/// A callback that receives batches. It returns `false` to stop. `E` is the error of the caller.
pub type Take<'a, E> = dyn FnMut(Batch) -> Result<bool, E> + 'a;

/// Reads the texts of one file. The file's name determines its format. The number of records that were left out is
/// reported to `progress`.
///
/// # Errors
/// Fails if the file cannot be read, is not text, or has too many bad records. Errors of `take` are returned unchanged.
pub fn read<E: From<RecordsError>>(
    path: &Path,
    fields: Fields<'_>,
    progress: &dyn Progress,
    take: &mut Take<'_, E>,
) -> Result<CorpusFile, E> {
    let source = Source::new(path, None)?;
    let mut found = CorpusFile {
        name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        ..CorpusFile::default()
    };
    let mut first = String::new();
    let read = match source.format() {
        InputFormat::Text => plain(&source, &mut found, &mut first, take)?,
        _ => records(&source, fields.field, &mut found, &mut first, take)?,
    };
    (found.bytes, found.sha256) = read;
    if found.skipped > 0 {
        let records = found.texts + found.skipped;
        progress.note(&format!("{}: left out {} of {records} records", path.display(), found.skipped));
        fields.max_skipped.check(path, found.skipped, records, &first)?;
    }
    Ok(found)
}

/// Reads lines of plain text of any length. Returns the size and the digest of the file.
fn plain<E: From<RecordsError>>(
    source: &Source,
    found: &mut CorpusFile,
    first: &mut String,
    take: &mut Take<'_, E>,
) -> Result<(u64, String), E> {
    let failed = |e: io::Error| RecordsError::from(FileError::reading(source.name(), &e));
    let mut input = source.text(true)?;
    let mut lines = Lines { reader: &mut input.reader, rest: Vec::new(), line: 0 };
    let mut said = 0;
    while let Some(mut batch) = lines.batch(found, first).map_err(failed)? {
        let read = input.read.load(Ordering::Relaxed);
        batch.bytes = read - std::mem::replace(&mut said, read);
        if !take(batch)? {
            break;
        }
    }
    let ended = input.finish().map_err(failed)?;
    Ok((ended.bytes, ended.sha256))
}

fn records<E: From<RecordsError>>(
    source: &Source,
    field: &str,
    found: &mut CorpusFile,
    first: &mut String,
    take: &mut Take<'_, E>,
) -> Result<(u64, String), E> {
    let limits = Limits { rows: ROWS, bytes: BATCH };
    let ended =
        source.read(Reading { limits, field, second_field: None, whole: false, digest: true }, &mut |chunk| {
            let mut batch = Batch { texts: Vec::new(), bytes: chunk.bytes };
            let mut add = |position: u64, text: Result<String, BadRecord>| match text {
                Ok(text) if text.is_empty() => {}
                Ok(text) => {
                    found.texts += 1;
                    batch.texts.push(text);
                }
                Err(problem) => {
                    found.skipped += 1;
                    if first.is_empty() {
                        *first = format!("is at {position}: it {problem}");
                    }
                }
            };
            match chunk.rows {
                Rows::Lines { lines, .. } => {
                    for line in lines {
                        add(line.position, line.content.and_then(|record| text_of(&record, field)));
                    }
                }
                Rows::Batch { first, batch } => {
                    let texts = table::texts(&batch, field).map_err(|e| RecordsError::from_table(source.name(), &e))?;
                    for (position, text) in (first..).zip(texts) {
                        add(position, text);
                    }
                }
            }
            take(batch)
        })?;
    Ok((ended.bytes, ended.sha256))
}

/// Returns the string in `field` of a JSON object.
fn text_of(record: &[u8], field: &str) -> Result<String, BadRecord> {
    Object::parse(&strict_object(record, NonFinite::Kept)?)?.text(field)
}

/// Splits a text in memory into batches with one text per line. Also returns the record of a file with this content.
pub fn of_lines(content: &str) -> (Vec<Batch>, CorpusFile) {
    let mut found = CorpusFile { bytes: content.len() as u64, ..CorpusFile::default() };
    found.sha256 = files::hexadecimal(&Sha256::digest(content));
    let mut batches = Vec::new();
    let mut lines = Lines { reader: &mut content.as_bytes(), rest: Vec::new(), line: 0 };
    // Reading from memory cannot fail.
    while let Ok(Some(batch)) = lines.batch(&mut found, &mut String::new()) {
        batches.push(batch);
    }
    (batches, found)
}

/// A reader of lines of plain text.
struct Lines<'a> {
    reader: &'a mut dyn BufRead,
    /// The beginning of the next piece of a line that was cut.
    rest: Vec<u8>,
    line: u64,
}

impl Lines<'_> {
    /// Returns the next texts, or `None` after the last one. A batch is empty if all of its lines were skipped.
    fn batch(&mut self, found: &mut CorpusFile, first: &mut String) -> io::Result<Option<Batch>> {
        let mut batch = Batch::default();
        while batch.bytes < BATCH as u64 {
            let mut line = std::mem::take(&mut self.rest);
            let begins = line.is_empty();
            let room = MAX_PIECE.saturating_sub(line.len()).max(1);
            let read = Read::take(&mut *self.reader, room as u64).read_until(b'\n', &mut line)?;
            batch.bytes += read as u64;
            if line.is_empty() {
                break;
            }
            self.line += u64::from(begins);
            if read == room && !line.ends_with(b"\n") {
                self.rest = line.split_off(cut(&line));
            }
            match String::from_utf8(line) {
                Ok(text) if text.trim().is_empty() => {}
                Ok(text) => {
                    found.texts += 1;
                    batch.texts.push(text.trim().to_owned());
                }
                Err(e) => {
                    found.skipped += 1;
                    if first.is_empty() {
                        *first = format!("is at {}: it is not UTF-8: {}", self.line, e.utf8_error());
                    }
                }
            }
        }
        Ok((batch.bytes > 0 || !batch.texts.is_empty()).then_some(batch))
    }
}

/// Returns the position at which to cut a piece of a line: after the last space in the second half of the piece, or
/// else before the last character, which may be incomplete.
fn cut(piece: &[u8]) -> usize {
    if let Some(space) = piece.iter().rposition(u8::is_ascii_whitespace).filter(|&at| at > piece.len() / 2) {
        return space + 1;
    }
    let start = piece.iter().rposition(|b| b & 0xc0 != 0x80).unwrap_or(0);
    if start > 0 { start } else { piece.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        (dir, path)
    }

    fn all_of(name: &str, content: &[u8], max_skipped: &str) -> Result<(Vec<String>, CorpusFile), String> {
        let (_dir, path) = file(name, content);
        let mut texts = Vec::new();
        let fields = Fields { field: "text", max_skipped: max_skipped.parse().unwrap() };
        let found = read::<CorpusError>(&path, fields, &layer0::progress::Silent, &mut |batch| {
            texts.extend(batch.texts);
            Ok(true)
        });
        found.map(|found| (texts, found)).map_err(|e| e.to_string())
    }

    fn all(content: &[u8]) -> (Vec<String>, CorpusFile) {
        all_of("x.txt", content, "100%").unwrap()
    }

    #[test]
    fn lines_end_in_every_way_and_empty_ones_do_not_count() {
        let (texts, found) = all("eins\r\n\n  zwei \n\t\ndrei".as_bytes());
        assert_eq!(texts, ["eins", "zwei", "drei"]);
        assert_eq!((found.texts, found.skipped, found.bytes), (3, 0, 21));
        // sha256sum prints these digests.
        assert_eq!(all(b"a\n").1.sha256, "87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7");
        assert_eq!(all(b"").0, [""; 0]);
        let (batches, of_memory) = of_lines("a\n");
        assert_eq!((batches[0].texts.as_slice(), of_memory.sha256), (&["a".to_owned()][..], all(b"a\n").1.sha256));
    }

    #[test]
    fn lines_that_are_not_utf8_are_skipped_alone() {
        let (texts, found) = all(b"one\n\xff\xfe\ntwo\n");
        assert_eq!(texts, ["one", "two"]);
        assert_eq!(found.skipped, 1);
    }

    #[test]
    fn a_share_of_bad_records_is_too_much() {
        let content = |bad: usize| [b"ok\n".repeat(20 - bad), b"\xff\n".repeat(bad)].concat();
        assert_eq!(all_of("x.txt", &content(2), "10%").unwrap().1.skipped, 2);
        let problem = all_of("x.txt", &content(3), "10 %").unwrap_err();
        for part in ["3 bad records among 20", "more than 10 %", "is at 18: it is not UTF-8"] {
            assert!(problem.contains(part), "{problem}");
        }
        assert!(all_of("x.txt", &content(1), "0").is_err() && all_of("x.txt", &content(3), "0.15").is_ok());
        for wrong in ["10", "-1%", "101%", "x", "", "nan", "NaN%"] {
            assert!(wrong.parse::<MaxSkipped>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_huge_line_comes_in_pieces_that_lose_nothing() {
        for line in ["wort ".repeat(100_000), "字".repeat(100_000), "x".repeat(MAX_PIECE), "y".repeat(MAX_PIECE + 1)] {
            let (texts, found) = all(format!("{line}\nend").as_bytes());
            assert!(texts.iter().all(|text| text.len() <= MAX_PIECE), "{}", texts.len());
            assert_eq!(found.skipped, 0);
            let (last, pieces) = texts.split_last().unwrap();
            assert_eq!(last, "end");
            let joined: String = pieces.concat();
            assert_eq!(joined.replace(' ', ""), line.replace(' ', ""));
        }
    }

    #[test]
    fn every_format_is_read_by_its_field_and_all_else_is_skipped() {
        let jsonl =
            b"{\"text\": \"a\", \"n\": NaN}\n{\"other\": \"b\"}\nnot json\n\n{\"text\": 3}\n[1]\n{\"text\": \"c\\n\"}";
        let (texts, found) = all_of("x.JSONL", jsonl, "70%").unwrap();
        assert_eq!(texts, ["a", "c\n"]);
        assert_eq!(found.skipped, 4);
        for (name, content) in
            [("x.json", "[{\"text\":\"a\"},\n{\"text\":\"c\\n\"}]"), ("x.csv", "\u{feff}id,text\n1,a\n2,\"c\n\"\n")]
        {
            assert_eq!(all_of(name, content.as_bytes(), "0").unwrap().0, ["a", "c\n"], "{name}");
        }
        assert_eq!(all_of("x.tsv", b"text\tn\n\"a\t1\nb\t2\n", "0").unwrap().0, ["\"a", "b"]);
    }
}
