//! Byte-level BPE (Llama 3, Qwen), with the same ids as the `tokenizers` library.
//!
//! A text is split into words by a regular expression, which is written out here ([`split`]); the words are
//! [`super::bpe`]'s, over bytes.

mod characters;
mod split;

use std::collections::HashMap;

use unicode_normalization_alignments::UnicodeNormalization;

use super::Tokenize;
use super::added::{self, AddedTokens};
use super::bpe::merges::{Merges, NONE};
use super::bpe::model::Model;
use super::bpe::{self, Alphabet, Bpe};
use super::json::{self, Added, NO_MEMORY, Template, kind};
use super::per_thread::{Owner, PerThread};
use super::pieces::byte_characters;
use characters::Characters;
use split::Splitter;

type Definition<'a> = json::Definition<Model<'a>>;

pub struct ByteBpe {
    bpe: Bpe<Bytes>,
    splitter: Splitter,
    added: Option<AddedTokens>,
    template: Template,
    owner: Owner,
}

struct Bytes {
    tokens: [u32; 256],
    characters: Characters,
}

thread_local! {
    static SCRATCH: PerThread<bpe::Scratch> = const { PerThread::new() };
}

impl ByteBpe {
    pub const NAME: &str = "bytebpe";

    /// From a tokenizer.json.
    ///
    /// # Errors
    /// Names what in it is not reproduced here.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let definition = Definition::parse(json, "BPE")?;
        let Definition { model, added_tokens, normalizer, pre_tokenizer, post_processor } = &definition;
        model.check()?;
        if model.byte_fallback {
            return Err("the model has byte_fallback".to_owned());
        }
        let splitter = Splitter::new(pre_tokenizer.as_ref(), normalizes(normalizer.as_ref())?)?;
        let template = Template::parse(post_processor.as_ref())?;
        let added = matcher(added_tokens)?;
        let vocabulary = model.vocabulary()?;
        let by_byte = byte_tokens(&vocabulary)?;
        let merges: Vec<_> = model.merges(&vocabulary).map(|merge| merge.map(|m| m.ids)).collect::<Result<_, _>>()?;
        let table = Merges::new(&merges).ok_or(NO_MEMORY)?;
        let byte_of: HashMap<char, u8> = byte_characters().collect();
        let bytes = |text: &str| text.chars().map(|c| byte_of.get(&c).copied()).collect::<Option<Vec<u8>>>();
        // What cannot be spelled is the token of no bytes.
        let tokens: HashMap<u32, Vec<u8>> =
            vocabulary.iter().filter_map(|(text, &id)| Some((id, bytes(text)?))).collect();
        let alphabet = Bytes { tokens: by_byte, characters: Characters::new(&tokens, &merges, &table) };
        // What is no UTF-8 is no word of a text.
        let words = tokens.into_iter().filter_map(|(id, bytes)| Some((String::from_utf8(bytes).ok()?, id)));
        let bpe = Bpe::new(alphabet, table, words, model.ignore_merges).ok_or(NO_MEMORY)?;
        Ok(Self { bpe, splitter, added, template, owner: Owner::default() })
    }

    fn text(&self, text: &str, scratch: &mut bpe::Scratch, ids: &mut Vec<u32>) {
        added::around(self.added.as_ref(), text, ids, |piece, ids| self.piece(piece, scratch, ids));
    }

    /// A text without added tokens.
    fn piece(&self, piece: &str, scratch: &mut bpe::Scratch, ids: &mut Vec<u32>) {
        if self.splitter.is_normalized(piece) {
            return self.words(piece, scratch, ids);
        }
        let normalized: String = piece.nfc().map(|(character, _)| character).collect();
        self.words(&normalized, scratch, ids);
    }

    fn words(&self, text: &str, scratch: &mut bpe::Scratch, ids: &mut Vec<u32>) {
        self.bpe.begin(text, scratch);
        let mut start = 0;
        while start < text.len() {
            let end = self.splitter.end(text, start);
            self.bpe.word(text, start..end, end - start == 1, scratch, ids);
            start = end;
        }
        self.bpe.finish(text, scratch, ids);
    }
}

impl Alphabet for Bytes {
    #[inline]
    fn symbols(&self, word: &str, symbols: &mut Vec<u32>) {
        let token = |byte| self.tokens.get(usize::from(byte)).copied();
        start(word, &self.characters, token, symbols);
    }
}

/// Appends what `word` is merged from: its bytes' tokens, and the characters that can be taken whole.
#[inline]
fn start(word: &str, characters: &Characters, token: impl Fn(u8) -> Option<u32>, symbols: &mut Vec<u32>) {
    let bytes = word.as_bytes();
    for (at, character) in word.char_indices() {
        let end = at + character.len_utf8();
        let before = || at.checked_sub(1).and_then(|before| bytes.get(before)).copied();
        if !character.is_ascii()
            && let Some(whole) = characters.whole(character, before(), bytes.get(end).copied())
        {
            symbols.push(whole);
        } else {
            symbols.extend(bytes.get(at..end).unwrap_or_default().iter().filter_map(|&byte| token(byte)));
        }
    }
}

fn byte_tokens(vocabulary: &HashMap<&str, u32>) -> Result<[u32; 256], String> {
    let mut tokens = [NONE; 256];
    for (character, byte) in byte_characters() {
        let id = vocabulary.get(character.encode_utf8(&mut [0; 4]) as &str);
        let id = id.ok_or_else(|| format!("the vocabulary has no token for the byte {byte:#04X}"))?;
        if let Some(token) = tokens.get_mut(usize::from(byte)) {
            *token = *id;
        }
    }
    Ok(tokens)
}

impl Tokenize for ByteBpe {
    fn encode(&self, text: &str, special: bool, ids: &mut Vec<u32>) -> Result<(), String> {
        self.template.surround(text, special, ids, |ids| {
            SCRATCH.with(|all| all.with(&self.owner, |scratch| self.text(text, scratch, ids)));
        })
    }

    fn name(&self) -> &'static str {
        Self::NAME
    }
}

/// Whether texts are normalized, by NFC.
fn normalizes(normalizer: Option<&serde_json::Value>) -> Result<bool, String> {
    match normalizer.map(kind) {
        None => Ok(false),
        Some("NFC") => Ok(true),
        Some(other) => Err(format!("the normalizer {other} is not reproduced")),
    }
}

fn matcher(tokens: &[Added]) -> Result<Option<AddedTokens>, String> {
    json::check_distinct(tokens)?;
    if tokens.iter().any(|token| token.normalized) {
        return Err("an added token is matched in the normalized text".to_owned());
    }
    let tokens: Vec<(String, u32)> = tokens.iter().map(|token| (token.content.clone(), token.id)).collect();
    AddedTokens::new(&tokens)
}
