//! Tables of words whose tokens are known: the words of the vocabulary, and the words that this thread has tokenized before ([`cache`]).

pub mod cache;
mod key;

use bytemuck::{Pod, Zeroable};

use crate::compiled::{self, CompiledError, Writer};
use crate::large_pages::LargePages;
use crate::prefetch::prefetch;
pub use key::{Key, PADDING, ShortKey};

/// The words that are one token. Contains all words of the vocabulary, is shared by all threads and never changes.
pub struct WholeWords {
    /// A hash table with open addressing. An empty slot has the length 0 in its key.
    slots: LargePages<Slot>,
    /// A Bloom filter with one hash function and at least 16 bits for each word. It rejects nine of ten words that are not in the
    /// table.
    filter: Box<[u64]>,
}

/// One word and its token, in half a cache line.
#[derive(Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Slot {
    key: ShortKey,
    id: u32,
    _padding: u32,
}

impl WholeWords {
    /// Creates the table from words and their token IDs. Returns `None` when the system gives no memory.
    pub fn new(words: &[(ShortKey, u32)]) -> Option<Self> {
        let mut slots = LargePages::<Slot>::zeroed((2 * words.len() + 2).next_power_of_two())?;
        let mask = slots.len() - 1;
        let mut filter = vec![0; (words.len() / 4 + 1).next_power_of_two()].into_boxed_slice();
        for (key, id) in words {
            let (place, bit) = filter_place(key.hash(), filter.len());
            if let Some(bits) = filter.get_mut(place) {
                *bits |= bit;
            }
            let mut at = key.hash() as usize & mask;
            while let Some(slot) = slots.get_mut(at) {
                if slot.key == ShortKey::default() {
                    *slot = Slot { key: *key, id: *id, _padding: 0 };
                    break;
                }
                at = (at + 1) & mask;
            }
        }
        Some(Self { slots, filter })
    }

    pub fn write(&self, to: &mut Writer) {
        to.table(&self.slots, Slot::zeroed());
        to.list(&self.filter);
    }

    /// Reads what [`WholeWords::write`] wrote.
    ///
    /// # Errors
    /// When it is not a table of tokens of the vocabulary.
    pub fn read(from: &mut compiled::Reader<'_>) -> Result<Self, CompiledError> {
        // At most half of the slots are used, so that a search for a word ends.
        let slots = from.table(None, |slot: &Slot, max_id| slot.id <= max_id)?;
        let filter = from.list()?.into_boxed_slice();
        match filter.len().is_power_of_two() {
            true => Ok(Self { slots, filter }),
            false => Err(CompiledError::Damaged("the length of a filter is not a power of two")),
        }
    }

    /// Returns whether the table may contain the word. Returns false for most words that it does not contain.
    #[inline]
    pub fn may_have(&self, hash: u64) -> bool {
        let (place, bit) = filter_place(hash, self.filter.len());
        self.filter.get(place).is_some_and(|bits| bits & bit != 0)
    }

    /// Prefetches the slot that [`WholeWords::get`] will read.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.slots, hash as usize & (self.slots.len() - 1));
    }

    #[inline]
    pub fn get(&self, key: &ShortKey, hash: u64) -> Option<u32> {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while let Some(&Slot { key: found, id, .. }) = self.slots.get(at) {
            if found == *key {
                return Some(id);
            }
            if found == ShortKey::default() {
                break;
            }
            at = (at + 1) & mask;
        }
        None
    }
}

/// Returns the position of a word in the filter: the index of an integer, and the bit in it. They follow from the high bits of
/// the hash.
#[inline]
fn filter_place(hash: u64, places: usize) -> (usize, u64) {
    ((hash >> 40) as usize & (places - 1), 1 << (hash >> 34 & 63))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_words_that_are_not_there_need_not_be_looked_for() {
        let key = |n: u32| ShortKey::new(&n.to_le_bytes()).unwrap();
        let words: Vec<(ShortKey, u32)> = (0..10_000).map(|n| (key(n), n)).collect();
        let table = WholeWords::new(&words).unwrap();
        assert!(words.iter().all(|(key, _)| table.may_have(key.hash())));
        assert!((10_000..20_000).filter(|&n| table.may_have(key(n).hash())).count() < 1_500);
    }

    #[test]
    fn words_of_every_length_are_found() {
        let text = [b'x'; ShortKey::MAX_BYTES];
        let words: Vec<(ShortKey, u32)> =
            (1..=text.len()).map(|n| (ShortKey::new(&text[..n]).unwrap(), n as u32)).collect();
        let table = WholeWords::new(&words).unwrap();
        for (key, n) in words {
            assert_eq!(table.get(&key, key.hash()), Some(n));
            assert!(table.may_have(key.hash()));
        }
        let other = ShortKey::new(b"y").unwrap();
        assert_eq!(table.get(&other, other.hash()), None);
    }
}
