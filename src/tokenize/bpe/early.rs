//! Pairs of a word's first symbols that may be merged before all others, in any order: about half of all merges.
//!
//! A pair of rank r is there from the beginning, so no merge of a higher rank comes before it. Nothing of a lower rank takes
//! one of its two symbols away, if no such merge joins the left one to a token that ends as the symbol before it does, or the
//! right one to a token that begins as the symbol behind it does. And if what it makes is taken by merges of higher ranks alone,
//! then nothing else happens sooner when it is made at once.

use std::hint::select_unpredictable;

use bytemuck::{Pod, Zeroable};
use foldhash::{HashMap, HashMapExt};

use super::merges::{NONE, pair, place};
use crate::large_pages::LargePages;
use crate::prefetch::prefetch;

/// By two symbols that follow each other.
pub struct Early {
    /// Each pair has one place. The commonest of those that share it has it.
    slots: LargePages<Slot>,
    shift: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
struct Slot {
    /// The first and, in the lower half, the second.
    pair: u64,
    /// Of their merge, and what it makes; `NONE` without one, or if a lower rank takes what it makes.
    rank: u32,
    made: u32,
    /// The lowest rank of a merge of the second symbol with a token that ends with the first.
    before: u32,
    /// The lowest rank of a merge of the first symbol with a token that begins with the second.
    behind: u32,
    /// 1 if there was no place for another pair.
    shared: u32,
    _padding: u32,
}

const EMPTY: Slot = Slot { pair: u64::MAX, rank: NONE, made: NONE, before: NONE, behind: NONE, shared: 0, _padding: 0 };

/// Of pairs that have no slot: nothing is known if there was no place for it.
static OTHERS: [Slot; 2] = [EMPTY, Slot { before: 0, behind: 0, ..EMPTY }];

/// The symbols that a token may begin with, and those that it may end with, in a word of which nothing is merged.
pub type Edges = [[Option<u32>; 2]; 2];

/// The table, found once for many look-ups.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    slots: &'a [Slot],
    shift: u32,
}

impl Early {
    /// Of merges `(left, right, result)` in the order of their ranks, and the edges of each token. `None` when the system gives no
    /// memory.
    pub fn new(merges: &[(u32, u32, u32)], edges: impl Fn(u32) -> Edges) -> Option<Self> {
        // Of each token, its edges and the lowest rank that takes it.
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
}

impl<'a> Reader<'a> {
    /// Starts to read what [`Reader::apply`] will need.
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

    /// Merges what may be merged early in a word of these symbols; how many are left, at the front.
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

    /// Merges of random neighbours, trained in no sensible order, over a few symbols.
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
            let early = Early::new(&merges, edges).unwrap();
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

    /// What shares a place with another pair is left to the others.
    #[test]
    fn a_pair_without_a_place_stops_what_is_beside_it() {
        let merges: Vec<(u32, u32, u32)> = (0..1_000).map(|n| (2 * n, 2 * n + 1, 2_000 + n)).collect();
        let symbol = |token: u32| (token < 2_000).then_some(token);
        let early = Early::new(&merges, |token| [[symbol(token), None], [symbol(token), None]]).unwrap();
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
