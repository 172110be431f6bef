//! SentencePiece-style BPE (Llama 2, Mistral, Gemma), with the same IDs as the `tokenizers` library.
//!
//! Such a tokenizer merges over the whole text: nothing splits the text into words first. This implementation splits it all the
//! same, at the positions that no token can span according to the merge table (`joins`): in practice before each space and
//! around punctuation. The words are then merged as described in `super::bpe`.
//!
//! Internally, a space stands for U+2581. The supported normalizers leave no spaces in a text, so the space is free. It takes one
//! byte instead of three, and most texts need no normalized copy.

mod definition;
mod joins;

use foldhash::{HashMap, HashSet};

use super::added::{self, AddedTokens};
use super::bpe::early::{EarlyMerges, Edges};
use super::bpe::merges::{Merges, NONE, TOO_LARGE};
use super::bpe::model::Merge;
use super::bpe::{self, Alphabet, Bpe, PaddedText};
use super::compiled::{CompiledError, Reader, Writer};
use super::json::{self, Added, NO_MEMORY, Parts, SPACE_MARK, Template};
use super::per_thread::{Owner, PerThread};
use super::{EncodeError, Tokenize};
use crate::DefinitionError;
use crate::yield_point::{Steps, Stopped};
use definition::Definition;
use joins::Joins;

/// The number of code points.
const MAX_CHARS: usize = 0x11_0000;

pub struct SentencePieceBpe {
    bpe: Bpe<Characters>,
    joins: Joins,
    /// The added tokens that are matched in the text as given.
    added: Option<AddedTokens>,
    /// The added tokens that are matched in the normalized text.
    added_normalized: Option<AddedTokens>,
    prepends_space: bool,
    template: Template,
    owner: Owner,
}

impl std::fmt::Debug for SentencePieceBpe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(Self::NAME)
    }
}

struct Characters {
    /// For each code point, its token; a space has the token of U+2581. `NONE` for a character that falls back to bytes.
    characters: Vec<u32>,
    /// For each byte, its token, for characters that are not in the vocabulary.
    bytes: [u32; 256],
}

/// The buffers that one thread keeps for one tokenizer.
#[derive(Default)]
struct Scratch {
    bpe: bpe::Scratch,
    padded: PaddedText,
    normalized: String,
}

thread_local! {
    static SCRATCH: PerThread<Scratch> = const { PerThread::new() };
}

impl SentencePieceBpe {
    pub const NAME: &str = "spbpe";

    /// Reads a tokenizer.json.
    ///
    /// # Errors
    /// Names the part of the file that is not reproduced here.
    pub fn from_json(json: &[u8]) -> Result<Self, DefinitionError> {
        let definition = Definition::parse(json, "BPE")?;
        definition.check()?;
        let around = Around::new(&definition)?;
        let vocabulary = definition.model.vocabulary()?;
        let alphabet = Characters { characters: characters(&vocabulary)?, bytes: byte_tokens(&vocabulary)? };
        let (joins, merges) = rules(&definition, &vocabulary)?;
        let table = Merges::new(&merges).ok_or_else(|| DefinitionError::too_large(TOO_LARGE))?;
        let texts: HashMap<u32, &str> = vocabulary.iter().map(|(text, &id)| (id, *text)).collect();
        let early = EarlyMerges::new(&merges, |token| alphabet.edges(texts.get(&token).copied().unwrap_or_default()));
        let words = vocabulary.iter().map(|(text, &id)| (spaced(text), id));
        let longest = vocabulary.keys().map(|text| text.len()).max().unwrap_or_default();
        let bpe = Bpe::new(
            alphabet,
            table,
            early.ok_or_else(|| DefinitionError::too_large(NO_MEMORY))?,
            words,
            false,
            longest,
        )
        .ok_or_else(|| DefinitionError::too_large(NO_MEMORY))?;
        Ok(Self::new(bpe, joins, around))
    }

    fn new(bpe: Bpe<Characters>, joins: Joins, around: Around) -> Self {
        let Around { added, added_normalized, prepends_space, template } = around;
        Self { bpe, joins, added, added_normalized, prepends_space, template, owner: Owner::default() }
    }

