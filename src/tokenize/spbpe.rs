//! SentencePiece-style BPE (Llama 2, Mistral, Gemma), with the same ids as the `tokenizers` library.
//!
//! Such a tokenizer merges over the whole text: nothing splits it into words first. Here it is split all the same,
//! where the merge table proves that no token can stand across ([`joins`]): in practice before each space and around
//! punctuation. A word is then looked up in a cache of this thread ([`super::words`]), or merged ([`merges`]).
//!
//! Inside, a space stands for U+2581: the normalizers that are supported leave no spaces, so it is free, takes one byte
//! for three, and most texts need no normalized copy.

mod definition;
mod joins;
mod merges;
mod together;

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::Tokenize;
use super::added::AddedTokens;
use super::json::{SPACE_MARK, Template};
use super::per_thread::{Owner, PerThread};
use super::words::{Key, WholeWords, WordCache};
use definition::Definition;
use joins::Joins;
use merges::{Merges, NONE, Workspace};
use together::{MAX_SYMBOLS, Together};

/// Characters are found by their number up to here, which holds all that vocabularies have.
const MAX_CHARS: usize = 0x11_0000;

pub struct SentencePieceBpe {
    /// By character; a space is U+2581's. `NONE` for one that falls back to bytes.
    characters: Vec<u32>,
    /// By byte of a character that is not in the vocabulary.
    bytes: [u32; 256],
    joins: Joins,
    whole_words: WholeWords,
    merges: Merges,
    /// Matched in the text as given.
    added: Option<AddedTokens>,
    /// Matched in the normalized text.
    added_normalized: Option<AddedTokens>,
    prepends_space: bool,
    template: Template,
    owner: Owner,
}

/// What one thread keeps for one tokenizer.
#[derive(Default)]
struct Scratch {
    cache: WordCache,
    text: String,
    words: Vec<Word>,
    symbols: Vec<u32>,
    together: Together,
    unknown: Vec<Unknown>,
    workspace: Workspace,
}

/// A part of a text, none of whose tokens reaches beyond it.
enum Word {
    Character(char),
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

/// Words that are looked up together.
const BLOCK: usize = 32;

thread_local! {
    static SCRATCH: PerThread<Scratch> = const { PerThread::new() };
}

impl SentencePieceBpe {
    pub const NAME: &str = "spbpe";

    /// From a tokenizer.json.
    ///
    /// # Errors
    /// Names what in it is not reproduced here.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let definition = Definition::parse(json, "BPE")?;
        let prepends_space = definition.prepends_space()?;
        let template = Template::parse(definition.post_processor.as_ref())?;
        let (added, added_normalized) = added_tokens(&definition, prepends_space)?;
        let vocabulary = vocabulary(&definition)?;
        let bytes = byte_tokens(&vocabulary)?;
        let characters = characters(&vocabulary)?;
        let (joins, merges) = tables(&definition, &vocabulary)?;
        let whole_words = WholeWords::new(&[]).ok_or(NO_MEMORY)?;
        let mut this = Self {
            characters,
            bytes,
            joins,
            whole_words,
            merges,
            added,
            added_normalized,
            prepends_space,
            template,
            owner: Owner::default(),
        };
        this.whole_words = this.find_whole_words(&vocabulary).ok_or(NO_MEMORY)?;
        Ok(this)
    }

    fn text(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let mut from = 0;
        while let Some((place, id)) = self.added.as_ref().and_then(|added| added.next(text, from)) {
            self.piece(text.get(from..place.start).unwrap_or_default(), scratch, ids);
            ids.push(id);
            from = place.end;
        }
        self.piece(text.get(from..).unwrap_or_default(), scratch, ids);
    }

    /// A text without added tokens, but for those that are matched when normalized.
    fn piece(&self, piece: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let Some(first) = piece.chars().next() else { return };
        let mut normalized = std::mem::take(&mut scratch.text);
        normalized.clear();
        if let Some(added) = &self.added_normalized {
            self.normalize(piece, &mut normalized);
            let mut from = 0;
            while let Some((place, id)) = added.next(&normalized, from) {
                self.words(normalized.get(from..place.start).unwrap_or_default(), scratch, ids);
                ids.push(id);
                from = place.end;
            }
            self.words(normalized.get(from..).unwrap_or_default(), scratch, ids);
        } else if memchr::memmem::find(piece.as_bytes(), SPACE_MARK_BYTES).is_some() {
            self.normalize(piece, &mut normalized);
            self.words(&normalized, scratch, ids);
        } else if !self.prepends_space {
            self.words(piece, scratch, ids);
        } else if self.joins.may_join(' ', first) {
            // The first word is copied behind its space, the others stay where they are.
            let end = self.word_end(piece);
            let (word, rest) = piece.split_at_checked(end).unwrap_or((piece, ""));
            normalized.push(' ');
            normalized.push_str(word);
            self.words(&normalized, scratch, ids);
            self.words(rest, scratch, ids);
        } else {
            self.character(' ', ids);
            self.words(piece, scratch, ids);
        }
        scratch.text = normalized;
    }

