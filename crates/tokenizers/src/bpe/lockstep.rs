//! Merges many words in lockstep: one merge in each word, then the next one in each word.
//!
//! The next merge of a word depends on ranks that are looked up after the merge before it, in a table far larger than the CPU's
//! caches. While the entries for one word are prefetched, the other words take their step.
//!
//! For example, with the ranks `l o` 0, `lo w` 1 and `lo t` 2, the words `low` and `lot` are merged as follows:
//!
//! | step | `low` | `lot` |
//! |---|---|---|
//! | start | `l o w`; prefetch `l o`, `o w` | `l o t`; prefetch `l o`, `o t` |
//! | 1 | merge `l o`: `lo w`; prefetch `lo w` | merge `l o`: `lo t`; prefetch `lo t` |
//! | 2 | merge `lo w`: `low`, finished | merge `lo t`: `lot`, finished |
//!
//! A word is an array of lanes, one for each symbol, behind a lane for the border. A merge keeps the lane of the left symbol and
//! frees the lane of the right symbol. Each lane has the rank of its merge with the next symbol, so the next merge is the minimum
//! over all lanes.

use super::merges::{Merge, NONE, Reader};

/// The largest number of symbols of a word. With the lane for the border, each lane has one bit of a `u64`.
pub const MAX_SYMBOLS: usize = 63;

/// One symbol of a word. It keeps its lane until it is merged into the symbol before it.
#[derive(Clone, Copy)]
struct Lane {
    /// The rank of the merge with the next symbol in the upper half, and the index of the lane in the lower half. The lane with
    /// the smallest number is merged next.
    order: u64,
    symbol: u32,
    /// The token that this merge makes.
    made: u32,
}

/// The lane before a word, and every unused lane behind it.
const BORDER: Lane = Lane { order: u64::MAX, symbol: NONE, made: NONE };

/// A word in an array of `LANES` lanes. The number is a power of two, and the first lane is the border.
struct Word<const LANES: usize> {
    lanes: [Lane; LANES],
    /// A bit for each lane in use: the border and the symbols.
    alive: u64,
    /// The lanes before, at and behind the last merge, whose two new merges are still to be looked up. The middle one is 0 before
    /// the first merge.
    changed: [usize; 3],
}

/// All words of fewer symbols than `LANES`.
struct Words<const LANES: usize> {
    words: Vec<Word<LANES>>,
    unfinished: Vec<usize>,
}

/// Merges words of at most [`MAX_SYMBOLS`] symbols in lockstep.
#[derive(Default)]
pub struct LockstepMerger {
    short: Words<8>,
    middle: Words<16>,
    long: Words<64>,
}

/// The place of a word in a [`LockstepMerger`].
#[derive(Clone, Copy)]
pub enum WordPlace {
    Short(usize),
    Middle(usize),
    Long(usize),
}

impl LockstepMerger {
    pub fn clear(&mut self) {
        self.short.words.clear();
        self.middle.words.clear();
        self.long.words.clear();
    }

    /// Adds the word that consists of `symbols`, and prefetches the merges of its pairs.
    #[inline]
    pub fn add(&mut self, symbols: &[u32], merges: Reader<'_>) -> WordPlace {
        match symbols.len() {
            ..8 => WordPlace::Short(self.short.add(symbols, merges)),
            8..16 => WordPlace::Middle(self.middle.add(symbols, merges)),
            _ => WordPlace::Long(self.long.add(symbols, merges)),
        }
    }

    /// Merges the symbols of each word to tokens: always the pair of the lowest rank, and of equal ranks the leftmost pair.
    pub fn merge(&mut self, merges: Reader<'_>) {
        self.short.merge(merges);
        self.middle.merge(merges);
        self.long.merge(merges);
    }

    /// Appends the tokens of a word. To be called after [`LockstepMerger::merge`].
    #[inline]
    pub fn tokens(&self, place: WordPlace, tokens: &mut Vec<u32>) {
        match place {
            WordPlace::Short(index) => self.short.tokens(index, tokens),
            WordPlace::Middle(index) => self.middle.tokens(index, tokens),
            WordPlace::Long(index) => self.long.tokens(index, tokens),
        }
    }
}

impl<const LANES: usize> Default for Words<LANES> {
    fn default() -> Self {
        Self { words: Vec::new(), unfinished: Vec::new() }
    }
}

impl<const LANES: usize> Words<LANES> {
    #[inline]
    fn add(&mut self, symbols: &[u32], merges: Reader<'_>) -> usize {
        let mut lanes = [BORDER; LANES];
        for (lane, &symbol) in lanes.iter_mut().skip(1).zip(symbols) {
            lane.symbol = symbol;
        }
        let alive = u64::MAX >> (MAX_SYMBOLS - symbols.len().min(MAX_SYMBOLS));
        self.words.push(Word { lanes, alive, changed: [0; 3] });
        for symbols in symbols.windows(2) {
            if let &[left, right] = symbols {
                merges.prefetch(left, right);
            }
        }
        self.words.len() - 1
    }

