//! The regular expression that splits a text into words, written out.
//!
//! `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
//! is cl100k_base's, Llama 3's and, with single digits, Qwen's.
//! Source: `cl100k_base` in <https://github.com/openai/tiktoken/blob/main/tiktoken_ext/openai_public.py>.

use regex_syntax::hir::{Class as HirClass, HirKind};
use serde_json::Value;
use unicode_normalization_alignments::char::canonical_combining_class;
use unicode_normalization_alignments::{IsNormalized, is_nfc_quick};

use super::decode;
use crate::tokenize::json::kind;

/// Before and behind what it says of numbers.
const BEFORE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|";
const BEHIND: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// None of the others.
    Other,
    Letter,
    Number,
    /// White space but for the two that end lines.
    Space,
    /// `\r` and `\n`.
    LineEnd,
}

/// A letter.
const LETTER: u8 = 1;
/// What stands before letters in their word.
const BEFORE_LETTERS: u8 = 2;
/// A word by itself before a space.
const ALONE: u8 = 4;

pub struct Splitter {
    /// By character; [`Class::Other`] beyond.
    classes: Vec<Class>,
    /// By byte: what a word that begins with it may be, if it is ASCII; bits of [`LETTER`] and the like.
    begins: [u8; 256],
    /// By character: whether NFC may change it, or what stands around it. Empty where texts are not normalized.
    may_change: Vec<bool>,
    /// The most numbers of a word.
    numbers: usize,
}

impl Splitter {
    /// Of a `pre_tokenizer`, for texts that NFC normalizes first if `normalizes`.
    ///
    /// # Errors
    /// When it splits by another expression.
    pub fn new(pre_tokenizer: Option<&Value>, normalizes: bool) -> Result<Self, String> {
        let pattern = pre_tokenizer.and_then(pattern).ok_or("the pre-tokenizer is not one that splits by one regex")?;
        let numbers = match pattern.strip_prefix(BEFORE).and_then(|rest| rest.strip_suffix(BEHIND)) {
            Some(r"\p{N}") => 1,
            Some(r"\p{N}{1,3}") => 3,
            _ => return Err("the pre-tokenizer splits by a regex that is not reproduced".to_owned()),
        };
        let mut classes = Vec::new();
        // By the tables of the crate that the reference uses.
        for (expression, class) in
            [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space), (r"[\r\n]", Class::LineEnd)]
        {
            set(&mut classes, expression, class)?;
        }
        let mut begins = [0; 256];
        for (byte, (kinds, class)) in (0..0x80).zip(begins.iter_mut().zip(&classes)) {
            *kinds = match class {
                Class::Letter => LETTER,
                Class::Space => BEFORE_LETTERS,
                // Of what follows an apostrophe some is a word.
                Class::Other if byte == b'\'' => ALONE,
                Class::Other => BEFORE_LETTERS | ALONE,
                Class::Number | Class::LineEnd => 0,
            }
        }
        let may_change = if normalizes { changed_by_nfc() } else { Vec::new() };
        Ok(Self { classes, begins, may_change, numbers })
    }

    /// Whether NFC leaves `text` as it is; a false `false` costs time alone.
    /// Source: <https://www.unicode.org/reports/tr15/#Detecting_Normalization_Forms>.
    pub fn is_normalized(&self, text: &str) -> bool {
        self.may_change.is_empty()
            || text.is_ascii()
            || !text.chars().any(|c| self.may_change.get(c as usize).is_some_and(|&may| may))
    }

    /// `text` in parts of at least `length` bytes, but for the last, that can be normalized one by one: each begins with a
    /// character that NFC leaves alone, and that composes with none before it.
    pub fn parts<'t>(&self, text: &'t str, length: usize) -> impl Iterator<Item = &'t str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            let stays = |c: char| !self.may_change.get(c as usize).is_some_and(|&may| may);
            let cut = rest.char_indices().find(|&(at, c)| at >= length && stays(c)).map_or(rest.len(), |(at, _)| at);
            let (part, behind) = rest.split_at_checked(cut)?;
            rest = behind;
            (!part.is_empty()).then_some(part)
        })
    }

    /// The bytes of the word that `window` begins with, where that is soon told: most words of ASCII. What is behind the text
    /// are zeros.
    #[inline]
    pub fn quick(&self, window: &[u8; 32]) -> Option<usize> {
        let [first, eight @ .., _, _, _, _, _, _, _] = window;
        let (eight, rest) = eight.split_first_chunk()?;
        let mut letters = ascii_letters(*eight);
        if letters == 8 {
            letters += ascii_letters(*rest.first_chunk()?);
        }
        let behind = *window.get(1 + letters)?;
        let begins = *self.begins.get(usize::from(*first))?;
        if behind >= 0x80 || letters == 16 {
            return None;
        }
        let kinds = if letters == 0 { LETTER } else { LETTER | BEFORE_LETTERS };
        if begins & kinds != 0 {
            return Some(1 + letters);
        }
        (begins & ALONE != 0 && letters == 0 && behind == b' ').then_some(1)
    }

    /// Where the word that begins at `start` ends.
    pub fn end(&self, text: &str, start: usize) -> usize {
        let Some((class, second)) = self.at(text, start) else { return text.len() };
        match class {
            Class::Letter => return self.behind_letters(text, second),
            Class::Number => {
                let mut end = second;
                for _ in 1..self.numbers {
                    match self.at(text, end) {
                        Some((Class::Number, next)) => end = next,
                        _ => break,
                    }
                }
                return end;
            }
            Class::Other | Class::Space | Class::LineEnd => {}
        }
        let begins_with = |byte| text.as_bytes().get(start) == Some(&byte);
        if begins_with(b'\'')
            && let Some(end) = contraction(text, second)
        {
            return end;
        }
        let next = self.at(text, second);
        match next {
            Some((Class::Letter, third)) if class != Class::LineEnd => {
                return self.behind_letters(text, third);
            }
            Some((Class::Other, _)) if begins_with(b' ') => {}
            _ if class == Class::Other => {}
            _ => return self.white_space(text, start),
        }
        let end = self.behind(text, second, Class::Other);
        self.behind(text, end, Class::LineEnd)
    }

    /// White space to its last line end; without one to its last character, which belongs to what follows, if anything does.
    fn white_space(&self, text: &str, start: usize) -> usize {
        let (mut end, mut last, mut line_end) = (start, start, None);
        while let Some((class @ (Class::Space | Class::LineEnd), next)) = self.at(text, end) {
            if class == Class::LineEnd {
                line_end = Some(next);
            }
            (last, end) = (end, next);
        }
        line_end.unwrap_or(if end < text.len() && last > start { last } else { end })
    }

    /// The end of the characters of `class` from `at` on.
    fn behind(&self, text: &str, mut at: usize, class: Class) -> usize {
        while let Some((found, next)) = self.at(text, at)
            && found == class
        {
            at = next;
        }
        at
    }

    /// The end of the letters from `at` on: of ASCII eight at once, as long as there are eight bytes.
    fn behind_letters(&self, text: &str, mut at: usize) -> usize {
        loop {
            if let Some(eight) = text.as_bytes().get(at..).and_then(<[u8]>::first_chunk) {
                let letters = ascii_letters(*eight);
                at += letters;
                if letters == 8 {
                    continue;
                }
            }
            let begin = at;
            while let Some((Class::Letter, next)) = self.at(text, at) {
                at = next;
                if text.as_bytes().get(at).is_some_and(u8::is_ascii) {
                    break;
                }
            }
            if at == begin {
                return at;
            }
        }
    }

    /// The class of the character at `at`, and where it ends.
    #[inline]
    fn at(&self, text: &str, at: usize) -> Option<(Class, usize)> {
        let (character, end) = decode(text.as_bytes(), at)?;
        Some((self.classes.get(character as usize).copied().unwrap_or(Class::Other), end))
    }
}

