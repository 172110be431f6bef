//! Tables of words whose tokens are known: the words of the vocabulary, and the words that this thread has tokenized before.

use std::hint::select_unpredictable;

use bytemuck::{Pod, Zeroable};

use crate::large_pages::LargePages;
use crate::prefetch::prefetch;

/// The bytes of a word, padded with zeros to 31 bytes, and its length in the last byte. Two different words never have the same
/// key.
#[derive(Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct Key([u64; 4]);

/// The bytes to append to a text so that every word in it can be read as a window of 32 bytes.
pub const PADDING: [u8; 32] = [0; 32];

/// For each length of a word, the mask of the bytes that belong to the word.
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
    pub const MAX_BYTES: usize = 31;

    /// Returns the key of the word of `length` bytes that `window` begins with, or `None` for a word that is empty or too long.
    #[inline]
    fn of_window(window: &[u8; PADDING.len()], length: usize) -> Option<Self> {
        if !(1..=Self::MAX_BYTES).contains(&length) {
            return None;
        }
        let mut words = [0; 4];
        for ((word, bytes), mask) in words.iter_mut().zip(window.as_chunks::<8>().0).zip(MASKS.get(length)?) {
            *word = u64::from_le_bytes(*bytes) & mask;
        }
        if let Some(last) = words.last_mut() {
            *last |= (length as u64) << 56;
        }
        Some(Self(words))
    }

    /// Returns the key of `text[start..end]`, or `None` for a word that is empty or too long. This is faster if `text` continues
    /// for the length of [`PADDING`] behind `start`.
    #[inline]
    pub fn new(text: &[u8], start: usize, end: usize) -> Option<Self> {
        let length = end.checked_sub(start)?;
        if let Some(window) = text.get(start..).and_then(|rest| rest.first_chunk()) {
            return Self::of_window(window, length);
        }
        let mut window = PADDING;
        window.get_mut(..length)?.copy_from_slice(text.get(start..end)?);
        Self::of_window(&window, length)
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

    /// Returns the key in three integers, or `None` for a word of more than [`WholeWords::MAX_BYTES`]. The last integer is never
    /// zero, because it holds the length.
    fn short(&self) -> Option<[u64; 3]> {
        let [a, b, c, d] = self.0;
        let length = d >> 56;
        (length as usize <= WholeWords::MAX_BYTES).then_some([a, b, c | length << 56])
    }
}

/// The words that are one token. Contains all words of the vocabulary, is shared by all threads and never changes.
pub struct WholeWords {
    /// A hash table with open addressing. An empty slot has the length 0 in its key.
    slots: LargePages<Slot>,
    /// A Bloom filter with one hash function and at least 16 bits for each word. It rejects nine of ten words that are not in the
    /// table.
    filter: Box<[u64]>,
}

/// One word and its token, in half a cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Slot {
    key: [u64; 3],
    id: u32,
    _padding: u32,
}

impl WholeWords {
    pub const MAX_BYTES: usize = 23;

