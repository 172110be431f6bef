//! Reads the lines of an input file, none of which may be longer than a limit.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

/// The byte order mark, which some editors write at the beginning of a file.
const MARK: &[u8] = "\u{feff}".as_bytes();

/// Reads lines that are not blank.
pub struct LineReader {
    input: BufReader<File>,
    position: u64,
    number: u64,
    longest: usize,
}

/// A line that is not blank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputLine {
    /// The number of the line in the file, from 1 on.
    pub number: u64,
    /// The position after the line, in bytes.
    pub end: u64,
    /// The line without its line break, or `None` if it is longer than the limit.
    pub content: Option<Vec<u8>>,
}

impl InputLine {
    /// Returns the number of bytes of the line that are in memory.
    pub fn size(&self) -> u64 {
        self.content.as_ref().map_or(0, Vec::len) as u64
    }
}

impl LineReader {
    /// Continues to read a file at a position before which there are this many lines. Lines may have up to `longest` bytes.
    ///
    /// # Errors
    /// If the file has no such position.
    pub fn new(mut input: File, position: u64, lines: u64, longest: usize) -> io::Result<Self> {
        input.seek(SeekFrom::Start(position))?;
        Ok(Self { input: BufReader::with_capacity(64 << 10, input), position, number: lines, longest })
    }

    /// Returns the next line, or `None` at the end of the file. The last line needs no line break.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn next_line(&mut self) -> io::Result<Option<InputLine>> {
        loop {
            let mut line = Vec::new();
            let limit = (self.longest as u64).saturating_add(1);
            let mut read = (&mut self.input).take(limit).read_until(b'\n', &mut line)? as u64;
            if read == 0 {
                return Ok(None);
            }
            let is_long = read == limit && line.last() != Some(&b'\n');
            if is_long {
                read += self.skip_line()?;
            }
            let is_first = self.position == 0;
            self.position += read;
            self.number += 1;
            let content = line.strip_suffix(b"\n").unwrap_or(&line);
            let content = if is_first { content.strip_prefix(MARK).unwrap_or(content) } else { content };
            if !is_long && content.trim_ascii().is_empty() {
                continue;
            }
            let content = (!is_long).then(|| content.trim_ascii().to_vec());
            return Ok(Some(InputLine { number: self.number, end: self.position, content }));
        }
    }

    /// Returns the lines that follow: at least one, and more while the cost of the lines before is less than `budget`. The list is
    /// empty at the end of the file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn next_lines(&mut self, budget: u64, cost: impl Fn(&InputLine) -> u64) -> io::Result<Vec<InputLine>> {
        let (mut lines, mut spent) = (Vec::new(), 0u64);
        while spent < budget || lines.is_empty() {
            let Some(line) = self.next_line()? else { break };
            spent = spent.saturating_add(cost(&line));
            lines.push(line);
        }
        Ok(lines)
    }

    /// Skips the rest of a line, and returns its length.
    fn skip_line(&mut self) -> io::Result<u64> {
        let mut skipped = 0;
        loop {
            let available = self.input.fill_buf()?;
            let found = memchr::memchr(b'\n', available);
            let length = found.map_or(available.len(), |at| at + 1);
            self.input.consume(length);
            skipped += length as u64;
            if found.is_some() || length == 0 {
                return Ok(skipped);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(content: &[u8], position: u64, lines: u64, longest: usize) -> Vec<(u64, u64, Option<Vec<u8>>)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let mut reader = LineReader::new(file.reopen().unwrap(), position, lines, longest).unwrap();
        let mut found = Vec::new();
        while let Some(line) = reader.next_line().unwrap() {
            found.push((line.number, line.end, line.content));
        }
        found
    }

    #[test]
    fn blank_lines_a_mark_and_a_missing_last_line_break_are_skipped() {
        let text = |text: &str| Some(text.as_bytes().to_vec());
        let content = "\u{feff}a\r\n\n  \nb\n\u{feff}\nc".as_bytes();
        let found = [(1, 6, text("a")), (4, 12, text("b")), (5, 16, text("\u{feff}")), (6, 17, text("c"))];
        assert_eq!(lines(content, 0, 0, 100), found);
        assert_eq!(lines(content, 12, 4, 100), found[2..]);
        assert_eq!(lines(b"", 0, 0, 100), []);
        assert_eq!(lines("\u{feff}\n".as_bytes(), 0, 0, 100), []);
    }

    #[test]
    fn a_line_over_the_limit_is_skipped_without_being_kept() {
        let mut content = vec![b'a'; 200_000];
        content.extend_from_slice(b"\nbbbb\nccccc\ndddddd");
        let found = lines(&content, 0, 0, 4);
        let found: Vec<_> =
            found.into_iter().map(|(number, end, line)| (number, end, line.map(|line| line.len()))).collect();
        assert_eq!(found, [(1, 200_001, None), (2, 200_006, Some(4)), (3, 200_012, None), (4, 200_018, None)]);
    }

    #[test]
    fn lines_are_read_until_a_budget_is_spent() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "aaa\nbbb\nccc\n").unwrap();
        let mut reader = LineReader::new(file.reopen().unwrap(), 0, 0, 10).unwrap();
        let counts: Vec<usize> = (0..4).map(|_| reader.next_lines(5, InputLine::size).unwrap().len()).collect();
        assert_eq!(counts, [2, 1, 0, 0]);
    }
}