/// How many letters of ASCII these begin with.
#[inline]
fn ascii_letters(eight: [u8; 8]) -> usize {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let eight = u64::from_le_bytes(eight);
    // In the highest bit of each byte, of its lower-case letter's seven bits: whether it is at least `a`, and beyond `z`.
    let lower = (eight | (0x20 * EACH)) & (0x7f * EACH);
    let (from_a, beyond_z) = (lower + (0x80 - 0x61) * EACH, lower + (0x80 - 0x7b) * EACH);
    let others = !(from_a & !beyond_z & !eight) & (0x80 * EACH);
    others.trailing_zeros() as usize / 8
}

/// The end of what follows an apostrophe at `at`, in either case; `ſ` is a case of `s`.
fn contraction(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let lower = |at: usize| bytes.get(at).map(u8::to_ascii_lowercase);
    match (lower(at)?, lower(at + 1)) {
        (b's' | b't' | b'm' | b'd', _) => Some(at + 1),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) | (0xC5, Some(0xBF)) => Some(at + 2),
        _ => None,
    }
}

fn pattern(pre_tokenizer: &Value) -> Option<&str> {
    let steps = pre_tokenizer.get("pretokenizers").and_then(Value::as_array)?;
    let [split, bytes] = steps.as_slice() else { return None };
    let is = |value: &Value, name: &str, expected: &Value| value.get(name).is_some_and(|found| found == expected);
    let splits =
        kind(split) == "Split" && is(split, "behavior", &"Isolated".into()) && is(split, "invert", &false.into());
    let by_bytes = kind(bytes) == "ByteLevel"
        && is(bytes, "add_prefix_space", &false.into())
        && is(bytes, "use_regex", &false.into());
    split.pointer("/pattern/Regex")?.as_str().filter(|_| kind(pre_tokenizer) == "Sequence" && splits && by_bytes)
}

fn set(classes: &mut Vec<Class>, expression: &str, class: Class) -> Result<(), String> {
    let expression = regex_syntax::parse(expression).map_err(|e| e.to_string())?;
    if let HirKind::Class(HirClass::Unicode(found)) = expression.kind() {
        for range in found.ranges() {
            let (start, end) = (range.start() as usize, range.end() as usize);
            if classes.len() <= end {
                classes.resize(end + 1, Class::Other);
            }
            classes.get_mut(start..=end).unwrap_or_default().fill(class);
        }
    }
    Ok(())
}

