//! The words that a thread has tokenized before.

use std::hint::select_unpredictable;

use bytemuck::{Pod, Zeroable};

use super::{Key, ShortKey};
use crate::large_pages::LargePages;
use crate::prefetch::prefetch;

/// Returns the place of a word in a table, whose number of places is a power of two. It follows from the high half of the word's hash.
#[inline]
fn place(high: u32, places: usize) -> usize {
    high as usize & (places - 1)
}

/// The largest number of tokens of a word that the cache keeps.
pub const MAX_IDS: usize = 7;

/// An entry for a word that has a [`ShortKey`] and at most three tokens, in half a cache line. Most words are of this kind.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
struct Short {
    key: ShortKey,
    ids: PackedIds,
}

impl Short {
    /// Returns `None` for a word that needs a [`Long`] entry.
    fn new(key: &Key, ids: &[u32]) -> Option<Self> {
        Some(Self { key: key.short()?, ids: PackedIds::new(ids)? })
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

/// Two words that have the same place, in a cache line: the newest word, and the one before it.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([Short; 2]);

/// The number of [`Line`]s for BPE: 16 MiB for each thread. With half of that, text in many languages is 5 % slower.
pub const LINES_FOR_BPE: usize = 1 << 18;

/// The number of [`Line`]s for Unigram models: 8 MiB for each thread.
pub const LINES_FOR_UNIGRAM: usize = 1 << 17;

/// The number of [`Long`] entries: 2 MiB for each thread.
const LONG: usize = 1 << 15;

/// The words that a thread has tokenized before, with their tokens. The size is fixed: a newer word replaces an older one. In all functions,
/// `high` is the high half of the hash of the word's key.
pub struct WordCache<const LINES: usize> {
    /// Both tables are `None` when the system gives no memory. The cache then knows no words.
    short: Option<LargePages<Line>>,
    long: Option<LargePages<Long>>,
}

impl<const LINES: usize> Default for WordCache<LINES> {
    fn default() -> Self {
        Self { short: LargePages::zeroed(LINES), long: LargePages::zeroed(LONG) }
    }
}

impl<const LINES: usize> WordCache<LINES> {
    /// Prefetches the entry that [`WordCache::long`] will read.
    #[inline]
    pub fn prefetch_long(&self, high: u32) {
        prefetch(self.long.as_deref().unwrap_or_default(), place(high, LONG));
    }

    /// Returns a view of the short entries for many lookups.
    #[inline]
    pub fn short_words(&self) -> ShortWords<'_, LINES> {
        ShortWords(self.short.as_deref().and_then(|lines| lines.try_into().ok()))
    }

    /// Returns the tokens of a word, if the cache has a long entry for it.
    pub fn long(&self, key: &Key, high: u32) -> Option<&[u32]> {
        let entry = self.long.as_ref()?.get(place(high, LONG)).filter(|entry| entry.key == *key)?;
        entry.ids.get(..entry.count as usize)
    }

    /// Appends the tokens of a word and returns true, if the cache has an entry of either kind for the word.
    #[inline]
    pub fn append(&self, key: &Key, high: u32, ids: &mut Vec<u32>) -> bool {
        match key.short().and_then(|key| self.short_words().get(&key, high)).map(PackedIds::unpack) {
            Some(Ok((found, count))) => ids.extend_from_slice(found.get(..count).unwrap_or_default()),
            _ => match self.long(key, high) {
                Some(found) => ids.extend_from_slice(found),
                None => return false,
            },
        }
        true
    }

    /// Adds a word to the cache, unless it has more than [`MAX_IDS`] tokens.
    pub fn put(&mut self, key: &Key, high: u32, ids: &[u32]) {
        if let Some(short) = Short::new(key, ids) {
            if let Some(Line([newest, older])) = self.short.as_mut().and_then(|all| all.get_mut(place(high, LINES))) {
                *older = *newest;
                *newest = short;
            }
        } else if let Some(entry) = self.long.as_mut().and_then(|all| all.get_mut(place(high, LONG)))
            && let Some(room) = entry.ids.get_mut(..ids.len())
        {
            room.copy_from_slice(ids);
            entry.key = *key;
            entry.count = ids.len() as u32;
        }
    }
}

/// The short entries of a [`WordCache`].
#[derive(Clone, Copy)]
pub struct ShortWords<'a, const LINES: usize>(Option<&'a [Line; LINES]>);

impl<const LINES: usize> ShortWords<'_, LINES> {
    /// Prefetches the line that [`ShortWords::get`] will read.
    #[inline]
    pub fn prefetch(self, high: u32) {
        if let Some(lines) = self.0 {
            prefetch(lines, place(high, LINES));
        }
    }

    /// Returns the tokens of a word, if there is an entry for it.
    #[inline]
    pub fn get(self, key: &ShortKey, high: u32) -> Option<PackedIds> {
        let Line([newest, older]) = self.0?.get(place(high, LINES))?;
        let (from_newest, from_older) = (newest.key.difference(key), older.key.difference(key));
        (from_newest.min(from_older) == 0).then(|| select_unpredictable(from_newest == 0, newest.ids, older.ids))
    }
}

/// Up to three token IDs of 20 bits each, and their number in the highest four bits.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct PackedIds(u64);

impl PackedIds {
    pub const MOST: usize = 3;
    const BITS: u32 = 20;
    const COUNT: u32 = Self::BITS * Self::MOST as u32;

    /// Returns `None` for IDs that are too many or too large.
    #[inline]
    pub fn new(ids: &[u32]) -> Option<Self> {
        if ids.len() > Self::MOST || ids.iter().any(|id| id >> Self::BITS != 0) {
            return None;
        }
        let packed = ids.iter().rev().fold(0, |packed, &id| packed << Self::BITS | u64::from(id));
        Some(Self(packed | (ids.len() as u64) << Self::COUNT))
    }

