//! Byte-pair encoding of words: what SentencePiece-style and byte-level models have in common.
//!
//! A word is looked up in a cache of this thread, then among the vocabulary's words ([`super::words`]), or it is merged: some
//! pairs early ([`early`]), the others in their order ([`together`]). Many words take each of these steps together: the
//! tables are far larger than the CPU's caches, and what one word waits for is read while others do.

pub mod early;
pub mod merges;
pub mod model;
mod together;

use std::ops::Range;

use foldhash::{HashMap, HashMapExt};

use super::words::{Key, MAX_IDS, PADDING, WholeWords, WordCache};
use crate::yield_point::{Steps, Stopped};
use early::Early;
use merges::{Merges, Workspace};
use together::{MAX_SYMBOLS, Place, Together};

/// Words that are looked up together.
const BLOCK: usize = 256;

/// What words consist of before anything is merged.
pub trait Alphabet {
    /// Appends the symbols of `word`.
    fn symbols(&self, word: &str, symbols: &mut Vec<u32>);
}

pub struct Bpe<A> {
    pub alphabet: A,
    merges: Merges,
    early: Early,
    whole_words: WholeWords,
    /// Those that are longer than [`WholeWords`] takes, where merges are ignored; elsewhere merging finds them.
    long_words: HashMap<String, u32>,
    /// The most symbols that a token is merged from.
    longest: usize,
}

/// What one thread keeps for one tokenizer.
#[derive(Default)]
pub struct Scratch {
    cache: WordCache,
    /// The text that is tokenized, and behind it [`PADDING`].
    padded: Vec<u8>,
    words: Vec<Word>,
    unknown: Vec<Unknown>,
    /// The tokens of the unknown words, in any order.
    found: Vec<u32>,
    merged: Vec<Merged>,
    /// What those consist of.
    symbols: Vec<u32>,
    together: Together,
    places: Vec<Place>,
    /// Of a word that is too long to be merged with others.
    long: Vec<u32>,
    workspace: Workspace,
}

impl Scratch {
    /// The bytes of the text from `start` on, behind it zeros.
    #[inline]
    pub fn window(&self, start: usize) -> Option<&[u8; PADDING.len()]> {
        self.padded.get(start..)?.first_chunk()
    }
}

/// A part of a text, none of whose tokens reaches beyond it.
struct Word {
    start: usize,
    end: usize,
    /// Of nothing where the word is too long to have one.
    key: Key,
    hash: u64,
}

impl Word {
    fn key(&self) -> Option<&Key> {
        (self.end - self.start <= Key::MAX_BYTES).then_some(&self.key)
    }
}

/// A word that was not at hand.
struct Unknown {
    /// Which of the words.
    word: usize,
    /// Where among the ids its tokens belong.
    at: usize,
    /// Its tokens among those found.
    tokens: Range<usize>,
    /// Whether it may be one token.
    may_be_whole: bool,
}

/// A word that has to be merged.
struct Merged {
    /// Which of the unknown words.
    unknown: usize,
    symbols: Range<usize>,
}

impl<A: Alphabet> Bpe<A> {
    /// With the vocabulary's words, as texts spell them, and their ids. Those that do not merge into themselves are taken
    /// for tokens only where `merges_are_ignored`. No token is merged from more than `longest` symbols. `None` when the system
    /// gives no memory.
    pub fn new(
        alphabet: A,
        merges: Merges,
        early: Early,
        vocabulary: impl Iterator<Item = (String, u32)>,
        merges_are_ignored: bool,
        longest: usize,
    ) -> Option<Self> {
        let mut long_words = HashMap::new();
        let short = vocabulary.filter_map(|(word, id)| {
            if word.len() <= WholeWords::MAX_BYTES {
                return Some((Key::new(word.as_bytes(), 0, word.len())?, id, word));
            }
            if merges_are_ignored {
                long_words.insert(word, id);
            }
            None
        });
        let words: Vec<(Key, u32)> = match merges_are_ignored {
            true => short.map(|(key, id, _)| (key, id)).collect(),
            false => that_merge_into_themselves(&alphabet, &merges, short),
        };
        let whole_words = WholeWords::new(&words)?;
        Some(Self { alphabet, merges, early, whole_words, long_words, longest: longest.max(1) })
    }

    /// To be called before the words of `text`.
    pub fn begin(&self, text: &str, scratch: &mut Scratch) {
        // Some are left where a text was stopped.
        scratch.words.clear();
        scratch.padded.clear();
        scratch.padded.extend_from_slice(text.as_bytes());
        scratch.padded.extend_from_slice(&PADDING);
    }

    /// Takes the next word of `text`. Its tokens are appended to `ids` then or later, at the latest by [`Bpe::finish`].
    ///
    /// # Errors
    /// When `steps` ends the work.
    #[inline]
    pub fn word(
        &self,
        text: &str,
        Range { start, end }: Range<usize>,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
        steps: &Steps<'_>,
    ) -> Result<(), Stopped> {
        let key = Key::new(&scratch.padded, start, end).unwrap_or_default();
        let hash = key.hash();
        scratch.cache.prefetch(hash);
        scratch.words.push(Word { start, end, key, hash });
        if scratch.words.len() == BLOCK {
            self.finish(text, scratch, ids, steps)?;
        }
        Ok(())
    }

