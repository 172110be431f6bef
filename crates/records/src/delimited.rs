//! Reads the records of CSV (RFC 4180) and TSV files. No record takes more memory than a line of text may take. TSV has
//! no quotes (<https://www.iana.org/assignments/media-types/text/tab-separated-values>).

use std::collections::HashSet;
use std::io::{self, BufRead};

use super::{BadRecord, MAX_LINE};

/// The largest number of fields of a record. No real table has this many columns.
const MAX_FIELDS: usize = 1 << 20;

/// A reader of the records of one file, including the header. A record that is too long is skipped without being held
/// in memory.
#[derive(Debug)]
pub struct Records<R> {
    reader: R,
    core: csv_core::Reader,
    output: Vec<u8>,
    ends: Vec<usize>,
    /// Whether the end of the file has already been passed to `core` as a line break.
    closed: bool,
}

/// One record.
#[derive(Debug)]
pub struct Record<'r> {
    /// The number of the line on which the record begins, counted from 1.
    pub line: u64,
    /// The fields, or the problem of the record.
    pub fields: Result<Fields<'r>, BadRecord>,
}

/// The fields of a record, without their quotes.
#[derive(Debug)]
pub struct Fields<'r> {
    bytes: &'r [u8],
    ends: &'r [usize],
}

impl<'r> Fields<'r> {
    /// Returns the number of fields.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// Returns the size of all fields together, in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the fields in their order.
    pub fn iter(&self) -> impl Iterator<Item = &'r [u8]> {
        let (bytes, ends) = (self.bytes, self.ends);
        let starts = [0].into_iter().chain(ends.iter().copied());
        starts.zip(ends).map(move |(start, &end)| bytes.get(start..end).unwrap_or_default())
    }
}

impl<R: BufRead> Records<R> {
    /// Creates a reader of fields that are separated by tabs and have no quotes if `has_tabs` is true, and by commas
    /// otherwise.
    pub fn new(reader: R, has_tabs: bool) -> Self {
        let delimiter = if has_tabs { b'\t' } else { b',' };
        let core = csv_core::ReaderBuilder::new().delimiter(delimiter).quoting(!has_tabs).build();
        Self { reader, core, output: vec![0; 8 << 10], ends: vec![0; 64], closed: false }
    }

    /// Returns the next record, or `None` after the last one.
    ///
    /// # Errors
    /// Returns the errors of the reader, and `InvalidData` if the file ends within quotes. In the latter case all
    /// following records are inside one field.
    pub fn read_record(&mut self) -> io::Result<Option<Record<'_>>> {
        self.skip_empty_lines()?;
        let line = self.core.line();
        let (mut written, mut fields) = (0, 0);
        let mut too_long = false;
        let unclosed = loop {
            let buffer = self.reader.fill_buf()?;
            let at_end = buffer.is_empty();
            // A line break is appended if the last record has none, except within quotes.
            let input: &[u8] = match (at_end, self.closed) {
                (false, _) => buffer,
                (true, false) => b"\n",
                (true, true) => b"",
            };
            let output = self.output.get_mut(written..).unwrap_or_default();
            let ends = self.ends.get_mut(fields..).unwrap_or_default();
            let (result, read, wrote, ended) = self.core.read_record(input, output, ends);
            let unclosed = at_end && self.closed;
            if at_end {
                self.closed |= read > 0;
            } else {
                self.reader.consume(read);
            }
            written += wrote;
            fields += ended;
            match result {
                csv_core::ReadRecordResult::Record => break unclosed,
                csv_core::ReadRecordResult::End => return Ok(None),
                csv_core::ReadRecordResult::InputEmpty if unclosed => return Ok(None),
                csv_core::ReadRecordResult::InputEmpty => {}
                csv_core::ReadRecordResult::OutputFull if self.output.len() < MAX_LINE => {
                    self.output.resize((2 * self.output.len()).min(MAX_LINE), 0);
                }
                csv_core::ReadRecordResult::OutputEndsFull if self.ends.len() < MAX_FIELDS => {
                    self.ends.resize(2 * self.ends.len(), 0);
                }
                csv_core::ReadRecordResult::OutputFull | csv_core::ReadRecordResult::OutputEndsFull => {
                    too_long = true;
                    (written, fields) = (0, 0);
                }
            }
        };
        if unclosed {
            // The quote opens in the last field, so the line breaks of the fields before it are counted.
            let last = fields.checked_sub(2).and_then(|last| self.ends.get(last)).copied().unwrap_or(0);
            let before = self.output.get(..last).unwrap_or_default();
            let line = line + before.iter().filter(|&&byte| byte == b'\n').count() as u64;
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("has a quote that opens in line {line} and is never closed: all that follows is in one field"),
            ));
        }
        let fields = if too_long {
            let problem = format!("is longer than {} MiB; a quote in it may not be closed", MAX_LINE >> 20);
            Err(BadRecord::new(problem))
        } else {
            let bytes = self.output.get(..written).unwrap_or_default();
            Ok(Fields { bytes, ends: self.ends.get(..fields).unwrap_or_default() })
        };
        Ok(Some(Record { line, fields }))
    }

    /// Moves to the line on which the next record begins. `core` would skip empty lines as well, but it would not
    /// report the line of the record.
    fn skip_empty_lines(&mut self) -> io::Result<()> {
        while let Some(byte @ (b'\r' | b'\n')) = self.reader.fill_buf()?.first().copied() {
            self.reader.consume(1);
            self.core.set_line(self.core.line() + u64::from(byte == b'\n'));
        }
        Ok(())
    }
}