    fn merge(&mut self, merges: Reader<'_>) {
        let Self { words, unfinished } = self;
        unfinished.clear();
        unfinished.extend(0..words.len());
        for word in &mut *words {
            for left in 1..(word.alive.count_ones() as usize).saturating_sub(1) {
                word.look_up(left, left + 1, merges);
            }
        }
        while !unfinished.is_empty() {
            let mut kept = 0;
            for at in 0..unfinished.len() {
                let index = unfinished.get(at).copied().unwrap_or_default();
                if let Some(place) = unfinished.get_mut(kept) {
                    *place = index;
                }
                kept += usize::from(words.get_mut(index).is_some_and(|word| word.step(merges)));
            }
            unfinished.truncate(kept);
        }
    }

    fn tokens(&self, index: usize, tokens: &mut Vec<u32>) {
        let Some(word) = self.words.get(index) else { return };
        // All lanes in use except the border.
        let mut alive = word.alive & u64::MAX << 1;
        while alive != 0 {
            tokens.push(word.symbol(alive.trailing_zeros() as usize));
            alive &= alive - 1;
        }
    }
}

impl<const LANES: usize> Word<LANES> {
    /// Merges one pair. Returns false if no pair is left to merge.
    #[inline]
    fn step(&mut self, merges: Reader<'_>) -> bool {
        let [before, at, after] = self.changed;
        if at != 0 {
            self.look_up(before, at, merges);
            self.look_up(at, after, merges);
        }
        let least = self.least();
        if (least >> 32) as u32 == NONE {
            return false;
        }
        let at = least as usize % LANES;
        let right = next(self.alive, at);
        self.alive &= !(1 << (right % LANES));
        let (before, after) = (previous(self.alive, at), next(self.alive, at));
        self.lane(right).order = u64::MAX;
        let lane = self.lane(at);
        let made = lane.made;
        lane.symbol = made;
        merges.prefetch(self.symbol(before), made);
        merges.prefetch(made, self.symbol(after));
        self.changed = [before, at, after];
        before != 0 || after <= MAX_SYMBOLS
    }

    #[inline]
    fn least(&self) -> u64 {
        let mut least = u64::MAX;
        for [a, b, c, d] in self.lanes.as_chunks().0 {
            least = least.min(a.order.min(b.order).min(c.order.min(d.order)));
        }
        least
    }

    #[inline]
    #[allow(clippy::indexing_slicing, reason = "the remainder is less than the length")]
    fn lane(&mut self, at: usize) -> &mut Lane {
        &mut self.lanes[at % LANES]
    }

    /// Returns the symbol of a lane, or [`NONE`] for a lane outside of the word.
    #[inline]
    fn symbol(&self, at: usize) -> u32 {
        self.lanes.get(at).map_or(NONE, |lane| lane.symbol)
    }

    #[inline]
    fn look_up(&mut self, left: usize, right: usize, merges: Reader<'_>) {
        let merge: Merge = merges.merge(self.symbol(left), self.symbol(right));
        let lane = self.lane(left);
        lane.order = merge >> 32 << 32 | left as u64;
        lane.made = merge as u32;
    }
}

/// Returns the next lane in use behind `at`.
#[inline]
fn next(alive: u64, at: usize) -> usize {
    at + 1 + (alive >> at >> 1).trailing_zeros() as usize
}

/// Returns the last lane in use before `at`. There always is one: the border.
#[inline]
fn previous(alive: u64, at: usize) -> usize {
    (63 - (alive & !(u64::MAX << at) | 1).leading_zeros()) as usize
}

#[cfg(test)]
mod tests {
    use super::super::merges::Workspace;
    use super::super::merges::tests::table;
    use super::*;

    #[test]
    fn words_of_every_length_merge_as_by_the_heap() {
        let (table, mut rng) = (table(), fastrand::Rng::with_seed(3));
        let (mut merger, mut workspace) = (LockstepMerger::default(), Workspace::default());
        for words in [1, 2, 7, 100, 1000] {
            let words: Vec<Vec<u32>> =
                (0..words).map(|_| (0..rng.usize(0..=MAX_SYMBOLS)).map(|_| rng.u32(..4)).collect()).collect();
            merger.clear();
            let places: Vec<WordPlace> = words.iter().map(|symbols| merger.add(symbols, table.reader())).collect();
            merger.merge(table.reader());
            for (place, symbols) in places.into_iter().zip(&words) {
                let mut expected = symbols.clone();
                table.apply_by_heap(&mut expected, &mut workspace);
                let mut tokens = Vec::new();
                merger.tokens(place, &mut tokens);
                assert_eq!(tokens, expected, "{symbols:?}");
            }
        }
    }
}
