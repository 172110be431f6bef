//! SentencePiece's Unigram model (XLM-R and models distilled from it), with the same IDs as the `tokenizers` library.
//!
//! A text is split at white space. Each word is looked up, as it is in the text, in a cache of this thread (`super::words`).
//! Otherwise it is normalized (`normalize`) and split into its most probable pieces (`viterbi`).

mod definition;
mod normalize;
mod trie;
mod viterbi;

use std::collections::HashSet;

use super::added::AddedTokens;
use super::json::{SPACE_MARK, Template};
use super::per_thread::{Owner, PerThread};
use super::pieces::{self, Spelling};
use super::words::Key;
use super::words::cache::{LINES_FOR_UNIGRAM, WordCache};
use super::{AddedToken, EncodeError, Tokenize, Vocabulary};
use crate::DefinitionError;
use crate::yield_point::{Steps, Stopped};
use definition::Definition;
use normalize::Normalizer;
use viterbi::{KEPT, Pieces, Workspace};

pub struct Unigram {
    normalizer: Normalizer,
    pieces: Pieces,
    added: Option<AddedTokens>,
    template: Template,
    owner: Owner,
}

impl std::fmt::Debug for Unigram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(Self::NAME)
    }
}

/// The cache and the buffers that one thread keeps for one tokenizer.
#[derive(Default)]
struct Scratch {
    cache: WordCache<LINES_FOR_UNIGRAM>,
    workspace: Workspace,
    normalized: String,
    word: Vec<u32>,
}

thread_local! {
    static SCRATCH: PerThread<Scratch> = const { PerThread::new() };
}

impl Unigram {
    pub const NAME: &str = "unigram";

    /// Reads a tokenizer.json.
    ///
    /// # Errors
    /// Names the part of the file that is not reproduced here.
    pub fn from_json(json: &[u8]) -> Result<Self, DefinitionError> {
        Self::from_definition(&Definition::parse(json, "Unigram")?)
    }

    /// Like [`Unigram::from_json`], and also returns the vocabulary of the file.
    ///
    /// # Errors
    /// As for [`Unigram::from_json`].
    pub fn with_vocabulary(json: &[u8]) -> Result<(Self, Vocabulary, pieces::Pieces), DefinitionError> {
        let definition = Definition::parse(json, "Unigram")?;
        let this = Self::from_definition(&definition)?;
        let mut added: Vec<AddedToken> = definition
            .added_tokens
            .iter()
            .map(|token| AddedToken { id: token.id, content: token.content.clone(), special: token.special })
            .collect();
        added.sort_by_key(|token| token.id);
        let model = &definition.model;
        let mut beyond: HashSet<&str> = added.iter().map(|token| token.content.as_str()).collect();
        for (piece, _) in &model.vocab {
            if beyond.is_empty() {
                break;
            }
            beyond.remove(piece.0.as_ref());
        }
        let vocabulary = Vocabulary {
            size: model.vocab.len() + beyond.len(),
            max_base_id: (model.vocab.len() as u32).saturating_sub(1),
            unknown: model.unk_id,
            added,
        };
        let pieces = pieces::Pieces::new(spelled(&definition, &vocabulary.added));
        Ok((this, vocabulary, pieces))
    }

    fn from_definition(definition: &Definition<'_>) -> Result<Self, DefinitionError> {
        let unknown = definition.unknown()?;
        let normalizer = definition.normalizer()?;
        let template = Template::parse(definition.post_processor.as_ref())?;
        let added: Vec<(String, u32)> =
            definition.added_tokens.iter().map(|token| (token.content.clone(), token.id)).collect();
        let added = AddedTokens::new(&added)?;
        let model = &definition.model;
        let pieces = Pieces::new(&model.vocab, unknown, byte_pieces(model)?);
        Ok(Self { normalizer, pieces, added, template, owner: Owner::default() })
    }
}

impl Unigram {
    fn text(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>, steps: &Steps<'_>) -> Result<(), Stopped> {
        let mut from = 0;
        let next = |from, made| self.added.as_ref().map_or(Ok(None), |added| added.next(text, from, made, steps));
        while let Some((place, id)) = next(from, ids.len())? {
            self.words(text, from, place.start, scratch, ids, steps)?;
            ids.push(id);
            from = place.end;
            steps.take(1, ids.len())?;
        }
        self.words(text, from, text.len(), scratch, ids, steps)
    }

