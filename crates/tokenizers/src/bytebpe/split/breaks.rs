//! Finds the ends of the words of a text, many at once.
//!
//! A break is the position of a byte with which a word begins, or the end of the text: a word ends at the next break. GPT-2's expression
//! gives `" a (b) c!"` the breaks 0, 2, 4, 5, 6, 8 and 9. The bytes are classified 64 at a time ([`classes`]), and the breaks follow from
//! the classes of neighbors ([`rules`]), as bit masks, so that no branch depends on a single word. Where the rules are not certain, the
//! break says so.

mod classes;
mod rules;

use classes::Classes;
pub use rules::Rules;
use rules::{Before, Bytes};

/// The number of bytes of a text in which breaks are found at once.
const COVERED: usize = 4096;

/// Room for as many breaks, for the eight that are written at a time, and for the end.
const SPACE: usize = COVERED + 64;

/// What a code point beyond ASCII does in a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Nothing is known about the code point.
    Other,
    /// The code point stands in words like a lower-case letter of ASCII.
    Lower,
    /// The code point stands in words like an upper-case letter of ASCII.
    Upper,
    /// The code point stands in words like a full stop.
    Mark,
}

/// The breaks in a part of a text.
pub struct Breaks {
    /// The position in the text from which breaks are counted.
    base: usize,
    /// The breaks, with [`Breaks::DOUBT`] where it applies, and [`Breaks::END`] behind the last one.
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
    /// The bit of a break that may not be the end of the word before it.
    const DOUBT: u16 = 1 << 15;

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

    /// Returns the first break behind the position `start`, at which a word begins, and whether the word certainly ends there. Returns
    /// `None` if the break has not been found yet. `start` never decreases between two calls of [`Breaks::find`].
    #[inline]
    pub fn next(&mut self, start: usize) -> Option<(usize, bool)> {
        let offset = start - self.base;
        loop {
            let found = self.breaks.get(self.next).copied().filter(|&found| found != Self::END)?;
            self.next += 1;
            let at = usize::from(found & !Self::DOUBT);
            if at > offset {
                return Some((self.base + at, found & Self::DOUBT == 0));
            }
        }
    }

    /// Lets [`Breaks::next`] return the last break again: the word ended before it.
    #[inline]
    pub fn give_back(&mut self) {
        self.next -= 1;
    }

    /// Finds breaks from `start` on, at which a word begins. `text` has `length` bytes, followed by at least 64 zeros. `role` tells the
    /// role of a code point beyond ASCII.
    #[inline]
    pub fn find(&mut self, text: &[u8], length: usize, start: usize, rules: &Rules, role: impl Fn(u32) -> Role) {
        (self.base, self.count, self.next) = (start, 0, 0);
        let rest = text.get(start..).unwrap_or_default();
        let blocks = rest.as_chunks::<64>().0;
        let mut begun = Begun::default();
        let mut classify = |index: usize| match blocks.get(index) {
            Some(block) => {
                let mut bytes = classify(block, rest, 64 * index, rules, &mut begun, &role);
                bytes.end((length - start).saturating_sub(64 * index));
                bytes
            }
            None => Bytes::default(),
        };
        let mut before = Before::default();
        let mut bytes = classify(0);
        for index in 0..blocks.len().min(COVERED / 64) {
            let next = classify(index + 1);
            let (breaks, doubts) = rules.breaks(&bytes, &next, &mut before);
            self.push(64 * index, breaks, doubts);
            if bytes.ends {
                break;
            }
            bytes = next;
        }
        self.set_end();
    }

    /// Adds the set bits of `bits` as breaks, which are counted from `at` on.
    #[inline]
    fn push(&mut self, at: usize, mut bits: u64, doubts: u64) {
        let count = bits.count_ones() as usize;
        let Some(places) = self.breaks.get_mut(self.count..).and_then(<[u16]>::first_chunk_mut::<64>) else { return };
        let (places, _) = places.as_chunks_mut::<8>();
        // Eight are written at a time, because their number cannot be predicted.
        for eight in places.iter_mut().take(count.div_ceil(8)) {
            for place in eight {
                let bit = bits.trailing_zeros();
                let doubt = (doubts.wrapping_shr(bit) as u16) << 15;
                *place = (at as u32 + bit) as u16 | doubt;
                bits &= bits.wrapping_sub(1);
            }
        }
        self.count += count;
    }
}

/// The bytes of the next block that belong to a code point that began in this one.
#[derive(Default)]
struct Begun {
    letters: u64,
    upper: u64,
    others: u64,
    skipped: u64,
}

/// Classifies a block of `rest`, which begins at `at`.
#[inline]
fn classify(
    block: &[u8; 64],
    rest: &[u8],
    at: usize,
    rules: &Rules,
    begun: &mut Begun,
    role: impl Fn(u32) -> Role,
) -> Bytes {
    let classes = Classes::of(block, rules.by_case);
    let mut bytes = Bytes {
        letters: classes.letters,
        lower: classes.letters & !classes.upper,
        upper_starts: classes.upper,
        digits: classes.digits,
        spaces: classes.spaces,
        others: classes.others(),
        others_behind: 0,
        white: classes.white,
        unknown: classes.controls,
        apostrophes: classes.apostrophes,
        ends: false,
    };
    rules.remove_odd(block, &mut bytes);
    if classes.beyond != 0 {
        add_beyond(classes.beyond, rest.get(at..).unwrap_or_default(), begun, &mut bytes, role);
    } else {
        *begun = Begun::default();
    }
    bytes
}

