//! The merges of a BPE model: which pairs of tokens merge, in which order, into which token.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bytemuck::{Pod, Zeroable};

use crate::compiled::{self, CompiledError, Writer};
use crate::large_pages::LargePages;
use crate::prefetch::prefetch;
use crate::yield_point::{Steps, Stopped};

/// Stands for no token and for no rank.
pub const NONE: u32 = u32::MAX;

/// The rank of a merge in the upper half, and the token that it makes in the lower half. Of two merges, the smaller number comes
/// first.
pub type Merge = u64;
pub const NO_MERGE: Merge = u64::MAX;

/// The reason why [`Merges::new`] returns `None`.
pub const TOO_LARGE: &str =
    "a token ID or the number of merges exceeds 1,048,574, or there is no memory for the merges";

/// A hash table from pairs of tokens to their merges. It is read at random positions, so it is kept small: an entry takes eight bytes.
///
/// A pair of token IDs is a number of twice as many bits as an ID has. The number is multiplied by an odd factor, which gives a different
/// product of as many bits for each pair. The highest bits of the product are the bucket of the pair. The remaining bits, the tag, are
/// stored in the entry, so that the bucket and the tag together identify the pair. For example, with IDs of 17 bits and 2^16 buckets, the tag
/// has 18 bits.
pub struct Merges {
    buckets: LargePages<Bucket>,
    shape: Shape,
}

/// A view of the table for many lookups.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    buckets: &'a [Bucket],
    shape: Shape,
}

#[derive(Clone, Copy)]
struct Shape {
    /// The number of bits of a token ID.
    id_bits: u32,
    /// The number of bits of a tag.
    tag_bits: u32,
    /// The odd number by which a pair is multiplied.
    factor: u64,
}

/// Eight merges in a cache line, so that most lookups take one read from memory. From the highest bit on, an entry has the tag of the
/// pair, the number of buckets between the pair's own bucket and this one, the rank, and the token that the merge makes. Unused entries
/// are behind the used ones and are [`EMPTY`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Bucket([u64; 8]);

const EMPTY: u64 = u64::MAX;

/// The number of bits of a rank or of a token ID in an entry.
const ID_BITS: u32 = 20;
/// The number of bits for the distance from a pair's own bucket.
const DISTANCE_BITS: u32 = 3;
/// The number of distances that are in use. The last possible distance is not, so no entry is equal to [`EMPTY`].
const DISTANCES: usize = (1 << DISTANCE_BITS) - 1;
/// The largest number of bits of a tag.
const TAG_BITS: u32 = u64::BITS - DISTANCE_BITS - 2 * ID_BITS;

/// The largest average number of merges in a bucket.
const LOAD: usize = 5;

/// The buffers in which one thread merges a long word.
#[derive(Default)]
pub struct Workspace {
    /// The merge of each symbol with the symbol behind it.
    merges: Vec<Merge>,
    next: Vec<u32>,
    previous: Vec<u32>,
    heap: BinaryHeap<Reverse<u64>>,
    /// The number of candidates taken from the heap, which is the cost of a long word.
    pub(super) candidates: usize,
}

impl Merges {
    /// The largest token ID, and the largest number of merges.
    pub const MOST: u32 = (1 << ID_BITS) - 2;

    /// Creates the table from the merges `(left, right, result)` in the order of their ranks. If a pair comes twice, the later
    /// merge counts. Returns `None` when an ID or the number of merges exceeds [`Merges::MOST`], or the system gives no memory.
    pub fn new(merges: &[(u32, u32, u32)]) -> Option<Self> {
        let largest = merges.iter().map(|&(left, right, made)| left.max(right).max(made)).max().unwrap_or_default();
        if largest > Self::MOST || merges.len() > Self::MOST as usize {
            return None;
        }
        // All bits of an ID are set only in `NONE`.
        let id_bits = (largest + 2).next_power_of_two().trailing_zeros();
        let mut bucket_bits =
            (merges.len() / LOAD + 1).next_power_of_two().trailing_zeros().max((2 * id_bits).saturating_sub(TAG_BITS));
        loop {
            let mut buckets = LargePages::zeroed(1 << bucket_bits)?;
            buckets.fill(Bucket([EMPTY; 8]));
            let mut table = Self { buckets, shape: Shape::new(id_bits, bucket_bits) };
            if (0..).zip(merges).all(|(rank, merge)| table.insert(rank, merge).is_some()) {
                return Some(table);
            }
            bucket_bits += 1;
        }
    }

