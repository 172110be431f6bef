//! Byte-pair encoding of words, for SentencePiece-style and byte-level models.
//!
//! A word is looked up among the most frequent words of this thread, then in a larger cache of this thread, and then among the words of the
//! vocabulary ([`super::words`]). If it is nowhere, its symbols are merged: some pairs early ([`early`]), the remaining ones in the order of
//! their ranks ([`lockstep`]).
//!
//! Many words go through each of these steps together. The tables are far larger than the CPU's caches, so the entries for one
//! word are prefetched while other words are processed.

mod block;
pub mod early;
mod lockstep;
pub mod merges;
pub mod model;

use std::ops::Range;

use foldhash::{HashMap, HashMapExt};

use super::compiled::{CompiledError, Reader, Writer};
use super::words::cache::{self, FrequentWords, PackedIds};
use super::words::{Key, ShortKey, WholeWords};
use crate::yield_point::{Steps, Stopped};
pub use block::PaddedText;
use block::{BLOCK, Block, Text, Word};
use early::EarlyMerges;
use lockstep::{LockstepMerger, MAX_SYMBOLS, WordPlace};
use merges::{Merges, Workspace};

type WordCache = cache::WordCache<{ cache::LINES_FOR_BPE }>;

/// The symbols of a model: the tokens of which a word consists before anything is merged.
pub trait Alphabet {
    /// Appends the symbols of `word`.
    fn symbols(&self, word: &str, symbols: &mut Vec<u32>);

    /// Writes the alphabet to a compiled tokenizer.
    fn write(&self, to: &mut Writer);

    /// Reads what [`Alphabet::write`] wrote.
    ///
    /// # Errors
    /// When it is not an alphabet, or has other tokens than the vocabulary.
    fn read(from: &mut Reader<'_>) -> Result<Self, CompiledError>
    where
        Self: Sized;
}

pub struct Bpe<A> {
    pub alphabet: A,
    merges: Merges,
    early: EarlyMerges,
    whole_words: WholeWords,
    /// The words that are too long for [`WholeWords`], if the model ignores merges. Otherwise this is empty, because merging
    /// finds such words.
    long_words: HashMap<String, u32>,
    /// The largest number of symbols that a token is merged from.
    longest: usize,
}

/// The cache and the buffers that one thread keeps for one tokenizer.
#[derive(Default)]
pub struct Scratch {
    cache: WordCache,
    frequent: FrequentWords,
    block: Block,
    unknown: Vec<Unknown>,
    /// The tokens of the unknown words. [`Unknown::tokens`] says which belong to which word.
    found: Vec<u32>,
    merged: Vec<Merged>,
    /// The symbols of the words in `merged`.
    symbols: Vec<u32>,
    merger: LockstepMerger,
    places: Vec<WordPlace>,
    /// The symbols of a word that is too long for the lockstep merger.
    long: Vec<u32>,
    workspace: Workspace,
}

/// A word that the cache of short words does not contain.
struct Unknown {
    /// The range of the word in the text.
    text: Range<usize>,
    /// `None` if the word is too long for the cache.
    key: Option<Key>,
    hash: u64,
    /// The range of the word's tokens in `Scratch::found`.
    tokens: Range<usize>,
    /// The key in the vocabulary, if the word may be a single token.
    whole: Option<ShortKey>,
}

impl Unknown {
    fn high(&self) -> u32 {
        (self.hash >> 32) as u32
    }
}

/// A word that has to be merged.
struct Merged {
    /// The index of the word in `Scratch::unknown`.
    unknown: usize,
    symbols: Range<usize>,
}

impl<A: Alphabet> Bpe<A> {
    /// Creates the model. `vocabulary` are the tokens' texts and IDs. A token whose text does not merge into that token is
    /// matched as a whole word only with `merges_are_ignored`. No token is merged from more than `longest` symbols. Returns
    /// `None` when the system gives no memory.
    pub fn new(
        alphabet: A,
        merges: Merges,
        early: EarlyMerges,
        vocabulary: impl Iterator<Item = (String, u32)>,
        merges_are_ignored: bool,
        longest: usize,
    ) -> Option<Self> {
        let mut long_words = HashMap::new();
        let short = vocabulary.filter_map(|(word, id)| {
            if let Some(key) = ShortKey::new(word.as_bytes()) {
                return Some((key, id, word));
            }
            if merges_are_ignored {
                long_words.insert(word, id);
            }
            None
        });
        let words: Vec<(ShortKey, u32)> = match merges_are_ignored {
            true => short.map(|(key, id, _)| (key, id)).collect(),
            false => that_merge_into_themselves(&alphabet, &merges, short),
        };
        let whole_words = WholeWords::new(&words)?;
        Some(Self { alphabet, merges, early, whole_words, long_words, longest: longest.max(1) })
    }