    /// Returns a value that stands for an index instead of IDs.
    #[inline]
    pub fn from_index(index: usize) -> Self {
        Self(u64::MAX << Self::COUNT | index as u64)
    }

    /// Returns the IDs and their number, or the index. The IDs behind the number have no meaning.
    #[inline]
    pub fn unpack(self) -> Result<([u32; Self::MOST], usize), usize> {
        let Self(packed) = self;
        let id = |at: u32| (packed >> (Self::BITS * at)) as u32 & ((1 << Self::BITS) - 1);
        match (packed >> Self::COUNT) as usize {
            count @ 0..=Self::MOST => Ok(([id(0), id(1), id(2)], count)),
            _ => Err((packed & !(u64::MAX << Self::COUNT)) as usize),
        }
    }
}

/// The number of entries of [`FrequentWords`].
const FREQUENT: usize = 1 << 13;

/// The words that a thread has found in its [`WordCache`] last: 256 KiB, which fit in the CPU's second cache. In English text, nine of ten
/// words are among them. The table is a fixed array so that lookups need no check of bounds.
pub struct FrequentWords(Box<[Short; FREQUENT]>);

impl Default for FrequentWords {
    fn default() -> Self {
        let words = vec![Short::zeroed(); FREQUENT].into_boxed_slice();
        Self(words.try_into().unwrap_or_else(|_| Box::new([Short::zeroed(); FREQUENT])))
    }
}

impl FrequentWords {
    /// Returns the tokens of the entry in which a word would be, and whether they are the tokens of that word.
    #[inline]
    pub fn get(&self, key: &ShortKey, high: u32) -> (PackedIds, bool) {
        match self.0.get(place(high, FREQUENT)) {
            Some(entry) => (entry.ids, entry.key.difference(key) == 0),
            None => (PackedIds::default(), false),
        }
    }

    #[inline]
    pub fn put(&mut self, key: &ShortKey, high: u32, ids: PackedIds) {
        if let Some(entry) = self.0.get_mut(place(high, FREQUENT)) {
            *entry = Short { key: *key, ids };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn high(key: &Key) -> u32 {
        (key.hash() >> 32) as u32
    }

    fn tokens(cache: &WordCache<LINES_FOR_UNIGRAM>, key: &Key) -> Option<Vec<u32>> {
        let mut ids = Vec::new();
        cache.append(key, high(key), &mut ids).then_some(ids)
    }

    #[test]
    fn a_word_is_found_until_another_takes_its_place() {
        for (count, places) in [(2, LINES_FOR_UNIGRAM), (4, LONG)] {
            let mut cache = WordCache::default();
            let keys: Vec<Key> =
                (0..places as u32 / 8 * 7).map(|n| Key::new(&n.to_le_bytes(), 0, 4).unwrap()).collect();
            let ids = |n: u32| (n..n + count).collect::<Vec<_>>();
            for (n, key) in (0..).zip(&keys) {
                cache.put(key, high(key), &ids(n));
                assert_eq!(tokens(&cache, key), Some(ids(n)));
            }
            let kept = (0..)
                .zip(&keys)
                .filter(|(n, key)| tokens(&cache, key).inspect(|found| assert_eq!(*found, ids(*n))).is_some());
            assert!(kept.count() > places / 2);
            let key = keys[0];
            cache.put(&key, high(&key), &[7; MAX_IDS + 1]);
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
                cache.put(&key, high(&key), ids);
                assert_eq!(tokens(&cache, &key).as_deref(), Some(ids), "{length}");
            }
            let mut cache = WordCache::default();
            cache.put(&key, high(&key), &[7; MAX_IDS + 1]);
            assert_eq!(tokens(&cache, &key), None);
        }
    }

    #[test]
    fn packed_ids_are_not_taken_for_an_index() {
        for ids in [&[][..], &[0], &[(1 << 20) - 1; 3], &[1, 2]] {
            let (found, count) = PackedIds::new(ids).unwrap().unpack().unwrap();
            assert_eq!(&found[..count], ids);
        }
        assert!([&[0; 4][..], &[1 << 20]].into_iter().all(|ids| PackedIds::new(ids).is_none()));
        for index in [0, 1, 1 << 40] {
            assert_eq!(PackedIds::from_index(index).unpack(), Err(index));
        }
    }

    #[test]
    fn a_frequent_word_is_found_until_another_takes_its_place() {
        let mut frequent = FrequentWords::default();
        let mut rng = fastrand::Rng::with_seed(3);
        let words: Vec<(ShortKey, PackedIds)> = (0..FREQUENT as u32)
            .map(|n| {
                let word: String = (0..rng.usize(2..12)).map(|_| rng.lowercase()).collect();
                (ShortKey::new(format!(" {word}{n}").as_bytes()).unwrap(), PackedIds::new(&[n]).unwrap())
            })
            .collect();
        let find = |frequent: &FrequentWords, key: &ShortKey| frequent.get(key, (key.hash() >> 32) as u32);
        for (key, ids) in &words {
            assert!(!find(&frequent, key).1);
            frequent.put(key, (key.hash() >> 32) as u32, *ids);
            assert_eq!(find(&frequent, key), (*ids, true));
        }
        let kept: Vec<_> = words.iter().filter(|(key, _)| find(&frequent, key).1).collect();
        assert!(kept.iter().all(|(key, ids)| find(&frequent, key).0 == *ids));
        // A random function has 63 % of all places as its values.
        assert!(kept.len() > FREQUENT * 60 / 100, "{}", kept.len());
        assert!(!frequent.get(&ShortKey::NO_WORD, 0).1);
    }
}