    /// As the normalizer does, with spaces for U+2581.
    fn normalize(&self, piece: &str, normalized: &mut String) {
        if self.prepends_space {
            normalized.push(' ');
        }
        for part in piece.split_inclusive(SPACE_MARK) {
            match part.strip_suffix(SPACE_MARK) {
                Some(part) => normalized.extend([part, " "]),
                None => normalized.push_str(part),
            }
        }
    }

    /// Where the first word of `text` ends.
    fn word_end(&self, text: &str) -> usize {
        let mut characters = text.char_indices();
        let Some((_, mut before)) = characters.next() else { return 0 };
        for (at, character) in characters {
            if !self.joins.may_join(before, character) {
                return at;
            }
            before = character;
        }
        text.len()
    }

    fn words(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let mut characters = text.char_indices();
        let Some((_, mut before)) = characters.next() else { return };
        let (mut start, mut length) = (0, 1);
        for (at, character) in characters {
            if !self.joins.may_join(before, character) {
                self.word(text, start..at, length, before, scratch, ids);
                (start, length) = (at, 0);
            }
            length += 1;
            before = character;
        }
        self.word(text, start..text.len(), length, before, scratch, ids);
        self.block(text, scratch, ids);
    }

    #[inline]
    fn word(
        &self,
        text: &str,
        place: Range<usize>,
        length: usize,
        last: char,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) {
        let word = if length == 1 {
            Word::Character(last)
        } else if let Some(key) = Key::new(text.as_bytes(), place.start, place.end) {
            let hash = key.hash();
            scratch.cache.prefetch(hash);
            self.whole_words.prefetch(hash);
            Word::Short(key, hash, place)
        } else {
            Word::Long(place)
        };
        scratch.words.push(word);
        if scratch.words.len() == BLOCK {
            self.block(text, scratch, ids);
        }
    }

