//! Byte-level BPE (GPT-2, Llama 3, Qwen, DeepSeek), with the same ids as the `tokenizers` library.
//!
//! A text is normalized by NFC if the tokenizer says so (`nfc`). The pre-tokenizer's regular expressions split it into words
//! (`split`), and the bytes of each word are merged to tokens (`super::bpe`).

mod characters;
mod nfc;
mod split;

use foldhash::HashMap;
use serde_json::Value;

use super::added::{self, AddedTokens};
use super::bpe::early::{EarlyMerges, Edges};
use super::bpe::merges::{Merges, NONE, TOO_LARGE};
use super::bpe::model::Model;
use super::bpe::{self, Alphabet, Bpe, PaddedText};
use super::compiled::{CompiledError, Reader, Writer};
use super::json::{self, Added, NO_MEMORY, Parts, Template, kind};
use super::per_thread::{Owner, PerThread};
use super::pieces::{byte_characters, bytes_by_character};
use super::{EncodeError, Tokenize};
use crate::DefinitionError;
use crate::yield_point::{Steps, Stopped};
use characters::{Characters, first_character, last_character};
use nfc::Nfc;
use split::{Progress, Splitter};

type Definition<'a> = json::Definition<Model<'a>>;

pub struct ByteBpe {
    bpe: Bpe<Bytes>,
    splitter: Splitter,
    /// Set where texts are normalized.
    nfc: Option<Nfc>,
    /// The added tokens that are matched in the text as given.
    added: Option<AddedTokens>,
    /// The added tokens that are matched in the normalized text.
    added_normalized: Option<AddedTokens>,
    template: Template,
    owner: Owner,
}

impl std::fmt::Debug for ByteBpe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(Self::NAME)
    }
}

struct Bytes {
    /// The token of each byte. `NONE` for a byte that the vocabulary lacks: it is left out of words.
    tokens: [u32; 256],
    /// Whether a byte is lacking.
    lacks_bytes: bool,
    characters: Characters,
}

/// The buffers that one thread keeps for one tokenizer.
#[derive(Default)]
struct Scratch {
    bpe: bpe::Scratch,
    text: PaddedText,
    progress: Progress,
}

thread_local! {
    static SCRATCH: PerThread<Scratch> = const { PerThread::new() };
}

impl ByteBpe {
    pub const NAME: &str = "bytebpe";

    /// Reads a tokenizer.json.
    ///
    /// # Errors
    /// Names the part of the file that is not reproduced here.
    pub fn from_json(json: &[u8]) -> Result<Self, DefinitionError> {
        let definition = Definition::parse(json, "BPE")?;
        let model = &definition.model;
        model.check()?;
        if model.byte_fallback {
            return Err(DefinitionError::unsupported("the model has byte_fallback"));
        }
        let around = Around::new(&definition)?;
        let vocabulary = model.vocabulary()?;
        let by_byte = byte_tokens(&vocabulary, model.unk_token.is_some())?;
        let merges: Vec<_> = model.merges(&vocabulary).map(|merge| merge.map(|m| m.ids)).collect::<Result<_, _>>()?;
        let table = Merges::new(&merges).ok_or_else(|| DefinitionError::too_large(TOO_LARGE))?;
        let byte_of = bytes_by_character();
        let bytes = |text: &str| text.chars().map(|c| byte_of.get(&c).copied()).collect::<Option<Vec<u8>>>();
        // A token that is not spelled in GPT-2's characters for bytes cannot occur in a text.
        let tokens: HashMap<u32, Vec<u8>> =
            vocabulary.iter().filter_map(|(text, &id)| Some((id, bytes(text)?))).collect();
        let characters = Characters::new(&tokens, &merges, &table);
        let alphabet = Bytes { tokens: by_byte, lacks_bytes: by_byte.contains(&NONE), characters };
        let early =
            EarlyMerges::new(&merges, |token| alphabet.edges(tokens.get(&token).map_or(&[][..], Vec::as_slice)));
        let longest = tokens.values().map(Vec::len).max().unwrap_or_default();
        // Input text is valid UTF-8, so a token whose bytes are not valid UTF-8 can never match a whole word.
        let words = tokens.into_iter().filter_map(|(id, bytes)| Some((String::from_utf8(bytes).ok()?, id)));
        let bpe = Bpe::new(
            alphabet,
            table,
            early.ok_or_else(|| DefinitionError::too_large(NO_MEMORY))?,
            words,
            model.ignore_merges,
            longest,
        )
        .ok_or_else(|| DefinitionError::too_large(NO_MEMORY))?;
        Ok(Self::new(bpe, around))
    }

