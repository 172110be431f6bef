//! Words merged at the same time.
//!
//! The next merge of a word depends on what was looked up for the one before, in a table far larger than the caches. So a
//! step is taken in each word in turn, and what it needs to know next is on its way while the others take theirs.

use super::merges::{Merge, NONE, Reader};

/// The most symbols of a word: with a lane before them, a bit each of 64.
pub const MAX_SYMBOLS: usize = 63;

/// One symbol, at a place that it keeps until it is merged into the one before it.
#[derive(Clone, Copy)]
struct Lane {
    /// The rank of its merge with the symbol after it, and below that the lane itself: the least is the next to be merged.
    order: u64,
    symbol: u32,
    /// What that merge makes.
    made: u32,
}

/// Before a word, and behind it.
const BORDER: Lane = Lane { order: u64::MAX, symbol: NONE, made: NONE };

/// With `LANES`, a power of two, of which the first is a border.
struct Word<const LANES: usize> {
    lanes: [Lane; LANES],
    /// A bit for the border and for each symbol.
    alive: u64,
    /// The lanes before, at and after the last merge, whose two new merges are to be looked up; `at` is 0 before the first.
    changed: [usize; 3],
}

/// Words of fewer symbols than `LANES`.
struct Words<const LANES: usize> {
    words: Vec<Word<LANES>>,
    unfinished: Vec<usize>,
}

/// Words of at most [`MAX_SYMBOLS`] symbols.
#[derive(Default)]
pub struct Together {
    short: Words<8>,
    middle: Words<16>,
    long: Words<64>,
}

/// Where a word is kept.
#[derive(Clone, Copy)]
pub enum Place {
    Short(usize),
    Middle(usize),
    Long(usize),
}

impl Together {
    pub fn clear(&mut self) {
        self.short.words.clear();
        self.middle.words.clear();
        self.long.words.clear();
    }

    /// Takes a word.
    #[inline]
    pub fn add(&mut self, symbols: &[u32], merges: Reader<'_>) -> Place {
        match symbols.len() {
            ..8 => Place::Short(self.short.add(symbols, merges)),
            8..16 => Place::Middle(self.middle.add(symbols, merges)),
            _ => Place::Long(self.long.add(symbols, merges)),
        }
    }

    /// Merges the symbols of each word to its tokens: always the pair of the lowest rank, of equals the leftmost.
    pub fn merge(&mut self, merges: Reader<'_>) {
        self.short.merge(merges);
        self.middle.merge(merges);
        self.long.merge(merges);
    }

    /// Appends the tokens of a word.
    #[inline]
    pub fn tokens(&self, place: Place, tokens: &mut Vec<u32>) {
        match place {
            Place::Short(index) => self.short.tokens(index, tokens),
            Place::Middle(index) => self.middle.tokens(index, tokens),
            Place::Long(index) => self.long.tokens(index, tokens),
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
        // Without the border.
        let mut alive = word.alive & u64::MAX << 1;
        while alive != 0 {
            tokens.push(word.symbol(alive.trailing_zeros() as usize));
            alive &= alive - 1;
        }
    }
}

impl<const LANES: usize> Word<LANES> {
    /// Joins one pair; false when it was the last one.
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

    /// [`NONE`] beside the word.
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

/// The lane in use behind `at`.
#[inline]
fn next(alive: u64, at: usize) -> usize {
    at + 1 + (alive >> at >> 1).trailing_zeros() as usize
}

/// The lane in use before `at`: there is one, the border.
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
        let (mut together, mut workspace) = (Together::default(), Workspace::default());
        for words in [1, 2, 7, 100, 1000] {
            let words: Vec<Vec<u32>> =
                (0..words).map(|_| (0..rng.usize(0..=MAX_SYMBOLS)).map(|_| rng.u32(..4)).collect()).collect();
            together.clear();
            let places: Vec<Place> = words.iter().map(|symbols| together.add(symbols, table.reader())).collect();
            together.merge(table.reader());
            for (place, symbols) in places.into_iter().zip(&words) {
                let mut expected = symbols.clone();
                table.apply_by_heap(&mut expected, &mut workspace);
                let mut tokens = Vec::new();
                together.tokens(place, &mut tokens);
                assert_eq!(tokens, expected, "{symbols:?}");
            }
        }
    }
}
