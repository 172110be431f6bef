//! The rules by which a word begins: which classes of neighboring bytes stand in one word.
//!
//! The rules are what the expressions of GPT-2, `cl100k_base`, `o200k_base` and their relatives have in common. Their differences are the
//! fields of [`Rules`], which are read from what a pre-tokenizer does with samples of text. For example:
//!
//! | | `" k"` is one word | `".k"` is one word | `"111"` is one word | words of `"(b) 2024"` |
//! |---|---|---|---|---|
//! | GPT-2 | yes | no | yes | `"("`, `"b"`, `")"`, `" 2024"` |
//! | `cl100k_base` | yes | yes | yes, but not `"1111"` | `"(b"`, `")"`, `" "`, `"202"`, `"4"` |
//!
//! Where the classes of neighbors do not decide, such as beside a code point about which nothing is known, the words are in doubt.

use super::super::sets::{Bits, Sets};

/// A value for each class that can follow a space.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Followers {
    letters: bool,
    digits: bool,
    others: bool,
}

/// How many digits a word has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Digits {
    One,
    UpToThree,
    #[default]
    Any,
}

/// What letters behind an apostrophe may be, as in `don't`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Contraction {
    /// A word of their own, with the apostrophe.
    #[default]
    Word,
    /// The end of the word before the apostrophe.
    End,
}

/// The rules of one pre-tokenizer. "Others" are the visible characters of ASCII that are neither letters nor digits, and code points that
/// are like them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// Whether a word begins with an upper-case letter behind a letter that is not in upper case.
    pub by_case: bool,
    /// Whether the word of these begins with the space before them.
    space_joins: Followers,
    /// Whether the last one of several spaces before these begins a word.
    space_parts: Followers,
    /// Whether letters belong to the word of one other code point before them, if it begins the word.
    other_joins: bool,
    digits: Digits,
    contraction: Contraction,
    /// Whether a word of others and line breaks takes some of the others behind the line breaks.
    white_takes_others: bool,
    /// The characters of ASCII that are not like the other ones. Nothing is known about them.
    odd: Vec<u8>,
}

/// The classes of 64 bytes of a text, with a bit for each byte. A byte is in at most one class of `letters`, `digits`, `spaces`, `others`,
/// `white` and `unknown`.
#[derive(Clone, Copy, Default)]
pub struct Bytes {
    pub letters: u64,
    /// The letters that are not in upper case.
    pub lower: u64,
    /// The first bytes of letters in upper case.
    pub upper_starts: u64,
    pub digits: u64,
    pub spaces: u64,
    pub others: u64,
    /// The bytes of `others` that are not the first ones of their code points.
    pub others_behind: u64,
    /// White space of ASCII other than the space.
    pub white: u64,
    pub unknown: u64,
    pub apostrophes: u64,
    /// Whether the text ends in this block, at the first byte that is in no class.
    pub ends: bool,
}

impl Bytes {
    /// Removes what is behind the first `left` bytes: the text ends there.
    #[inline]
    pub fn end(&mut self, left: usize) {
        if left < 64 {
            // The bytes behind the end are zeros.
            self.unknown &= (1 << left) - 1;
            self.ends = true;
        }
    }
}

/// What the rules need to know of the block before. Each field has the bit of the last byte as its lowest bit.
#[derive(Default)]
pub struct Before {
    letters: u64,
    lower: u64,
    digits: u64,
    spaces: u64,
    others: u64,
    white: u64,
    unknown: u64,
    joining: u64,
    doubtful: u64,
    /// Whether the last word of the block contains a doubtful byte.
    in_doubt: bool,
}

impl Rules {
    /// Reads the rules from the lengths of the first words of samples.
    pub fn learn(sets: &Sets, length: impl Fn(&str) -> usize) -> Self {
        let starts_with = |text: &str, expected: usize| length(text) == expected;
        let dot = sets.of(u32::from('.'));
        let is_odd = |byte: &u8| byte.is_ascii_punctuation() && sets.of(u32::from(*byte)) != dot;
        let alike = |byte: u8| length(&format!("{}.", char::from(byte))) == 2;
        Self {
            by_case: starts_with("kK", 1),
            space_joins: Followers {
                letters: starts_with(" k", 2),
                digits: starts_with(" 1", 2),
                others: starts_with(" .", 2),
            },
            space_parts: Followers {
                letters: starts_with("  k", 1),
                digits: starts_with("  1", 1),
                others: starts_with("  .", 1),
            },
            other_joins: starts_with(".k", 2),
            digits: match length("11111111") {
                1 => Digits::One,
                3 => Digits::UpToThree,
                _ => Digits::Any,
            },
            contraction: if starts_with("k's", 3) { Contraction::End } else { Contraction::Word },
            white_takes_others: starts_with(".\n/", 3),
            odd: (0..0x80).filter(|byte| is_odd(byte) && !alike(*byte)).collect(),
        }
    }

    /// Returns characters of ASCII, one for each class that the rules distinguish, and one that is in none.
    pub fn samples(&self, sets: &Sets) -> Vec<char> {
        let mut known: Vec<Bits> = Vec::new();
        let others = (0..0x80_u8).filter(|byte| byte.is_ascii_punctuation() && *byte != b'\'').filter(|byte| {
            let bits = sets.of(u32::from(*byte));
            let is_new = !known.contains(&bits);
            known.push(bits);
            is_new
        });
        let others: Vec<char> = others.map(char::from).collect();
        [&['s', 'K', '1', ' ', '\''][..], others.as_slice(), &['\n', '\t', '\u{1}']].concat()
    }

