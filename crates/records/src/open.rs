//! Opens a file as UTF-8 text: decompresses the file, decodes UTF-16, removes a byte order mark, and refuses content that is not text.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::path::Path;

use encoding_rs::{Encoding, UTF_16BE, UTF_16LE};
use encoding_rs_io::DecodeReaderBytesBuilder;

use crate::{RecordsError, RecordsErrorKind};
use layer0_files::FileError;

/// The number of bytes at the beginning of a file that determine what the file contains.
const HEAD: usize = 8 << 10;
const BUFFER: usize = 1 << 20;
/// The largest amount of memory that one xz stream may request. `xz -9` needs 65 MiB.
const XZ_MEMORY_KIB: u32 = 1 << 20;

/// A compression format that the readers decompress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// `.gz`
    Gzip,
    /// `.zst`
    Zstd,
    /// `.bz2`
    Bzip2,
    /// `.xz`
    Xz,
    /// `.lz4`
    Lz4,
}

impl Compression {
    /// Returns the format that a lowercase extension stands for.
    pub fn of_extension(extension: &str) -> Option<Self> {
        match extension {
            "gz" | "gzip" => Some(Self::Gzip),
            "zst" | "zstd" => Some(Self::Zstd),
            "bz2" => Some(Self::Bzip2),
            "xz" => Some(Self::Xz),
            "lz4" => Some(Self::Lz4),
            _ => None,
        }
    }

    /// Returns the format whose magic number the content begins with.
    fn of_content(head: &[u8]) -> Option<Self> {
        const SKIPPABLE_FRAME: std::ops::RangeInclusive<u8> = 0x50..=0x5f;
        match head {
            [0x1f, 0x8b, 8, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            // zstd and lz4 share the magic numbers of skippable frames. A file that begins with one is taken for zstd,
            // because pzstd and seekable zstd write skippable frames.
            [n, 0x2a, 0x4d, 0x18, ..] if SKIPPABLE_FRAME.contains(n) => Some(Self::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => Some(Self::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x04, 0x22, 0x4d, 0x18, ..] => Some(Self::Lz4),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
        }
    }

    fn decompressed(self, input: Peeked<Box<dyn Read>>) -> io::Result<Box<dyn Read>> {
        Ok(match self {
            Self::Gzip => Box::new(Members::<flate2::bufread::GzDecoder<_>>::new(input)),
            Self::Bzip2 => Box::new(Members::<bzip2::bufread::BzDecoder<_>>::new(input)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
            Self::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, XZ_MEMORY_KIB)),
            Self::Lz4 => Box::new(Lz4Frames::new(input)),
        })
    }
}

/// A reader whose first bytes were already read, and are returned once more.
type Peeked<R> = Chain<Cursor<Vec<u8>>, BufReader<R>>;

/// Reads ahead at most [`HEAD`] bytes, and returns a copy of them.
fn peek<R: Read>(reader: R) -> io::Result<(Vec<u8>, Peeked<R>)> {
    let mut reader = BufReader::with_capacity(BUFFER, reader);
    let mut head = Vec::new();
    (&mut reader).take(HEAD as u64).read_to_end(&mut head)?;
    Ok((head.clone(), Cursor::new(head).chain(reader)))
}

/// Opens `raw`, the content of the file `name`, as UTF-8 text without a byte order mark. The content determines whether
/// and how the file is compressed. `expected` is the compression that the name of the file implies.
///
/// # Errors
/// Fails if the content is not compressed as the name implies, is not text, or cannot be read.
pub fn text(
    raw: Box<dyn Read>,
    name: &Path,
    expected: Option<Compression>,
) -> Result<BufReader<Box<dyn Read>>, RecordsError> {
    let failed = |error: io::Error| FileError::reading(name, &error);
    let unsupported = |problem: String| RecordsError::new(RecordsErrorKind::Unsupported, name, problem);
    let (head, input) = peek(raw).map_err(failed)?;
    let found = Compression::of_content(&head);
    let (head, input): (_, Box<dyn Read>) = match (found, expected) {
        (None, Some(expected)) => {
            let empty = if head.is_empty() { "the file is empty" } else { "its content is not" };
            let expected = expected.name();
            return Err(unsupported(format!("is named like a file in the {expected} format, and {empty}"))
                .remedy("decompress the file again from its source, or correct its name"));
        }
        (None, None) => (head, Box::new(input)),
        (Some(compression), _) => {
            let damaged = |e: io::Error| {
                let problem = format!("cannot be decompressed as {}: {e}", compression.name());
                RecordsError::new(RecordsErrorKind::Damaged, name, problem)
            };
            let decompressed = compression.decompressed(input).map_err(damaged)?;
            let (head, input) = peek(decompressed).map_err(damaged)?;
            if let Some(inner) = Compression::of_content(&head) {
                let problem = format!("was compressed twice: {} within {}", inner.name(), compression.name());
                return Err(unsupported(problem).remedy("decompress the file once"));
            }
            (head, Box::new(input))
        }
    };
    if let Some(kind) = not_text(&head) {
        return Err(unsupported(format!("is not text: its content looks like {kind}"))
            .expected("text in UTF-8 or UTF-16, or Parquet in a file whose name ends in .parquet; all but Parquet may be compressed by gzip, zstd, bzip2, xz or lz4"));
    }
    let encoding = if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
        None
    } else {
        utf16_without_mark(&head)
    };
    let is_utf16 = encoding.is_some() || head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]);
    let mut decoder = DecodeReaderBytesBuilder::new();
    // UTF-8 passes through unchanged. Bytes that are not UTF-8 make a single record bad, and the caller reports that
    // record.
    decoder.encoding(encoding).bom_sniffing(is_utf16).strip_bom(true).utf8_passthru(true);
    let decoded: Box<dyn Read> = if is_utf16 {
        Box::new(decoder.build(input))
    } else if head.starts_with(b"\xef\xbb\xbf") {
        let mut input = input;
        input.read_exact(&mut [0; 3]).map_err(failed)?;
        input
    } else {
        input
    };
    Ok(BufReader::with_capacity(BUFFER, decoded))
}

