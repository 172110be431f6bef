//! The merges of a BPE model: which pairs of tokens join, in which order, into what.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::black_box;

use bytemuck::{Pod, Zeroable};

use crate::large_pages::LargePages;

/// No token, no rank.
pub const NONE: u32 = u32::MAX;

/// Up to so many symbols are merged by scanning them; more, by a heap.
const SCANNED: usize = 40;

/// The rank of a merge, and below it the token that it makes: of two the lesser comes first.
type Merge = u64;
const NO_MERGE: Merge = u64::MAX;

/// From two adjacent tokens to their merge.
pub struct Merges {
    /// Open addressing. What is asked of a pair lies in one cache line: most are not in a cache.
    slots: LargePages<Slot>,
    /// Slots are found by the top bits of a product.
    shift: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Slot {
    /// The left token and the right one; all ones in a slot that is empty.
    pair: u64,
    merge: Merge,
}

/// Buffers that one thread merges in.
#[derive(Default)]
pub struct Workspace {
    /// Before [`Merges::apply`] the symbols, after it the tokens.
    pub symbols: Vec<u32>,
    /// Of each symbol with the one after it.
    merges: Vec<Merge>,
    next: Vec<u32>,
    previous: Vec<u32>,
    heap: BinaryHeap<Reverse<u64>>,
    /// Candidates taken from the heap: what a long text costs.
    pub(super) candidates: usize,
}

impl Merges {
    /// `merges` are `(left, right, result)` in the order of their ranks; of a pair that comes twice, the later counts.
    /// `None` when an id is [`NONE`], or the system gives no memory.
    pub fn new(merges: &[(u32, u32, u32)]) -> Option<Self> {
        let capacity_bits = (2 * merges.len() + 2).next_power_of_two().trailing_zeros();
        let mut slots = LargePages::zeroed(1 << capacity_bits)?;
        slots.fill(Slot { pair: u64::MAX, merge: NO_MERGE });
        let mut table = Self { slots, shift: u64::BITS - capacity_bits };
        for (rank, &(left, right, result)) in (0..NONE).zip(merges) {
            if [left, right, result].contains(&NONE) {
                return None;
            }
            let (at, _) = table.find(left, right);
            *table.slots.get_mut(at)? = Slot { pair: pair(left, right), merge: pair(rank, result) };
        }
        Some(table)
    }

