//! Finds the ends of runs of letters in a text, many at once.
//!
//! A break is the position of a byte that is not part of a letter: a run of letters ends before the next break. The breaks of
//! `" don't go"` are 0, 4, and 6. Bytes of ASCII are classified 64 at a time. Every other code point is looked up in a table.

mod classes;

use classes::Classes;

/// The number of bytes of a text in which breaks are found at once.
const COVERED: usize = 4096;

/// Room for as many breaks, for the eight that are written at a time, and for the end.
const SPACE: usize = COVERED + 64;

/// What a code point beyond ASCII does in a run of letters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The code point is not known to belong to the run.
    Other,
    /// The code point belongs to the run like a lower-case letter of ASCII.
    Lower,
    /// The code point belongs to the run like an upper-case letter of ASCII.
    Upper,
}

/// The breaks in a part of a text.
pub struct Breaks {
    /// The position in the text from which breaks are counted.
    base: usize,
    /// The breaks, and [`Breaks::END`] behind the last one.
    breaks: Box<[u16; SPACE]>,
    /// The number of breaks.
    count: usize,
    /// The index of the first break that may be behind the words found so far.
    next: usize,
}

impl Default for Breaks {
    fn default() -> Self {
        Self { base: 0, breaks: Box::new([Self::END; SPACE]), count: 0, next: 0 }
    }
}

impl Breaks {
    /// Stands behind the last break.
    const END: u16 = u16::MAX;

    /// Forgets the breaks of a text.
    pub fn clear(&mut self) {
        (self.base, self.count, self.next) = (0, 0, 0);
        self.set_end();
    }

    fn set_end(&mut self) {
        if let Some(place) = self.breaks.get_mut(self.count) {
            *place = Self::END;
        }
    }

    /// Returns the first break behind the position `start`, or `None` if it has not been found yet. `start` never decreases between two
    /// calls of [`Breaks::find`].
    #[inline]
    pub fn next(&mut self, start: usize) -> Option<usize> {
        let offset = start - self.base;
        loop {
            let found = self.breaks.get(self.next).copied().filter(|&found| found != Self::END)?;
            self.next += 1;
            if usize::from(found) > offset {
                return Some(self.base + usize::from(found));
            }
        }
    }

    /// Lets [`Breaks::next`] return the last break again: the word does not end there.
    #[inline]
    pub fn give_back(&mut self) {
        self.next -= 1;
    }

    /// Returns whether `start`, for which [`Breaks::next`] was called last, is a break.
    #[inline]
    pub fn is_break(&self, start: usize) -> bool {
        let before = self.next.checked_sub(2).and_then(|before| self.breaks.get(before));
        before.is_some_and(|&before| usize::from(before) == start - self.base)
    }

    /// Finds breaks from `start` on. `text` is followed by at least 64 zeros. `role` tells the role of a code point beyond ASCII. With
    /// `by_case`, an upper-case letter behind a letter that is not in upper case is a break, as in `camelCase`.
    #[inline]
    pub fn find(&mut self, text: &[u8], start: usize, by_case: bool, role: impl Fn(u32) -> Role) {
        (self.base, self.count, self.next) = (start, 0, 0);
        let rest = text.get(start..).unwrap_or_default();
        let blocks = rest.as_chunks::<64>().0;
        // The bytes of this block that belong to a code point that began in the block before: those of letters, and those of upper-case
        // letters.
        let (mut begun, mut begun_upper) = (0, 0);
        // Whether the block before ended with a letter that is not in upper case.
        let mut behind_lower = 0;
        let mut filled = 0;
        for block in blocks.iter().take(COVERED / 64) {
            let classes = Classes::of(block, by_case);
            let mut letters = u128::from(classes.letters | begun);
            let mut upper = u128::from(classes.upper | begun_upper);
            let mut upper_starts = classes.upper;
            let mut leads = classes.others;
            while leads != 0 {
                let at = leads.trailing_zeros() as usize;
                leads &= leads - 1;
                let bytes = rest.get(filled + at..).and_then(<[u8]>::first_chunk);
                // Bytes within a code point are skipped.
                let Some((code_point, length)) = bytes.and_then(decode) else { continue };
                let role = role(code_point);
                if role != Role::Other {
                    let bytes = u128::from((1_u64 << length) - 1) << at;
                    letters |= bytes;
                    if role == Role::Upper {
                        upper |= bytes;
                        upper_starts |= 1 << at;
                    }
                }
            }
            (begun, begun_upper) = ((letters >> 64) as u64, (upper >> 64) as u64);
            let letters = letters as u64;
            let lower = letters & !(upper as u64);
            let humps = if by_case { upper_starts & (lower << 1 | behind_lower) } else { 0 };
            self.push(filled, !letters | humps);
            behind_lower = lower >> 63;
            filled += 64;
        }
        self.set_end();
    }