/// Returns the encoding of UTF-16 text that has no byte order mark. Such text contains spaces, line breaks or digits,
/// and therefore NUL bytes that are all at even offsets or all at odd offsets.
fn utf16_without_mark(head: &[u8]) -> Option<&'static Encoding> {
    let units = head.as_chunks::<2>().0;
    let is_latin = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~' | 0xa0..=0xff);
    let little = units.iter().filter(|[low, high]| *high == 0 && is_latin(low)).count();
    let big = units.iter().filter(|[high, low]| *high == 0 && is_latin(low)).count();
    let zeros = head.iter().filter(|&&byte| byte == 0).count();
    let (count, encoding) = if little > big { (little, UTF_16LE) } else { (big, UTF_16BE) };
    // UTF-8 text with a few NUL bytes has no other control characters. The NUL bytes alone must not make it look like
    // UTF-16.
    let is_utf8 = is_utf8_or_cut(head) && !head.iter().any(|&byte| byte != 0 && is_control(byte));
    let least = if is_utf8 { 7 * units.len() } else { units.len() };
    if count == 0 || zeros != count || 10 * count < least {
        return None;
    }
    let units = units.iter().map(|unit| match encoding == UTF_16LE {
        true => u16::from_le_bytes(*unit),
        false => u16::from_be_bytes(*unit),
    });
    let mut characters = char::decode_utf16(units).peekable();
    while let Some(character) = characters.next() {
        // The head may end within a surrogate pair.
        if character.is_err() && characters.peek().is_some() {
            return None;
        }
    }
    Some(encoding)
}

/// Returns what the content is if it is certainly not text.
fn not_text(head: &[u8]) -> Option<&'static str> {
    const MAGIC: [(&[u8], &str); 22] = [
        (b"PAR1", "a Parquet file"),
        (b"PARE", "an encrypted Parquet file"),
        (b"ARROW1", "an Arrow IPC (Feather) file"),
        (b"Obj\x01", "an Avro file"),
        (b"ORC", "an ORC file"),
        (b"%PDF-", "a PDF"),
        (b"PK\x03\x04", "a ZIP archive, which .xlsx and .docx files are too"),
        (b"PK\x05\x06", "an empty ZIP archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"Rar!\x1a\x07", "a RAR archive"),
        (b"\x1f\x9d", "a file compressed by compress (.Z)"),
        (b"\x89LZO", "a file compressed by lzop"),
        (b"LZIP", "a file compressed by lzip"),
        (b"\xff\x06\x00\x00sNaPpY", "a file compressed by snappy"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Microsoft Office document"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"\x93NUMPY", "an npy file"),
        (b"\x89HDF", "an HDF5 file"),
        (b"GGUF", "a GGUF file"),
        (b"\xff\xfe\0\0", "UTF-32 text"),
        (b"\0\0\xfe\xff", "UTF-32 text"),
        (b"\x7fELF", "a program"),
    ];
    let is_plausible = |magic: &[u8]| {
        // These magic numbers consist of letters alone, so a text can begin with them.
        !(magic == b"ORC" || magic == b"LZIP" || magic == b"GGUF" || magic == b"PAR1" || magic == b"PARE")
            || head.iter().take(64).any(|&byte| is_control(byte))
    };
    if let Some((_, kind)) = MAGIC.iter().find(|(magic, _)| head.starts_with(magic) && is_plausible(magic)) {
        return Some(kind);
    }
    if head.get(257..262) == Some(b"ustar") && head.contains(&0) {
        return Some("a tar archive");
    }
    if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) || utf16_without_mark(head).is_some() {
        return None;
    }
    let controls = head.iter().filter(|&&byte| is_control(byte)).count();
    let zeros = head.iter().filter(|&&byte| byte == 0).count();
    let is_utf8 = is_utf8_or_cut(head);
    // A single control character in a text makes one record bad, not the file. In compressed and random data, about
    // every tenth byte is a control character.
    let share = if is_utf8 { 20 } else { 100 };
    (20 * zeros > head.len() || controls > 0 && share * controls > head.len() && !is_utf8).then_some("binary data")
}