    /// Reads the tables of a compiled tokenizer. `parts` are the other parts of its tokenizer.json.
    ///
    /// # Errors
    /// When the tables are damaged, or `parts` are not those of such a tokenizer.
    pub(crate) fn read(parts: &Parts, from: &mut Reader<'_>) -> Result<Self, CompiledError> {
        let around = Around::new(parts).map_err(|_| CompiledError::Damaged("it has parts of another tokenizer"))?;
        Ok(Self::new(Bpe::read(from)?, Joins::read(from)?, around))
    }

    fn text(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>, steps: &Steps<'_>) -> Result<(), Stopped> {
        added::around(self.added.as_ref(), text, ids, steps, |piece, ids| self.piece(piece, scratch, ids, steps))
    }

    /// Appends the tokens of a text that contains no added tokens, except for those that are matched in the normalized text.
    fn piece(&self, piece: &str, scratch: &mut Scratch, ids: &mut Vec<u32>, steps: &Steps<'_>) -> Result<(), Stopped> {
        let Some(first) = piece.chars().next() else { return Ok(()) };
        let mut normalized = std::mem::take(&mut scratch.normalized);
        normalized.clear();
        if let Some(added) = &self.added_normalized {
            self.normalize(piece, &mut normalized);
            added::around(Some(added), &normalized, ids, steps, |words, ids| self.words(words, scratch, ids, steps))?;
        } else if memchr::memmem::find(piece.as_bytes(), SPACE_MARK_BYTES).is_some() {
            self.normalize(piece, &mut normalized);
            self.words(&normalized, scratch, ids, steps)?;
        } else if !self.prepends_space {
            self.words(piece, scratch, ids, steps)?;
        } else if self.joins.may_join(' ', first) {
            // The first word is copied behind the space. The other words stay where they are.
            let end = self.word_end(piece);
            let (word, rest) = piece.split_at_checked(end).unwrap_or((piece, ""));
            normalized.push(' ');
            normalized.push_str(word);
            self.words(&normalized, scratch, ids, steps)?;
            self.words(rest, scratch, ids, steps)?;
        } else {
            self.bpe.alphabet.character(' ', ids);
            self.words(piece, scratch, ids, steps)?;
        }
        scratch.normalized = normalized;
        Ok(())
    }

    /// Appends the normalized `piece` to `normalized`, with spaces for U+2581.
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

    /// Returns the end of the first word of `text`.
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

    fn words(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>, steps: &Steps<'_>) -> Result<(), Stopped> {
        let Scratch { bpe: scratch, padded, .. } = scratch;
        self.bpe.encode(padded.set(text), scratch, ids, steps, |start| {
            start + self.word_end(text.get(start..).unwrap_or_default())
        })
    }
}

impl Characters {
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

    /// Returns the edges of the token with this text.
    fn edges(&self, text: &str) -> Edges {
        let token = |c: Option<char>| self.characters.get(spaced_char(c?) as usize).copied().filter(|&id| id != NONE);
        [[token(text.chars().next()), None], [token(text.chars().next_back()), None]]
    }
}

impl Alphabet for Characters {
    #[inline]
    fn symbols(&self, word: &str, symbols: &mut Vec<u32>) {
        for character in word.chars() {
            self.character(character, symbols);
        }
    }

    fn write(&self, to: &mut Writer) {
        to.list(&self.characters);
        to.list(&self.bytes);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CompiledError> {
        let (characters, bytes) = (from.list::<u32>()?, from.list::<u32>()?);
        let bytes: [u32; 256] = bytes.try_into().map_err(|_| CompiledError::Damaged("it lacks bytes"))?;
        from.check_ids(characters.iter().chain(&bytes).copied().filter(|&id| id != NONE))?;
        let has = |byte: u8| characters.get(usize::from(byte)).is_some_and(|&id| id != NONE);
        // As in `byte_tokens`, so that every character has a token.
        let lacks = |byte: u8| !(byte.is_ascii() && has(byte) || matches!(byte, 0xC0 | 0xC1 | 0xF5..));
        if !has(b' ') || (0..=u8::MAX).zip(bytes).any(|(byte, id)| id == NONE && lacks(byte)) {
            return Err(CompiledError::Damaged("it lacks characters"));
        }
        Ok(Self { characters, bytes })
    }
}

const SPACE_MARK_BYTES: &[u8] = "▁".as_bytes();

impl Tokenize for SentencePieceBpe {
    fn encode_in_steps(
        &self,
        text: &str,
        special: bool,
        ids: &mut Vec<u32>,
        steps: &Steps<'_>,
    ) -> Result<(), EncodeError> {
        self.template.surround(text, special, ids, |ids| {
            SCRATCH.with(|all| all.with(&self.owner, |scratch| self.text(text, scratch, ids, steps)))
        })
    }