    /// Adds a merge. Returns `None` if all buckets in which it may be are full.
    fn insert(&mut self, rank: u32, &(left, right, made): &(u32, u32, u32)) -> Option<()> {
        let (home, tag) = self.shape.place(left, right);
        let mask = self.buckets.len() - 1;
        for distance in 0..DISTANCES {
            let Bucket(entries) = self.buckets.get_mut((home + distance) & mask)?;
            let key = tag | (distance as u64) << (2 * ID_BITS);
            let free = |entry: &&mut u64| **entry == EMPTY || (**entry ^ key) >> (2 * ID_BITS) == 0;
            if let Some(entry) = entries.iter_mut().find(free) {
                *entry = key | u64::from(rank) << ID_BITS | u64::from(made);
                return Some(());
            }
        }
        None
    }

    #[inline]
    pub fn reader(&self) -> Reader<'_> {
        Reader { buckets: &self.buckets, shape: self.shape }
    }

    pub fn write(&self, to: &mut Writer) {
        to.number(self.shape.id_bits as usize);
        to.list(&self.buckets);
    }

    /// Reads what [`Merges::write`] wrote.
    ///
    /// # Errors
    /// When it is not a table of merges between tokens of the vocabulary.
    pub fn read(from: &mut compiled::Reader<'_>) -> Result<Self, CompiledError> {
        let id_bits = from.number()?;
        let id_bits = u32::try_from(id_bits).ok().filter(|&bits| bits <= ID_BITS);
        let id_bits = id_bits.ok_or(CompiledError::Damaged("the IDs of merges have too many bits"))?;
        let buckets = from.large_list::<Bucket>()?;
        let used = buckets.iter().flat_map(|Bucket(entries)| entries).filter(|&&entry| entry != EMPTY);
        from.check_ids(used.map(|&entry| entry as u32 & ((1 << ID_BITS) - 1)))?;
        let shape = Shape::new(id_bits, buckets.len().trailing_zeros());
        Ok(Self { buckets, shape })
    }

    /// Merges `symbols` to tokens: always the pair of the lowest rank, and of equal ranks the leftmost pair. Returns the highest
    /// rank among the merges, or 0 if there are none.
    ///
    /// At most three candidates for each symbol enter the heap: one at the start, and two for each merge.
    pub fn apply_by_heap(&self, symbols: &mut Vec<u32>, workspace: &mut Workspace) -> u32 {
        self.apply_by_heap_in_steps(symbols, workspace, 0, &Steps::unlimited()).unwrap_or_default()
    }

    /// Like [`Merges::apply_by_heap`], for a long word of a text that has at least `made` other tokens.
    ///
    /// # Errors
    /// When `steps` stops the work.
    pub fn apply_by_heap_in_steps(
        &self,
        symbols: &mut Vec<u32>,
        workspace: &mut Workspace,
        made: usize,
        steps: &Steps<'_>,
    ) -> Result<u32, Stopped> {
        let table = self.reader();
        let Workspace { merges, next, previous, heap, candidates } = workspace;
        merges.clear();
        for pair in symbols.windows(2) {
            merges.push(match pair {
                &[left, right] => table.merge(left, right),
                _ => NO_MERGE,
            });
            steps.take(1, made)?;
        }
        let count = symbols.len() as u32;
        next.clear();
        next.extend(1..=count);
        previous.clear();
        previous.extend((0..count).map(|at| at.wrapping_sub(1)));
        let candidate = |merge: Merge, at: u32| Reverse(merge >> 32 << 32 | u64::from(at));
        let mut initial = std::mem::take(heap).into_vec();
        initial.clear();
        let begun = (0..count).zip(&*merges).filter(|&(_, &merge)| merge != NO_MERGE);
        initial.extend(begun.map(|(at, &merge)| candidate(merge, at)));
        *heap = BinaryHeap::from(initial);
        let get = |list: &[u32], at: u32| list.get(at as usize).copied().unwrap_or(NONE);
        let mut highest = 0;
        while let Some(Reverse(top)) = heap.pop() {
            *candidates += 1;
            steps.take(1, made)?;
            let at = top as u32;
            // Each rank belongs to one pair, so an outdated candidate differs from the merge that is at its place now.
            let Some(&merge) = merges.get(at as usize).filter(|&&merge| merge >> 32 == top >> 32) else { continue };
            highest = highest.max((merge >> 32) as u32);
            let merged = merge as u32;
            let right = get(next, at);
            let after = get(next, right);
            set(symbols, at, merged);
            set(symbols, right, NONE);
            set(merges, right, NO_MERGE);
            set(next, at, after);
            set(previous, after, at);
            set(merges, at, NO_MERGE);
            let before = get(previous, at);
            for (left, right) in [(before, at), (at, after)] {
                if left == NONE || right >= count {
                    continue;
                }
                let merge = table.merge(get(symbols, left), get(symbols, right));
                set(merges, left, merge);
                if merge != NO_MERGE {
                    heap.push(candidate(merge, left));
                }
            }
        }
        symbols.retain(|&symbol| symbol != NONE);
        Ok(highest)
    }
}

