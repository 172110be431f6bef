//! Early merges: pairs of symbols that can be merged before all others, in any order. About half of all merges are early.
//!
//! Byte-pair encoding always merges the pair of the lowest rank, so each merge depends on the ones before it. But many pairs of a
//! word's initial symbols are merged whatever else the word contains. A pair `(left, right)` with the rank `r` is such a pair if:
//!
//! 1. No merge with a rank below `r` can take `left` away: none joins a token that ends with the symbol before `left` to `left`.
//! 2. No merge with a rank below `r` can take `right` away: none joins `right` to a token that begins with the symbol behind
//!    `right`.
//! 3. Every merge that takes the token made from the pair has a rank above `r`, so that nothing else happens sooner because the
//!    token is made early.
//!
//! For example, let the ranks be `t h` 0, `h e` 1, `th e` 2, and `␣ th` 3. In `␣the`:
//!
//! | pair | rank | lowest rank with the neighbors | early? |
//! |---|---:|---|---|
//! | `␣ t` | none | | |
//! | `t h` | 0 | none: no merge joins a token that ends with `␣` to `t` alone, and `h e` has rank 1 | yes |
//! | `h e` | 1 | `t h` has rank 0 | no |
//!
//! The word becomes `␣ th e`. Its remaining merges, `th e` and then nothing, are made in the order of their ranks.

use std::hint::select_unpredictable;

use bytemuck::{Pod, Zeroable};
use foldhash::{HashMap, HashMapExt};

use super::merges::{NONE, pair, place};
use crate::compiled::{self, CompiledError, Writer};
use crate::large_pages::LargePages;
use crate::prefetch::prefetch;

/// A table of pairs of symbols, from which follows whether a pair merges early.
pub struct EarlyMerges {
    /// Each pair has one possible place. If several pairs share a place, the most common one has it.
    slots: LargePages<Slot>,
    shift: u32,
}

#[derive(Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C, align(32))]
struct Slot {
    /// The left symbol in the upper half, the right symbol in the lower half.
    pair: u64,
    /// The rank of the pair's merge, and below the token that it makes. Both are `NONE` if there is no merge, or if a merge of a
    /// lower rank takes the token.
    rank: u32,
    made: u32,
    /// The lowest rank of a merge of the right symbol with a token that ends with the left symbol.
    before: u32,
    /// The lowest rank of a merge of the left symbol with a token that begins with the right symbol.
    behind: u32,
    /// 1 if another pair had no place because this pair has it.
    shared: u32,
    _padding: u32,
}

const EMPTY: Slot = Slot { pair: u64::MAX, rank: NONE, made: NONE, before: NONE, behind: NONE, shared: 0, _padding: 0 };

/// The slots for pairs that have none of their own: the first if the table has all pairs of the place, the second if it may lack
/// the pair. About a pair that may be lacking nothing is known, so nothing merges early beside it.
static OTHERS: [Slot; 2] = [EMPTY, Slot { before: 0, behind: 0, ..EMPTY }];

/// The symbols that a token may begin with, and the symbols that it may end with, before anything is merged.
pub type Edges = [[Option<u32>; 2]; 2];

/// A view of the table for many lookups.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    slots: &'a [Slot],
    shift: u32,
}