fn changed_by_nfc() -> Vec<bool> {
    // Behind the last that it changes, of plane 2, there are only characters of class 0 that it keeps.
    (0..0x3_0000)
        .map(|c| {
            char::from_u32(c).is_some_and(|c| {
                canonical_combining_class(c) != 0 || is_nfc_quick(std::iter::once(c)) != IsNormalized::Yes
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};
    use unicode_normalization_alignments::UnicodeNormalization;

    use super::*;

    fn splitter(numbers: &str) -> (Splitter, Split) {
        let pattern = format!("{BEFORE}{numbers}{BEHIND}");
        let json = serde_json::json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]});
        let reference = Split::new(SplitPattern::Regex(pattern), SplitDelimiterBehavior::Isolated, false).unwrap();
        (Splitter::new(Some(&json), true).unwrap(), reference)
    }

    fn check(splitter: &Splitter, reference: &Split, text: &str) {
        let mut expected = PreTokenizedString::from(text);
        reference.pre_tokenize(&mut expected).unwrap();
        let expected = expected.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let expected: Vec<&str> = expected.into_iter().map(|(word, ..)| word).collect();
        let mut found = Vec::new();
        let mut start = 0;
        while start < text.len() {
            let end = splitter.end(text, start);
            let mut window = [0; 32];
            window.iter_mut().zip(&text.as_bytes()[start..]).for_each(|(place, byte)| *place = *byte);
            assert!(splitter.quick(&window).is_none_or(|length| start + length == end), "{text:?}");
            found.push(&text[start..end]);
            start = end;
        }
        assert_eq!(found, expected, "{text:?}");
    }

    #[test]
    fn words_are_those_of_the_expression() {
        let characters: Vec<char> =
            " \n\r\t\u{a0}\u{2028}\u{85}\u{3000}aZsStTmMdDrReEvVlLſK'’\".,!?-_(日本éß\u{301}09٣½Ⅳ²👍\u{200d}\u{0}\u{e0100}\u{f0000}"
                .chars()
                .collect();
        let mut rng = fastrand::Rng::with_seed(7);
        for numbers in [r"\p{N}", r"\p{N}{1,3}"] {
            let (splitter, reference) = splitter(numbers);
            for _ in 0..20_000 {
                let text: String = (0..rng.usize(1..12)).map(|_| characters[rng.usize(..characters.len())]).collect();
                check(&splitter, &reference, &text);
            }
            for _ in 0..2_000 {
                let text: String = (0..rng.usize(1..12)).map(|_| rng.char(..)).collect();
                check(&splitter, &reference, &text);
            }
        }
    }

    #[test]
    fn every_character_has_its_class_and_what_nfc_changes_is_known() {
        let (splitter, reference) = splitter(r"\p{N}");
        for character in '\0'..=char::MAX {
            let alone = character.to_string();
            let changed = alone.nfc().map(|(c, _)| c).ne([character]);
            assert!(!changed || !splitter.is_normalized(&alone), "{character:?}");
            let last = canonical_combining_class(character);
            assert!(last == 0 || !splitter.is_normalized(&alone), "{character:?}");
            if character < '\u{32400}' && u32::from(character) % 7 == 0 {
                check(&splitter, &reference, &format!("a{character}b 1{character}2"));
            }
        }
    }

    #[test]
    fn parts_are_normalized_as_the_whole() {
        let (splitter, _) = splitter(r"\p{N}");
        let mut rng = fastrand::Rng::with_seed(9);
        let characters: Vec<char> =
            "ab é\u{301}\u{327}가\u{1100}\u{1161}\u{11a8}\u{9c7}\u{9be}Åﬁ\u{344}ක\u{dca}\u{dcf}".chars().collect();
        for _ in 0..5_000 {
            let text: String = (0..rng.usize(0..40))
                .map(|_| if rng.u8(..) < 200 { characters[rng.usize(..characters.len())] } else { rng.char(..) })
                .collect();
            let parts: Vec<&str> = splitter.parts(&text, rng.usize(1..8)).collect();
            assert_eq!(parts.concat(), text);
            let normalized: String = parts.iter().flat_map(|part| part.nfc().map(|(c, _)| c)).collect();
            assert_eq!(normalized, text.nfc().map(|(c, _)| c).collect::<String>(), "{text:?}");
        }
    }

    #[test]
    fn other_expressions_are_refused() {
        let split = |regex: &str, invert: bool| {
            let json = serde_json::json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": invert},
                {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
            ]});
            Splitter::new(Some(&json), false).map(|_| ())
        };
        let right = format!(r"{BEFORE}\p{{N}}{BEHIND}");
        assert_eq!(split(&right, false), Ok(()));
        assert!(split(&right, true).is_err());
        assert!(split(r"\s+", false).is_err() && split(&format!("{right}|x"), false).is_err());
        assert!(Splitter::new(None, false).is_err());
    }
}