    fn new(bpe: Bpe<Bytes>, around: Around) -> Self {
        let Around { splitter, nfc, added, added_normalized, template } = around;
        Self { bpe, splitter, nfc, added, added_normalized, template, owner: Owner::default() }
    }

    /// Reads the tables of a compiled tokenizer. `parts` are the other parts of its tokenizer.json.
    ///
    /// # Errors
    /// When the tables are damaged, or `parts` are not those of such a tokenizer.
    pub(crate) fn read(parts: &Parts, from: &mut Reader<'_>) -> Result<Self, CompiledError> {
        let around = Around::new(parts).map_err(|_| CompiledError::Damaged("it has parts of another tokenizer"))?;
        Ok(Self::new(Bpe::read(from)?, around))
    }

    fn text(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>, steps: &Steps<'_>) -> Result<(), Stopped> {
        added::around(self.added.as_ref(), text, ids, steps, |piece, ids| self.piece(piece, scratch, ids, steps))
    }

    /// Appends the tokens of a text that has no added tokens, but for those that are matched when it is normalized.
    fn piece(&self, piece: &str, scratch: &mut Scratch, ids: &mut Vec<u32>, steps: &Steps<'_>) -> Result<(), Stopped> {
        let Some(nfc) = &self.nfc else { return self.normalized(piece, scratch, ids, steps) };
        let Some(mut change) = nfc.next_change(piece, 0) else { return self.normalized(piece, scratch, ids, steps) };
        let mut normalized = String::with_capacity(piece.len());
        let mut from = 0;
        loop {
            normalized.push_str(piece.get(from..change.start).unwrap_or_default());
            normalized.extend(Nfc::normalized(piece.get(change.clone()).unwrap_or_default()));
            steps.take(change.end - from, ids.len())?;
            from = change.end;
            match nfc.next_change(piece, from) {
                Some(next) => change = next,
                None => break,
            }
        }
        normalized.push_str(piece.get(from..).unwrap_or_default());
        self.normalized(&normalized, scratch, ids, steps)
    }

    fn normalized(
        &self,
        text: &str,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
        steps: &Steps<'_>,
    ) -> Result<(), Stopped> {
        match &self.added_normalized {
            None => self.words(text, scratch, ids, steps),
            added => {
                added::around(added.as_ref(), text, ids, steps, |words, ids| self.words(words, scratch, ids, steps))
            }
        }
    }

    fn words(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>, steps: &Steps<'_>) -> Result<(), Stopped> {
        let Scratch { bpe: scratch, text: padded, progress } = scratch;
        let text = padded.set(text);
        progress.begin();
        self.bpe.encode(text, scratch, ids, steps, |start| {
            self.splitter.end_of_word(text.as_str(), text.padded(), start, progress)
        })
    }
}

/// The parts of the tokenizer that are not the model.
struct Around {
    splitter: Splitter,
    nfc: Option<Nfc>,
    added: Option<AddedTokens>,
    added_normalized: Option<AddedTokens>,
    template: Template,
}

impl Around {
    fn new<M>(definition: &json::Definition<M>) -> Result<Self, DefinitionError> {
        let splitter = Splitter::new(definition.pre_tokenizer.as_ref())?;
        let nfc = normalizes(definition.normalizer.as_ref())?.then(Nfc::new);
        let template = Template::parse(definition.post_processor.as_ref())?;
        let (added, added_normalized) = matchers(&definition.added_tokens, nfc.is_some())?;
        Ok(Self { splitter, nfc, added, added_normalized, template })
    }
}

impl Bytes {
    /// Returns the edges of the token that consists of `bytes`. A character may start as one token or as its bytes.
    fn edges(&self, bytes: &[u8]) -> Edges {
        let byte = |byte: Option<&u8>| self.tokens.get(usize::from(*byte?)).copied().filter(|&token| token != NONE);
        let whole = |character: Option<char>| self.characters.token(character?);
        [[byte(bytes.first()), whole(first_character(bytes))], [byte(bytes.last()), whole(last_character(bytes))]]
    }
}

impl Alphabet for Bytes {
    #[inline]
    fn symbols(&self, word: &str, symbols: &mut Vec<u32>) {
        let token = |byte| self.tokens.get(usize::from(byte)).copied().unwrap_or(NONE);
        if self.lacks_bytes && word.bytes().any(|byte| token(byte) == NONE) {
            // Without the byte, the bytes beside it need not be whole characters, so the bytes are merged one by one.
            return symbols.extend(word.bytes().map(token).filter(|&token| token != NONE));
        }
        start(word, &self.characters, token, symbols);
    }

