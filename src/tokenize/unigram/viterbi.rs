//! The most probable pieces of a word.

use std::collections::BTreeSet;

use super::trie::{Node, Trie};
use crate::tokenize::json::{SPACE_MARK, Text};
use crate::yield_point::{Steps, Stopped};

/// A Unigram language model over pieces.
///
/// Scores are added in the order in which the reference adds them: sums that are equal on paper differ in their last
/// bits, and which pieces win depends on those. For the same reason no word is cut where no piece could span.
///
/// Source: Kudo, "Subword Regularization", 2018, section 3.2; `encode_optimized` in
/// <https://github.com/huggingface/tokenizers/blob/main/tokenizers/src/models/unigram/model.rs>.
pub struct Pieces {
    /// U+2581 at the start of a piece is [`MARK`] there.
    trie: Trie,
    /// By id.
    scores: Vec<f64>,
    unknown: u32,
    unknown_score: f64,
    /// By byte, where what has no piece falls back to bytes.
    bytes: Option<Box<[u32; 256]>>,
    /// The bytes of the longest piece.
    longest: usize,
}

/// The best way to a place in a word.
#[derive(Clone, Copy)]
struct Way {
    score: f64,
    /// Where its last piece begins; [`NOWHERE`] before a way is found.
    start: u32,
    id: u32,
}

/// U+2581's last byte, which begins no character.
const MARK: u8 = 0x81;

const NOWHERE: u32 = u32::MAX;

/// Buffers that one thread works in.
#[derive(Default)]
pub struct Workspace {
    ways: Vec<Way>,
    /// The pieces' ids, after [`Pieces::split`].
    pub ids: Vec<u32>,
}

/// Longer buffers are given back.
pub const KEPT: usize = 1 << 14;

/// Places of a long word after which its first tokens are looked for, and ways that are followed back for that.
const AT_A_TIME: usize = 1 << 13;
const FOLLOWED: usize = 1 << 12;

const NO_WAY: Way = Way { score: 0.0, start: NOWHERE, id: 0 };

/// What an unknown character costs more than the rarest piece: `kUnkPenalty` in SentencePiece.
const UNKNOWN_PENALTY: f64 = 10.0;

