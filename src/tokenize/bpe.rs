//! Byte-pair encoding of words: what SentencePiece-style and byte-level models have in common.
//!
//! A word is looked up in a cache of this thread and among the vocabulary's words ([`super::words`]), or merged. Some words are
//! looked up together: the tables are far larger than the CPU's caches, and what one word waits for is read while others do
//! ([`together`]).

pub mod merges;
pub mod model;
mod together;

use std::collections::HashMap;
use std::ops::Range;

use super::words::{Key, PADDING, WholeWords, WordCache};
use merges::{Merges, Workspace};
use together::{MAX_SYMBOLS, Together};

/// Words that are looked up together.
const BLOCK: usize = 64;

/// What words consist of before anything is merged.
pub trait Alphabet {
    /// Appends the symbols of `word`.
    fn symbols(&self, word: &str, symbols: &mut Vec<u32>);
}

pub struct Bpe<A> {
    pub alphabet: A,
    merges: Merges,
    whole_words: WholeWords,
    /// Those that are longer than [`WholeWords`] takes, where merges are ignored; elsewhere merging finds them.
    long_words: HashMap<String, u32>,
}

/// What one thread keeps for one tokenizer.
#[derive(Default)]
pub struct Scratch {
    cache: WordCache,
    /// The text that is tokenized, and behind it [`PADDING`].
    padded: Vec<u8>,
    words: Vec<Word>,
    symbols: Vec<u32>,
    together: Together,
    unknown: Vec<Unknown>,
    workspace: Workspace,
}

/// A part of a text, none of whose tokens reaches beyond it.
enum Word {
    /// Its symbols are its tokens.
    Symbols(Range<usize>),
    /// With its hash. What is known of it is on its way from memory.
    Short(Key, u64, Range<usize>),
    Long(Range<usize>),
}

/// A word that has to be merged.
struct Unknown {
    /// Where among the ids its tokens belong.
    at: usize,
    key: Option<(Key, u64)>,
}

impl<A: Alphabet> Bpe<A> {
    /// With the vocabulary's words, as texts spell them, and their ids. Those that do not merge into themselves are taken
    /// for tokens only where `merges_are_ignored`. `None` when the system gives no memory.
    pub fn new(
        alphabet: A,
        merges: Merges,
        vocabulary: impl Iterator<Item = (String, u32)>,
        merges_are_ignored: bool,
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
        Some(Self { alphabet, merges, whole_words: WholeWords::new(&words)?, long_words })
    }

    /// To be called before the words of a text.
    pub fn begin(&self, text: &str, scratch: &mut Scratch) {
        scratch.padded.clear();
        scratch.padded.extend_from_slice(text.as_bytes());
        scratch.padded.extend_from_slice(&PADDING);
    }

    /// Takes the next word of `text`. Its tokens are appended to `ids` then or later, at the latest by [`Bpe::finish`].
    /// `symbols_only`: it is one symbol, or none of its symbols merge.
    #[inline]
    pub fn word(&self, text: &str, place: Range<usize>, symbols_only: bool, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let word = if symbols_only {
            Word::Symbols(place)
        } else if let Some(key) = Key::new(&scratch.padded, place.start, place.end) {
            let hash = key.hash();
            scratch.cache.prefetch(hash);
            self.whole_words.prefetch(hash);
            Word::Short(key, hash, place)
        } else {
            Word::Long(place)
        };
        scratch.words.push(word);
        if scratch.words.len() == BLOCK {
            self.finish(text, scratch, ids);
        }
    }

    /// Appends the tokens of the words of `text` that wait.
    pub fn finish(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let Scratch { cache, words, symbols, together, unknown, workspace, .. } = scratch;
        together.clear();
        unknown.clear();
        for word in words.drain(..) {
            let (key, place) = match word {
                Word::Symbols(place) => {
                    self.alphabet.symbols(text.get(place).unwrap_or_default(), ids);
                    continue;
                }
                Word::Short(key, hash, place) => {
                    if let Some(known) = cache.get(&key, hash) {
                        ids.extend_from_slice(known);
                        continue;
                    }
                    if let Some(id) = self.whole_words.get(&key, hash) {
                        ids.push(id);
                        continue;
                    }
                    (Some((key, hash)), place)
                }
                Word::Long(place) => (None, place),
            };
            let word = text.get(place).unwrap_or_default();
            if word.len() > WholeWords::MAX_BYTES
                && let Some(&id) = self.long_words.get(word)
            {
                ids.push(id);
                continue;
            }
            symbols.clear();
            self.alphabet.symbols(word, symbols);
            if symbols.len() <= MAX_SYMBOLS {
                together.add(symbols, &self.merges);
                unknown.push(Unknown { at: ids.len(), key });
            } else {
                self.merges.apply_by_heap(symbols, workspace);
                ids.extend_from_slice(symbols);
            }
        }
        if !unknown.is_empty() {
            together.merge(&self.merges);
            insert(unknown, together, cache, ids);
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
            together.add(&symbols, merges);
            block.push((key, id));
        }
        if block.is_empty() {
            return found;
        }
        together.merge(merges);
        let whole = |&(index, (_, id)): &(usize, &(Key, u32))| together.tokens(index).1.eq([*id]);
        found.extend(block.iter().enumerate().filter(whole).map(|(_, word)| *word));
    }
}

/// Puts the tokens of words that were merged between the others.
fn insert(unknown: &[Unknown], together: &Together, cache: &mut WordCache, ids: &mut Vec<u32>) {
    let mut end = ids.len();
    let count: usize = (0..unknown.len()).map(|index| together.tokens(index).0).sum();
    ids.resize(end + count, 0);
    let mut to = ids.len();
    // From the last one to the first, so that each id moves once.
    for (index, word) in unknown.iter().enumerate().rev() {
        to -= end - word.at;
        ids.copy_within(word.at..end, to);
        end = word.at;
        let (count, tokens) = together.tokens(index);
        to -= count;
        if let Some(place) = ids.get_mut(to..to + count) {
            place.iter_mut().zip(tokens).for_each(|(place, token)| *place = token);
            if let Some((key, hash)) = word.key {
                cache.put(key, hash, place);
            }
        }
    }
}
