//! Texts of a file, in batches of bounded size, whatever the file holds.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::LoadError;
use crate::files;

/// Bytes of text that a batch takes before it goes out.
const BATCH: usize = 256 << 10;
/// A longer line of plain text is taken in pieces of about this size.
const MAX_PIECE: usize = 64 << 10;
/// A longer line of JSON is skipped.
const MAX_JSON: usize = 16 << 20;

/// Texts to tokenize, and how many bytes of the file they took.
#[derive(Debug, Default)]
pub struct Batch {
    pub texts: Vec<String>,
    pub bytes: u64,
}

/// One file of a corpus, as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CorpusFile {
    /// The file's name without its directory.
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
    pub texts: u64,
    /// Lines that are not UTF-8, not JSON, or lack the field.
    pub skipped: u64,
    pub tokens: u64,
}

/// The bytes of `files` together; one that cannot be read counts as none.
pub fn size(files: &[PathBuf]) -> u64 {
    files.iter().map(|path| std::fs::metadata(path).map_or(0, |m| m.len())).sum()
}

/// The error of a corpus in which there was nothing.
pub fn without_text(read: &[CorpusFile], files: &[PathBuf]) -> LoadError {
    let first = files.first().map_or(Path::new("--corpus"), PathBuf::as_path);
    let skipped: u64 = read.iter().map(|file| file.skipped).sum();
    LoadError::new(first, format!("holds no text; {skipped} lines could not be read"))
        .expected("lines of UTF-8 text, or a .jsonl file of objects with the field that --field names")
}

/// Reads the texts of one file.
pub struct Texts<'a> {
    reader: Box<dyn BufRead + Send + 'a>,
    digest: Sha256,
    /// The field of a JSON object; `None`: lines are texts.
    field: Option<String>,
    /// The start of a line's next piece.
    rest: Vec<u8>,
    /// The rest of a line of JSON that is too long.
    skipping: bool,
    found: CorpusFile,
}

impl Texts<'static> {
    /// `*.jsonl` and `*.ndjson` by `field`, all else by lines.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, field: &str) -> Result<Self, LoadError> {
        let file = files::open(path).map_err(|e| LoadError::io(path, &e))?;
        if file.metadata().is_ok_and(|m| m.is_dir()) {
            return Err(LoadError::new(path, "is a directory").expected("a text or JSONL file"));
        }
        let json = path.extension().is_some_and(|e| e == "jsonl" || e == "ndjson");
        Ok(Self::new(BufReader::with_capacity(1 << 20, file), json.then(|| field.to_owned())))
    }
}

impl<'a> Texts<'a> {
    /// One text a line.
    pub fn lines(reader: impl BufRead + Send + 'a) -> Self {
        Self::new(reader, None)
    }

    fn new(reader: impl BufRead + Send + 'a, field: Option<String>) -> Self {
        Self {
            reader: Box::new(reader),
            digest: Sha256::new(),
            field,
            rest: Vec::new(),
            skipping: false,
            found: CorpusFile::default(),
        }
    }

    /// The next texts; `None` after the last. A batch may be empty where all its lines were skipped.
    ///
    /// # Errors
    /// The file's own.
    pub fn batch(&mut self) -> io::Result<Option<Batch>> {
        let mut batch = Batch::default();
        let start = self.found.bytes;
        while self.found.bytes - start < BATCH as u64 {
            let limit = if self.field.is_some() { MAX_JSON } else { MAX_PIECE };
            let mut line = std::mem::take(&mut self.rest);
            let room = limit.saturating_sub(line.len()).max(1);
            let read = (&mut self.reader).take(room as u64).read_until(b'\n', &mut line)?;
            self.digest.update(line.get(line.len() - read..).unwrap_or_default());
            self.found.bytes += read as u64;
            if line.is_empty() {
                break;
            }
            let whole = read < room || line.ends_with(b"\n");
            self.take(line, whole, &mut batch);
        }
        batch.bytes = self.found.bytes - start;
        Ok((batch.bytes > 0 || !batch.texts.is_empty()).then_some(batch))
    }