impl Shape {
    fn new(id_bits: u32, bucket_bits: u32) -> Self {
        // The golden ratio, as a fraction of the numbers of as many bits as a pair has, spreads pairs with a token in common.
        let factor = 0x9E37_79B9_7F4A_7C15_u64.unbounded_shr(u64::BITS - 2 * id_bits) | 1;
        Self { id_bits, tag_bits: (2 * id_bits).saturating_sub(bucket_bits), factor }
    }

    /// Returns the bucket of a pair, and its tag in the place that it has in an entry.
    #[inline]
    fn place(self, left: u32, right: u32) -> (usize, u64) {
        let Self { id_bits, tag_bits, factor } = self;
        let low = |id: u32| u64::from(id) & ((1 << id_bits) - 1);
        let mixed = (low(left) << id_bits | low(right)).wrapping_mul(factor) & ((1 << (2 * id_bits)) - 1);
        ((mixed >> tag_bits) as usize, (mixed & ((1 << tag_bits) - 1)) << (u64::BITS - TAG_BITS))
    }
}

impl Reader<'_> {
    /// Prefetches the bucket that [`Reader::merge`] will read.
    #[inline]
    pub fn prefetch(self, left: u32, right: u32) {
        prefetch(self.buckets, self.shape.place(left, right).0);
    }

    /// Returns the merge of two tokens, or [`NO_MERGE`]. [`NONE`] merges with nothing.
    #[inline]
    pub fn merge(self, left: u32, right: u32) -> Merge {
        let (home, tag) = self.shape.place(left, right);
        let mask = self.buckets.len() - 1;
        for distance in 0..DISTANCES {
            let Some(Bucket(entries)) = self.buckets.get((home + distance) & mask) else { break };
            let key = tag | (distance as u64) << (2 * ID_BITS);
            // The rank and the token remain of an entry with this key, and a larger number of any other. The least one is found without
            // branches, because its place cannot be predicted.
            let [a, b, c, d, e, f, g, h] = entries.map(|entry| entry ^ key);
            let least = a.min(b).min(c.min(d)).min(e.min(f).min(g.min(h)));
            if least >> (2 * ID_BITS) == 0 {
                return pair((least >> ID_BITS) as u32, least as u32 & ((1 << ID_BITS) - 1));
            }
            if h ^ key == EMPTY {
                break;
            }
        }
        NO_MERGE
    }
}

