//! Which texts Unicode's normalization form C leaves as they are.
//!
//! Source: <https://www.unicode.org/reports/tr15/#Detecting_Normalization_Forms>.

use std::ops::Range;

use unicode_normalization_alignments::char::canonical_combining_class;
use unicode_normalization_alignments::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::decode;

/// The code points from this one on are kept by NFC, and have combining class 0: the last that it changes are in plane 2.
const END: u32 = 0x3_0000;

/// Stands for a code point that NFC may change or combine with the code point before it. No combining class is as large.
const MAY_CHANGE: u8 = u8::MAX;

/// NFC, which leaves out the parts of a text that it would not change.
///
/// A code point is *plain* if NFC never changes it, never combines it with what stands before it, and never moves it. Texts are cut before
/// plain code points, and a part is normalized if it has a code point that may change, or combining marks that are not in the order of
/// their classes. In `"a e\u{301} b"`, the part `"e\u{301}"` is normalized.
pub struct Nfc {
    /// For each code point below [`END`], 0 if it is plain, [`MAY_CHANGE`], or else its combining class.
    classes: Vec<u8>,
    /// For each first byte of a code point, whether not all such code points are plain.
    leads: [bool; 256],
}

impl Nfc {
    pub fn new() -> Self {
        let class = |c: char| match is_nfc_quick(std::iter::once(c)) {
            IsNormalized::Yes => canonical_combining_class(c),
            _ => MAY_CHANGE,
        };
        let classes: Vec<u8> = (0..END).map(|number| char::from_u32(number).map_or(0, class)).collect();
        let mut leads = [false; 256];
        for c in (0..).zip(&classes).filter(|(_, class)| **class != 0).filter_map(|(number, _)| char::from_u32(number))
        {
            let first = c.to_string().bytes().next();
            if let Some(lead) = first.and_then(|first| leads.get_mut(usize::from(first))) {
                *lead = true;
            }
        }
        Self { classes, leads }
    }

    /// Returns the next part of `text` at or behind `from` that NFC may change. The text is cut before and behind it.
    pub fn next_change(&self, text: &str, from: usize) -> Option<Range<usize>> {
        let mut at = from;
        loop {
            at = self.next_mark(text.as_bytes(), at)?;
            // The code point before it is plain, if there is one.
            let begin = text.get(from..at)?.char_indices().next_back().map_or(at, |(before, _)| from + before);
            let (mut last, mut changes) = (0, false);
            for c in text.get(at..)?.chars() {
                let class = self.class(c);
                if class == 0 {
                    break;
                }
                changes |= class == MAY_CHANGE || class < last;
                last = class;
                at += c.len_utf8();
            }
            if changes {
                return Some(begin..at);
            }
        }
    }

    /// Returns the position of the next code point that is not plain.
    fn next_mark(&self, text: &[u8], from: usize) -> Option<usize> {
        let is_lead = |byte: &u8| self.leads.get(usize::from(*byte)).is_some_and(|&lead| lead);
        let mut at = from;
        loop {
            // Nothing below U+0300 is a mark, so texts of most European languages are passed quickly.
            while text
                .get(at..)
                .and_then(<[u8]>::first_chunk::<32>)
                .is_some_and(|bytes| bytes.iter().all(|byte| *byte < 0xCC))
            {
                at += 32;
            }
            let rest = text.get(at..)?;
            let part = rest.get(..32).unwrap_or(rest);
            if part.is_empty() {
                return None;
            }
            let mut offset = 0;
            while let Some(next) = part.get(offset..)?.iter().position(is_lead) {
                offset += next;
                if decode(text, at + offset)
                    .is_some_and(|(c, _)| self.classes.get(c as usize).is_some_and(|class| *class != 0))
                {
                    return Some(at + offset);
                }
                offset += 1;
            }
            at += part.len();
        }
    }

    /// The code points of `text` in NFC.
    pub fn normalized(text: &str) -> impl Iterator<Item = char> {
        text.nfc().map(|(c, _)| c)
    }

    fn class(&self, c: char) -> u8 {
        self.classes.get(c as usize).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_parts(nfc: &Nfc, text: &str) -> (String, usize) {
        let (mut normalized, mut from, mut copied) = (String::new(), 0, 0);
        while let Some(part) = nfc.next_change(text, from) {
            assert!(part.start >= from && !part.is_empty(), "{text:?} {part:?}");
            normalized += &text[from..part.start];
            copied += part.start - from;
            normalized.extend(Nfc::normalized(&text[part.clone()]));
            from = part.end;
        }
        (normalized + &text[from..], copied + text.len() - from)
    }

    #[test]
    fn every_code_point_that_nfc_changes_is_known() {
        let nfc = Nfc::new();
        for c in '\0'..=char::MAX {
            for text in [c.to_string(), format!("a{c}b"), format!("\u{301}{c}"), format!("{c}\u{301}")] {
                let expected: String = Nfc::normalized(&text).collect();
                assert_eq!(by_parts(&nfc, &text).0, expected, "{c:?}");
            }
        }
    }

    #[test]
    fn parts_are_normalized_as_the_whole() {
        let nfc = Nfc::new();
        let mut rng = fastrand::Rng::with_seed(9);
        let characters: Vec<char> =
            "ab é\u{301}\u{327}가\u{1100}\u{1161}\u{11a8}\u{9c7}\u{9be}Åﬁ\u{344}ක\u{dca}\u{dcf}\u{94d}日ж"
                .chars()
                .collect();
        let (mut copied, mut bytes) = (0, 0);
        for round in 0..8_000 {
            let often = [40, 200, 250][round % 3];
            let text: String = (0..rng.usize(0..120))
                .map(|_| match rng.u8(..) {
                    byte if byte < often => ['a', 'é', 'ж', '日'][rng.usize(..4)],
                    byte if byte < 250 => characters[rng.usize(..characters.len())],
                    _ => rng.char(..),
                })
                .collect();
            let (found, unchanged) = by_parts(&nfc, &text);
            assert_eq!(found, Nfc::normalized(&text).collect::<String>(), "{text:?}");
            copied += unchanged;
            bytes += text.len();
        }
        assert!(copied > bytes / 3, "{copied} of {bytes}");
    }

    #[test]
    fn ordered_marks_change_nothing() {
        let nfc = Nfc::new();
        for text in ["क्या हिन्दी", "Đây là tiếng Việt", "日本語"] {
            assert_eq!(nfc.next_change(text, 0), None, "{text}");
        }
        assert_eq!(nfc.next_change("a bc\u{301}d", 0), Some(3..6));
        assert_eq!(nfc.next_change("x\u{315}\u{327}y", 0), Some(0..5), "not in the order of their classes");
    }
}
