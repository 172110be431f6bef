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

/// Calls `f` with each term of `text`, in order.
///
/// # Errors
/// If `at` ends the work.
pub fn for_each_term(text: &str, at: &dyn YieldPoint, mut f: impl FnMut(&str)) -> Result<(), Stopped> {
    let mut term = String::new();
    let (mut rest, mut unreported) = (text, 0);
    while !rest.is_empty() {
        let length = match plain_word(rest) {
            Some((word, length)) => {
                if word.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    term.clear();
                    term.push_str(word);
                    term.make_ascii_lowercase();
                    f(&term);
                } else if !word.is_empty() {
                    f(word);
                }
                length
            }
            None => other_run(rest, at, &mut term, &mut f)?,
        };
        rest = rest.get(length..).unwrap_or_default();
        unreported += length;
        if unreported >= STEP {
            unreported = 0;
            at.reached()?;
        }
    }
    Ok(())
}

/// Returns the ASCII word at the beginning of `rest`, after ASCII separators, and the number of bytes that both take. Returns `None` if the
/// word continues with other characters or is long. Most words of most texts are such words, and they need no copy.
fn plain_word(rest: &str) -> Option<(&str, usize)> {
    let bytes = rest.as_bytes();
    let start = run_length(bytes.get(..STEP).unwrap_or(bytes), Byte::Separator);
    let word = bytes.get(start..)?;
    let length = run_length(word.get(..=LONGEST_WORD).unwrap_or(word), Byte::Word);
    let ends = word.get(length).is_none_or(u8::is_ascii) && length <= LONGEST_WORD;
    // Without a separator and without a word, `rest` begins with a character that is not ASCII.
    (ends && start + length > 0).then_some((rest.get(start..start + length)?, start + length))
}

/// What a byte is: part of an ASCII word, another ASCII character, or part of a longer character.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Byte {
    Word,
    Separator,
    NotAscii,
}

const BYTES: [Byte; 256] = {
    let mut bytes = [Byte::NotAscii; 256];
    let mut byte = 0u8;
    let (mut ascii, _) = bytes.split_at_mut(128);
    while let Some((first, rest)) = ascii.split_first_mut() {
        *first = if byte.is_ascii_alphanumeric() || byte == b'_' { Byte::Word } else { Byte::Separator };
        ascii = rest;
        byte += 1;
    }
    bytes
};

/// Returns how many bytes at the beginning are of this kind.
fn run_length(bytes: &[u8], kind: Byte) -> usize {
    let is_other = |byte: &u8| BYTES.get(usize::from(*byte)) != Some(&kind);
    bytes.iter().position(is_other).unwrap_or(bytes.len())
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
            let text: String = (0..rng.usize(..40)).map(|_| pieces[rng.usize(..pieces.len())]).collect();
            let mut general = Vec::new();
            let (mut rest, mut term) = (text.as_str(), String::new());
            while !rest.is_empty() {
                let mut push = |term: &str| general.push(term.to_owned());
                rest = &rest[other_run(rest, &Undisturbed, &mut term, &mut push).unwrap()..];
            }
            assert_eq!(terms(&text), general, "{text:?}");
        }
        assert_eq!(terms(&format!("x {} y", "A".repeat(LONGEST_WORD))), ["x", &"a".repeat(LONGEST_WORD), "y"]);
    }

    #[test]
    fn scripts_without_spaces_become_pairs_and_a_single_character_stays() {
        assert_eq!(terms("東京都に行くAI時代。字"), ["東京", "京都", "都に", "に行", "行く", "ai", "時代", "字"]);
        assert_eq!(terms("สวัสดี").len(), 5);
    }
}