    /// Adds the set bits of `bits` as breaks, which are counted from `at` on.
    #[inline]
    fn push(&mut self, at: usize, mut bits: u64) {
        let count = bits.count_ones() as usize;
        let Some(places) = self.breaks.get_mut(self.count..).and_then(<[u16]>::first_chunk_mut::<64>) else { return };
        let (places, _) = places.as_chunks_mut::<8>();
        // Eight are written at a time, because their number cannot be predicted.
        for eight in places.iter_mut().take(count.div_ceil(8)) {
            for place in eight {
                *place = (at as u32 + bits.trailing_zeros()) as u16;
                bits &= bits.wrapping_sub(1);
            }
        }
        self.count += count;
    }
}

/// Decodes the code point at the front of `bytes`. Returns the code point and its length, or `None` if `bytes` begin within a code point.
#[inline]
fn decode(bytes: &[u8; 4]) -> Option<(u32, usize)> {
    let [first, rest @ ..] = bytes.map(u32::from);
    let [second, third, fourth] = rest.map(|byte| byte & 0x3f);
    match first {
        ..0xC0 => None,
        0xC0..0xE0 => Some(((first & 0x1f) << 6 | second, 2)),
        0xE0..0xF0 => Some(((first & 0xf) << 12 | second << 6 | third, 3)),
        _ => Some(((first & 7) << 18 | second << 12 | third << 6 | fourth, 4)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Letters of one to four bytes across the ends of blocks and of the covered part.
    #[test]
    fn a_break_is_each_byte_that_is_not_part_of_a_letter() {
        let role = |code_point| match char::from_u32(code_point).unwrap() {
            'Ä' | '𐐀' => Role::Upper,
            'ä' | '日' | '𐐨' => Role::Lower,
            _ => Role::Other,
        };
        let characters = ['a', 'B', ' ', '.', '\0', 'Ä', 'ä', '日', '𐐀', '𐐨', '…', '\u{301}'];
        let mut rng = fastrand::Rng::with_seed(6);
        for round in 0..60 {
            let few: Vec<char> = (0..3).map(|_| characters[rng.usize(..characters.len())]).collect();
            let characters = if round % 2 == 0 { &few[..] } else { &characters };
            let text: String = (0..rng.usize(0..3_000)).map(|_| characters[rng.usize(..characters.len())]).collect();
            let padded = [text.as_bytes(), &[0; 64]].concat();
            let start = (0..text.len().min(90)).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            for by_case in [false, true] {
                let mut expected = Vec::new();
                let mut behind_lower = false;
                for (at, c) in text[start..].char_indices() {
                    let is_upper = matches!(c, 'B' | 'Ä' | '𐐀');
                    let is_letter = is_upper || matches!(c, 'a' | 'ä' | '日' | '𐐨');
                    match is_letter {
                        true => expected.extend((by_case && is_upper && behind_lower).then_some(start + at)),
                        false => expected.extend((0..c.len_utf8()).map(|byte| start + at + byte)),
                    }
                    behind_lower = is_letter && !is_upper;
                }
                let mut breaks = Breaks::default();
                breaks.find(&padded, start, by_case, role);
                let end = text.len().min(start + COVERED - 4);
                let is_break = |at: usize| expected.binary_search(&at).is_ok();
                for at in start..end {
                    // From each position, as if a word began there.
                    let next = breaks.next(at);
                    let wanted = expected.iter().copied().find(|&found| found > at).unwrap_or(text.len());
                    assert_eq!(next.unwrap_or(text.len()).min(end), wanted.min(end), "{text:?} {at} {by_case}");
                    if next.is_some() {
                        assert_eq!(breaks.is_break(at), is_break(at), "{text:?} {at} {by_case}");
                        breaks.give_back();
                    }
                }
            }
        }
    }

    #[test]
    fn no_break_is_found_in_a_text_that_was_forgotten() {
        let mut breaks = Breaks::default();
        assert_eq!(breaks.next(0), None);
        breaks.find(&[b' '; 200], 0, false, |_| Role::Other);
        assert_eq!(breaks.next(3), Some(4));
        breaks.clear();
        assert_eq!(breaks.next(0), None);
    }

    /// A word may be longer than the largest number in the list.
    #[test]
    fn no_break_is_found_far_behind_the_covered_part() {
        let mut breaks = Breaks::default();
        breaks.find(&[b' '; 5_000], 0, false, |_| Role::Other);
        assert_eq!(breaks.next(100_000), None);
        breaks.find(&[b'a'; 100_064], 0, false, |_| Role::Other);
        assert_eq!((breaks.next(0), breaks.next(70_000)), (None, None));
    }
}
