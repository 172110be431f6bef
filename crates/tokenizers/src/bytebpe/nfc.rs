//! Which texts Unicode's normalization form C leaves as they are.
//!
//! Source: <https://www.unicode.org/reports/tr15/#Detecting_Normalization_Forms>.

use unicode_normalization_alignments::char::canonical_combining_class;
use unicode_normalization_alignments::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// The code points from this one on are kept by NFC, and have combining class 0: the last that it changes are in plane 2.
const END: u32 = 0x3_0000;

/// NFC, which skips the texts that it would not change.
pub struct Nfc {
    /// For each code point below [`END`], whether NFC may change it or combine it with what stands before it.
    may_change: Vec<bool>,
}

impl Nfc {
    pub fn new() -> Self {
        let may_change =
            |c: char| canonical_combining_class(c) != 0 || is_nfc_quick(std::iter::once(c)) != IsNormalized::Yes;
        Self { may_change: (0..END).map(|number| char::from_u32(number).is_some_and(may_change)).collect() }
    }

    /// Whether NFC certainly leaves `text` as it is. It may answer `false` for a text that is normalized.
    pub fn is_normalized(&self, text: &str) -> bool {
        text.is_ascii() || !text.chars().any(|c| self.may_change(c))
    }

    /// Splits `text` into parts of at least `length` bytes, except for the last, that can be normalized one by one: each begins with
    /// a code point that NFC leaves alone and never combines with what stands before it.
    pub fn parts<'t>(&self, text: &'t str, length: usize) -> impl Iterator<Item = &'t str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            let cut = rest.char_indices().find(|&(at, c)| at >= length && !self.may_change(c));
            let (part, behind) = rest.split_at_checked(cut.map_or(rest.len(), |(at, _)| at))?;
            rest = behind;
            (!part.is_empty()).then_some(part)
        })
    }

    /// The code points of `text` in NFC.
    pub fn normalized(text: &str) -> impl Iterator<Item = char> {
        text.nfc().map(|(c, _)| c)
    }

    fn may_change(&self, c: char) -> bool {
        self.may_change.get(c as usize).is_some_and(|&may| may)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_point_that_nfc_changes_is_known() {
        let nfc = Nfc::new();
        for c in '\0'..=char::MAX {
            let alone = c.to_string();
            let stays = Nfc::normalized(&alone).eq([c]) && canonical_combining_class(c) == 0;
            assert!(stays || !nfc.is_normalized(&alone), "{c:?}");
        }
    }

    #[test]
    fn parts_are_normalized_as_the_whole() {
        let nfc = Nfc::new();
        let mut rng = fastrand::Rng::with_seed(9);
        let characters: Vec<char> =
            "ab é\u{301}\u{327}가\u{1100}\u{1161}\u{11a8}\u{9c7}\u{9be}Åﬁ\u{344}ක\u{dca}\u{dcf}".chars().collect();
        for _ in 0..5_000 {
            let text: String = (0..rng.usize(0..40))
                .map(|_| if rng.u8(..) < 200 { characters[rng.usize(..characters.len())] } else { rng.char(..) })
                .collect();
            let parts: Vec<&str> = nfc.parts(&text, rng.usize(1..8)).collect();
            assert_eq!(parts.concat(), text);
            let normalized: String = parts.iter().flat_map(|part| Nfc::normalized(part)).collect();
            assert_eq!(normalized, Nfc::normalized(&text).collect::<String>(), "{text:?}");
        }
    }
}