/// Adds the code points beyond ASCII to `bytes`. `beyond` are their bytes, and `text` begins with the block.
#[inline]
fn add_beyond(beyond: u64, text: &[u8], begun: &mut Begun, bytes: &mut Bytes, role: impl Fn(u32) -> Role) {
    let (mut letters, mut upper) = (u128::from(begun.letters), u128::from(begun.upper));
    let (mut others, mut others_behind) = (u128::from(begun.others), u128::from(begun.others));
    let mut skipped = u128::from(begun.skipped);
    let mut leads = beyond & !begun.skipped;
    while leads != 0 {
        let at = leads.trailing_zeros();
        leads &= leads - 1;
        let window = text.get(at as usize..).and_then(<[u8]>::first_chunk);
        // A text begins with a whole code point, so this is one.
        let Some((code_point, length)) = window.and_then(decode) else { continue };
        let all = u128::from((1_u64 << length) - 1) << at;
        skipped |= all;
        leads &= !(all as u64);
        match role(code_point) {
            Role::Other => {}
            Role::Lower => letters |= all,
            Role::Upper => {
                letters |= all;
                upper |= all;
                bytes.upper_starts |= 1 << at;
            }
            Role::Mark => {
                others |= all;
                others_behind |= all & (all << 1);
            }
        }
    }
    bytes.letters |= letters as u64;
    bytes.lower |= (letters & !upper) as u64;
    bytes.others |= others as u64;
    bytes.others_behind |= others_behind as u64;
    bytes.unknown |= beyond & !(letters | others) as u64;
    let behind = |bits: u128| (bits >> 64) as u64;
    *begun = Begun { letters: behind(letters), upper: behind(upper), others: behind(others), skipped: behind(skipped) };
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

    /// Code points of one to four bytes across the ends of blocks and of the covered part. Letters are words, and the other code points that
    /// are known are words of their own kind.
    #[test]
    fn a_break_is_where_the_kind_of_code_points_changes() {
        let role = |code_point| match char::from_u32(code_point).unwrap() {
            'Ä' | '𐐀' => Role::Upper,
            'ä' | '日' | '𐐨' => Role::Lower,
            '…' | '«' | '🂡' => Role::Mark,
            _ => Role::Other,
        };
        let characters = ['a', 'B', ' ', '.', '1', '\0', 'Ä', 'ä', '日', '𐐀', '𐐨', '…', '«', '🂡', '\u{301}'];
        let mut rng = fastrand::Rng::with_seed(6);
        let mut certain_words = 0;
        for round in 0..200 {
            let few: Vec<char> = (0..3).map(|_| characters[rng.usize(..characters.len())]).collect();
            let characters = if round % 2 == 0 { &few[..] } else { &characters };
            let text: String = (0..rng.usize(1..3_000)).map(|_| characters[rng.usize(..characters.len())]).collect();
            let padded = [text.as_bytes(), &[0; 64]].concat();
            for by_case in [false, true] {
                let mut rules = Rules::default();
                rules.by_case = by_case;
                let mut breaks = Breaks::default();
                let mut start = (0..text.len().min(90)).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
                while start < text.len() {
                    let (end, is_known) = word(&text[start..], by_case);
                    let end = start + end;
                    let found = breaks.next(start).or_else(|| {
                        breaks.find(&padded, text.len(), start, &rules, role);
                        breaks.next(start)
                    });
                    match found {
                        Some((found, true)) => {
                            assert_eq!((found, is_known), (end, true), "{text:?} {start} {by_case}");
                            certain_words += 1;
                        }
                        Some(_) => {
                            assert!(!is_known, "{text:?} {start} {by_case}");
                            breaks.give_back();
                        }
                        None => assert!(end - start > COVERED - 200),
                    }
                    start = end;
                }
            }
        }
        assert!(certain_words > 10_000, "{certain_words}");
    }

    /// Returns the length of the first word of `text`, and whether it and the code point behind it are known.
    fn word(text: &str, by_case: bool) -> (usize, bool) {
        // The kind of a code point, and whether it is a letter in upper case.
        let kind = |c: char| match c {
            'B' | 'Ä' | '𐐀' => (0, true),
            'a' | 'ä' | '日' | '𐐨' => (0, false),
            ' ' => (1, false),
            '1' => (2, false),
            '.' | '…' | '«' | '🂡' => (3, false),
            _ => (4, false),
        };
        let characters: Vec<(usize, char)> = text.char_indices().collect();
        let last = characters.windows(2).position(|pair| {
            let [(a, a_is_upper), (b, b_is_upper)] = [kind(pair[0].1), kind(pair[1].1)];
            a != b || by_case && a == 0 && !a_is_upper && b_is_upper
        });
        let count = last.map_or(characters.len(), |last| last + 1);
        let length = characters.get(count).map_or(text.len(), |&(at, _)| at);
        (length, characters.iter().take(count + 1).all(|&(_, c)| kind(c).0 != 4))
    }

    #[test]
    fn no_break_is_found_in_a_text_that_was_forgotten() {
        let mut breaks = Breaks::default();
        assert_eq!(breaks.next(0), None);
        let text = [&[b'1', b'a'].repeat(50)[..], &[0; 64]].concat();
        breaks.find(&text, 100, 0, &Rules::default(), |_| Role::Other);
        assert_eq!(breaks.next(3), Some((4, true)));
        breaks.clear();
        assert_eq!(breaks.next(0), None);
    }

    /// A word may be longer than the largest number in the list.
    #[test]
    fn no_break_is_found_far_behind_the_covered_part() {
        let mut breaks = Breaks::default();
        let rules = Rules::default();
        breaks.find(&[b'1', b'a'].repeat(5_000), 9_936, 0, &rules, |_| Role::Other);
        assert_eq!(breaks.next(100_000), None);
        breaks.find(&[b'a'; 100_064], 100_000, 0, &rules, |_| Role::Other);
        assert_eq!((breaks.next(0), breaks.next(70_000)), (None, None));
    }
}