impl EarlyMerges {
    /// Creates the table from the merges `(left, right, result)` in the order of their ranks, and the edges of each token.
    /// Returns `None` when the system gives no memory.
    pub fn new(merges: &[(u32, u32, u32)], edges: impl Fn(u32) -> Edges) -> Option<Self> {
        // For each token, its edges and the lowest rank of a merge that takes it.
        let mut tokens: HashMap<u32, (Edges, u32)> = HashMap::new();
        let mut found: HashMap<u64, Slot> = HashMap::new();
        for (rank, &(left, right, made)) in (0..NONE).zip(merges) {
            let mut edges = |token| tokens.entry(token).or_insert_with(|| (edges(token), rank)).0;
            let ([left_begins, left_ends], [right_begins, right_ends]) = (edges(left), edges(right));
            let is_symbol =
                |token, begins: &[_], ends: &[_]| begins.contains(&Some(token)) && ends.contains(&Some(token));
            let left_is_symbol = is_symbol(left, &left_begins, &left_ends);
            let right_is_symbol = is_symbol(right, &right_begins, &right_ends);
            if right_is_symbol {
                for symbol in left_ends.into_iter().flatten() {
                    let slot = slot(&mut found, symbol, right);
                    slot.before = slot.before.min(rank);
                }
            }
            if left_is_symbol {
                for symbol in right_begins.into_iter().flatten() {
                    let slot = slot(&mut found, left, symbol);
                    slot.behind = slot.behind.min(rank);
                }
            }
            if left_is_symbol && right_is_symbol {
                let slot = slot(&mut found, left, right);
                (slot.rank, slot.made) = (rank, made);
            }
        }
        let bits = (2 * found.len() + 2).next_power_of_two().trailing_zeros();
        let mut slots = LargePages::zeroed(1 << bits)?;
        slots.fill(EMPTY);
        let mut this = Self { slots, shift: u64::BITS - bits };
        let mut found: Vec<Slot> = found.into_values().collect();
        found.sort_unstable_by_key(|slot| (slot.before.min(slot.behind), slot.pair));
        for mut slot in found {
            if tokens.get(&slot.made).is_some_and(|&(_, taken)| taken <= slot.rank) {
                (slot.rank, slot.made) = (NONE, NONE);
            }
            let place = this.slots.get_mut(place(slot.pair, this.shift))?;
            if place.pair == EMPTY.pair {
                *place = slot;
            } else {
                place.shared = 1;
            }
        }
        Some(this)
    }

    #[inline]
    pub fn reader(&self) -> Reader<'_> {
        Reader { slots: &self.slots, shift: self.shift }
    }

    pub fn write(&self, to: &mut Writer) {
        to.table(&self.slots, EMPTY);
    }

    /// Reads what [`EarlyMerges::write`] wrote.
    ///
    /// # Errors
    /// When it is not a table of merges that make tokens of the vocabulary.
    pub fn read(from: &mut compiled::Reader<'_>) -> Result<Self, CompiledError> {
        let slots = from.table(Some(EMPTY), |slot: &Slot, max_id| slot.rank == NONE || slot.made <= max_id)?;
        // A shift by all bits of a number would panic.
        match slots.len().trailing_zeros() {
            0 => Err(CompiledError::Damaged("a table has one entry")),
            bits => Ok(Self { slots, shift: u64::BITS - bits }),
        }
    }
}

impl<'a> Reader<'a> {
    /// Prefetches the slots that [`Reader::apply`] will read.
    #[inline]
    pub fn prefetch(self, symbols: &[u32]) {
        for symbols in symbols.windows(2) {
            if let &[left, right] = symbols {
                prefetch(self.slots, place(pair(left, right), self.shift));
            }
        }
    }

    #[inline]
    fn get(self, left: u32, right: u32) -> &'a Slot {
        let (pair, [empty, unknown]) = (pair(left, right), &OTHERS);
        let slot = self.slots.get(place(pair, self.shift)).unwrap_or(empty);
        let other = select_unpredictable(slot.shared != 0, unknown, empty);
        select_unpredictable(slot.pair == pair, slot, other)
    }

    /// Makes the early merges in the word that consists of `symbols`. Returns the number of symbols that remain, at the front.
    #[inline]
    pub fn apply(self, symbols: &mut [u32]) -> usize {
        let [empty, _] = &OTHERS;
        let get = |symbols: &[u32], at: usize| symbols.get(at).copied().unwrap_or(NONE);
        let (mut symbol, mut second) = (get(symbols, 0), get(symbols, 1));
        let (mut before, mut this) = (empty, self.get(symbol, second));
        let (mut to, mut taken) = (0, false);
        for from in 0..symbols.len() {
            let third = get(symbols, from + 2);
            let next = if third == NONE { empty } else { self.get(second, third) };
            let early = this.rank < before.before.min(next.behind);
            if let Some(place) = symbols.get_mut(to) {
                *place = select_unpredictable(early, this.made, symbol);
            }
            to += usize::from(!taken);
            taken = early;
            (before, this) = (this, next);
            (symbol, second) = (second, third);
        }
        to
    }
}

