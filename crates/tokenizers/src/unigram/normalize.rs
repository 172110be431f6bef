//! Normalizes the text for a Unigram model, one word at a time.

use std::ops::RangeInclusive;

use serde_json::Value;
use unicode_normalization_alignments::char::{canonical_combining_class, decompose_compatible};
use unicode_normalization_alignments::{IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfkc_quick};

use crate::DefinitionError;
use crate::json::kind;
use crate::yield_point::{Steps, Stopped};

/// The steps of the supported normalizers.
///
/// No step depends on characters beyond ASCII white space, so the words between white space can be normalized alone.
pub struct Normalizer {
    /// The characters that are replaced by spaces.
    spaces: Vec<RangeInclusive<char>>,
    /// Whether NFKC follows. It uses the tables of the crate that the reference uses, because another crate may have another
    /// version of Unicode.
    nfkc: bool,
}

impl Normalizer {
    /// Reads the `normalizer` of a tokenizer.json.
    ///
    /// # Errors
    /// Names the step that is not supported.
    pub fn new(definition: Option<&Value>) -> Result<Self, DefinitionError> {
        let steps = match definition {
            None => &[],
            Some(all) if kind(all) == "Sequence" => {
                all.get("normalizers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
            }
            Some(one) => std::slice::from_ref(one),
        };
        let mut this = Self { spaces: Vec::new(), nfkc: false };
        for step in steps {
            match kind(step) {
                "NFKC" => this.nfkc = true,
                "Replace" if !this.nfkc && step.get("content").is_some_and(|content| content == " ") => {
                    let pattern = step.pointer("/pattern/Regex").and_then(Value::as_str);
                    let class = pattern.and_then(class).ok_or_else(|| {
                        DefinitionError::unsupported("a normalizer replaces more than one class of characters")
                    })?;
                    this.spaces.extend(class);
                }
                other => return Err(DefinitionError::unsupported(format!("the normalizer {other} is not reproduced"))),
            }
        }
        Ok(this)
    }

    /// Normalizes `word`, a text without ASCII white space. The result may contain white space. The word's text has at least
    /// `made` tokens before it; `steps` is told this number.
    ///
    /// # Errors
    /// When `steps` stops the work.
    #[inline]
    pub fn apply<'t>(
        &self,
        word: &'t str,
        buffer: &'t mut String,
        made: usize,
        steps: &Steps<'_>,
    ) -> Result<&'t str, Stopped> {
        if word.is_ascii() { Ok(word) } else { self.apply_unicode(word, buffer, made, steps) }
    }

    fn apply_unicode<'t>(
        &self,
        word: &'t str,
        buffer: &'t mut String,
        made: usize,
        steps: &Steps<'_>,
    ) -> Result<&'t str, Stopped> {
        buffer.clear();
        // The text before `copied` is in the buffer already. It ends at a position where the following text cannot change it.
        let mut copied = 0;
        let mut class_before = 0;
        let mut characters = word.char_indices().peekable();
        while let Some((at, character)) = characters.next() {
            if character.is_ascii() {
                class_before = 0;
                continue;
            }
            let end = at + character.len_utf8();
            steps.take(1, made)?;
            if self.spaces.iter().any(|range| range.contains(&character)) {
                buffer.push_str(word.get(copied..at).unwrap_or_default());
                buffer.push(' ');
                (copied, class_before) = (end, 0);
                continue;
            }
            if !self.nfkc {
                continue;
            }
            let class = canonical_combining_class(character);
            let in_order = class == 0 || class_before <= class;
            match is_nfkc_quick(std::iter::once(character)) {
                IsNormalized::Yes if in_order => class_before = class,
                IsNormalized::No
                    if begins_alone(character) && characters.peek().is_none_or(|&(_, next)| begins_alone(next)) =>
                {
                    buffer.push_str(word.get(copied..at).unwrap_or_default());
                    buffer.extend(std::iter::once(character).nfkc().map(|(c, _)| c));
                    (copied, class_before) = (end, 0);
                }
                _ => return self.apply_slowly(word, buffer, made, steps),
            }
        }
        if copied == 0 {
            return Ok(word);
        }
        buffer.push_str(word.get(copied..).unwrap_or_default());
        Ok(buffer)
    }

    fn apply_slowly<'t>(
        &self,
        word: &str,
        buffer: &'t mut String,
        made: usize,
        steps: &Steps<'_>,
    ) -> Result<&'t str, Stopped> {
        buffer.clear();
        let space = |c: char| if self.spaces.iter().any(|range| range.contains(&c)) { ' ' } else { c };
        let mut rest = word;
        while !rest.is_empty() {
            let mut cuts = rest.char_indices().filter(|&(at, c)| at >= Steps::UNITS && begins_alone(space(c)));
            let cut = cuts.next().map_or(rest.len(), |(at, _)| at);
            let (part, behind) = rest.split_at_checked(cut).unwrap_or((rest, ""));
            buffer.extend(part.chars().map(space).nfkc().map(|(c, _)| c));
            steps.take(part.len(), made)?;
            rest = behind;
        }
        Ok(buffer)
    }
}