    /// The tokens of the words found so far.
    fn block(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let Scratch { cache, words, symbols, together, unknown, workspace, .. } = scratch;
        together.clear();
        unknown.clear();
        for word in words.drain(..) {
            let (key, place) = match word {
                Word::Character(character) => {
                    self.character(character, ids);
                    continue;
                }
                Word::Short(key, hash, place) => {
                    if let Some(known) = cache.get(&key, hash) {
                        ids.extend_from_slice(known);
                        continue;
                    }
                    if let Some(id) = self.whole_words.get(&key, hash) {
                        ids.push(id);
                        cache.put(key, hash, &[id]);
                        continue;
                    }
                    (Some((key, hash)), place)
                }
                Word::Long(place) => (None, place),
            };
            self.symbols(text.get(place).unwrap_or_default(), symbols);
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

    /// What `word` consists of before anything is merged.
    fn symbols(&self, word: &str, symbols: &mut Vec<u32>) {
        symbols.clear();
        for character in word.chars() {
            self.character(character, symbols);
        }
    }

    fn character(&self, character: char, ids: &mut Vec<u32>) {
        match self.characters.get(character as usize) {
            Some(&id) if id != NONE => ids.push(id),
            _ => {
                let mut buffer = [0; 4];
                let bytes = character.encode_utf8(&mut buffer).bytes();
                ids.extend(bytes.filter_map(|byte| self.bytes.get(usize::from(byte))));
            }
        }
    }

    /// The vocabulary's words that merge into themselves; not each does.
    fn find_whole_words(&self, vocabulary: &HashMap<&str, u32>) -> Option<WholeWords> {
        let (mut words, mut block) = (Vec::new(), Vec::new());
        let (mut symbols, mut together) = (Vec::new(), Together::default());
        let mut entries = vocabulary.iter();
        while entries.len() > 0 {
            together.clear();
            block.clear();
            for (text, &id) in entries.by_ref().take(BLOCK) {
                let word = spaced(text);
                if let Some(key) = Key::new(word.as_bytes(), 0, word.len()) {
                    self.symbols(&word, &mut symbols);
                    together.add(&symbols, &self.merges);
                    block.push((key, id));
                }
            }
            together.merge(&self.merges);
            let whole = |&(index, (_, id)): &(usize, &(Key, u32))| together.tokens(index).1.eq([*id]);
            words.extend(block.iter().enumerate().filter(whole).map(|(_, word)| *word));
        }
        WholeWords::new(&words)
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

const NO_MEMORY: &str = "there is no memory for the vocabulary's words";

const SPACE_MARK_BYTES: &[u8] = "▁".as_bytes();

impl Tokenize for SentencePieceBpe {
    fn encode(&self, text: &str, special: bool, ids: &mut Vec<u32>) -> Result<(), String> {
        self.template.surround(text, special, ids, |ids| {
            SCRATCH.with(|all| all.with(&self.owner, |scratch| self.text(text, scratch, ids)));
        })
    }

    fn name(&self) -> &'static str {
        Self::NAME
    }
}

type Matchers = (Option<AddedTokens>, Option<AddedTokens>);

fn added_tokens(definition: &Definition<'_>, prepends_space: bool) -> Result<Matchers, String> {
    let mut contents = HashSet::new();
    let (mut given, mut normalized) = (Vec::new(), Vec::new());
    for token in &definition.added_tokens {
        let content = token.content.as_str();
        if !contents.insert(content) {
            return Err(format!("the added token {content:?} is listed twice"));
        }
        if token.normalized {
            let prefix = if prepends_space { " " } else { "" };
            normalized.push((format!("{prefix}{}", spaced(content)), token.id));
        } else {
            given.push((content.to_owned(), token.id));
        }
    }
    Ok((AddedTokens::new(&given)?, AddedTokens::new(&normalized)?))
}

fn vocabulary<'d>(definition: &'d Definition<'_>) -> Result<HashMap<&'d str, u32>, String> {
    let entries = &definition.model.vocab;
    let mut vocabulary = HashMap::with_capacity(entries.len());
    // As many ids as entries, but for gaps: the tables below are as long as the highest id's bits only.
    let mut ids: Vec<u32> = Vec::with_capacity(entries.len());
    for (text, id) in entries {
        if vocabulary.insert(text.0.as_ref(), *id).is_some() {
            return Err(format!("the vocabulary has {:?} twice", text.0));
        }
        ids.push(*id);
    }
    ids.sort_unstable();
    if ids.windows(2).any(|pair| pair.first() == pair.last()) {
        return Err("two tokens of the vocabulary have the same id".to_owned());
    }
    Ok(vocabulary)
}

/// Every character has a token, or bytes: then the unknown token is never needed.
fn byte_tokens(vocabulary: &HashMap<&str, u32>) -> Result<[u32; 256], String> {
    let mut tokens = [NONE; 256];
    for (byte, token) in (0..=u8::MAX).zip(&mut tokens) {
        match vocabulary.get(format!("<0x{byte:02X}>").as_str()) {
            Some(&id) => *token = id,
            None if byte.is_ascii() && vocabulary.contains_key(char::from(byte).to_string().as_str()) => {}
            // No UTF-8 has these.
            None if matches!(byte, 0xC0 | 0xC1 | 0xF5..) => {}
            None => return Err(format!("the vocabulary has no token for the byte {byte:#04X}")),
        }
    }
    Ok(tokens)
}

fn characters(vocabulary: &HashMap<&str, u32>) -> Result<Vec<u32>, String> {
    let single = |text: &str| {
        let mut characters = text.chars();
        characters.next().filter(|_| characters.next().is_none())
    };
    let mut table = Vec::new();
    for (text, &id) in vocabulary {
        // A space in a text is U+2581 before the model sees it.
        if let Some(character) = single(text).filter(|&c| c != ' ') {
            let at = spaced_char(character) as usize;
            if table.len() <= at {
                table.resize((at + 1).next_multiple_of(1 << 12).min(MAX_CHARS), NONE);
            }
            if let Some(place) = table.get_mut(at) {
                *place = id;
            }
        }
    }
    if table.get(' ' as usize).is_none_or(|&id| id == NONE) {
        return Err("the vocabulary has no token for U+2581".to_owned());
    }
    Ok(table)
}

/// With a space for U+2581.
fn spaced(text: &str) -> String {
    text.replace(SPACE_MARK, " ")
}

fn spaced_char(character: char) -> char {
    if character == SPACE_MARK { ' ' } else { character }
}

fn tables(definition: &Definition<'_>, vocabulary: &HashMap<&str, u32>) -> Result<(Joins, Merges), String> {
    let mut merges = Vec::with_capacity(definition.model.merges.len());
    let mut pairs = HashSet::new();
    let mut whole = String::new();
    for merge in &definition.model.merges {
        let (left, right) = (&merge.0, &merge.1);
        whole.clear();
        whole.extend([left.as_ref(), right.as_ref()]);
        let id = |text: &str| {
            vocabulary.get(text).copied().ok_or_else(|| format!("the merge of {left:?} and {right:?} has no token"))
        };
        let ids = (id(left)?, id(right)?, id(&whole)?);
        // Their characters are not those of the text that they stand for, so nothing could be proven.
        if [left, right].iter().any(|part| part.len() == 6 && part.starts_with("<0x")) {
            return Err("a merge takes a byte token".to_owned());
        }
        let (Some(x), Some(y)) = (left.chars().next_back(), right.chars().next()) else {
            return Err("a merge takes an empty token".to_owned());
        };
        pairs.insert((spaced_char(x), spaced_char(y)));
        merges.push(ids);
    }
    let merges = Merges::new(&merges).ok_or("a merge takes the largest id, or there is no memory for the merges")?;
    Ok((Joins::new(pairs.into_iter()), merges))
}
