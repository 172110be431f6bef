//! Words merged at the same time.
//!
//! The next merge of a word depends on what was looked up for the one before, in a table far larger than the caches. So a
//! step is taken in each word in turn, and what it needs to know next is on its way while the others take theirs.

use super::merges::{Merge, Merges, NONE};

/// The most symbols of a word: with one lane on each side, a bit each of 64.
pub const MAX_SYMBOLS: usize = 62;

/// One symbol, at a place that it keeps until it is merged into the one before it.
#[derive(Clone, Copy)]
struct Lane {
    /// The rank of its merge with the symbol after it, and below that the lane itself: the least is the next to be merged.
    order: u64,
    symbol: u32,
    /// What that merge makes.
    made: u32,
}

/// Beside a word, and what fills its last group.
const BORDER: Lane = Lane { order: u64::MAX, symbol: NONE, made: NONE };

/// Lanes whose orders are compared at once.
const GROUP: usize = 8;

struct Word {
    /// Of all lanes those of this word, a border first.
    begin: usize,
    end: usize,
    /// A bit for each symbol and for the border on each side.
    alive: u64,
    /// The lanes before, at and after the last merge, whose two new merges are to be looked up; `at` is 0 before the first.
    changed: [usize; 3],
}

impl Word {
    /// How many it has now: the borders are none.
    fn tokens(&self) -> usize {
        (self.alive.count_ones() as usize).saturating_sub(2)
    }
}

/// Words of at most [`MAX_SYMBOLS`] symbols.
#[derive(Default)]
pub struct Together {
    words: Vec<Word>,
    lanes: Vec<Lane>,
    unfinished: Vec<usize>,
}

impl Together {
    pub fn clear(&mut self) {
        self.words.clear();
        self.lanes.clear();
    }

    pub fn add(&mut self, symbols: &[u32], merges: &Merges) {
        let begin = self.lanes.len();
        self.lanes.push(BORDER);
        self.lanes.extend(symbols.iter().map(|&symbol| Lane { symbol, ..BORDER }));
        let lanes = (symbols.len() + 2).next_multiple_of(GROUP);
        self.lanes.resize(begin + lanes, BORDER);
        let alive = u64::MAX >> (MAX_SYMBOLS - symbols.len().min(MAX_SYMBOLS));
        self.words.push(Word { begin, end: begin + lanes, alive, changed: [0; 3] });
        for symbols in symbols.windows(2) {
            if let &[left, right] = symbols {
                merges.prefetch(left, right);
            }
        }
    }

    /// Merges the symbols of each word to its tokens: always the pair of the lowest rank, of equals the leftmost.
    pub fn merge(&mut self, merges: &Merges) {
        let Self { words, lanes, unfinished } = self;
        unfinished.clear();
        for (index, word) in words.iter().enumerate() {
            let Some(lanes) = lanes.get_mut(word.begin..word.end) else { continue };
            for left in 1..word.tokens() {
                look_up(lanes, merges, left, left + 1);
            }
            unfinished.push(index);
        }
        while !unfinished.is_empty() {
            unfinished.retain(|&index| {
                words.get_mut(index).is_some_and(|word| {
                    lanes.get_mut(word.begin..word.end).is_some_and(|lanes| step(lanes, merges, word))
                })
            });
        }
    }

    /// How many tokens each word has, and its tokens.
    pub fn tokens(&self, index: usize) -> (usize, impl Iterator<Item = u32>) {
        let (count, begin, alive) =
            self.words.get(index).map_or((0, 0, 0), |word| (word.tokens(), word.begin, word.alive));
        // Without the first border; the last is not reached.
        let mut alive = alive & u64::MAX << 1;
        let tokens = std::iter::repeat_with(move || {
            let at = alive.trailing_zeros();
            alive &= alive.wrapping_sub(1);
            at as usize
        });
        let token = move |at: usize| self.lanes.get(begin + at).map_or(NONE, |lane| lane.symbol);
        (count, tokens.take(count).map(token))
    }
}

/// Joins one pair of a word; false when it was the last one.
#[inline]
fn step(lanes: &mut [Lane], merges: &Merges, word: &mut Word) -> bool {
    let [before, at, after] = word.changed;
    if at != 0 {
        look_up(lanes, merges, before, at);
        look_up(lanes, merges, at, after);
    }
    let (groups, _) = lanes.as_chunks::<GROUP>();
    let mut least = u64::MAX;
    for [a, b, c, d, e, f, g, h] in groups {
        let left = a.order.min(b.order).min(c.order.min(d.order));
        let right = e.order.min(f.order).min(g.order.min(h.order));
        least = least.min(left.min(right));
    }
    if (least >> 32) as u32 == NONE {
        return false;
    }
    let at = least as u32 as usize;
    let right = next(word.alive, at);
    word.alive &= !(1 << right);
    let (before, after) = (previous(word.alive, at), next(word.alive, at));
    if let Some(lane) = lanes.get_mut(right) {
        lane.order = u64::MAX;
    }
    let Some(lane) = lanes.get_mut(at) else { return false };
    lane.symbol = lane.made;
    let made = lane.made;
    merges.prefetch(symbol(lanes, before), made);
    merges.prefetch(made, symbol(lanes, after));
    word.changed = [before, at, after];
    before != 0 || word.alive >> after != 1
}

#[inline]
fn symbol(lanes: &[Lane], at: usize) -> u32 {
    lanes.get(at).map_or(NONE, |lane| lane.symbol)
}

#[inline]
fn look_up(lanes: &mut [Lane], merges: &Merges, left: usize, right: usize) {
    let merge: Merge = merges.merge(symbol(lanes, left), symbol(lanes, right));
    if let Some(lane) = lanes.get_mut(left) {
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
            words.iter().for_each(|symbols| together.add(symbols, &table));
            together.merge(&table);
            for (index, symbols) in words.iter().enumerate() {
                let mut expected = symbols.clone();
                table.apply_by_heap(&mut expected, &mut workspace);
                let (count, tokens) = together.tokens(index);
                assert_eq!((count, tokens.collect()), (expected.len(), expected), "{symbols:?}");
            }
        }
    }
}
