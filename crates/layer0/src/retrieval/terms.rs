//! Splits texts into the terms that exact matching counts: words, and pairs of characters in scripts without spaces.
//!
//! A term is a run of letters, digits and combining marks in lower case. Han, kana and Thai text has no spaces between words, so a run of
//! these scripts becomes all of its pairs of adjacent characters, as Lucene's CJKBigramFilter does it:
//!
//! ```text
//! "The cat, 3 times"  ->  the  cat  3  times
//! "東京都"             ->  東京  京都
//! ```

use std::sync::LazyLock;

use layer0_tokenizers::yield_point::{Stopped, YieldPoint};

/// Of a longer word, only the first characters count.
const LONGEST_WORD: usize = 256;
/// Characters between two calls of the yield point.
const STEP: usize = 16 << 10;
/// The number of bytes that are classified at a time, one for each bit of a `u64`.
const BLOCK: usize = 64;

/// Calls `f` with each term of `text`, in order.
///
/// # Errors
/// If `at` ends the work.
pub fn for_each_term(text: &str, at: &dyn YieldPoint, mut f: impl FnMut(&str)) -> Result<(), Stopped> {
    let mut lower = String::new();
    for_each_cased_term(text, at, |term| {
        lower.clear();
        lower.push_str(term);
        lower.make_ascii_lowercase();
        f(&lower);
    })
}

/// Calls `f` with each term of `text`, in order. ASCII letters have the case that they have in the text, so that most words need no copy.
///
/// Most words of most texts are ASCII words between ASCII separators. They are found by bits: [`classes`] returns one bit for each of 64
/// bytes, so the ends of the words are the bits after which a run of ones stops.
///
/// # Errors
/// If `at` ends the work.
pub(super) fn for_each_cased_term(text: &str, at: &dyn YieldPoint, mut f: impl FnMut(&str)) -> Result<(), Stopped> {
    let bytes = text.as_bytes();
    let mut term = String::new();
    // The beginning of the block, the beginning of an ASCII word that reaches up to it, and the number of bytes since the last report.
    let (mut start, mut open, mut unreported) = (0, None, 0);
    while start < bytes.len() {
        let Classes { word, other } = classes(bytes.get(start..).unwrap_or_default());
        let ascii = other.trailing_zeros();
        let in_ascii = u64::MAX.checked_shr(BLOCK as u32 - ascii).unwrap_or_default();
        let word = word & in_ascii;
        let previous = word << 1 | u64::from(open.is_some());
        let (mut starts, mut ends) = (word & !previous, !word & previous & in_ascii);
        while ends != 0 {
            let end = start + take_lowest(&mut ends);
            let first = open.take().unwrap_or_else(|| start + take_lowest(&mut starts));
            ascii_word(text, first, end, at, &mut term, &mut f)?;
        }
        if starts != 0 {
            open = Some(start + take_lowest(&mut starts));
        }
        let next = if other == 0 {
            start + BLOCK
        } else {
            // A word that reaches up to the other character continues with it.
            let first = open.take().unwrap_or(start + ascii as usize);
            first + other_run(text.get(first..).unwrap_or_default(), at, &mut term, &mut f)?
        };
        unreported += next - start;
        start = next;
        if unreported >= STEP {
            unreported = 0;
            at.reached()?;
        }
    }
    match open {
        Some(first) => ascii_word(text, first, bytes.len(), at, &mut term, &mut f),
        None => Ok(()),
    }
}

/// Calls `f` with the ASCII word from byte `first` to byte `end`.
#[inline]
fn ascii_word(
    text: &str,
    first: usize,
    end: usize,
    at: &dyn YieldPoint,
    term: &mut String,
    f: &mut impl FnMut(&str),
) -> Result<(), Stopped> {
    if end - first > LONGEST_WORD {
        return other_run(text.get(first..end).unwrap_or_default(), at, term, f).map(drop);
    }
    f(text.get(first..end).unwrap_or_default());
    Ok(())
}