/// Tells whether the bytes are UTF-8, apart from a last character that may be cut off.
fn is_utf8_or_cut(head: &[u8]) -> bool {
    str::from_utf8(head).map_or_else(|e| e.error_len().is_none(), |_| true)
}

/// Tells whether the byte is a control character that does not occur in text.
fn is_control(byte: u8) -> bool {
    matches!(byte, 0..=6 | 14..=26 | 28..=31 | 127)
}

/// A decoder of one member of a compressed file.
trait Member<R>: Read {
    fn of(input: R) -> Self;
    fn input(self) -> R;
    /// Whether a member begins with this byte.
    fn begins_with(byte: u8) -> bool;
}

impl<R: BufRead> Member<R> for flate2::bufread::GzDecoder<R> {
    fn of(input: R) -> Self {
        Self::new(input)
    }
    fn input(self) -> R {
        self.into_inner()
    }
    fn begins_with(byte: u8) -> bool {
        byte == 0x1f
    }
}

impl<R: BufRead> Member<R> for bzip2::bufread::BzDecoder<R> {
    fn of(input: R) -> Self {
        Self::new(input)
    }
    fn input(self) -> R {
        self.into_inner()
    }
    fn begins_with(byte: u8) -> bool {
        byte == b'B'
    }
}

/// Reads the members of a compressed file one after another. Zero bytes after the last member, as in padded files and
/// on tapes, are skipped.
struct Members<M> {
    /// `None` after the last member.
    member: Option<M>,
}

impl<M> Members<M> {
    fn new<R>(input: R) -> Self
    where
        M: Member<R>,
    {
        Self { member: Some(M::of(input)) }
    }
}

impl<M: Member<Peeked<Box<dyn Read>>>> Read for Members<M> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while let Some(member) = &mut self.member {
            let read = member.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            let Some(mut input) = self.member.take().map(M::input) else { break };
            let mut zeros = 0;
            let next = loop {
                match input.fill_buf()?.first().copied() {
                    Some(0) => {
                        input.consume(1);
                        zeros += 1;
                    }
                    next => break next,
                }
            };
            match next {
                None => {}
                Some(byte) if M::begins_with(byte) => self.member = Some(M::of(input)),
                Some(byte) => {
                    let after = if zeros > 0 { format!(" after {zeros} zero bytes") } else { String::new() };
                    let problem = format!(
                        "the compressed data ends, and what follows{after} is not compressed: a byte {byte:#04x}"
                    );
                    return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
                }
            }
        }
        Ok(0)
    }
}

/// Reads the frames of an lz4 file one after another.
struct Lz4Frames<R: Read> {
    frames: lz4_flex::frame::FrameDecoder<Watched<R>>,
    is_over: bool,
}

/// A reader that records whether it was read after its end.
struct Watched<R> {
    input: R,
    is_exhausted: bool,
}

impl<R: BufRead> Lz4Frames<R> {
    fn new(input: R) -> Self {
        let frames = lz4_flex::frame::FrameDecoder::new(Watched { input, is_exhausted: false });
        Self { frames, is_over: false }
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.is_exhausted |= read == 0 && !buffer.is_empty();
        Ok(read)
    }
}

impl<R: BufRead> Read for Lz4Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.is_over {
            return Ok(0);
        }
        loop {
            let read = self.frames.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            // The decoder returns 0 after each frame, and begins the next frame if it is read again. It also returns 0
            // where a frame is cut off.
            let input = self.frames.get_mut();
            if input.is_exhausted {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends within an lz4 frame"));
            }
            self.is_over = input.input.fill_buf()?.is_empty();
            if self.is_over {
                return Ok(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str, unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(unit).collect()
    }

    #[test]
    fn utf16_is_recognized_without_a_mark_and_nul_bytes_are_not_utf16() {
        for text in ["{\"text\":\"a\"}\n", "안녕하세요 세계\n두번째 줄\n", "Привет, мир\n", "größe\n", "a\n"]
        {
            assert_eq!(utf16_without_mark(&bytes(text, u16::to_le_bytes)), Some(UTF_16LE), "{text}");
            assert_eq!(utf16_without_mark(&bytes(text, u16::to_be_bytes)), Some(UTF_16BE), "{text}");
            assert_eq!((utf16_without_mark(text.as_bytes()), not_text(text.as_bytes())), (None, None), "{text}");
        }
        for head in [&b"a\0b\nc\n"[..], b"a line\0 with one\n", b"", b"\0", b"\0\0\0\0", b"a\0b\0\0c"] {
            assert_eq!(utf16_without_mark(head), None, "{head:?}");
        }
    }

    #[test]
    fn text_that_begins_like_a_magic_number_is_text() {
        for text in
            ["ORCHID\n", "PAR1 is a word\n", "GGUF, a format\n", "BZh is not bzip2\n", "Obj", "one\x0c\x1b[1mtwo\n"]
        {
            assert_eq!((not_text(text.as_bytes()), Compression::of_content(text.as_bytes())), (None, None), "{text}");
        }
    }
}
