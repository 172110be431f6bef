//! Splits a word into its most probable pieces, by the Viterbi algorithm.
//!
//! From left to right, the best path to each position is the best path to an earlier position plus one piece. A path's score is
//! the sum of the log probabilities of its pieces. For example, let the scores be `▁` -2, `▁a` -1, `a` -2, `b` -1.5 and `ab`
//! -1.2. The best paths of the word `ab`, which has a space mark before it, are:
//!
//! | position | paths | best |
//! |---|---|---|
//! | behind `▁` | `▁` -2 | `▁` |
//! | behind `▁a` | `▁a` -1, `▁` `a` -4 | `▁a` |
//! | behind `▁ab` | `▁a` `b` -2.5, `▁` `ab` -3.2 | `▁a` `b` |
//!
//! Following the last pieces back from the end gives the tokens `▁a` and `b`.

use std::collections::BTreeSet;

use super::trie::{Node, Trie};
use crate::json::{SPACE_MARK, Text};
use crate::yield_point::{Steps, Stopped};

/// A Unigram language model over pieces.
///
/// Scores are added in the order in which the reference adds them. Sums that are mathematically equal differ in their last bits,
/// and these decide which pieces win. For the same reason, a word is never cut at a position that no piece spans.
///
/// Source: Kudo, "Subword Regularization", 2018, section 3.2; `encode_optimized` in
/// <https://github.com/huggingface/tokenizers/blob/main/tokenizers/src/models/unigram/model.rs>.
pub struct Pieces {
    /// The pieces. U+2581 at the start of a piece is [`MARK`] in the trie.
    trie: Trie,
    /// For each piece, its log probability.
    scores: Vec<f64>,
    unknown: u32,
    unknown_score: f64,
    /// For each byte, its piece, if text without a piece falls back to bytes.
    bytes: Option<Box<[u32; 256]>>,
    /// The number of bytes of the longest piece.
    longest: usize,
}

/// The best path to a position in a word.
#[derive(Clone, Copy)]
struct Path {
    score: f64,
    /// The position at which the last piece begins, or [`NOWHERE`] if no path is known yet.
    start: u32,
    id: u32,
}

/// The last byte of U+2581. No character begins with it.
const MARK: u8 = 0x81;

const NOWHERE: u32 = u32::MAX;

/// The buffers of one thread.
#[derive(Default)]
pub struct Workspace {
    paths: Vec<Path>,
    /// The IDs of the pieces, after [`Pieces::split`].
    pub ids: Vec<u32>,
}

/// The length up to which buffers are kept. Longer ones are freed.
pub const KEPT: usize = 1 << 14;

/// The number of positions of a long word after which its first tokens are looked for, and the number of paths that are followed
/// back to find them.
const AT_A_TIME: usize = 1 << 13;
const FOLLOWED: usize = 1 << 12;

const NO_PATH: Path = Path { score: 0.0, start: NOWHERE, id: 0 };

/// The penalty for an unknown character, relative to the rarest piece: `kUnkPenalty` in SentencePiece.
const UNKNOWN_PENALTY: f64 = 10.0;

impl Pieces {
    /// Creates the model from the pieces with their scores, in the order of their IDs, and the pieces of the bytes.
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

    /// Writes the pieces of `word`, with a space mark before it, to `workspace.ids`. The word contains no mark and no white
    /// space. Its text has at least `made` tokens before it; `steps` is told this number.
    ///
    /// # Errors
    /// When `steps` stops the work.
    pub fn split(&self, word: &str, workspace: &mut Workspace, made: usize, steps: &Steps<'_>) -> Result<(), Stopped> {
        let Workspace { paths, ids } = workspace;
        let word = word.as_bytes();
        // Position 0 is before the mark, position 1 is before the first byte of the word.
        let places = word.len() + 2;
        ids.clear();
        paths.clear();
        paths.resize(places.min(AT_A_TIME), NO_PATH);
        // The positions before `base` are no longer needed: their tokens are in `ids`.
        let (mut base, mut next_look) = (0, AT_A_TIME);
        let marked = self.trie.child(self.trie.root(), MARK);
        self.extend(paths, 0, 0, marked, 1, word);
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
                if let Some(place) = self.last_certain_position(paths, base, at) {
                    self.trace(paths, base, place, word, ids);
                    paths.drain(..place - base);
                    base = place;
                }
            }
            let needed = (at + self.longest + 1).min(places) - base;
            if paths.len() < needed {
                paths.resize((needed + AT_A_TIME).min(places - base), NO_PATH);
            }
            self.extend(paths, base, at, Some(self.trie.root()), length, rest);
            steps.take(length, made + ids.len())?;
            rest = rest.get(length..).unwrap_or_default();
        }
        self.trace(paths, base, places - 1, word, ids);
        if paths.capacity() > KEPT {
            *paths = Vec::new();
        }
        Ok(())
    }

    /// Returns the last position that all paths to `at` and beyond pass through, behind a token that no later token can change.
    /// Returns `None` if no such position is found soon.
    fn last_certain_position(&self, paths: &[Path], base: usize, at: usize) -> Option<usize> {
        let path = |place: usize| paths.get(place.checked_sub(base)?).filter(|path| path.start != NOWHERE);
        let mut places: BTreeSet<usize> = (at..at + self.longest).filter(|&place| path(place).is_some()).collect();
        for _ in 0..FOLLOWED {
            let last = places.pop_last().filter(|&last| last > base)?;
            let found = path(last)?;
            // Adjacent unknown characters become one token, perhaps together with characters that are still to come.
            if places.is_empty() && found.id != self.unknown {
                return Some(last);
            }
            places.insert(found.start as usize);
        }
        None
    }

    /// Extends the best path to `from` by all pieces that begin there. `node` is the trie's node for the bytes before `rest`: the
    /// root, or the mark for position 0. The paths begin at the position `base`.
    #[inline]
    fn extend(&self, paths: &mut [Path], base: usize, from: usize, node: Option<Node>, length: usize, rest: &[u8]) {
        let Some(reached) = paths.get(from - base).map(|path| path.score) else { return };
        let start = from as u32;
        let mut has_single = false;
        let mut offer = |to: usize, id: u32, score: f64| {
            let score = score + reached;
            if let Some(path) = paths.get_mut(to - base)
                && (path.start == NOWHERE || score > path.score)
            {
                *path = Path { score, start, id };
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

    /// Appends the tokens of the best path from the position `base` to `end`. Adjacent unknown characters become one token.
    fn trace(&self, paths: &[Path], base: usize, mut end: usize, word: &[u8], ids: &mut Vec<u32>) {
        let before = ids.len();
        let path = |place: usize| paths.get(place.checked_sub(base)?).filter(|_| place > base);
        while let Some(last) = path(end) {
            let mut start = last.start as usize;
            if last.id != self.unknown {
                ids.push(last.id);
            } else {
                while let Some(path) = path(start).filter(|path| path.id == self.unknown) {
                    start = path.start as usize;
                }
                self.unknown(start, word.get(start.saturating_sub(1)..end - 1).unwrap_or_default(), ids);
            }
            end = start;
        }
        if let Some(made) = ids.get_mut(before..) {
            made.reverse();
        }
    }

    /// Appends the tokens of the unknown characters `text` from the position `start` on, last token first. Together, the
    /// characters may be a piece.
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