    /// Writes the model to a compiled tokenizer.
    pub fn write(&self, to: &mut Writer) {
        self.alphabet.write(to);
        self.merges.write(to);
        self.early.write(to);
        self.whole_words.write(to);
        to.number(self.long_words.len());
        for (word, id) in &self.long_words {
            to.text(word);
            to.number(*id as usize);
        }
        to.number(self.longest);
    }

    /// Reads what [`Bpe::write`] wrote.
    ///
    /// # Errors
    /// When a part of the model is damaged.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, CompiledError> {
        let (alphabet, merges) = (A::read(from)?, Merges::read(from)?);
        let (early, whole_words) = (EarlyMerges::read(from)?, WholeWords::read(from)?);
        let mut long_words = HashMap::new();
        for _ in 0..from.number()? {
            let (word, id) = (from.text()?, from.id()?);
            long_words.insert(word, id);
        }
        Ok(Self { alphabet, merges, early, whole_words, long_words, longest: from.number()?.max(1) })
    }

    /// Appends the tokens of `text`. `end_of_word` returns the end of the word that begins at a position. It is called for the first word,
    /// and then for each word that begins where another one ends.
    ///
    /// # Errors
    /// When `steps` stops the work.
    #[inline]
    pub fn encode(
        &self,
        text: Text<'_>,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
        steps: &Steps<'_>,
        mut end_of_word: impl FnMut(usize) -> usize,
    ) -> Result<(), Stopped> {
        let mut at = 0;
        while at < text.len() {
            let start = at;
            let Scratch { block, frequent, .. } = scratch;
            at = block.fill(text, start, frequent, &mut end_of_word);
            self.look_up(text, scratch);
            if !scratch.unknown.is_empty() {
                self.find(text.as_str(), scratch, ids.len(), steps)?;
            }
            let Scratch { block, unknown, found, .. } = &*scratch;
            block.append_tokens(ids, found, |index| unknown.get(index).map_or(0..0, |unknown| unknown.tokens.clone()));
            steps.take(at - start, ids.len())?;
        }
        Ok(())
    }

    /// Looks up the words of the block that are not frequent ones. Those that are not in the cache become [`Scratch::unknown`].
    fn look_up(&self, text: Text<'_>, scratch: &mut Scratch) {
        let Scratch { cache, frequent, block, unknown, .. } = scratch;
        let (tokens, others) = block.others();
        unknown.clear();
        let known = cache.short_words();
        for word in others {
            known.prefetch(word.high);
        }
        for Word { key, high, index, start, end } in others {
            let Some(tokens) = tokens.get_mut(*index as usize) else { continue };
            if let Some(found) = known.get(key, *high) {
                *tokens = found;
                frequent.put(key, *high, found);
            } else {
                *tokens = PackedIds::from_index(unknown.len());
                unknown.push(self.unknown(text.padded(), *start..*end, cache));
            }
        }
    }