/// Returns the place of the lowest bit, and clears the bit.
fn take_lowest(bits: &mut u64) -> usize {
    let place = bits.trailing_zeros();
    *bits &= bits.wrapping_sub(1);
    place as usize
}

/// What the bytes of a block are, the first one in the lowest bit.
struct Classes {
    /// The bytes of ASCII words.
    word: u64,
    /// The bytes of characters that are not ASCII.
    other: u64,
}

/// Classifies the first [`BLOCK`] bytes of `bytes`. Past the end are separators.
fn classes(bytes: &[u8]) -> Classes {
    let mut padded = [b' '; BLOCK];
    let block = bytes.first_chunk::<BLOCK>().unwrap_or_else(|| {
        for (to, byte) in padded.iter_mut().zip(bytes) {
            *to = *byte;
        }
        &padded
    });
    let (mut word, mut other) = ([0; BLOCK], [0; BLOCK]);
    for ((word, other), &byte) in word.iter_mut().zip(&mut other).zip(block) {
        let (letter, digit) = ((byte | 0x20).wrapping_sub(b'a') < 26, byte.wrapping_sub(b'0') < 10);
        *word = u8::from(letter | digit | (byte == b'_'));
        *other = byte >> 7;
    }
    Classes { word: bits(&word), other: bits(&other) }
}

/// Returns the lowest bit of each byte.
fn bits(bytes: &[u8; BLOCK]) -> u64 {
    // The product moves the bit of byte `i` to bit `56 + i`.
    let of_eight = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    bytes.as_chunks::<8>().0.iter().rev().fold(0, |bits, bytes| bits << 8 | of_eight(bytes))
}

/// Calls `f` with each term of `rest` up to the first separator. Returns the number of bytes.
fn other_run(rest: &str, at: &dyn YieldPoint, term: &mut String, f: &mut impl FnMut(&str)) -> Result<usize, Stopped> {
    term.clear();
    // The kind of the run that is being read, its last character, and its length.
    let (mut run, mut previous, mut length) = (Kind::Separator, None, 0usize);
    let mut end = rest.len();
    for (i, (place, c)) in rest.char_indices().enumerate() {
        if i % STEP == STEP - 1 {
            at.reached()?;
        }
        let (kind, lower) = kind_and_lower_case(c);
        if kind == Kind::Separator && run != Kind::Separator {
            end = place;
            break;
        }
        if kind != run {
            end_of_run(run, length, term, f);
            term.clear();
            (run, previous, length) = (kind, None, 0);
        }
        length += 1;
        match (kind, previous) {
            (Kind::Separator, _) => {}
            (Kind::Unspaced, Some(previous)) => {
                term.clear();
                term.extend([previous, c]);
                f(term);
            }
            (Kind::Unspaced, None) => term.push(c),
            (Kind::Word, _) if length <= LONGEST_WORD => match lower {
                Some(lower) => term.push(lower),
                None => term.extend(c.to_lowercase()),
            },
            (Kind::Word, _) => {}
        }
        previous = Some(c);
    }
    end_of_run(run, length, term, f);
    Ok(end)
}