    /// The first slot that a pair may have.
    #[inline]
    fn place(&self, pair: u64) -> usize {
        (pair.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize
    }

    /// Where a pair stands or belongs, and its merge.
    #[inline]
    fn find(&self, left: u32, right: u32) -> (usize, Merge) {
        let wanted = pair(left, right);
        let mask = self.slots.len() - 1;
        let mut at = self.place(wanted);
        while let Some(&Slot { pair, merge }) = self.slots.get(at) {
            // An empty slot has no merge.
            if pair == wanted || pair == u64::MAX {
                return (at, merge);
            }
            at = (at + 1) & mask;
        }
        (at, NO_MERGE)
    }

    #[inline]
    fn merge(&self, left: u32, right: u32) -> Merge {
        self.find(left, right).1
    }

    /// Merges `workspace.symbols`: always the pair of the lowest rank, of equals the leftmost.
    pub fn apply(&self, workspace: &mut Workspace) {
        let Workspace { symbols, merges, .. } = workspace;
        merges.clear();
        merges.extend(symbols.windows(2).map(|pair| match pair {
            &[left, right] => self.merge(left, right),
            _ => NO_MERGE,
        }));
        if symbols.len() > SCANNED {
            return self.apply_by_heap(workspace);
        }
        self.fetch_next(symbols, merges);
        self.apply_scanning(symbols, merges);
    }

    /// Reads what each merge, were it the first, would have to know next. One after the other, as they are needed, such reads
    /// are most of what a word costs; these go on at the same time.
    fn fetch_next(&self, symbols: &[u32], merges: &[Merge]) {
        let outer = |at: usize| symbols.get(at).copied().unwrap_or(NONE);
        for (at, &merge) in merges.iter().enumerate().filter(|&(_, &merge)| merge != NO_MERGE) {
            let made = merge as u32;
            for pair in [pair(outer(at.wrapping_sub(1)), made), pair(made, outer(at + 2))] {
                black_box(self.slots.get(self.place(pair)).map(|slot| slot.pair));
            }
        }
    }

    fn apply_scanning(&self, symbols: &mut Vec<u32>, merges: &mut Vec<Merge>) {
        while let Some((at, &merge)) = merges.iter().enumerate().min_by_key(|&(_, merge)| merge)
            && merge != NO_MERGE
        {
            let merged = merge as u32;
            symbols.remove(at + 1);
            merges.remove(at);
            if let Some(symbol) = symbols.get_mut(at) {
                *symbol = merged;
            }
            if let Some(before) = at.checked_sub(1)
                && let (Some(&left), Some(merge)) = (symbols.get(before), merges.get_mut(before))
            {
                *merge = self.merge(left, merged);
            }
            if let (Some(&right), Some(merge)) = (symbols.get(at + 1), merges.get_mut(at)) {
                *merge = self.merge(merged, right);
            }
        }
    }

    /// At most three candidates a symbol enter the heap: one at the start, two for each merge.
    fn apply_by_heap(&self, workspace: &mut Workspace) {
        let Workspace { symbols, merges, next, previous, heap, candidates } = workspace;
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
        while let Some(Reverse(top)) = heap.pop() {
            *candidates += 1;
            let at = top as u32;
            // A rank names its pair, so an outdated candidate differs from what stands there now.
            let Some(&merge) = merges.get(at as usize).filter(|&&merge| merge >> 32 == top >> 32) else { continue };
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
                let merge = self.merge(get(symbols, left), get(symbols, right));
                set(merges, left, merge);
                if merge != NO_MERGE {
                    heap.push(candidate(merge, left));
                }
            }
        }
        symbols.retain(|&symbol| symbol != NONE);
    }
}

fn set<T>(list: &mut [T], at: u32, value: T) {
    if let Some(place) = list.get_mut(at as usize) {
        *place = value;
    }
}

#[inline]
fn pair(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens 0..4 are letters; the others come from merges, some of which make the same token.
    const MERGES: [(u32, u32, u32); 9] =
        [(1, 1, 4), (0, 1, 5), (4, 4, 6), (5, 1, 7), (0, 4, 7), (6, 6, 8), (2, 0, 9), (9, 5, 10), (3, 3, 11)];

    fn table() -> Merges {
        Merges::new(&MERGES).unwrap()
    }

    fn applied(apply: impl Fn(&Merges, &mut Workspace), symbols: &[u32]) -> Workspace {
        let table = table();
        let mut workspace = Workspace { symbols: symbols.to_vec(), ..Workspace::default() };
        workspace.merges = symbols.windows(2).map(|pair| table.merge(pair[0], pair[1])).collect();
        apply(&table, &mut workspace);
        workspace
    }

    #[test]
    fn scanning_and_the_heap_agree() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..3000 {
            let symbols: Vec<u32> = (0..rng.usize(0..60)).map(|_| rng.u32(..4)).collect();
            let scanned =
                applied(|table, Workspace { symbols, merges, .. }| table.apply_scanning(symbols, merges), &symbols);
            let heaped = applied(Merges::apply_by_heap, &symbols);
            assert_eq!(scanned.symbols, heaped.symbols, "{symbols:?}");
        }
    }

    #[test]
    fn a_long_word_costs_at_most_three_candidates_a_symbol() {
        for pattern in [&[1][..], &[0, 1], &[3], &[2, 0, 0, 1], &[0, 1, 1, 1, 2]] {
            for symbols in [1_000, 2_000, 100_000] {
                let word: Vec<u32> = pattern.iter().copied().cycle().take(symbols).collect();
                let workspace = applied(Merges::apply, &word);
                assert!(workspace.candidates <= 3 * symbols, "{pattern:?}: {}", workspace.candidates);
                assert!(workspace.candidates > 0);
            }
        }
    }

    #[test]
    fn of_a_pair_that_comes_twice_the_later_counts_and_no_id_is_none() {
        let table = Merges::new(&[(0, 1, 2), (1, 1, 3), (0, 1, 4)]).unwrap();
        assert_eq!((table.merge(0, 1), table.merge(1, 1)), (pair(2, 4), pair(1, 3)));
        assert_eq!((table.merge(1, 0), table.merge(NONE, NONE)), (NO_MERGE, NO_MERGE));
        assert!(Merges::new(&[(0, NONE - 1, NONE - 1)]).is_some());
        for with_none in [(NONE, 1, 2), (0, NONE, 2), (0, 1, NONE)] {
            assert!(Merges::new(&[with_none]).is_none());
        }
    }
}