impl Pieces {
    /// `pieces` by id, with their scores; `bytes` by byte.
    pub fn new(pieces: &[(Text<'_>, f64)], unknown: u32, bytes: Option<Box<[u32; 256]>>) -> Self {
        let mark = SPACE_MARK.len_utf8() - 1;
        let keys: Vec<(&[u8], u32)> = pieces
            .iter()
            .zip(0..)
            .map(|((piece, _), id)| {
                let start = if piece.0.starts_with(SPACE_MARK) { mark } else { 0 };
                (piece.0.as_bytes().get(start..).unwrap_or_default(), id)
            })
            .collect();
        let scores: Vec<f64> = pieces.iter().map(|&(_, score)| score).collect();
        let lowest = scores.iter().copied().fold(f64::INFINITY, f64::min);
        let longest = keys.iter().map(|(key, _)| key.len()).max().unwrap_or_default().max(char::MAX.len_utf8());
        Self { trie: Trie::new(&keys), scores, unknown, unknown_score: lowest - UNKNOWN_PENALTY, bytes, longest }
    }

    /// The pieces of `word` with a space mark before it, in `workspace.ids`. The word holds no mark and no white space; its
    /// text has `made` tokens before it.
    ///
    /// # Errors
    /// When `steps` ends the work.
    pub fn split(&self, word: &str, workspace: &mut Workspace, made: usize, steps: &Steps<'_>) -> Result<(), Stopped> {
        let Workspace { ways, ids } = workspace;
        let word = word.as_bytes();
        // Place 0 is before the mark, place 1 before the word's first byte.
        let places = word.len() + 2;
        ids.clear();
        ways.clear();
        ways.resize(places.min(AT_A_TIME), NO_WAY);
        // The places before `base` are not needed any more: their tokens are in `ids`.
        let (mut base, mut next_look) = (0, AT_A_TIME);
        let marked = self.trie.child(self.trie.root(), MARK);
        self.extend(ways, 0, 0, marked, 1, word);
        let mut rest = word;
        while let Some(&byte) = rest.first() {
            let length = match byte {
                0..0x80 => 1,
                0x80..0xE0 => 2,
                0xE0..0xF0 => 3,
                _ => 4,
            };
            let at = word.len() - rest.len() + 1;
            if at > next_look {
                next_look = at + AT_A_TIME;
                if let Some(place) = self.settled(ways, base, at) {
                    self.trace(ways, base, place, word, ids);
                    ways.drain(..place - base);
                    base = place;
                }
            }
            let needed = (at + self.longest + 1).min(places) - base;
            if ways.len() < needed {
                ways.resize((needed + AT_A_TIME).min(places - base), NO_WAY);
            }
            self.extend(ways, base, at, Some(self.trie.root()), length, rest);
            steps.take(length, made + ids.len())?;
            rest = rest.get(length..).unwrap_or_default();
        }
        self.trace(ways, base, places - 1, word, ids);
        if ways.capacity() > KEPT {
            *ways = Vec::new();
        }
        Ok(())
    }

    /// The last place that all ways from `at` on have come through, behind a token that no later one can change. `None` where
    /// it is not found soon.
    fn settled(&self, ways: &[Way], base: usize, at: usize) -> Option<usize> {
        let way = |place: usize| ways.get(place.checked_sub(base)?).filter(|way| way.start != NOWHERE);
        let mut places: BTreeSet<usize> = (at..at + self.longest).filter(|&place| way(place).is_some()).collect();
        for _ in 0..FOLLOWED {
            let last = places.pop_last().filter(|&last| last > base)?;
            let found = way(last)?;
            // Unknown characters side by side become one token, perhaps with some that are still to come.
            if places.is_empty() && found.id != self.unknown {
                return Some(last);
            }
            places.insert(found.start as usize);
        }
        None
    }

    /// Tries all pieces that begin at `from`: `node` has that character's bytes before `rest`, which is at `from` or, for
    /// the mark, after it. The ways begin at place `base`.
    #[inline]
    fn extend(&self, ways: &mut [Way], base: usize, from: usize, node: Option<Node>, length: usize, rest: &[u8]) {
        let Some(reached) = ways.get(from - base).map(|way| way.score) else { return };
        let start = from as u32;
        let mut has_single = false;
        let mut offer = |to: usize, id: u32, score: f64| {
            let score = score + reached;
            if let Some(way) = ways.get_mut(to - base)
                && (way.start == NOWHERE || score > way.score)
            {
                *way = Way { score, start, id };
            }
        };
        let score = |id: u32| self.scores.get(id as usize).copied().unwrap_or_default();
        if let Some(mut node) = node {
            let mut to = from;
            if from == 0 {
                to = 1;
                if let Some(id) = node.id() {
                    offer(to, id, score(id));
                    has_single = true;
                }
            }
            for &byte in rest {
                let Some(child) = self.trie.child(node, byte) else { break };
                (node, to) = (child, to + 1);
                if let Some(id) = node.id() {
                    offer(to, id, score(id));
                    has_single |= to - from == length;
                }
            }
        }
        if !has_single {
            offer(from + length, self.unknown, self.unknown_score);
        }
    }

    /// Appends the tokens of the best way from place `base`, where the ways begin, to `end`. Unknown characters side by side
    /// are one token.
    fn trace(&self, ways: &[Way], base: usize, mut end: usize, word: &[u8], ids: &mut Vec<u32>) {
        let before = ids.len();
        let way = |place: usize| ways.get(place.checked_sub(base)?).filter(|_| place > base);
        while let Some(last) = way(end) {
            let mut start = last.start as usize;
            if last.id != self.unknown {
                ids.push(last.id);
            } else {
                while let Some(way) = way(start).filter(|way| way.id == self.unknown) {
                    start = way.start as usize;
                }
                self.unknown(start, word.get(start.saturating_sub(1)..end - 1).unwrap_or_default(), ids);
            }
            end = start;
        }
        if let Some(made) = ids.get_mut(before..) {
            made.reverse();
        }
    }

    /// Appends, last first, what stands for `text`, which is from place `start` on: together it may be a piece.
    fn unknown(&self, start: usize, text: &[u8], ids: &mut Vec<u32>) {
        let mark: &[u8] = if start == 0 { &[MARK] } else { &[] };
        let node = mark.iter().chain(text).try_fold(self.trie.root(), |node, &byte| self.trie.child(node, byte));
        if let Some(id) = node.and_then(Node::id) {
            ids.push(id);
        } else if let Some(bytes) = &self.bytes {
            let mark = if start == 0 { "▁".as_bytes() } else { &[] };
            let spelled = mark.iter().chain(text).rev();
            ids.extend(spelled.filter_map(|&byte| bytes.get(usize::from(byte))));
        } else {
            ids.push(self.unknown);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::cell::Cell;

    use tokenizers::Model;
    use tokenizers::models::unigram::Unigram;

    use super::*;

    /// Words far longer than what is kept of one: the ids are those of the whole, and little memory is used at a time.
    #[test]
    fn the_tokens_of_long_words_are_settled_part_by_part() {
        let pieces =
            [("<unk>", 0.0), ("▁", -3.0), ("a", -4.0), ("aa", -6.5), ("aaa", -9.25), ("ab", -5.0), ("b", -4.5)];
        let pieces = [&pieces[..], &[("ba", -5.25), ("▁a", -3.5), ("é", -7.0), ("bé", -8.0), ("abab", -7.75)]].concat();
        let owned = pieces.iter().map(|&(piece, score)| (piece.to_owned(), score)).collect();
        let reference = Unigram::from(owned, Some(0), false).unwrap();
        let texts: Vec<(Text<'_>, f64)> =
            pieces.iter().map(|&(piece, score)| (Text(Cow::Borrowed(piece)), score)).collect();
        let ours = Pieces::new(&texts, 0, None);
        let mut rng = fastrand::Rng::with_seed(3);
        let mut any = |characters: &[char]| -> String {
            (0..5 * AT_A_TIME).map(|_| characters[rng.usize(..characters.len())]).collect()
        };
        let words = [
            any(&['a', 'b']),
            any(&['a', 'b', 'é', 'x', '€']),
            any(&['x', 'y', 'y', 'y', 'y', 'y', 'a']),
            "a".repeat(4 * AT_A_TIME + 3),
            "x".repeat(3 * AT_A_TIME),
            format!("{}{}", "ab".repeat(AT_A_TIME), "xy".repeat(2 * AT_A_TIME)),
        ];
        let mut workspace = Workspace::default();
        for word in &words {
            let made = Cell::new(0);
            let reached = |tokens| {
                made.set(made.get().max(tokens));
                Ok(())
            };
            ours.split(word, &mut workspace, 7, &Steps::new(&reached)).unwrap();
            let expected: Vec<u32> = reference.tokenize(&format!("▁{word}")).unwrap().iter().map(|t| t.id).collect();
            assert!(workspace.ids == expected, "{}", &word[..20]);
            assert!(made.get() > 1000 || word.starts_with("xxx") || word.starts_with("aaaa"), "{}", &word[..20]);
        }
        let stop = |_| Err(Stopped);
        assert_eq!(ours.split(&words[0], &mut workspace, 0, &Steps::new(&stop)), Err(Stopped));
    }
}