fn set<T>(list: &mut [T], at: u32, value: T) {
    if let Some(place) = list.get_mut(at as usize) {
        *place = value;
    }
}

#[inline]
pub(super) fn pair(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// Returns the place of a pair in a table of 2^(64 - `shift`) places.
#[inline]
pub(super) fn place(pair: u64, shift: u32) -> usize {
    (pair.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> shift) as usize
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Tokens 0 to 3 are letters. The other tokens come from merges, some of which make the same token.
    const MERGES: [(u32, u32, u32); 9] =
        [(1, 1, 4), (0, 1, 5), (4, 4, 6), (5, 1, 7), (0, 4, 7), (6, 6, 8), (2, 0, 9), (9, 5, 10), (3, 3, 11)];

    pub fn table() -> Merges {
        Merges::new(&MERGES).unwrap()
    }

    #[test]
    fn a_long_word_costs_at_most_three_candidates_a_symbol() {
        for pattern in [&[1][..], &[0, 1], &[3], &[2, 0, 0, 1], &[0, 1, 1, 1, 2]] {
            for symbols in [1_000, 2_000, 100_000] {
                let mut word: Vec<u32> = pattern.iter().copied().cycle().take(symbols).collect();
                let mut workspace = Workspace::default();
                table().apply_by_heap(&mut word, &mut workspace);
                assert!(workspace.candidates <= 3 * symbols, "{pattern:?}: {}", workspace.candidates);
                assert!(workspace.candidates > 0);
            }
        }
    }

    #[test]
    fn of_a_pair_that_comes_twice_the_later_counts_and_no_id_is_none() {
        let table = Merges::new(&[(0, 1, 2), (1, 1, 3), (0, 1, 4)]).unwrap();
        assert_eq!((table.reader().merge(0, 1), table.reader().merge(1, 1)), (pair(2, 4), pair(1, 3)));
        assert_eq!((table.reader().merge(1, 0), table.reader().merge(NONE, NONE)), (NO_MERGE, NO_MERGE));
        let most = Merges::MOST;
        let table = Merges::new(&[(0, most, most)]).unwrap();
        assert_eq!((table.reader().merge(0, most), table.reader().merge(most, 0)), (pair(0, most), NO_MERGE));
        for too_large in [(NONE, 1, 2), (0, NONE, 2), (0, 1, NONE), (0, most + 1, 2)] {
            assert!(Merges::new(&[too_large]).is_none());
        }
    }

    #[test]
    fn every_merge_of_a_large_table_is_found_and_no_other() {
        let mut rng = fastrand::Rng::with_seed(4);
        for (count, ids) in [(300_000, 128_000), (3_000, 60), (40_000, Merges::MOST)] {
            let mut merges = std::collections::HashMap::new();
            let list: Vec<_> = (0..count).map(|_| (rng.u32(..ids), rng.u32(..ids) % 1000, rng.u32(..ids))).collect();
            for (rank, &(left, right, made)) in (0..).zip(&list) {
                merges.insert((left, right), pair(rank, made));
            }
            let table = Merges::new(&list).unwrap();
            for (&(left, right), merge) in &merges {
                assert_eq!(table.reader().merge(left, right), *merge);
            }
            for _ in 0..100_000 {
                let (left, right) = (rng.u32(..ids), rng.u32(..ids));
                let expected = merges.get(&(left, right)).copied().unwrap_or(NO_MERGE);
                assert_eq!(table.reader().merge(left, right), expected);
                assert_eq!(table.reader().merge(left, NONE), NO_MERGE);
                assert_eq!(table.reader().merge(NONE, right), NO_MERGE);
            }
        }
    }
}