/// Reports a word, or a single character of a script without spaces. Pairs were reported before.
fn end_of_run(run: Kind, length: usize, term: &str, f: &mut impl FnMut(&str)) {
    if run == Kind::Word || (run == Kind::Unspaced && length == 1) {
        f(term);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Word,
    Unspaced,
    Separator,
}

/// Returns the kind of a character and, if it is known, its lower case as one character.
///
/// The Unicode tables of the standard library take several steps for each character, so those of the alphabets are kept in a table.
fn kind_and_lower_case(c: char) -> (Kind, Option<char>) {
    static ALPHABETS: LazyLock<Vec<(Kind, Option<char>)>> = LazyLock::new(|| {
        let entry = |c: char| {
            let mut lower = c.to_lowercase();
            (kind(c), lower.next().filter(|_| lower.next().is_none()))
        };
        ('\0'..'\u{1000}').map(entry).collect()
    });
    ALPHABETS.get(c as usize).copied().unwrap_or_else(|| (kind(c), None))
}

/// Returns whether the script of the character has no spaces between words.
pub(super) fn is_unspaced(c: char) -> bool {
    kind_and_lower_case(c).0 == Kind::Unspaced
}

fn kind(c: char) -> Kind {
    match c {
        // Thai, Hiragana and Katakana, and the CJK ideographs of the Basic Multilingual Plane.
        '\u{e00}'..='\u{e7f}' | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' => Kind::Unspaced,
        // Combining marks of Latin, Arabic and Devanagari, some of which are not alphabetic.
        '\u{300}'..='\u{36f}' | '\u{64b}'..='\u{65f}' | '\u{900}'..='\u{963}' | '_' => Kind::Word,
        c if c.is_alphanumeric() => Kind::Word,
        _ => Kind::Separator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer0_tokenizers::yield_point::Undisturbed;

    fn terms(text: &str) -> Vec<String> {
        let mut terms = Vec::new();
        for_each_term(text, &Undisturbed, |term| terms.push(term.to_owned())).unwrap();
        terms
    }

    #[test]
    fn a_long_text_can_be_stopped_and_a_long_word_is_cut() {
        struct Stop;
        impl YieldPoint for Stop {
            fn reached(&self) -> Result<(), Stopped> {
                Err(Stopped)
            }
        }
        for text in ["a ", " ", "a", "字"] {
            assert_eq!(for_each_term(&text.repeat(STEP), &Stop, |_| {}), Err(Stopped), "{text:?}");
            assert_eq!(for_each_term(&text.repeat(8), &Stop, |_| {}), Ok(()));
        }
        assert_eq!(terms(&"a".repeat(5000)), ["a".repeat(LONGEST_WORD)]);
    }

    #[test]
    fn words_are_runs_of_letters_digits_and_marks_in_lower_case() {
        assert_eq!(
            terms("The CAT's 3 snake_case — Straße, ÉTÉ"),
            ["the", "cat", "s", "3", "snake_case", "straße", "été"]
        );
        assert_eq!(terms("e\u{301}t\u{301} हिन्दी भाषा مَرْحَبًا"), ["e\u{301}t\u{301}", "हिन्दी", "भाषा", "مَرْحَبًا"]);
        assert!(terms(" .,-! ").is_empty());
    }

    /// The fast path for ASCII words gives the terms of the general one.
    #[test]
    fn the_terms_of_a_text_are_those_of_its_characters_one_by_one() {
        let mut rng = fastrand::Rng::with_seed(1);
        let pieces = ["a", "B", "_", "9", " ", "-", "é", "É", "字", "東", "ก", "\u{301}", "—", "\u{a0}", "İ", "ß"];
        for _ in 0..3000 {
            let text: String = (0..rng.usize(..200)).map(|_| pieces[rng.usize(..pieces.len())]).collect();
            let mut general = Vec::new();
            let (mut rest, mut term) = (text.as_str(), String::new());
            while !rest.is_empty() {
                let mut push = |term: &str| general.push(term.to_owned());
                rest = &rest[other_run(rest, &Undisturbed, &mut term, &mut push).unwrap()..];
            }
            assert_eq!(terms(&text), general, "{text:?}");
        }
        for length in [LONGEST_WORD - 1, LONGEST_WORD, LONGEST_WORD + 1] {
            let found = terms(&format!("x {} y", "A".repeat(length)));
            assert_eq!(found, ["x", &"a".repeat(length.min(LONGEST_WORD)), "y"]);
        }
    }

    #[test]
    fn scripts_without_spaces_become_pairs_and_a_single_character_stays() {
        assert_eq!(terms("東京都に行くAI時代。字"), ["東京", "京都", "都に", "に行", "行く", "ai", "時代", "字"]);
        assert_eq!(terms("สวัสดี").len(), 5);
    }
}
