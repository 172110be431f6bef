//! Words as integers of a fixed size, which are compared and hashed in a few instructions.

use bytemuck::{Pod, Zeroable};

/// The bytes of a word of at most 31 bytes, padded with zeros, and its length in the last byte. Two different words never have the
/// same key.
#[derive(Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct Key([u64; 4]);

/// The bytes of a word of at most 23 bytes, padded with zeros, and its length in the last byte. Most words have such a key.
#[derive(Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct ShortKey([u64; 3]);

/// The bytes to append to a text so that every word in it can be read as a window of 64 bytes.
pub const PADDING: [u8; 64] = [0; 64];

/// For each length of a word, the mask of the bytes that belong to the word.
const MASKS: [[u64; 4]; 32] = masks();

/// For each length of a word that has a [`ShortKey`], the mask of its bytes, and the length in the place that it has in the key.
#[allow(clippy::indexing_slicing, reason = "computed by the compiler")]
const SHORT_MASKS: [[u64; 4]; ShortKey::MAX_BYTES + 1] = {
    let (all, mut short) = (masks(), [[0; 4]; ShortKey::MAX_BYTES + 1]);
    let mut length = 0;
    while length < short.len() {
        let [a, b, c, _] = all[length];
        short[length] = [a, b, c, (length as u64) << 56];
        length += 1;
    }
    short
};

#[allow(clippy::indexing_slicing, reason = "computed by the compiler")]
const fn masks() -> [[u64; 4]; 32] {
    let mut masks = [[0; 4]; 32];
    let mut length = 0;
    while length < 32 {
        let mut at = 0;
        while at < length {
            masks[length][at / 8] |= 0xff << (at % 8 * 8);
            at += 1;
        }
        length += 1;
    }
    masks
}

#[inline]
fn fold(x: u64, y: u64) -> u64 {
    let product = u128::from(x) * u128::from(y);
    (product >> 64) as u64 ^ product as u64
}

impl ShortKey {
    pub const MAX_BYTES: usize = 23;

    /// A key that no word has, for the words that are too long for a key.
    pub const NO_WORD: Self = Self([u64::MAX; 3]);

    /// Returns the key of `word`, or `None` for a word that is empty or too long.
    pub fn new(word: &[u8]) -> Option<Self> {
        Key::new(word, 0, word.len())?.short()
    }

    /// Returns the key of the word of `length` bytes that `window` begins with, or [`ShortKey::NO_WORD`] for a word that is empty or
    /// too long.
    #[inline]
    pub fn of_window(window: &[u8; 24], length: usize) -> Self {
        let Some([mask_a, mask_b, mask_c, length]) = SHORT_MASKS.get(length).filter(|_| length > 0) else {
            return Self::NO_WORD;
        };
        let [a, b, c] = *window.as_chunks::<8>().0 else { return Self::NO_WORD };
        let read = u64::from_le_bytes;
        Self([read(a) & mask_a, read(b) & mask_b, read(c) & mask_c | length])
    }

    /// Returns zero if `other` is the same key, and another number otherwise.
    #[inline]
    pub fn difference(&self, other: &Self) -> u64 {
        let ([a, b, c], [x, y, z]) = (self.0, other.0);
        (a ^ x) | (b ^ y) | (c ^ z)
    }

    /// Returns the hash. [`WholeWords`](super::WholeWords) uses its low half, and the tables of `super::cache` its high half.
    #[inline]
    pub fn hash(&self) -> u64 {
        let [a, b, c] = self.0;
        fold(a ^ 0xA076_1D64_78BD_642F, (b ^ 0xE703_7ED1_A0B4_28DB).wrapping_add(c.wrapping_mul(0x8EBC_6AF0_9C88_C6E3)))
    }
}

impl Key {
    pub const MAX_BYTES: usize = 31;

    /// Returns the key of `text[start..end]`, or `None` for a word that is empty or too long.
    #[inline]
    pub fn new(text: &[u8], start: usize, end: usize) -> Option<Self> {
        let length = end.checked_sub(start).filter(|length| (1..=Self::MAX_BYTES).contains(length))?;
        let window: [u8; 32] = match text.get(start..).and_then(|rest| rest.first_chunk()) {
            Some(window) => *window,
            None => {
                let mut window = [0; 32];
                window.get_mut(..length)?.copy_from_slice(text.get(start..end)?);
                window
            }
        };
        let mut words = [0; 4];
        for ((word, bytes), mask) in words.iter_mut().zip(window.as_chunks::<8>().0).zip(MASKS.get(length)?) {
            *word = u64::from_le_bytes(*bytes) & mask;
        }
        if let Some(last) = words.last_mut() {
            *last |= (length as u64) << 56;
        }
        Some(Self(words))
    }

    /// Returns the hash of the key, which is also the hash of the [`ShortKey`] of the word.
    #[inline]
    pub fn hash(&self) -> u64 {
        let [a, b, c, d] = self.0;
        match self.short() {
            Some(short) => short.hash(),
            None => {
                fold(a ^ 0xA076_1D64_78BD_642F, b ^ 0xE703_7ED1_A0B4_28DB)
                    ^ fold(c ^ 0x8EBC_6AF0_9C88_C6E3, d ^ 0x5899_65CC_7537_4CC3)
            }
        }
    }

    /// Returns the short key of the word, or `None` for a word of more than [`ShortKey::MAX_BYTES`].
    #[inline]
    pub fn short(&self) -> Option<ShortKey> {
        let [a, b, c, d] = self.0;
        let length = d >> 56;
        (length as usize <= ShortKey::MAX_BYTES).then_some(ShortKey([a, b, c | length << 56]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At the end of a text and before more of it; with zeros in it.
    #[test]
    fn a_key_is_its_words_alone() {
        let text: Vec<u8> = (0..80).map(|at| if at % 7 == 3 { 0 } else { at }).collect();
        let mut seen = std::collections::HashMap::new();
        for start in 0..40 {
            for length in 1..=31 {
                let word = &text[start..start + length];
                let key = Key::new(&text, start, start + length).unwrap();
                assert!(key == Key::new(word, 0, length).unwrap(), "{word:?}");
                assert_eq!(*seen.entry(key.0).or_insert(word), word);
                let short = ShortKey::of_window(text[start..].first_chunk().unwrap(), length);
                assert_eq!(short == ShortKey::NO_WORD, length > ShortKey::MAX_BYTES);
                assert_eq!(key.short().is_some(), length <= ShortKey::MAX_BYTES);
                if let Some(same) = key.short() {
                    assert_eq!((same.difference(&short), same.hash()), (0, key.hash()));
                    assert_eq!(ShortKey::new(word).map(|key| key.0), Some(short.0));
                }
            }
        }
        assert!(
            Key::new(&text, 0, 32).is_none() && Key::new(&text, 5, 5).is_none() && Key::new(&text, 70, 90).is_none()
        );
        assert!(ShortKey::of_window(&[1; 24], 0) == ShortKey::NO_WORD);
    }

    #[test]
    fn the_difference_of_two_keys_is_not_zero() {
        let text: Vec<u8> = (1..=23).collect();
        let key = ShortKey::new(&text).unwrap();
        for at in 0..text.len() {
            let mut other = text.clone();
            other[at] ^= 0x80;
            assert_ne!(key.difference(&ShortKey::new(&other).unwrap()), 0, "{at}");
        }
        assert_ne!(key.difference(&ShortKey::new(&text[..22]).unwrap()), 0);
        assert_ne!(key.difference(&ShortKey::NO_WORD), 0);
    }
}