    /// What was read so far, of the file at `path`, in which `tokens` were found.
    pub fn finish(self, path: &Path, tokens: u64) -> CorpusFile {
        let sha256 = self.digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        CorpusFile { name, sha256, tokens, ..self.found }
    }

    fn take(&mut self, mut line: Vec<u8>, whole: bool, batch: &mut Batch) {
        let text = if self.field.is_some() {
            if !whole || self.skipping {
                self.found.skipped += u64::from(!self.skipping);
                self.skipping = !whole;
                return;
            }
            match line.trim_ascii() {
                [] => return,
                json => self.field.as_ref().and_then(|field| text_field(json, field)),
            }
        } else {
            if !whole {
                self.rest = line.split_off(cut(&line));
            }
            String::from_utf8(line).ok().map(|text| text.trim().to_owned())
        };
        match text {
            Some(text) if text.is_empty() => {}
            Some(text) => {
                self.found.texts += 1;
                batch.texts.push(text);
            }
            None => self.found.skipped += 1,
        }
    }
}

fn text_field(json: &[u8], field: &str) -> Option<String> {
    match serde_json::from_slice(json).ok()? {
        Value::Object(mut object) => match object.remove(field)? {
            Value::String(text) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

/// Where to cut a piece of a line: behind its last space, or else before a character that may be incomplete.
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

    fn all(content: &[u8], field: Option<&str>) -> (Vec<String>, CorpusFile) {
        let mut texts = Texts::new(content, field.map(str::to_owned));
        let mut read = Vec::new();
        while let Some(batch) = texts.batch().unwrap() {
            read.extend(batch.texts);
        }
        (read, texts.finish(Path::new("x"), 0))
    }

    #[test]
    fn lines_end_in_every_way_and_empty_ones_do_not_count() {
        let (texts, found) = all("eins\r\n\n  zwei \n\t\ndrei".as_bytes(), None);
        assert_eq!(texts, ["eins", "zwei", "drei"]);
        assert_eq!((found.texts, found.skipped, found.bytes), (3, 0, 21));
        // sha256sum's own.
        assert_eq!(all(b"a\n", None).1.sha256, "87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7");
        assert_eq!(all(b"", None).0, [""; 0]);
    }

    #[test]
    fn lines_that_are_not_utf8_are_skipped_alone() {
        let (texts, found) = all(b"one\n\xff\xfe\ntwo\n", None);
        assert_eq!(texts, ["one", "two"]);
        assert_eq!(found.skipped, 1);
    }

    #[test]
    fn a_huge_line_comes_in_pieces_that_lose_nothing() {
        for line in ["wort ".repeat(100_000), "字".repeat(100_000), "x".repeat(MAX_PIECE), "y".repeat(MAX_PIECE + 1)] {
            let (texts, found) = all(format!("{line}\nend").as_bytes(), None);
            assert!(texts.iter().all(|text| text.len() <= MAX_PIECE), "{}", texts.len());
            assert_eq!(found.skipped, 0);
            let (last, pieces) = texts.split_last().unwrap();
            assert_eq!(last, "end");
            let joined: String = pieces.concat();
            assert_eq!(joined.replace(' ', ""), line.replace(' ', ""));
        }
    }

    #[test]
    fn jsonl_is_read_by_its_field_and_all_else_is_skipped() {
        let content =
            b"{\"text\": \"a\", \"n\": 1}\n{\"other\": \"b\"}\nnot json\n\n{\"text\": 3}\n[1]\n{\"text\": \"c\\n\"}";
        let (texts, found) = all(content, Some("text"));
        assert_eq!(texts, ["a", "c\n"]);
        assert_eq!(found.skipped, 4);
        assert_eq!(all(content, Some("other")).0, ["b"]);
    }

    #[test]
    fn a_line_of_json_that_is_too_long_is_skipped_alone() {
        let content = format!("{{\"text\": \"{}\"}}\n{{\"text\": \"b\"}}\n", "a".repeat(2 * MAX_JSON));
        let (texts, found) = all(content.as_bytes(), Some("text"));
        assert_eq!(texts, ["b"]);
        assert_eq!((found.skipped, found.bytes), (1, content.len() as u64));
    }
}
