//! Some hundred words of a text, which go through each lookup together.
//!
//! For example, the block of `" the frabjous day"` has the tokens of ` the` and ` day`, which are frequent words, and holds ` frabjous` among
//! the other words until the cache or the merges give its tokens.

use std::ops::Range;

use crate::words::cache::{FrequentWords, PackedIds};
use crate::words::{PADDING, ShortKey};

/// The number of words of a block.
pub const BLOCK: usize = 256;

/// A copy of a text, followed by [`PADDING`], so that every word can be read as a window of fixed length.
#[derive(Default)]
pub struct PaddedText(Vec<u8>);

/// A text and its copy in a [`PaddedText`].
#[derive(Clone, Copy)]
pub struct Text<'t> {
    text: &'t str,
    padded: &'t [u8],
}

impl PaddedText {
    pub fn set<'t>(&'t mut self, text: &'t str) -> Text<'t> {
        self.0.clear();
        self.0.extend_from_slice(text.as_bytes());
        self.0.extend_from_slice(&PADDING);
        Text { text, padded: &self.0 }
    }
}

impl<'t> Text<'t> {
    pub fn len(self) -> usize {
        self.text.len()
    }

    pub fn as_str(self) -> &'t str {
        self.text
    }

    pub fn padded(self) -> &'t [u8] {
        self.padded
    }
}

/// A word that is not a frequent one. A word is a part of a text whose tokens never extend beyond it.
#[derive(Clone, Copy)]
pub struct Word {
    /// [`ShortKey::NO_WORD`] if the word is too long.
    pub key: ShortKey,
    /// The high half of the hash of the key.
    pub high: u32,
    /// The index of the word in its block.
    pub index: u32,
    pub start: usize,
    pub end: usize,
}

/// Words of a text that are looked up together.
pub struct Block {
    /// The tokens of each word, or the index of an unknown word.
    tokens: Box<[PackedIds; BLOCK]>,
    count: usize,
    /// The words that are not frequent ones.
    others: Box<[Word; BLOCK]>,
    others_count: usize,
}

impl Default for Block {
    fn default() -> Self {
        let word = Word { key: ShortKey::NO_WORD, high: 0, index: 0, start: 0, end: 0 };
        Self {
            tokens: Box::new([PackedIds::default(); BLOCK]),
            count: 0,
            others: Box::new([word; BLOCK]),
            others_count: 0,
        }
    }
}

impl Block {
    /// Takes words of `text` from `start` on, as many as fit, and looks them up among the frequent words. Returns the end of the last word.
    #[inline]
    pub fn fill(
        &mut self,
        text: Text<'_>,
        mut start: usize,
        frequent: &FrequentWords,
        end_of_word: &mut impl FnMut(usize) -> usize,
    ) -> usize {
        let Self { tokens, count, others, others_count } = self;
        let (mut words, mut other_words) = (0, 0);
        for (index, tokens) in (0..).zip(tokens.iter_mut()) {
            let end = end_of_word(start);
            let window = text.padded.get(start..).and_then(<[u8]>::first_chunk);
            let key = window.map_or(ShortKey::NO_WORD, |window| ShortKey::of_window(window, end - start));
            let high = (key.hash() >> 32) as u32;
            // A word is always written to the others, and replaced by the next one if it is frequent: whether it is cannot be predicted.
            if let Some(other) = others.get_mut(other_words) {
                *other = Word { key, high, index, start, end };
            }
            let found;
            (*tokens, found) = frequent.get(&key, high);
            other_words += usize::from(!found);
            words += 1;
            start = end;
            if start >= text.len() {
                break;
            }
        }
        (*count, *others_count) = (words, other_words);
        start
    }

    /// Returns the tokens of all words, to be filled in for the words that are not frequent ones, and these words.
    pub fn others(&mut self) -> (&mut [PackedIds], &[Word]) {
        (self.tokens.as_mut_slice(), self.others.get(..self.others_count).unwrap_or_default())
    }

    /// Appends the tokens of the words to `ids`. A word with an index instead of tokens has the tokens `found[range(index)]`.
    pub fn append_tokens(&self, ids: &mut Vec<u32>, found: &[u32], range: impl Fn(usize) -> Range<usize>) {
        let words = self.tokens.get(..self.count).unwrap_or_default();
        let mut end = ids.len();
        // Each word may write this many IDs behind its own.
        ids.resize(end + (words.len() + 1) * PackedIds::MOST + found.len(), 0);
        for tokens in words {
            match tokens.unpack() {
                Ok((tokens, count)) => {
                    if let Some(room) = ids.get_mut(end..).and_then(<[u32]>::first_chunk_mut) {
                        *room = tokens;
                    }
                    end += count;
                }
                Err(index) => {
                    let tokens = found.get(range(index)).unwrap_or_default();
                    if let Some(room) = ids.get_mut(end..end + tokens.len()) {
                        room.copy_from_slice(tokens);
                    }
                    end += tokens.len();
                }
            }
        }
        ids.truncate(end);
    }
}
