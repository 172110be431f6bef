//! Byte-pair encoding of words, for SentencePiece-style and byte-level models.
//!
//! A word is looked up in a cache of this thread, then among the words of the vocabulary ([`super::words`]). Otherwise its
//! symbols are merged: some pairs early ([`early`]), the remaining ones in the order of their ranks ([`lockstep`]).
//!
//! Many words go through each of these steps together. The tables are far larger than the CPU's caches, so the entries for one
//! word are prefetched while other words are processed.

pub mod early;
mod lockstep;
pub mod merges;
pub mod model;

use std::ops::Range;

use foldhash::{HashMap, HashMapExt};

use super::words::{Key, MAX_IDS, PADDING, WholeWords, WordCache};
use crate::yield_point::{Steps, Stopped};
use early::EarlyMerges;
use lockstep::{LockstepMerger, MAX_SYMBOLS, WordPlace};
use merges::{Merges, Workspace};

/// The number of words that are looked up together.
const BLOCK: usize = 256;

/// The symbols of a model: the tokens of which a word consists before anything is merged.
pub trait Alphabet {
    /// Appends the symbols of `word`.
    fn symbols(&self, word: &str, symbols: &mut Vec<u32>);
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
    /// The text that is being tokenized, followed by [`PADDING`].
    padded: Vec<u8>,
    words: Vec<Word>,
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

impl Scratch {
    /// Returns the bytes of the text from `start` on. Behind the end of the text there are zeros.
    #[inline]
    pub fn window(&self, start: usize) -> Option<&[u8; PADDING.len()]> {
        self.padded.get(start..)?.first_chunk()
    }
}

/// A word: a part of a text whose tokens never extend beyond it.
struct Word {
    start: usize,
    end: usize,
    /// The default key if the word is too long for the cache.
    key: Key,
    hash: u64,
}

impl Word {
    fn key(&self) -> Option<&Key> {
        (self.end - self.start <= Key::MAX_BYTES).then_some(&self.key)
    }
}

/// A word that the cache of short words does not contain.
struct Unknown {
    /// The index of the word in `Scratch::words`.
    word: usize,
    /// The position among the token IDs at which the tokens of the word belong.
    at: usize,
    /// The range of the word's tokens in `Scratch::found`.
    tokens: Range<usize>,
    /// Whether the word may be a single token.
    may_be_whole: bool,
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

    /// Prepares for the words of `text`. To be called before [`Bpe::word`].
    pub fn begin(&self, text: &str, scratch: &mut Scratch) {
        // Words are left over if the previous text was stopped.
        scratch.words.clear();
        scratch.padded.clear();
        scratch.padded.extend_from_slice(text.as_bytes());
        scratch.padded.extend_from_slice(&PADDING);
    }

    /// Adds the next word of `text`. Its tokens are appended to `ids` now or later, at the latest by [`Bpe::finish`].
    ///
    /// # Errors
    /// When `steps` stops the work.
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

    /// Appends the tokens of the words of `text` that were added and not yet tokenized.
    ///
    /// # Errors
    /// When `steps` stops the work.
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

    /// Finds the tokens of the unknown words. The text has at least `made` other tokens; `steps` is told this number.
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
        let Scratch { cache, words, unknown, found, merged, symbols, merger, places, .. } = scratch;
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
            let Some(Unknown { word, tokens, .. }) = unknown.get_mut(*index) else { continue };
            let begin = found.len();
            merger.tokens(*place, found);
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

/// Inserts the tokens of the unknown words between the other tokens.
fn insert(scratch: &Scratch, ids: &mut Vec<u32>) {
    let mut end = ids.len();
    ids.resize(end + scratch.found.len(), 0);
    let mut to = ids.len();
    // The words are inserted from last to first, so that each ID moves only once.
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
