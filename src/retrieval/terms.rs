//! Splits texts into the terms that exact matching counts: words, and pairs of characters in scripts without spaces.
//!
//! A term is a run of letters, digits and combining marks in lower case. Han, kana and Thai text has no spaces between words, so a run of
//! these scripts becomes all of its pairs of adjacent characters, as Lucene's CJKBigramFilter does it:
//!
//! ```text
//! "The cat, 3 times"  ->  the  cat  3  times
//! "東京都"             ->  東京  京都
//! ```

use crate::yield_point::{Stopped, YieldPoint};

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
    // The kind of the run that is being read, its last character, and its length.
    let (mut run, mut previous, mut length) = (Kind::Separator, None, 0usize);
    for (i, c) in text.chars().enumerate() {
        if i % STEP == STEP - 1 {
            at.reached()?;
        }
        let kind = kind(c);
        if kind != run {
            end_of_run(run, length, &term, &mut f);
            term.clear();
            (run, previous, length) = (kind, None, 0);
        }
        length += 1;
        match (kind, previous) {
            (Kind::Separator, _) => {}
            (Kind::Unspaced, Some(previous)) => {
                term.clear();
                term.extend([previous, c]);
                f(&term);
            }
            (Kind::Unspaced, None) => term.push(c),
            (Kind::Word, _) if length <= LONGEST_WORD => term.extend(c.to_lowercase()),
            (Kind::Word, _) => {}
        }
        previous = Some(c);
    }
    end_of_run(run, length, &term, &mut f);
    Ok(())
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
    use crate::yield_point::Undisturbed;

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

    #[test]
    fn scripts_without_spaces_become_pairs_and_a_single_character_stays() {
        assert_eq!(terms("東京都に行くAI時代。字"), ["東京", "京都", "都に", "に行", "行く", "ai", "時代", "字"]);
        assert_eq!(terms("สวัสดี").len(), 5);
    }
}
