//! The merges of a BPE model: which pairs of tokens join, in which order, into what.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::large_pages::LargePages;

/// No rank, no token.
pub const NONE: u32 = u32::MAX;

/// Up to so many symbols are merged by scanning them; more, by a heap.
const SCANNED: usize = 40;

/// From two adjacent tokens to the rank of their merge, and from a rank to the token that it makes.
pub struct Merges {
    /// Open addressing; a slot is `left | right | rank`, or all ones.
    slots: LargePages<u64>,
    /// Slots are found by the top bits of a product.
    shift: u32,
    id_bits: u32,
    rank_bits: u32,
    /// By rank.
    results: Vec<u32>,
}

/// Buffers that one thread merges in.
#[derive(Default)]
pub struct Workspace {
    /// Before [`Merges::apply`] the symbols, after it the tokens.
    pub symbols: Vec<u32>,
    ranks: Vec<u32>,
    next: Vec<u32>,
    previous: Vec<u32>,
    heap: BinaryHeap<Reverse<u64>>,
    /// Candidates taken from the heap: what a long text costs.
    pub(super) candidates: usize,
}

impl Merges {
    /// `merges` are `(left, right, result)` in the order of their ranks; of a pair that comes twice, the later counts.
    /// `None` when ids and ranks do not fit 64 bits together, or the system gives no memory.
    pub fn new(merges: &[(u32, u32, u32)], max_id: u32) -> Option<Self> {
        // No id is all ones, so an empty slot equals no pair.
        let id_bits = u32::BITS - max_id.checked_add(1)?.leading_zeros();
        let rank_bits = usize::BITS - merges.len().leading_zeros();
        if 2 * id_bits + rank_bits > u64::BITS || rank_bits >= u32::BITS {
            return None;
        }
        let capacity_bits = (2 * merges.len() + 2).next_power_of_two().trailing_zeros();
        let mut slots = LargePages::zeroed(1 << capacity_bits)?;
        slots.fill(u64::MAX);
        let mut table = Self {
            slots,
            shift: u64::BITS - capacity_bits,
            id_bits,
            rank_bits,
            results: merges.iter().map(|&(_, _, result)| result).collect(),
        };
        for (rank, &(left, right, _)) in merges.iter().enumerate() {
            let key = table.key(left, right);
            let at = table.find(key);
            *table.slots.get_mut(at)? = key << rank_bits | rank as u64;
        }
        Some(table)
    }

    fn key(&self, left: u32, right: u32) -> u64 {
        u64::from(left) << self.id_bits | u64::from(right)
    }

    /// The slot of `key`, or the empty one where it belongs.
    #[inline]
    fn find(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize;
        while let Some(&slot) = self.slots.get(at) {
            if slot >> self.rank_bits == key || slot == u64::MAX {
                break;
            }
            at = (at + 1) & mask;
        }
        at
    }

    #[inline]
    fn rank(&self, left: u32, right: u32) -> u32 {
        match self.slots.get(self.find(self.key(left, right))) {
            Some(&slot) if slot != u64::MAX => (slot & ((1 << self.rank_bits) - 1)) as u32,
            _ => NONE,
        }
    }

    fn result(&self, rank: u32) -> u32 {
        self.results.get(rank as usize).copied().unwrap_or(NONE)
    }

    /// Merges `workspace.symbols`: always the pair of the lowest rank, of equals the leftmost.
    pub fn apply(&self, workspace: &mut Workspace) {
        let Workspace { symbols, ranks, .. } = workspace;
        ranks.clear();
        ranks.extend(symbols.windows(2).map(|pair| match pair {
            &[left, right] => self.rank(left, right),
            _ => NONE,
        }));
        if symbols.len() <= SCANNED { self.apply_scanning(symbols, ranks) } else { self.apply_by_heap(workspace) }
    }