    /// Appends the tokens of the words of `text` that wait.
    ///
    /// # Errors
    /// When `steps` ends the work.
    pub fn finish(
        &self,
        text: &str,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
        steps: &Steps<'_>,
    ) -> Result<(), Stopped> {
        let Scratch { cache, words, unknown, .. } = scratch;
        unknown.clear();
        let mut end = ids.len();
        ids.resize(end + words.len() * MAX_IDS, 0);
        for (index, word) in words.iter().enumerate() {
            if let Some(room) = ids.get_mut(end..).and_then(<[u32]>::first_chunk_mut)
                && let Some(count) = cache.short(&word.key, word.hash, room)
            {
                end += count;
            } else {
                let may_be_whole = self.whole_words.may_have(word.hash);
                if may_be_whole {
                    self.whole_words.prefetch(word.hash);
                }
                cache.prefetch_long(word.hash);
                unknown.push(Unknown { word: index, at: end, tokens: 0..0, may_be_whole });
            }
        }
        ids.truncate(end);
        if !unknown.is_empty() {
            self.find(text, scratch, ids.len(), steps)?;
            insert(scratch, ids);
        }
        if let (Some(first), Some(last)) = (scratch.words.first(), scratch.words.last()) {
            steps.take(last.end - first.start, ids.len())?;
        }
        scratch.words.clear();
        Ok(())
    }

    /// Finds the tokens of the unknown words. The text has `made` tokens beside theirs.
    fn find(&self, text: &str, scratch: &mut Scratch, made: usize, steps: &Steps<'_>) -> Result<(), Stopped> {
        let Scratch { cache, words, unknown, found, merged, symbols, long, workspace, .. } = scratch;
        found.clear();
        merged.clear();
        symbols.clear();
        let early = self.early.reader();
        for (index, Unknown { word, tokens, may_be_whole, .. }) in unknown.iter_mut().enumerate() {
            let Some(word) = words.get(*word) else { continue };
            let text = text.get(word.start..word.end).unwrap_or_default();
            let begin = found.len();
            if let Some(known) = word.key().and_then(|key| cache.long(key, word.hash)) {
                found.extend_from_slice(known);
            } else if *may_be_whole && let Some(id) = word.key().and_then(|key| self.whole_words.get(key, word.hash)) {
                found.push(id);
                cache.put(&word.key, word.hash, &[id]);
            } else if text.len() > WholeWords::MAX_BYTES
                && let Some(&id) = self.long_words.get(text)
            {
                found.push(id);
            } else {
                let begin = symbols.len();
                self.alphabet.symbols(text, symbols);
                if symbols.len() - begin > MAX_SYMBOLS {
                    long.clear();
                    long.extend(symbols.drain(begin..));
                    if long.len() >= Steps::UNITS {
                        // What the word has at least: perhaps that is too much already.
                        steps.now(made + found.len() + long.len() / self.longest)?;
                    }
                    self.merges.apply_by_heap_in_steps(long, workspace, made + found.len(), steps)?;
                    found.extend_from_slice(long);
                } else {
                    early.prefetch(symbols.get(begin..).unwrap_or_default());
                    merged.push(Merged { unknown: index, symbols: begin..symbols.len() });
                }
            }
            *tokens = begin..found.len();
        }
        self.merge(scratch);
        Ok(())
    }

    fn merge(&self, scratch: &mut Scratch) {
        let Scratch { cache, words, unknown, found, merged, symbols, together, places, .. } = scratch;
        let (early, merges) = (self.early.reader(), self.merges.reader());
        together.clear();
        places.clear();
        for Merged { symbols: range, .. } in &*merged {
            let symbols = symbols.get_mut(range.clone()).unwrap_or_default();
            let count = early.apply(symbols);
            places.push(together.add(symbols.get(..count).unwrap_or_default(), merges));
        }
        together.merge(merges);
        for (Merged { unknown: index, .. }, place) in merged.iter().zip(places) {
            let Some(Unknown { word, tokens, .. }) = unknown.get_mut(*index) else { continue };
            let begin = found.len();
            together.tokens(*place, found);
            *tokens = begin..found.len();
            if let Some(word) = words.get(*word)
                && let Some(key) = word.key()
            {
                cache.put(key, word.hash, found.get(begin..).unwrap_or_default());
            }
        }
    }
}

fn that_merge_into_themselves<A: Alphabet>(
    alphabet: &A,
    merges: &Merges,
    mut words: impl Iterator<Item = (Key, u32, String)>,
) -> Vec<(Key, u32)> {
    let (mut found, mut block) = (Vec::new(), Vec::new());
    let (mut symbols, mut together) = (Vec::new(), Together::default());
    loop {
        together.clear();
        block.clear();
        for (key, id, word) in words.by_ref().take(BLOCK) {
            symbols.clear();
            alphabet.symbols(&word, &mut symbols);
            block.push((key, id, together.add(&symbols, merges.reader())));
        }
        if block.is_empty() {
            return found;
        }
        together.merge(merges.reader());
        for &(key, id, place) in &block {
            symbols.clear();
            together.tokens(place, &mut symbols);
            if symbols == [id] {
                found.push((key, id));
            }
        }
    }
}

/// Puts the tokens of unknown words between the others.
fn insert(scratch: &Scratch, ids: &mut Vec<u32>) {
    let mut end = ids.len();
    ids.resize(end + scratch.found.len(), 0);
    let mut to = ids.len();
    // From the last one to the first, so that each id moves once.
    for Unknown { at, tokens, .. } in scratch.unknown.iter().rev() {
        to -= end - at;
        ids.copy_within(*at..end, to);
        end = *at;
        let tokens = scratch.found.get(tokens.clone()).unwrap_or_default();
        to -= tokens.len();
        if let Some(place) = ids.get_mut(to..to + tokens.len()) {
            place.copy_from_slice(tokens);
        }
    }
}
