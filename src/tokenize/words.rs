//! Words whose tokens are known: those that are one token, and those that this thread has met.

use bytemuck::{Pod, Zeroable};

use crate::large_pages::LargePages;
use crate::prefetch::prefetch;

/// A word's bytes, padded with zeros, its length in the last: two words never have the same key.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Key([u64; 4]);

/// What a text is followed by where all of its keys should be made the quick way.
pub const PADDING: [u8; 32] = [0; 32];

/// By the number of bytes that are a word's: those.
#[allow(clippy::indexing_slicing, reason = "by the compiler")]
const MASKS: [[u64; 4]; 32] = {
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
};

impl Key {
    const MAX_BYTES: usize = 31;

    /// Of `text[start..end]`; `None` for a word that is too long to be kept. Sooner where `text` goes on for [`PADDING`] bytes.
    #[inline]
    pub fn new(text: &[u8], start: usize, end: usize) -> Option<Self> {
        let length = end.checked_sub(start).filter(|length| (1..=Self::MAX_BYTES).contains(length))?;
        let mut words = [0; 4];
        if let Some(window) = text.get(start..).and_then(|rest| rest.first_chunk::<32>()) {
            for ((word, bytes), mask) in words.iter_mut().zip(window.as_chunks::<8>().0).zip(MASKS.get(length)?) {
                *word = u64::from_le_bytes(*bytes) & mask;
            }
        } else {
            let mut buffer = [0; 32];
            buffer.get_mut(..length)?.copy_from_slice(text.get(start..end)?);
            for (word, bytes) in words.iter_mut().zip(buffer.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*bytes);
            }
        }
        if let Some(last) = words.last_mut() {
            *last |= (length as u64) << 56;
        }
        Some(Self(words))
    }

    #[inline]
    pub fn hash(&self) -> u64 {
        let [a, b, c, d] = self.0;
        let fold = |x: u64, y: u64| {
            let product = u128::from(x) * u128::from(y);
            (product >> 64) as u64 ^ product as u64
        };
        fold(a ^ 0xA076_1D64_78BD_642F, b ^ 0xE703_7ED1_A0B4_28DB)
            ^ fold(c ^ 0x8EBC_6AF0_9C88_C6E3, d ^ 0x5899_65CC_7537_4CC3)
    }

    /// In three words of which none is empty; `None` for more than [`WholeWords::MAX_BYTES`].
    fn short(&self) -> Option<[u64; 3]> {
        let [a, b, c, d] = self.0;
        let length = d >> 56;
        (length as usize <= WholeWords::MAX_BYTES).then_some([a, b, c | length << 56])
    }
}

/// Words that are one token: all that the vocabulary has, shared by the threads and never changed.
pub struct WholeWords {
    /// Open addressing; a slot without a word has no length in its key.
    slots: LargePages<Slot>,
}

/// Half a cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Slot {
    key: [u64; 3],
    id: u32,
    _padding: u32,
}

impl WholeWords {
    pub const MAX_BYTES: usize = 23;

    /// Of words with their ids. Words of more than [`WholeWords::MAX_BYTES`] are left out. `None` when the system gives no memory.
    pub fn new(words: &[(Key, u32)]) -> Option<Self> {
        let mut slots = LargePages::<Slot>::zeroed((2 * words.len() + 2).next_power_of_two())?;
        let mask = slots.len() - 1;
        for (key, id) in words {
            let Some(short) = key.short() else { continue };
            let mut at = key.hash() as usize & mask;
            while let Some(slot) = slots.get_mut(at) {
                if slot.key == [0; 3] {
                    *slot = Slot { key: short, id: *id, _padding: 0 };
                    break;
                }
                at = (at + 1) & mask;
            }
        }
        Some(Self { slots })
    }

    /// Starts to read what [`WholeWords::get`] will need.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.slots, hash as usize & (self.slots.len() - 1));
    }

    #[inline]
    pub fn get(&self, key: &Key, hash: u64) -> Option<u32> {
        let short = key.short()?;
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while let Some(&Slot { key: found, id, .. }) = self.slots.get(at) {
            if found == short {
                return Some(id);
            }
            if found == [0; 3] {
                break;
            }
            at = (at + 1) & mask;
        }
        None
    }
}

const MAX_IDS: usize = 7;

/// 4 MiB a thread, once they are filled.
const ENTRIES: usize = 1 << 16;

/// One cache line.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Entry {
    key: Key,
    ids: [u32; MAX_IDS],
    count: u32,
}

/// The words that a thread has met: of fixed size, a newer word replaces an older one.
pub struct WordCache(Box<[Entry]>);

impl Default for WordCache {
    fn default() -> Self {
        Self(vec![Entry::default(); ENTRIES].into_boxed_slice())
    }
}

impl WordCache {
    /// The high bits choose the place: the low ones are those of [`WholeWords`].
    fn place(hash: u64) -> usize {
        (hash >> 32) as usize & (ENTRIES - 1)
    }

    /// Starts to read what [`WordCache::get`] will need.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.0, Self::place(hash));
    }

    #[inline]
    pub fn get(&self, key: &Key, hash: u64) -> Option<&[u32]> {
        let entry = self.0.get(Self::place(hash)).filter(|entry| entry.key == *key)?;
        entry.ids.get(..entry.count as usize)
    }

    pub fn put(&mut self, key: Key, hash: u64, ids: &[u32]) {
        if let Some(entry) = self.0.get_mut(Self::place(hash))
            && let Some(place) = entry.ids.get_mut(..ids.len())
        {
            place.copy_from_slice(ids);
            entry.key = key;
            entry.count = ids.len() as u32;
        }
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
            }
        }
        assert!(
            Key::new(&text, 0, 32).is_none() && Key::new(&text, 5, 5).is_none() && Key::new(&text, 70, 90).is_none()
        );
    }

    #[test]
    fn a_word_is_found_until_another_takes_its_place() {
        let mut cache = WordCache::default();
        let keys: Vec<Key> = (0..50_000_u32).map(|n| Key::new(&n.to_le_bytes(), 0, 4).unwrap()).collect();
        for (n, key) in (0..).zip(&keys) {
            cache.put(*key, key.hash(), &[n, n + 1]);
            assert_eq!(cache.get(key, key.hash()), Some(&[n, n + 1][..]));
        }
        let kept = (0..)
            .zip(&keys)
            .filter(|(n, key)| cache.get(key, key.hash()).inspect(|ids| assert_eq!(ids[0], *n)).is_some());
        assert!(kept.count() > ENTRIES / 2);
        let key = keys[0];
        cache.put(key, key.hash(), &[7; MAX_IDS + 1]);
        assert!(cache.get(&key, key.hash()).is_none_or(|ids| ids == [0, 1]));
    }

    #[test]
    fn whole_words_of_up_to_23_bytes_are_found() {
        let text = [b'x'; 31];
        let words: Vec<(Key, u32)> = (1..=31).map(|n| (Key::new(&text, 0, n).unwrap(), n as u32)).collect();
        let table = WholeWords::new(&words).unwrap();
        for (key, n) in words {
            assert_eq!(table.get(&key, key.hash()), (n <= 23).then_some(n));
        }
        let other = Key::new(b"y", 0, 1).unwrap();
        assert_eq!(table.get(&other, other.hash()), None);
    }
}