    /// Creates the table from words and their token IDs. Leaves out words of more than [`WholeWords::MAX_BYTES`]. Returns `None`
    /// when the system gives no memory.
    pub fn new(words: &[(Key, u32)]) -> Option<Self> {
        let mut slots = LargePages::<Slot>::zeroed((2 * words.len() + 2).next_power_of_two())?;
        let mask = slots.len() - 1;
        let mut filter = vec![0; (words.len() / 4 + 1).next_power_of_two()].into_boxed_slice();
        for (key, id) in words {
            let Some(short) = key.short() else { continue };
            let (place, bit) = filter_place(key.hash(), filter.len());
            if let Some(bits) = filter.get_mut(place) {
                *bits |= bit;
            }
            let mut at = key.hash() as usize & mask;
            while let Some(slot) = slots.get_mut(at) {
                if slot.key == [0; 3] {
                    *slot = Slot { key: short, id: *id, _padding: 0 };
                    break;
                }
                at = (at + 1) & mask;
            }
        }
        Some(Self { slots, filter })
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

/// Returns the position of a word in the filter: the index of an integer, and the bit in it. They follow from the high bits of
/// the hash.
#[inline]
fn filter_place(hash: u64, places: usize) -> (usize, u64) {
    ((hash >> 40) as usize & (places - 1), 1 << (hash >> 34 & 63))
}

/// The largest number of tokens of a word that the cache keeps.
pub const MAX_IDS: usize = 7;

/// An entry for a word of at most 23 bytes and three tokens, in half a cache line. Most words are of this kind.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
struct Short {
    key: [u64; 3],
    /// Three token IDs of 20 bits each, and their number in the highest four bits.
    ids: u64,
}

impl Short {
    const IDS: usize = 3;
    const BITS: u32 = 20;

    /// Returns `None` for a word that needs a [`Long`] entry.
    fn new(key: &Key, ids: &[u32]) -> Option<Self> {
        let key = key.short()?;
        if ids.len() > Self::IDS || ids.iter().any(|id| id >> Self::BITS != 0) {
            return None;
        }
        let packed = ids.iter().rev().fold(0, |packed, &id| packed << Self::BITS | u64::from(id));
        Some(Self { key, ids: packed | (ids.len() as u64) << (Self::BITS * Self::IDS as u32) })
    }
}

/// An entry for any other word, in a cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Long {
    key: Key,
    ids: [u32; MAX_IDS],
    count: u32,
}

/// Two short words whose hashes have the same place, in a cache line: the newest word, and the one before it.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([Short; 2]);

/// The number of [`Line`]s: 8 MiB for each thread.
const SHORT: usize = 1 << 17;

/// The number of [`Long`] entries: 2 MiB for each thread.
const LONG: usize = 1 << 15;

/// The words that a thread has tokenized before, with their tokens. The size is fixed: a newer word replaces an older one.
pub struct WordCache {
    /// Both tables are `None` when the system gives no memory. The cache then knows no words.
    short: Option<LargePages<Line>>,
    long: Option<LargePages<Long>>,
}

impl Default for WordCache {
    fn default() -> Self {
        Self { short: LargePages::zeroed(SHORT), long: LargePages::zeroed(LONG) }
    }
}

impl WordCache {
    /// Returns the place of a word. It follows from the high bits of the hash, because [`WholeWords`] uses the low bits.
    #[inline]
    fn place(hash: u64, places: usize) -> usize {
        (hash >> 32) as usize & (places - 1)
    }

    #[inline]
    fn short_line(&self, hash: u64) -> Option<&Line> {
        self.short.as_ref()?.get(Self::place(hash, SHORT))
    }

    /// Prefetches the line that [`WordCache::short`] will read.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch(self.short.as_deref().unwrap_or_default(), Self::place(hash, SHORT));
    }

    /// Prefetches the entry that [`WordCache::long`] will read.
    #[inline]
    pub fn prefetch_long(&self, hash: u64) {
        prefetch(self.long.as_deref().unwrap_or_default(), Self::place(hash, LONG));
    }

    /// Writes the tokens of a word to the front of `ids` and returns their number, if the cache has a short entry for the word.
    /// Positions behind them may be overwritten.
    #[inline]
    pub fn short(&self, key: &Key, hash: u64, ids: &mut [u32; MAX_IDS]) -> Option<usize> {
        let Line([newest, older]) = self.short_line(hash)?;
        let [a, b, c, d] = key.0;
        // For a short word, the last integer of the key holds the length alone.
        let length = (d >> 56) as usize;
        let differs = |entry: &Short| {
            let [x, y, z] = entry.key;
            (a ^ x) | (b ^ y) | ((c | d) ^ z)
        };
        let (is_newest, is_older) = (differs(newest) == 0, differs(older) == 0);
        if !(1..=WholeWords::MAX_BYTES).contains(&length) || !(is_newest | is_older) {
            return None;
        }
        let packed = select_unpredictable(is_newest, newest.ids, older.ids);
        let [first, second, third, ..] = ids;
        let id = |at: u32| (packed >> (Short::BITS * at)) as u32 & ((1 << Short::BITS) - 1);
        (*first, *second, *third) = (id(0), id(1), id(2));
        Some((packed >> (Short::BITS * Short::IDS as u32)) as usize)
    }

    /// Returns the tokens of a word, if the cache has a long entry for it.
    pub fn long(&self, key: &Key, hash: u64) -> Option<&[u32]> {
        let entry = self.long.as_ref()?.get(Self::place(hash, LONG)).filter(|entry| entry.key == *key)?;
        entry.ids.get(..entry.count as usize)
    }