    /// Moves the characters that are not like others to those about which nothing is known.
    #[inline]
    pub fn remove_odd(&self, block: &[u8; 64], bytes: &mut Bytes) {
        if self.odd.is_empty() {
            return;
        }
        let mut others = bytes.others;
        while others != 0 {
            let at = others.trailing_zeros();
            others &= others - 1;
            if block.get(at as usize).is_some_and(|byte| self.odd.contains(byte)) {
                bytes.others &= !(1 << at);
                bytes.unknown |= 1 << at;
            }
        }
    }

    /// Returns the bytes with which words begin, and those of them at which the word before may not end. If the text ends in the block,
    /// its end is one of them.
    #[inline]
    pub fn breaks(&self, bytes: &Bytes, next: &Bytes, before: &mut Before) -> (u64, u64) {
        let &Bytes { letters, lower, upper_starts, digits, spaces, others, others_behind, white, unknown, .. } = bytes;
        let if_any = |rule: bool, bits: u64| if rule { bits } else { 0 };
        // For each byte, whether the byte behind it is in a class.
        let behind = |this: u64, next: u64| this >> 1 | next << 63;
        let (next_letters, next_digits) = (behind(letters, next.letters), behind(digits, next.digits));
        let next_others = behind(others, next.others);
        let next_unsure = behind(white | unknown, next.white | next.unknown);
        // For each byte, whether the byte before it is in a class.
        let after = |this: u64, before: u64| this << 1 | before;
        let (after_letters, after_digits) = (after(letters, before.letters), after(digits, before.digits));
        let (after_spaces, after_others) = (after(spaces, before.spaces), after(others, before.others));

        let Followers { letters: parts_letters, digits: parts_digits, others: parts_others } = self.space_parts;
        let parts =
            if_any(parts_letters, next_letters) | if_any(parts_digits, next_digits) | if_any(parts_others, next_others);
        let space_breaks = spaces & (!after_spaces | parts);

        let joins = self.space_joins;
        let other_breaks = others & !(after_others | if_any(joins.others, after_spaces));
        // All bytes of a code point that begins a word.
        let mut joining = other_breaks;
        for _ in 0..3 {
            joining |= after(joining, before.joining) & others_behind;
        }
        let joined = if_any(self.other_joins, after(joining, before.joining)) | if_any(joins.letters, after_spaces);
        let humps = if_any(self.by_case, upper_starts & after(lower, before.lower));
        let letter_breaks = letters & !(after_letters | joined) | humps;

        let run_breaks = digits & !(after_digits | if_any(joins.digits, after_spaces));
        let mut doubtful = unknown;
        let digit_breaks = match self.digits {
            Digits::One => digits & !if_any(joins.digits, after_spaces),
            Digits::Any => run_breaks,
            Digits::UpToThree => {
                // How many digits precede the run is not known, in the block before or beyond ASCII.
                doubtful |= runs(digits, before.digits | after(unknown, before.unknown));
                let fourths = digits & digits << 1 & digits << 2 & digits << 3;
                let (mut all, mut last) = (run_breaks, run_breaks);
                while last << 3 & fourths != 0 {
                    last = last << 3 & fourths;
                    all |= last;
                }
                all
            }
        };
        let breaks = unknown | white | space_breaks | other_breaks | letter_breaks | digit_breaks;
        let breaks = if bytes.ends { breaks | end(bytes) } else { breaks };

        // White space belongs to the word of spaces or of others before it, or to none. The last one of several spaces may begin a word.
        doubtful |= white & (after_others | after_spaces) | spaces & after_spaces & next_unsure;
        if self.white_takes_others {
            doubtful |= runs(others, before.others | after(white, before.white));
        }
        let contractions = bytes.apostrophes & (next_letters | next_unsure);
        let within = white
            | match self.contraction {
                Contraction::Word => contractions & other_breaks,
                Contraction::End => {
                    doubtful |= contractions & after_letters;
                    0
                }
            };
        // Where a word contains such a byte, the sum carries over to the break at its end.
        let contained = after(doubtful | within, before.doubtful);
        let inside = !breaks;
        let (sum, first) = inside.overflowing_add(contained & inside);
        let (sum, second) = sum.overflowing_add(u64::from(before.in_doubt));
        let doubts = breaks & (sum | contained | doubtful);
        *before = Before {
            letters: letters >> 63,
            lower: lower >> 63,
            digits: digits >> 63,
            spaces: spaces >> 63,
            others: others >> 63,
            white: white >> 63,
            unknown: unknown >> 63,
            joining: joining >> 63,
            doubtful: (doubtful | within) >> 63,
            in_doubt: first | second,
        };
        (breaks, doubts)
    }
}

/// Returns the runs of `bits` that begin at one of `begins`.
#[inline]
fn runs(bits: u64, begins: u64) -> u64 {
    bits & !bits.wrapping_add(bits & begins)
}

/// Returns the bit of the first byte that is in no class.
#[inline]
fn end(bytes: &Bytes) -> u64 {
    let &Bytes { letters, digits, spaces, others, white, unknown, .. } = bytes;
    let all = letters | digits | spaces | others | white | unknown;
    !all & all.wrapping_add(1)
}