    /// Appends the tokens of `text[from..to]`, which contains no added tokens.
    fn words(
        &self,
        text: &str,
        mut from: usize,
        to: usize,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
        steps: &Steps<'_>,
    ) -> Result<(), Stopped> {
        let bytes = text.as_bytes().get(..to).unwrap_or_default();
        while let Some(rest) = bytes.get(from..).filter(|rest| !rest.is_empty()) {
            let length = rest.iter().position(|&byte| is_space(byte)).unwrap_or(rest.len());
            if length > 0 {
                self.word(text, from, from + length, scratch, ids, steps)?;
            }
            from += length + 1;
            steps.take(1, ids.len())?;
        }
        Ok(())
    }

    fn word(
        &self,
        text: &str,
        start: usize,
        end: usize,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
        steps: &Steps<'_>,
    ) -> Result<(), Stopped> {
        let word = || text.get(start..end).unwrap_or_default();
        let Some(key) = Key::new(text.as_bytes(), start, end) else {
            self.split(word(), scratch, ids.len(), steps)?;
            ids.extend_from_slice(&scratch.word);
            return Ok(());
        };
        let high = (key.hash() >> 32) as u32;
        if !scratch.cache.append(&key, high, ids) {
            self.split(word(), scratch, ids.len(), steps)?;
            ids.extend_from_slice(&scratch.word);
            scratch.cache.put(&key, high, &scratch.word);
        }
        Ok(())
    }

    /// Leaves the tokens of `word` in `scratch.word`, of a text that has `made` before them. White space that the word holds
    /// only when normalized, and space marks, split it again.
    fn split(&self, word: &str, scratch: &mut Scratch, made: usize, steps: &Steps<'_>) -> Result<(), Stopped> {
        let Scratch { workspace, normalized, word: ids, .. } = scratch;
        ids.clear();
        let word = self.normalizer.apply(word, normalized, made, steps)?;
        for word in word.split(char::is_whitespace).filter(|word| !word.is_empty()) {
            // A mark at the start is the one that the word would get.
            for part in word.strip_prefix(SPACE_MARK).unwrap_or(word).split(SPACE_MARK) {
                self.pieces.split(part, workspace, made + ids.len(), steps)?;
                ids.append(&mut workspace.ids);
            }
        }
        if normalized.capacity() > KEPT {
            *normalized = String::new();
        }
        Ok(())
    }
}

/// White space of ASCII, as `char::is_whitespace` has it.
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ')
}

/// By byte; `None` where the model does not fall back to bytes.
fn byte_pieces(model: &definition::Model<'_>) -> Result<Option<Box<[u32; 256]>>, DefinitionError> {
    if !model.byte_fallback {
        return Ok(None);
    }
    let mut pieces = Box::new([u32::MAX; 256]);
    for ((piece, _), id) in model.vocab.iter().zip(0..) {
        let hex = piece.0.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|hex| hex.len() == 2);
        let byte =
            hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|byte| *piece.0 == format!("<0x{byte:02X}>"));
        if let Some(place) = byte.and_then(|byte| pieces.get_mut(usize::from(byte))) {
            *place = id;
        }
    }
    if pieces.contains(&u32::MAX) {
        return Err(DefinitionError::unsupported("the model falls back to bytes that it does not have"));
    }
    Ok(Some(pieces))
}

/// What the file says of each id, in their order.
fn spelled<'d>(
    definition: &'d Definition<'_>,
    added: &'d [AddedToken],
) -> impl Iterator<Item = Option<(&'d str, Spelling)>> {
    let model = &definition.model.vocab;
    let last = added.last().map_or(0, |token| token.id).max(model.len() as u32);
    (0..=last).map(move |id| match added.binary_search_by_key(&id, |token| token.id) {
        Ok(at) => added.get(at).map(|token| (token.content.as_str(), Spelling::Plain)),
        Err(_) => model.get(id as usize).map(|(piece, _)| (piece.0.as_ref(), Spelling::Metaspace)),
    })
}

impl Tokenize for Unigram {
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

    fn name(&self) -> &'static str {
        Self::NAME
    }
}
