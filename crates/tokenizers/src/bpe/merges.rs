//! The merges of a BPE model: which pairs of tokens merge, in which order, into which token.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::select_unpredictable;

use bytemuck::{Pod, Zeroable};

use crate::large_pages::LargePages;
use crate::prefetch::prefetch;
use crate::yield_point::{Steps, Stopped};

/// Stands for no token and for no rank.
pub const NONE: u32 = u32::MAX;

/// The rank of a merge in the upper half, and the token that it makes in the lower half. Of two merges, the smaller number comes
/// first.
pub type Merge = u64;
pub const NO_MERGE: Merge = u64::MAX;

/// A hash table from pairs of tokens to their merges.
pub struct Merges {
    /// The buckets, with open addressing.
    buckets: LargePages<Bucket>,
    /// The number of bits by which the product of a pair is shifted to give its bucket.
    shift: u32,
}

/// A view of the table for many lookups.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    buckets: &'a [Bucket],
    shift: u32,
}

/// Four pairs and their merges. A bucket is one cache line, so that most lookups take one read from memory.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Bucket {
    /// The left token in the upper half, the right token in the lower half. Unused places are all ones, and are behind the used
    /// ones.
    pairs: [u64; 4],
    merges: [Merge; 4],
}

const EMPTY: Bucket = Bucket { pairs: [u64::MAX; 4], merges: [NO_MERGE; 4] };

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
    /// Creates the table from the merges `(left, right, result)` in the order of their ranks. If a pair comes twice, the later
    /// merge counts. Returns `None` when an ID is [`NONE`], or the system gives no memory.
    pub fn new(merges: &[(u32, u32, u32)]) -> Option<Self> {
        // At most two merges for each bucket on average.
        let bits = (merges.len() / 2 + 2).next_power_of_two().trailing_zeros();
        let mut buckets = LargePages::zeroed(1 << bits)?;
        buckets.fill(EMPTY);
        let mut table = Self { buckets, shift: u64::BITS - bits };
        for (rank, &(left, right, result)) in (0..NONE).zip(merges) {
            if [left, right, result].contains(&NONE) {
                return None;
            }
            table.insert(pair(left, right), pair(rank, result));
        }
        Some(table)
    }

    fn insert(&mut self, wanted: u64, merge: Merge) {
        let mut at = self.reader().place(wanted);
        let mask = self.buckets.len() - 1;
        while let Some(Bucket { pairs, merges }) = self.buckets.get_mut(at) {
            let free = |(pair, _): &(&mut u64, _)| **pair == wanted || **pair == u64::MAX;
            if let Some((pair, place)) = pairs.iter_mut().zip(merges).find(free) {
                (*pair, *place) = (wanted, merge);
                break;
            }
            at = (at + 1) & mask;
        }
    }

    #[inline]
    pub fn reader(&self) -> Reader<'_> {
        Reader { buckets: &self.buckets, shift: self.shift }
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

impl Reader<'_> {
    /// Returns the first bucket that may contain a pair.
    #[inline]
    fn place(self, pair: u64) -> usize {
        place(pair, self.shift)
    }

    /// Prefetches the bucket that [`Reader::merge`] will read.
    #[inline]
    pub fn prefetch(self, left: u32, right: u32) {
        prefetch(self.buckets, self.place(pair(left, right)));
    }

    /// Returns the merge of two tokens, or [`NO_MERGE`]. [`NONE`] merges with nothing.
    #[inline]
    pub fn merge(self, left: u32, right: u32) -> Merge {
        let wanted = pair(left, right);
        let mut at = self.place(wanted);
        while let Some(Bucket { pairs, merges }) = self.buckets.get(at) {
            let [first, second, third, fourth] = pairs.map(|pair| pair == wanted);
            // The place in the bucket is found without branches, because it cannot be predicted.
            let slot = usize::from(second) + 2 * usize::from(third) + 3 * usize::from(fourth);
            let merge = merges.get(slot % merges.len()).copied().unwrap_or(NO_MERGE);
            let found = select_unpredictable(first | second | third | fourth, merge, NO_MERGE);
            let [.., last] = *pairs;
            if found != NO_MERGE || last == u64::MAX {
                return found;
            }
            at = (at + 1) & (self.buckets.len() - 1);
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
        assert!(Merges::new(&[(0, NONE - 1, NONE - 1)]).is_some());
        for with_none in [(NONE, 1, 2), (0, NONE, 2), (0, 1, NONE)] {
            assert!(Merges::new(&[with_none]).is_none());
        }
    }
}
