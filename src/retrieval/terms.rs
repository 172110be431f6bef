//! Splits texts into the terms that exact matching counts: words, and pairs of characters in scripts without spaces.
//!
//! A term is a run of letters, digits and combining marks in lower case. Han, kana and Thai text has no spaces between words, so a run of
//! these scripts becomes all of its pairs of adjacent characters, as Lucene's CJKBigramFilter does it:
//!
//! ```text
//! "The cat, 3 times"  ->  the  cat  3  times
//! "東京都"             ->  東京  京都
//! ```

/// Calls `f` with each term of `text`, in order.
pub fn for_each_term(text: &str, mut f: impl FnMut(&str)) {
    let mut term = String::new();
    let mut rest = text.char_indices().peekable();
    while let Some(&(_, c)) = rest.peek() {
        let kind = kind(c);
        if kind == Kind::Separator {
            rest.next();
            continue;
        }
        term.clear();
        let mut characters = 0usize;
        let mut previous = None;
        while let Some(&(_, c)) = rest.peek().filter(|(_, c)| self::kind(*c) == kind) {
            rest.next();
            characters += 1;
            match (kind, previous) {
                (Kind::Unspaced, Some(previous)) => {
                    term.clear();
                    term.extend([previous, c]);
                    f(&term);
                }
                (Kind::Unspaced, None) => term.push(c),
                _ => term.extend(c.to_lowercase()),
            }
            previous = Some(c);
        }
        if kind == Kind::Word || characters == 1 {
            f(&term);
        }
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

    fn terms(text: &str) -> Vec<String> {
        let mut terms = Vec::new();
        for_each_term(text, |term| terms.push(term.to_owned()));
        terms
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