    /// Appends the tokens of a word and returns true, if the cache has an entry of either kind for the word.
    #[inline]
    pub fn append(&self, key: &Key, hash: u64, ids: &mut Vec<u32>) -> bool {
        let mut short = [0; MAX_IDS];
        let known = match self.short(key, hash, &mut short) {
            Some(count) => short.get(..count),
            None => self.long(key, hash),
        };
        known.map(|known| ids.extend_from_slice(known)).is_some()
    }

    /// Adds a word to the cache, unless it has more than [`MAX_IDS`] tokens.
    pub fn put(&mut self, key: &Key, hash: u64, ids: &[u32]) {
        if let Some(short) = Short::new(key, ids) {
            if let Some(Line([newest, older])) =
                self.short.as_mut().and_then(|all| all.get_mut(Self::place(hash, SHORT)))
            {
                *older = *newest;
                *newest = short;
            }
        } else if let Some(entry) = self.long.as_mut().and_then(|all| all.get_mut(Self::place(hash, LONG)))
            && let Some(place) = entry.ids.get_mut(..ids.len())
        {
            place.copy_from_slice(ids);
            entry.key = *key;
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

    fn tokens(cache: &WordCache, key: &Key) -> Option<Vec<u32>> {
        let mut ids = Vec::new();
        cache.append(key, key.hash(), &mut ids).then_some(ids)
    }

    #[test]
    fn a_word_is_found_until_another_takes_its_place() {
        for (count, places) in [(2, SHORT), (4, LONG)] {
            let mut cache = WordCache::default();
            let keys: Vec<Key> =
                (0..places as u32 / 8 * 7).map(|n| Key::new(&n.to_le_bytes(), 0, 4).unwrap()).collect();
            let ids = |n: u32| (n..n + count).collect::<Vec<_>>();
            for (n, key) in (0..).zip(&keys) {
                cache.put(key, key.hash(), &ids(n));
                assert_eq!(tokens(&cache, key), Some(ids(n)));
            }
            let kept = (0..)
                .zip(&keys)
                .filter(|(n, key)| tokens(&cache, key).inspect(|found| assert_eq!(*found, ids(*n))).is_some());
            assert!(kept.count() > places / 2);
            let key = keys[0];
            cache.put(&key, key.hash(), &[7; MAX_IDS + 1]);
            assert!(tokens(&cache, &key).is_none_or(|found| found == ids(0)));
        }
    }

    #[test]
    fn words_of_any_length_and_up_to_seven_tokens_are_kept() {
        let text: Vec<u8> = (1..=31).collect();
        for length in 1..=31 {
            let key = Key::new(&text, 0, length).unwrap();
            for ids in [&[][..], &[7], &[1 << 19, 2, 3], &[1 << 20, 2], &[1, 2, 3, 4], &[u32::MAX; MAX_IDS]] {
                let mut cache = WordCache::default();
                cache.put(&key, key.hash(), ids);
                assert_eq!(tokens(&cache, &key).as_deref(), Some(ids), "{length}");
            }
            let mut cache = WordCache::default();
            cache.put(&key, key.hash(), &[7; MAX_IDS + 1]);
            assert_eq!(tokens(&cache, &key), None);
        }
        let nothing = Key::default();
        assert_eq!(WordCache::default().short(&nothing, nothing.hash(), &mut [0; MAX_IDS]), None);
    }

    #[test]
    fn most_words_that_are_not_there_need_not_be_looked_for() {
        let key = |n: u32| Key::new(&n.to_le_bytes(), 0, 4).unwrap();
        let words: Vec<(Key, u32)> = (0..10_000).map(|n| (key(n), n)).collect();
        let table = WholeWords::new(&words).unwrap();
        assert!(words.iter().all(|(key, _)| table.may_have(key.hash())));
        assert!((10_000..20_000).filter(|&n| table.may_have(key(n).hash())).count() < 1_500);
    }

    #[test]
    fn whole_words_of_up_to_23_bytes_are_found() {
        let text = [b'x'; 31];
        let words: Vec<(Key, u32)> = (1..=31).map(|n| (Key::new(&text, 0, n).unwrap(), n as u32)).collect();
        let table = WholeWords::new(&words).unwrap();
        for (key, n) in words {
            assert_eq!(table.get(&key, key.hash()), (n <= 23).then_some(n));
            assert!(table.may_have(key.hash()) || n > 23);
        }
        let other = Key::new(b"y", 0, 1).unwrap();
        assert_eq!(table.get(&other, other.hash()), None);
    }
}