    fn takes_steps(&self) -> bool {
        true
    }

    fn write_tables(&self, to: &mut Writer) -> bool {
        self.bpe.write(to);
        self.joins.write(to);
        true
    }

    fn name(&self) -> &'static str {
        Self::NAME
    }
}

/// The parts of the tokenizer that are not the model.
struct Around {
    added: Option<AddedTokens>,
    added_normalized: Option<AddedTokens>,
    prepends_space: bool,
    template: Template,
}

impl Around {
    fn new<M>(definition: &json::Definition<M>) -> Result<Self, DefinitionError> {
        let prepends_space = definition::prepends_space(definition)?;
        let template = Template::parse(definition.post_processor.as_ref())?;
        let (added, added_normalized) = added_tokens(&definition.added_tokens, prepends_space)?;
        Ok(Self { added, added_normalized, prepends_space, template })
    }
}

type Matchers = (Option<AddedTokens>, Option<AddedTokens>);

fn added_tokens(tokens: &[Added], prepends_space: bool) -> Result<Matchers, DefinitionError> {
    let (mut given, mut normalized) = (Vec::new(), Vec::new());
    for token in tokens {
        let content = token.content.as_str();
        if token.normalized {
            let prefix = if prepends_space { " " } else { "" };
            normalized.push((format!("{prefix}{}", spaced(content)), token.id));
        } else {
            given.push((content.to_owned(), token.id));
        }
    }
    Ok((AddedTokens::new(&given)?, AddedTokens::new(&normalized)?))
}

/// Returns the token of each byte. An error unless every character has a token or falls back to bytes, so that the unknown token
/// is never needed.
fn byte_tokens(vocabulary: &HashMap<&str, u32>) -> Result<[u32; 256], DefinitionError> {
    let mut tokens = [NONE; 256];
    for (byte, token) in (0..=u8::MAX).zip(&mut tokens) {
        match vocabulary.get(format!("<0x{byte:02X}>").as_str()) {
            Some(&id) => *token = id,
            None if byte.is_ascii() && vocabulary.contains_key(char::from(byte).to_string().as_str()) => {}
            // UTF-8 never contains these bytes.
            None if matches!(byte, 0xC0 | 0xC1 | 0xF5..) => {}
            None => {
                return Err(DefinitionError::unsupported(format!(
                    "the vocabulary has no token for the byte {byte:#04X}"
                )));
            }
        }
    }
    Ok(tokens)
}

fn characters(vocabulary: &HashMap<&str, u32>) -> Result<Vec<u32>, DefinitionError> {
    let single = |text: &str| {
        let mut characters = text.chars();
        characters.next().filter(|_| characters.next().is_none())
    };
    let mut table = Vec::new();
    for (text, &id) in vocabulary {
        // The normalizer replaces a space by U+2581 before the model sees the text.
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
        return Err(DefinitionError::unsupported("the vocabulary has no token for U+2581"));
    }
    Ok(table)
}

/// Replaces each U+2581 by a space.
fn spaced(text: &str) -> String {
    text.replace(SPACE_MARK, " ")
}

fn spaced_char(character: char) -> char {
    if character == SPACE_MARK { ' ' } else { character }
}

type Rules = (Joins, Vec<(u32, u32, u32)>);

fn rules(definition: &Definition<'_>, vocabulary: &HashMap<&str, u32>) -> Result<Rules, DefinitionError> {
    let mut merges = Vec::new();
    let mut pairs = HashSet::default();
    for merge in definition.model.merges(vocabulary) {
        let Merge { left, right, ids } = merge?;
        // Byte tokens are not spelled as in the text, so nothing could be proven about the characters at their edges.
        if [left, right].iter().any(|part| part.len() == 6 && part.starts_with("<0x")) {
            return Err(DefinitionError::unsupported("a merge takes a byte token"));
        }
        let (Some(x), Some(y)) = (left.chars().next_back(), right.chars().next()) else {
            return Err(DefinitionError::malformed("a merge takes an empty token"));
        };
        pairs.insert((spaced_char(x), spaced_char(y)));
        merges.push(ids);
    }
    Ok((Joins::new(pairs.into_iter()), merges))
}