/// Returns whether no character before this one composes or changes places with its decomposition.
///
/// Source: "boundary before" in <https://unicode.org/reports/tr15/#Contexts_Care>.
fn begins_alone(character: char) -> bool {
    let mut first = None;
    decompose_compatible(character, |c| {
        first.get_or_insert(c);
    });
    first.is_none_or(|c| canonical_combining_class(c) == 0 && is_nfc_quick(std::iter::once(c)) == IsNormalized::Yes)
}

/// Returns the ranges of a regular expression that is one class of characters, without escapes and all beyond ASCII: `[a-cx]`.
fn class(pattern: &str) -> Option<Vec<RangeInclusive<char>>> {
    let mut characters = pattern.strip_prefix('[')?.strip_suffix(']')?.chars().peekable();
    let mut ranges = Vec::new();
    while let Some(first) = characters.next() {
        let last = if characters.next_if_eq(&'-').is_some() { characters.next()? } else { first };
        if first.is_ascii() || last < first {
            return None;
        }
        ranges.push(first..=last);
    }
    Some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalizer(pattern: &str) -> Result<Normalizer, DefinitionError> {
        let replace = serde_json::json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": " "});
        let steps = serde_json::json!({"type": "Sequence", "normalizers": [replace, {"type": "NFKC"}]});
        Normalizer::new(Some(&steps))
    }

    /// Each character that NFKC may change, and some that it does not change, alone and between others.
    #[test]
    fn every_character_is_normalized_as_by_the_slow_way() {
        let normalizer = normalizer("[\u{200b}-\u{200f}\u{feff}]").unwrap();
        let around =
            ["", "a", "é", "\u{301}", "\u{327}", "ガ", "か", "가", "\u{1100}", "\u{1161}", "，", "ส", "ﷺ", "\u{e38}"];
        let mut rng = fastrand::Rng::with_seed(2);
        let (mut quickly, mut slowly) = (String::new(), String::new());
        for character in '\u{80}'..=char::MAX {
            let inert = canonical_combining_class(character) == 0
                && is_nfkc_quick(std::iter::once(character)) == IsNormalized::Yes;
            if inert && rng.u8(..) > 0 {
                continue;
            }
            let before = around[rng.usize(..around.len())];
            let after = around[rng.usize(..around.len())];
            for word in [format!("{before}{character}{after}"), character.into()] {
                let found = normalizer.apply(&word, &mut quickly, 0, &Steps::unlimited());
                assert_eq!(found, normalizer.apply_slowly(&word, &mut slowly, 0, &Steps::unlimited()), "{word:?}");
            }
        }
    }

    #[test]
    fn long_words_are_normalized_in_parts_as_in_one() {
        let normalizer = normalizer("[\u{200b}-\u{200f}\u{feff}]").unwrap();
        let mut rng = fastrand::Rng::with_seed(4);
        let characters: Vec<char> =
            "aé\u{301}\u{327}ガカ\u{3099}가\u{1100}\u{1161}\u{11a8}ﷺ\u{200b}\u{e38}ﬁ".chars().collect();
        for _ in 0..50 {
            let count = 3 * Steps::UNITS + rng.usize(..100);
            let word: String = (0..count).map(|_| characters[rng.usize(..characters.len())]).collect();
            let space = |c: char| if matches!(c, '\u{200b}'..='\u{200f}' | '\u{feff}') { ' ' } else { c };
            let expected: String = word.chars().map(space).nfkc().map(|(c, _)| c).collect();
            let mut buffer = String::new();
            assert!(normalizer.apply_slowly(&word, &mut buffer, 0, &Steps::unlimited()) == Ok(expected.as_str()));
        }
    }

    #[test]
    fn only_classes_beyond_ascii_become_spaces() {
        let found = normalizer("[\u{200b}-\u{200f}▁]").unwrap().spaces;
        assert_eq!(found, ['\u{200b}'..='\u{200f}', '▁'..='▁']);
        for pattern in ["[a]", "[^é]", "[é", "é", "[é-]", "[é&&ü]", "[\\d]", "[ü-é]", " {2,}", "[é-\\]"] {
            assert!(normalizer(pattern).is_err(), "{pattern}");
        }
    }
}
