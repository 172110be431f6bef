//! The text that each token stands for, for display: a space where the vocabulary writes `▁` or `Ġ`, and `<0xEC>` for a byte that
//! is not
//! valid UTF-8 by itself.

use std::fmt::Write;

use foldhash::HashMap;

use crate::compiled::{CompiledError, Reader, Writer};

/// The text or bytes of every token, by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pieces {
    bytes: Vec<u8>,
    /// For each ID, the position where its bytes end.
    ends: Vec<u32>,
}

/// The way in which the entries of a vocabulary spell bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// As GPT-2 does: one printable character for each byte.
    /// Source: `bytes_to_unicode` in <https://github.com/openai/gpt-2/blob/master/src/encoder.py>.
    ByteLevel,
    /// As SentencePiece does: `▁` for a space.
    Metaspace,
    Plain,
}

impl Pieces {
    /// Creates the pieces from entries in the order of their IDs; `None` is an ID without a token. The content of an added token
    /// is always taken literally.
    pub fn new<T: AsRef<str>>(entries: impl Iterator<Item = Option<(T, Spelling)>>) -> Self {
        let byte_of = bytes_by_character();
        let mut pieces = Self::default();
        for entry in entries {
            if let Some((text, spelling)) = entry {
                let text = text.as_ref();
                match spelling {
                    Spelling::ByteLevel => {
                        for c in text.chars() {
                            match byte_of.get(&c) {
                                Some(&byte) => pieces.bytes.push(byte),
                                None => pieces.bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                            }
                        }
                    }
                    Spelling::Metaspace => pieces.bytes.extend_from_slice(text.replace('\u{2581}', " ").as_bytes()),
                    Spelling::Plain => pieces.bytes.extend_from_slice(text.as_bytes()),
                }
            }
            pieces.ends.push(u32::try_from(pieces.bytes.len()).unwrap_or(u32::MAX));
        }
        pieces
    }

    pub(crate) fn write_to(&self, to: &mut Writer) {
        to.list(&self.bytes);
        to.list(&self.ends);
    }

    /// Reads what [`Pieces::write_to`] wrote.
    ///
    /// # Errors
    /// When the lists are damaged.
    pub(crate) fn read(from: &mut Reader<'_>) -> Result<Self, CompiledError> {
        Ok(Self { bytes: from.list()?, ends: from.list()? })
    }

    /// Appends the piece of `id` to `out`, or nothing if the tokenizer has no such ID.
    pub fn write(&self, id: u32, out: &mut String) {
        let id = id as usize;
        let end = self.ends.get(id).copied().unwrap_or_default() as usize;
        let start = id.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or_default() as usize;
        for chunk in self.bytes.get(start..end).unwrap_or_default().utf8_chunks() {
            out.push_str(chunk.valid());
            for byte in chunk.invalid() {
                // Writing to a String never fails.
                let _ = write!(out, "<0x{byte:02X}>");
            }
        }
    }
}

/// Returns GPT-2's character for each byte: the byte itself if it is printable, otherwise the next character from U+0100 on.
pub(super) fn byte_characters() -> impl Iterator<Item = (char, u8)> {
    let mut next = 0x100;
    (0..=u8::MAX).map(move |byte| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE.. => (char::from(byte), byte),
        _ => {
            next += 1;
            (char::from_u32(next - 1).unwrap_or_default(), byte)
        }
    })
}

/// Returns the byte for each character of [`byte_characters`].
pub(super) fn bytes_by_character() -> HashMap<char, u8> {
    byte_characters().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(entries: &[(&str, Spelling)]) -> Vec<String> {
        let pieces = Pieces::new(entries.iter().map(|(text, spelling)| Some(((*text).to_owned(), *spelling))));
        (0..=entries.len())
            .map(|id| {
                let mut out = String::new();
                pieces.write(id as u32, &mut out);
                out
            })
            .collect()
    }

    #[test]
    fn each_spelling_is_read_as_text_and_lone_bytes_are_shown() {
        use Spelling::{ByteLevel, Metaspace, Plain};
        let read = pieces(&[
            ("Ġhello", ByteLevel),
            ("Ã©Ċ", ByteLevel),
            ("ìķ", ByteLevel),
            ("▁▁a", Metaspace),
            ("<0xEC>", Metaspace),
            ("Ġ▁", Plain),
            ("", Plain),
        ]);
        assert_eq!(read, [" hello", "é\n", "<0xEC><0x95>", "  a", "<0xEC>", "Ġ▁", "", ""]);
    }

    /// The crate's own alphabet.
    #[test]
    fn the_byte_level_alphabet_is_the_reference_s() {
        let ours: std::collections::HashSet<char> = byte_characters().map(|(c, _)| c).collect();
        let theirs = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        assert_eq!(ours, theirs.into_iter().collect());
    }
}