fn slot(found: &mut HashMap<u64, Slot>, left: u32, right: u32) -> &mut Slot {
    let pair = pair(left, right);
    found.entry(pair).or_insert(Slot { pair, ..EMPTY })
}

#[cfg(test)]
mod tests {
    use super::super::merges::{Merges, Workspace};
    use super::*;

    /// Merges of random neighbors over a few symbols, in an order that no training would give.
    #[test]
    fn words_merge_the_same_with_some_pairs_merged_early() {
        let mut rng = fastrand::Rng::with_seed(5);
        let mut early_merges = 0;
        for _ in 0..2_000 {
            // Each token's symbols, by id; the first ones are symbols themselves.
            let symbols = rng.u32(2..6);
            let mut tokens: Vec<Vec<u32>> = (0..symbols).map(|symbol| vec![symbol]).collect();
            let words: Vec<Vec<u32>> =
                (0..20).map(|_| (0..rng.usize(1..12)).map(|_| rng.u32(..symbols)).collect()).collect();
            let mut merges: Vec<(u32, u32, u32)> = Vec::new();
            for _ in 0..rng.usize(1..30) {
                let (left, right) = (rng.u32(..tokens.len() as u32), rng.u32(..tokens.len() as u32));
                let whole = [&tokens[left as usize][..], &tokens[right as usize]].concat();
                if whole.len() > 6 || merges.iter().any(|&(l, r, _)| (l, r) == (left, right)) {
                    continue;
                }
                let made = tokens.iter().position(|token| *token == whole).unwrap_or_else(|| {
                    tokens.push(whole);
                    tokens.len() - 1
                });
                merges.push((left, right, made as u32));
            }
            rng.shuffle(&mut merges);
            let table = Merges::new(&merges).unwrap();
            let edges = |token: u32| {
                let symbols = &tokens[token as usize];
                [[symbols.first().copied(), None], [None, symbols.last().copied()]]
            };
            let early = EarlyMerges::new(&merges, edges).unwrap();
            let mut workspace = Workspace::default();
            for word in words {
                let (mut expected, mut found) = (word.clone(), word.clone());
                table.apply_by_heap(&mut expected, &mut workspace);
                let count = early.reader().apply(&mut found);
                early_merges += found.len() - count;
                found.truncate(count);
                table.apply_by_heap(&mut found, &mut workspace);
                assert_eq!(found, expected, "{word:?} {merges:?}");
            }
        }
        assert!(early_merges > 10_000, "{early_merges}");
    }

    /// A pair that shares a place with another pair is not merged early.
    #[test]
    fn a_pair_without_a_place_stops_what_is_beside_it() {
        let merges: Vec<(u32, u32, u32)> = (0..1_000).map(|n| (2 * n, 2 * n + 1, 2_000 + n)).collect();
        let symbol = |token: u32| (token < 2_000).then_some(token);
        let early = EarlyMerges::new(&merges, |token| [[symbol(token), None], [symbol(token), None]]).unwrap();
        let mut placed = 0;
        for n in 0..1_000 {
            let mut word = [2 * n, 2 * n + 1];
            let slot = early.reader().get(2 * n, 2 * n + 1);
            if early.reader().apply(&mut word) == 1 {
                placed += 1;
                assert_eq!((word[0], slot.before, slot.behind), (2_000 + n, n, n));
            } else {
                assert_eq!((word, slot.before, slot.behind), ([2 * n, 2 * n + 1], 0, 0));
            }
        }
        assert!((500..1_000).contains(&placed), "{placed}");
    }
}
