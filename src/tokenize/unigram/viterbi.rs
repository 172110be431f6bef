//! The most probable pieces of a word.

use super::trie::{Node, Trie};
use crate::tokenize::json::{SPACE_MARK, Text};

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
const KEPT: usize = 1 << 14;

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
        Self { trie: Trie::new(&keys), scores, unknown, unknown_score: lowest - UNKNOWN_PENALTY, bytes }
    }

    /// The pieces of `word` with a space mark before it, in `workspace.ids`. The word holds no mark and no white space.
    pub fn split(&self, word: &str, workspace: &mut Workspace) {
        let Workspace { ways, ids } = workspace;
        let word = word.as_bytes();
        // Place 0 is before the mark, place 1 before the word's first byte.
        ways.clear();
        ways.resize(word.len() + 2, Way { score: 0.0, start: NOWHERE, id: 0 });
        let marked = self.trie.child(self.trie.root(), MARK);
        self.extend(ways, 0, marked, 1, word);
        let mut rest = word;
        while let Some(&byte) = rest.first() {
            let length = match byte {
                0..0x80 => 1,
                0x80..0xE0 => 2,
                0xE0..0xF0 => 3,
                _ => 4,
            };
            let at = word.len() - rest.len() + 1;
            self.extend(ways, at, Some(self.trie.root()), length, rest);
            rest = rest.get(length..).unwrap_or_default();
        }
        self.trace(ways, word, ids);
        if ways.len() > KEPT {
            *workspace = Workspace { ways: Vec::new(), ids: std::mem::take(ids) };
        }
    }

    /// Tries all pieces that begin at `from`: `node` has that character's bytes before `rest`, which is at `from` or, for
    /// the mark, after it.
    #[inline]
    fn extend(&self, ways: &mut [Way], from: usize, node: Option<Node>, length: usize, rest: &[u8]) {
        let Some(reached) = ways.get(from).map(|way| way.score) else { return };
        let start = from as u32;
        let mut has_single = false;
        let mut offer = |to: usize, id: u32, score: f64| {
            let score = score + reached;
            if let Some(way) = ways.get_mut(to)
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

    /// Follows the best way back. Unknown characters side by side are one token.
    fn trace(&self, ways: &[Way], word: &[u8], ids: &mut Vec<u32>) {
        ids.clear();
        let mut end = ways.len().saturating_sub(1);
        while let Some(way) = ways.get(end).filter(|_| end > 0) {
            let mut start = way.start as usize;
            if way.id != self.unknown {
                ids.push(way.id);
            } else {
                while let Some(way) = ways.get(start).filter(|way| start > 0 && way.id == self.unknown) {
                    start = way.start as usize;
                }
                self.unknown(start, word.get(start.saturating_sub(1)..end - 1).unwrap_or_default(), ids);
            }
            end = start;
        }
        ids.reverse();
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