    fn apply_scanning(&self, symbols: &mut Vec<u32>, ranks: &mut Vec<u32>) {
        while let Some((at, &rank)) = ranks.iter().enumerate().min_by_key(|&(_, rank)| rank)
            && rank != NONE
        {
            let merged = self.result(rank);
            symbols.remove(at + 1);
            ranks.remove(at);
            if let Some(symbol) = symbols.get_mut(at) {
                *symbol = merged;
            }
            if let Some(before) = at.checked_sub(1)
                && let (Some(&left), Some(rank)) = (symbols.get(before), ranks.get_mut(before))
            {
                *rank = self.rank(left, merged);
            }
            if let (Some(&right), Some(rank)) = (symbols.get(at + 1), ranks.get_mut(at)) {
                *rank = self.rank(merged, right);
            }
        }
    }

    /// At most three candidates a symbol enter the heap: one at the start, two for each merge.
    fn apply_by_heap(&self, workspace: &mut Workspace) {
        let Workspace { symbols, ranks, next, previous, heap, candidates } = workspace;
        let count = symbols.len() as u32;
        next.clear();
        next.extend(1..=count);
        previous.clear();
        previous.extend((0..count).map(|at| at.wrapping_sub(1)));
        let candidate = |rank: u32, at: u32| Reverse(u64::from(rank) << 32 | u64::from(at));
        let mut initial = std::mem::take(heap).into_vec();
        initial.clear();
        initial
            .extend((0..count).zip(&*ranks).filter(|&(_, &rank)| rank != NONE).map(|(at, &rank)| candidate(rank, at)));
        *heap = BinaryHeap::from(initial);
        let get = |list: &[u32], at: u32| list.get(at as usize).copied().unwrap_or(NONE);
        let set = |list: &mut [u32], at: u32, value: u32| {
            if let Some(place) = list.get_mut(at as usize) {
                *place = value;
            }
        };
        while let Some(Reverse(top)) = heap.pop() {
            *candidates += 1;
            let (rank, at) = ((top >> 32) as u32, top as u32);
            // A rank names its pair, so an outdated candidate differs from what stands there now.
            if get(ranks, at) != rank {
                continue;
            }
            let merged = self.result(rank);
            let right = get(next, at);
            let after = get(next, right);
            set(symbols, at, merged);
            set(symbols, right, NONE);
            set(ranks, right, NONE);
            set(next, at, after);
            set(previous, after, at);
            set(ranks, at, NONE);
            let before = get(previous, at);
            for (left, right) in [(before, at), (at, after)] {
                if left == NONE || right >= count {
                    continue;
                }
                let rank = self.rank(get(symbols, left), get(symbols, right));
                set(ranks, left, rank);
                if rank != NONE {
                    heap.push(candidate(rank, left));
                }
            }
        }
        symbols.retain(|&symbol| symbol != NONE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens 0..4 are letters; the others come from merges, some of which make the same token.
    const MERGES: [(u32, u32, u32); 9] =
        [(1, 1, 4), (0, 1, 5), (4, 4, 6), (5, 1, 7), (0, 4, 7), (6, 6, 8), (2, 0, 9), (9, 5, 10), (3, 3, 11)];

    fn table() -> Merges {
        Merges::new(&MERGES, 11).unwrap()
    }

    fn applied(apply: impl Fn(&Merges, &mut Workspace), symbols: &[u32]) -> Workspace {
        let table = table();
        let mut workspace = Workspace { symbols: symbols.to_vec(), ..Workspace::default() };
        workspace.ranks = symbols.windows(2).map(|pair| table.rank(pair[0], pair[1])).collect();
        apply(&table, &mut workspace);
        workspace
    }

    #[test]
    fn scanning_and_the_heap_agree() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..3000 {
            let symbols: Vec<u32> = (0..rng.usize(0..60)).map(|_| rng.u32(..4)).collect();
            let scanned =
                applied(|table, Workspace { symbols, ranks, .. }| table.apply_scanning(symbols, ranks), &symbols);
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
    fn of_a_pair_that_comes_twice_the_later_counts_and_ids_must_fit() {
        let table = Merges::new(&[(0, 1, 2), (1, 1, 3), (0, 1, 4)], 4).unwrap();
        assert_eq!((table.rank(0, 1), table.rank(1, 1), table.rank(1, 0)), (2, 1, NONE));
        assert!(Merges::new(&[(0, 1, 2)], u32::MAX).is_none());
        assert!(Merges::new(&[(0, 1, 2)], u32::MAX - 1).is_none());
    }
}