    fn write(&self, to: &mut Writer) {
        to.list(&self.tokens);
        self.characters.write(to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CompiledError> {
        let tokens = from.list::<u32>()?;
        let tokens: [u32; 256] = tokens.try_into().map_err(|_| CompiledError::Damaged("it lacks bytes"))?;
        from.check_ids(tokens.into_iter().filter(|&id| id != NONE))?;
        let characters = Characters::read(from)?;
        Ok(Self { tokens, lacks_bytes: tokens.contains(&NONE), characters })
    }
}

/// Appends the symbols of `word`: the characters that start as one token, and the bytes of the others.
#[inline]
fn start(word: &str, characters: &Characters, token: impl Fn(u8) -> u32, symbols: &mut Vec<u32>) {
    let bytes = word.as_bytes();
    if bytes.is_ascii() {
        return symbols.extend(bytes.iter().map(|&byte| token(byte)));
    }
    symbols.reserve(bytes.len());
    let mut at = 0;
    while let Some((character, end)) = decode(bytes, at) {
        let before = || at.checked_sub(1).and_then(|before| bytes.get(before)).copied();
        if end - at > 1
            && let Some(whole) = characters.whole(character, before(), bytes.get(end).copied())
        {
            symbols.push(whole);
        } else {
            bytes.get(at..end).unwrap_or_default().iter().for_each(|&byte| symbols.push(token(byte)));
        }
        at = end;
    }
}

/// Decodes the code point at `at` from UTF-8. Returns the code point and the position behind it.
#[inline]
fn decode(bytes: &[u8], at: usize) -> Option<(u32, usize)> {
    let first = *bytes.get(at)?;
    let behind = |offset| u32::from(bytes.get(at + offset).copied().unwrap_or_default() & 0x3f);
    Some(match first {
        ..0x80 => (u32::from(first), at + 1),
        0x80..0xE0 => (u32::from(first & 0x1f) << 6 | behind(1), at + 2),
        0xE0..0xF0 => (u32::from(first & 0xf) << 12 | behind(1) << 6 | behind(2), at + 3),
        _ => (u32::from(first & 7) << 18 | behind(1) << 12 | behind(2) << 6 | behind(3), at + 4),
    })
}

/// The token of each byte. The reference leaves out a byte that has none, unless there is an unknown token. SmolLM lacks some control
/// characters, and first bytes of characters that are in no text.
fn byte_tokens(vocabulary: &HashMap<&str, u32>, has_unknown_token: bool) -> Result<[u32; 256], DefinitionError> {
    let mut tokens = [NONE; 256];
    for (character, byte) in byte_characters() {
        match vocabulary.get(character.encode_utf8(&mut [0; 4]) as &str) {
            Some(id) => {
                if let Some(token) = tokens.get_mut(usize::from(byte)) {
                    *token = *id;
                }
            }
            // UTF-8 never contains these bytes.
            None if matches!(byte, 0xC0 | 0xC1 | 0xF5..) => {}
            None if !has_unknown_token => {}
            None => {
                return Err(DefinitionError::unsupported(format!(
                    "the vocabulary has no token for the byte {byte:#04X}"
                )));
            }
        }
    }
    Ok(tokens)
}

impl Tokenize for ByteBpe {
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
        true
    }

    fn name(&self) -> &'static str {
        Self::NAME
    }
}

/// Returns whether texts are normalized by NFC.
fn normalizes(normalizer: Option<&Value>) -> Result<bool, DefinitionError> {
    let list = |normalizer: &Value| match kind(normalizer) {
        "Sequence" => normalizer.get("normalizers").and_then(Value::as_array).cloned().unwrap_or_default(),
        _ => vec![normalizer.clone()],
    };
    let list = normalizer.filter(|normalizer| !normalizer.is_null()).map(list).unwrap_or_default();
    match list.iter().map(kind).find(|kind| *kind != "NFC") {
        None => Ok(!list.is_empty()),
        Some(other) => Err(DefinitionError::unsupported(format!("the normalizer {other} is not reproduced"))),
    }
}

/// Returns the added tokens that are matched in the text as given, and those that are matched in the normalized text.
fn matchers(tokens: &[Added], normalizes: bool) -> Result<(Option<AddedTokens>, Option<AddedTokens>), DefinitionError> {
    json::check_distinct(tokens)?;
    let matcher = |normalized: bool| {
        let content = |token: &Added| match normalized && normalizes {
            true => Nfc::normalized(&token.content).collect(),
            false => token.content.clone(),
        };
        let tokens: Vec<(String, u32)> = tokens
            .iter()
            .filter(|token| token.normalized == normalized)
            .map(|token| (content(token), token.id))
            .collect();
        AddedTokens::new(&tokens)
    };
    Ok((matcher(false)?, matcher(true)?))
}
