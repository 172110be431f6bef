//! A table of the lengths of short words that are not letters alone: numbers, punctuation and white space.
//!
//! The expressions know most characters by the sets that hold them alone, so characters of ASCII in the same sets are one class. The table
//! is indexed by the classes of the four bytes from the begin of a word on. It has the length of the word if these bytes decide it. For
//! example, `cl100k_base` cuts `" (a b"` behind `" ("` whatever follows the letter.

use super::sets::{Bits, Sets};

/// The number of bits for a class.
const CLASS_BITS: usize = 4;
/// The number of bytes that decide.
const BYTES: usize = 4;

pub struct ShortWords {
    /// The class of each byte. 0 stands for bytes about which nothing is known: those beyond ASCII, zeros, which also stand behind the end
    /// of a text, and apostrophes, because the letters behind them matter.
    classes: [u8; 256],
    /// By the classes of four bytes, the length of the word, or 0 if they do not decide it.
    lengths: Vec<u8>,
}

impl Default for ShortWords {
    fn default() -> Self {
        Self { classes: [0; 256], lengths: vec![0; 1 << (CLASS_BITS * BYTES)] }
    }
}

impl ShortWords {
    /// Asks `length` for the length of the first word of a text.
    pub fn learn(sets: &Sets, length: impl Fn(&str) -> usize) -> Self {
        let mut this = Self::default();
        // A character of each class.
        let mut known: Vec<(Bits, char)> = Vec::new();
        for (class, c) in
            this.classes.iter_mut().zip((0..0x80_u8).map(char::from)).filter(|(_, c)| !['\0', '\''].contains(c))
        {
            let bits = sets.of(u32::from(c));
            let place = known.iter().position(|(known, _)| *known == bits);
            let place = place.unwrap_or_else(|| {
                known.push((bits, c));
                known.len() - 1
            });
            *class = place as u8 + 1;
        }
        if known.len() >= 1 << CLASS_BITS {
            return Self::default();
        }
        let characters: Vec<char> = known.iter().map(|&(_, c)| c).collect();
        let mut behind: Vec<String> = vec![String::new()];
        for first in characters.iter().chain(&['\'', '\0', 'é', '日', '\u{301}', '\u{a0}', '²']) {
            behind.push(first.to_string());
            behind.extend(characters.iter().map(|second| [*first, *second].iter().collect()));
        }
        this.learn_from(&characters, &behind, &mut Vec::new(), &length);
        this
    }

    /// Fills in the words that begin with the characters at the places `begin`.
    fn learn_from(
        &mut self,
        characters: &[char],
        behind: &[String],
        begin: &mut Vec<usize>,
        length: &impl Fn(&str) -> usize,
    ) {
        let text: String = begin.iter().filter_map(|&place| characters.get(place)).collect();
        let lengths = |rest: &String| length(&(text.clone() + rest));
        let first = behind.first().map_or(0, lengths);
        if (1..=begin.len()).contains(&first) && behind.iter().all(|rest| lengths(rest) == first) {
            let index = begin.iter().fold(0, |index, place| index << CLASS_BITS | (place + 1));
            let rest = CLASS_BITS * (BYTES - begin.len());
            let range = index << rest..(index + 1) << rest;
            self.lengths.get_mut(range).unwrap_or_default().fill(first as u8);
        } else if begin.len() < BYTES && first >= begin.len() {
            for place in 0..characters.len() {
                begin.push(place);
                self.learn_from(characters, behind, begin, length);
                begin.pop();
            }
        }
    }

    /// Returns the length of the word that begins with these bytes, if they decide it.
    #[inline]
    pub fn length(&self, bytes: &[u8; BYTES]) -> Option<usize> {
        let class = |byte: u8| usize::from(self.classes.get(usize::from(byte)).copied().unwrap_or_default());
        let index = bytes.iter().fold(0, |index, &byte| index << CLASS_BITS | class(byte));
        self.lengths.get(index).map(|&length| usize::from(length)).filter(|&length| length > 0)
    }
}