/// Renames columns so that no two names are the same and no name is empty. The new names are those of pandas: `a`,
/// `a.1`, `Unnamed: 2`.
pub(crate) fn distinct(columns: Vec<String>) -> Vec<String> {
    let mut taken: HashSet<String> = columns.iter().cloned().collect();
    let mut seen = HashSet::new();
    let mut name = |number: usize, column: String| {
        let column = if column.is_empty() { format!("Unnamed: {number}") } else { column };
        if seen.insert(column.clone()) {
            return column;
        }
        let mut free = (1..).map(|n: u64| format!("{column}.{n}")).filter(|name| !taken.contains(name));
        let renamed = free.next().unwrap_or_default();
        taken.insert(renamed.clone());
        seen.insert(renamed.clone());
        renamed
    };
    columns.into_iter().enumerate().map(|(number, column)| name(number, column)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the line and the fields of each record.
    fn all(content: &str, has_tabs: bool) -> Result<Vec<(u64, Vec<String>)>, String> {
        // With the smallest possible buffer, every token is split across reads.
        let mut records = Records::new(io::BufReader::with_capacity(1, content.as_bytes()), has_tabs);
        let mut found = Vec::new();
        while let Some(record) = records.read_record().map_err(|e| e.to_string())? {
            let text = |field: &[u8]| String::from_utf8(field.to_vec()).unwrap();
            found.push((record.line, record.fields.map_err(|e| e.to_string())?.iter().map(text).collect()));
        }
        Ok(found)
    }

    fn fields(content: &str, has_tabs: bool) -> Vec<Vec<String>> {
        all(content, has_tabs).unwrap().into_iter().map(|(_, fields)| fields).collect()
    }

    #[test]
    fn records_end_with_or_without_a_line_break() {
        for content in ["a,b\n1,\"x\ny\"\n,\n", "a,b\r\n1,\"x\ny\"\r\n,\r\n", "a,b\n\n1,\"x\ny\"\n,"] {
            assert_eq!(fields(content, false), [["a", "b"], ["1", "x\ny"], ["", ""]], "{content:?}");
        }
        assert!(fields("", false).is_empty() && fields("\n\n", false).is_empty());
        assert_eq!(fields("a,\"\"", false), [["a", ""]]);
    }

    #[test]
    fn tsv_has_no_quotes() {
        let expected = [["1", "\"open, quote"], ["2", "\"a\""], ["3", "\"\""]];
        assert_eq!(fields("1\t\"open, quote\n2\t\"a\"\r\n3\t\"\"", true), expected);
    }

    #[test]
    fn a_quote_that_is_never_closed_is_an_error_with_its_line() {
        for (content, line) in [
            ("id,text\n1,\"open\n2,b\n", 2),
            ("id,text\n1,\"open", 2),
            ("id,text\n1,\"", 2),
            ("id,text\n1,a\n\"two\nlines\",\"open\n\n", 4),
            ("\"id", 1),
        ] {
            let problem = all(content, false).unwrap_err();
            assert!(problem.contains(&format!("opens in line {line} and is never closed")), "{content:?}: {problem}");
        }
    }

    #[test]
    fn a_long_record_is_passed_over_and_the_next_is_read() {
        let long = format!("text\n\"{}\"\nnext\n{}\nlast\n", "a,b\n".repeat(MAX_LINE / 4 + 10), ",".repeat(MAX_FIELDS));
        let mut records = Records::new(long.as_bytes(), false);
        let mut lengths = Vec::new();
        while let Some(record) = records.read_record().unwrap() {
            lengths.push(
                record
                    .fields
                    .map(|fields| fields.size())
                    .map_err(|problem| problem.to_string().contains("longer than 64 MiB")),
            );
            assert!(records.output.len() <= MAX_LINE && records.ends.len() <= MAX_FIELDS);
        }
        assert_eq!(lengths, [Ok(4), Err(true), Ok(4), Err(true), Ok(4)]);
    }
}
