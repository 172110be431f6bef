//! Records of CSV and TSV, none of which takes more memory than a line of text may.

use std::io::{self, BufRead};

use super::MAX_LINE;

/// More fields than any table has columns.
const MAX_FIELDS: usize = 1 << 20;

/// UTF-8's byte order mark.
const MARK: &[u8] = "\u{feff}".as_bytes();

/// Reads the records of one file, the header among them. A record that is too long is passed over, not held.
pub struct Records<R> {
    reader: R,
    core: csv_core::Reader,
    output: Vec<u8>,
    ends: Vec<usize>,
    /// Whether the file's end was already given to `core` as a line break.
    closed: bool,
    is_first: bool,
}

/// One record.
pub struct Record<'r> {
    /// The line on which it begins, from 1.
    pub line: u64,
    /// Or what is wrong with it.
    pub fields: Result<Fields<'r>, String>,
}

/// The fields of a record, without their quotes.
pub struct Fields<'r> {
    bytes: &'r [u8],
    ends: &'r [usize],
}

impl<'r> Fields<'r> {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// All of them together, in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &'r [u8]> {
        let (bytes, ends) = (self.bytes, self.ends);
        let starts = [0].into_iter().chain(ends.iter().copied());
        starts.zip(ends).map(move |(start, &end)| bytes.get(start..end).unwrap_or_default())
    }
}

impl<R: BufRead> Records<R> {
    /// Fields are separated by `delimiter`.
    pub fn new(reader: R, delimiter: u8) -> Self {
        let core = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        Self { reader, core, output: vec![0; 8 << 10], ends: vec![0; 64], closed: false, is_first: true }
    }

    /// The next record; `None` after the last.
    ///
    /// # Errors
    /// The reader's own.
    pub fn next(&mut self) -> io::Result<Option<Record<'_>>> {
        let line = self.core.line();
        let (mut written, mut fields) = (0, 0);
        let mut too_long = false;
        let unclosed = loop {
            let buffer = self.reader.fill_buf()?;
            let at_end = buffer.is_empty();
            // A line break ends a last record that has none, except inside of quotes.
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
        // `core` knows a byte order mark only if the first read has all of it.
        if std::mem::take(&mut self.is_first) && self.output.get(..written).is_some_and(|b| b.starts_with(MARK)) {
            self.output.copy_within(MARK.len()..written, 0);
            written -= MARK.len();
            self.ends.iter_mut().take(fields).for_each(|end| *end = end.saturating_sub(MARK.len()));
        }
        let fields = if unclosed {
            Err("is damaged: a quote in it is never closed, and has taken in all that follows".to_owned())
        } else if too_long {
            Err(format!("is longer than {} MiB; a quote in it may not be closed", MAX_LINE >> 20))
        } else {
            let bytes = self.output.get(..written).unwrap_or_default();
            Ok(Fields { bytes, ends: self.ends.get(..fields).unwrap_or_default() })
        };
        Ok(Some(Record { line, fields }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each record as its line and its fields, or what is wrong.
    fn all(content: &[u8], delimiter: u8) -> Vec<(u64, Result<Vec<String>, String>)> {
        // The smallest buffer cuts everything.
        let mut records = Records::new(io::BufReader::with_capacity(1, content), delimiter);
        let mut found = Vec::new();
        while let Some(record) = records.next().unwrap() {
            let text = |field: &[u8]| String::from_utf8(field.to_vec()).unwrap();
            found.push((record.line, record.fields.map(|fields| fields.iter().map(text).collect())));
        }
        found
    }

    fn fields(content: &str, delimiter: u8) -> Vec<Vec<String>> {
        all(content.as_bytes(), delimiter).into_iter().map(|(_, fields)| fields.unwrap()).collect()
    }

    #[test]
    fn records_end_with_or_without_a_line_break() {
        for content in ["a,b\n1,\"x\ny\"\n,\n", "a,b\r\n1,\"x\ny\"\r\n,\r\n", "\u{feff}a,b\n\n1,\"x\ny\"\n,"] {
            assert_eq!(fields(content, b','), [["a", "b"], ["1", "x\ny"], ["", ""]], "{content:?}");
        }
        assert!(fields("", b',').is_empty() && fields("\n\n", b',').is_empty());
        assert_eq!(fields("a,\"\"", b','), [["a", ""]]);
    }

    #[test]
    fn a_quote_that_is_never_closed_is_no_record() {
        for content in ["id,text\n1,\"open\n2,b\n", "id,text\n1,\"open", "id,text\n1,\""] {
            let found = all(content.as_bytes(), b',');
            let (line, problem) = found.last().unwrap();
            assert_eq!((found.len(), *line), (2, 2), "{content:?}");
            assert!(problem.as_ref().unwrap_err().contains("never closed"), "{problem:?}");
        }
    }

    #[test]
    fn a_long_record_is_passed_over_and_the_next_is_read() {
        let long = format!("text\n\"{}\"\nnext\n{}\nlast\n", "a,b\n".repeat(MAX_LINE / 4 + 10), ",".repeat(MAX_FIELDS));
        let mut records = Records::new(long.as_bytes(), b',');
        let mut lengths = Vec::new();
        while let Some(record) = records.next().unwrap() {
            lengths.push(
                record.fields.map(|fields| fields.size()).map_err(|problem| problem.contains("longer than 64 MiB")),
            );
            assert!(records.output.len() <= MAX_LINE && records.ends.len() <= MAX_FIELDS);
        }
        assert_eq!(lengths, [Ok(4), Err(true), Ok(4), Err(true), Ok(4)]);
    }
}