    /// Returns the unknown word `padded[text]`, and prefetches what may be known about it.
    fn unknown(&self, padded: &[u8], text: Range<usize>, cache: &WordCache) -> Unknown {
        let key = Key::new(padded, text.start, text.end);
        let hash = key.map_or(0, |key| key.hash());
        let whole = key.and_then(|key| key.short()).filter(|_| self.whole_words.may_have(hash));
        if whole.is_some() {
            self.whole_words.prefetch(hash);
        }
        cache.prefetch_long((hash >> 32) as u32);
        Unknown { text, key, hash, tokens: 0..0, whole }
    }

    /// Finds the tokens of the unknown words. The text has at least `made` other tokens; `steps` is told this number.
    fn find(&self, text: &str, scratch: &mut Scratch, made: usize, steps: &Steps<'_>) -> Result<(), Stopped> {
        let Scratch { cache, unknown, found, merged, symbols, long, workspace, .. } = scratch;
        found.clear();
        merged.clear();
        symbols.clear();
        let early = self.early.reader();
        for (index, unknown) in unknown.iter_mut().enumerate() {
            let high = unknown.high();
            let Unknown { text: range, key, hash, tokens, whole } = unknown;
            let word = text.get(range.clone()).unwrap_or_default();
            let begin = found.len();
            if let Some(known) = key.as_ref().and_then(|key| cache.long(key, high)) {
                found.extend_from_slice(known);
            } else if let Some(id) = whole.as_ref().and_then(|key| self.whole_words.get(key, *hash)) {
                found.push(id);
                if let Some(key) = key {
                    cache.put(key, high, &[id]);
                }
            } else if word.len() > ShortKey::MAX_BYTES
                && let Some(&id) = self.long_words.get(word)
            {
                found.push(id);
            } else {
                let begin = symbols.len();
                self.alphabet.symbols(word, symbols);
                if symbols.len() - begin > MAX_SYMBOLS {
                    long.clear();
                    long.extend(symbols.drain(begin..));
                    if long.len() >= Steps::UNITS {
                        // The smallest number of tokens that the word can have: this may exceed the limit already.
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
        let Scratch { cache, unknown, found, merged, symbols, merger, places, .. } = scratch;
        let (early, merges) = (self.early.reader(), self.merges.reader());
        merger.clear();
        places.clear();
        for Merged { symbols: range, .. } in &*merged {
            let symbols = symbols.get_mut(range.clone()).unwrap_or_default();
            let count = early.apply(symbols);
            places.push(merger.add(symbols.get(..count).unwrap_or_default(), merges));
        }
        merger.merge(merges);
        for (Merged { unknown: index, .. }, place) in merged.iter().zip(places) {
            let Some(unknown) = unknown.get_mut(*index) else { continue };
            let begin = found.len();
            merger.tokens(*place, found);
            unknown.tokens = begin..found.len();
            if let Some(key) = &unknown.key {
                cache.put(key, unknown.high(), found.get(begin..).unwrap_or_default());
            }
        }
    }
}

fn that_merge_into_themselves<A: Alphabet>(
    alphabet: &A,
    merges: &Merges,
    mut words: impl Iterator<Item = (ShortKey, u32, String)>,
) -> Vec<(ShortKey, u32)> {
    let (mut found, mut block) = (Vec::new(), Vec::new());
    let (mut symbols, mut merger) = (Vec::new(), LockstepMerger::default());
    loop {
        merger.clear();
        block.clear();
        for (key, id, word) in words.by_ref().take(BLOCK) {
            symbols.clear();
            alphabet.symbols(&word, &mut symbols);
            block.push((key, id, merger.add(&symbols, merges.reader())));
        }
        if block.is_empty() {
            return found;
        }
        merger.merge(merges.reader());
        for &(key, id, place) in &block {
            symbols.clear();
            merger.tokens(place, &mut symbols);
            if symbols == [id] {
                found.push((key, id));
            }
        }
    }
}
