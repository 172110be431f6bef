//! Compiled tokenizers: a chosen implementation with its tables, so that a start neither builds the tables nor compares the
//! implementation with the reference again.
//!
//! A compiled tokenizer is one line of text with the version, a key, a digest of the content, and the content:
//!
//! | part | meaning |
//! |---|---|
//! | line | the name of the format, its version, and the version of this crate |
//! | key, 16 bytes | names the tokenizer.json: the caller's digest of the file |
//! | digest, 16 bytes | XXH3 with 128 bits over the content |
//! | content | the parts that [`Tokenizer::compile`] writes, in the form of [`mod@crate::compiled`] |
//!
//! The digest finds accidents. Somebody who can write the file can choose the IDs, as somebody who can write the tokenizer.json can. So the
//! content is checked like any input: a wrong one gives an error or other IDs of the same vocabulary, and never a panic.

use std::io::Read;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use twox_hash::XxHash3_128;

use super::{Choice, Refused, Tokenizer};
use crate::bytebpe::ByteBpe;
use crate::compiled::{CompiledError, Reader, Writer};
use crate::json::{Parts, Template};
use crate::pieces::Pieces;
use crate::reference::HfTokenizer;
use crate::spbpe::SentencePieceBpe;
use crate::unigram::Unigram;
use crate::{AddedToken, Tokenize, Vocabulary};

/// The first line of the file. Its number must change with the tables of an implementation, with the meaning of any part, and with the IDs
/// that an implementation gives, because a compiled tokenizer is not compared with the reference.
const LINE: &str = concat!("layer0 tokenizer 1 ", env!("CARGO_PKG_VERSION"), "\n");

/// The number of bytes before the content.
const HEADER: usize = LINE.len() + 32;

/// The parts of a tokenizer.json that are not its model.
#[derive(Deserialize, serde::Serialize)]
struct Others {
    #[serde(default, skip_deserializing)]
    model: (),
    #[serde(default)]
    added_tokens: Vec<Value>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
}

impl Tokenizer {
    /// Returns the compiled form of this tokenizer, which was read from `json`, or `None` if its implementation has none. `key` names
    /// the file.
    #[doc(hidden)]
    pub fn compile(&self, json: &[u8], key: u128) -> Option<Vec<u8>> {
        let mut to = Writer::default();
        let others: Others = serde_json::from_slice(json).ok()?;
        to.text(self.choice.implementation.name());
        to.list(&self.digest.to_le_bytes());
        to.number(self.choice.refused.len());
        for Refused { name, reason, differs } in &self.choice.refused {
            to.text(name);
            to.text(reason);
            to.number(usize::from(*differs));
        }
        let Vocabulary { size, max_base_id, unknown, added } = &self.vocabulary;
        to.number(*size);
        to.number(*max_base_id as usize);
        to.option(*unknown);
        to.number(added.len());
        for AddedToken { id, content, special } in added {
            to.number(*id as usize);
            to.text(content);
            to.number(usize::from(*special));
        }
        self.pieces.write_to(&mut to);
        to.list(&serde_json::to_vec(&others).ok()?);
        if !self.choice.implementation.write_tables(&mut to) {
            return None;
        }
        let content = to.into_bytes();
        let digest = XxHash3_128::oneshot(&content).to_le_bytes();
        Some([LINE.as_bytes(), &key.to_le_bytes(), &digest, &content].concat())
    }

    /// Reads the `length` bytes that [`Tokenizer::compile`] returned for a tokenizer.json with this key.
    ///
    /// # Errors
    /// When the bytes are damaged, or were compiled from another file or by another version of this crate.
    #[doc(hidden)]
    pub fn from_compiled(from: &mut dyn Read, length: u64, key: u128) -> Result<Self, CompiledError> {
        let mut header = [0; HEADER];
        from.read_exact(&mut header)?;
        let header = header.strip_prefix(LINE.as_bytes()).and_then(|rest| rest.split_first_chunk::<16>());
        let (found, digest) = header.ok_or(CompiledError::Outdated("was compiled by another version"))?;
        if u128::from_le_bytes(*found) != key {
            return Err(CompiledError::Outdated("was compiled from another tokenizer.json"));
        }
        let mut from = Reader::new(from, length.saturating_sub(HEADER as u64));
        let tokenizer = Self::read(&mut from)?;
        match from.finish()?.to_le_bytes() == digest {
            true => Ok(tokenizer),
            false => Err(CompiledError::Damaged("its digest is another one")),
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CompiledError> {
        let name = from.text()?;
        let digest = from.list::<u8>()?.try_into().map(u128::from_le_bytes);
        let digest =
            digest.map_err(|_| CompiledError::Damaged("the digest of the tokenizer.json has another length"))?;
        let mut refused = Vec::new();
        for _ in 0..from.number()? {
            let (name, reason, differs) = (from.text()?, from.text()?, from.number()? != 0);
            refused.push(Refused { name: known(&name)?, reason, differs });
        }
        let vocabulary = vocabulary(from)?;
        // The highest number stands for no token.
        let max_id = u32::try_from(vocabulary.max_id()).ok().filter(|&id| id < u32::MAX);
        let max_id = max_id.ok_or(CompiledError::Damaged("an ID is too large"))?;
        from.set_max_id(max_id);
        let pieces = Pieces::read(from)?;
        let parts = Parts::parse(&from.list::<u8>()?, "compiled")
            .map_err(|_| CompiledError::Damaged("the parts of the tokenizer.json cannot be read"))?;
        let template = Template::parse(parts.post_processor.as_ref()).unwrap_or_default();
        from.check_ids(template.before.into_iter().chain(template.after))?;
        from.check_ids(parts.added_tokens.iter().map(|token| token.id))?;
        let implementation: Arc<dyn Tokenize> = match known(&name)? {
            SentencePieceBpe::NAME => Arc::new(SentencePieceBpe::read(&parts, from)?),
            ByteBpe::NAME => Arc::new(ByteBpe::read(&parts, from)?),
            _ => return Err(CompiledError::Damaged("its implementation has no compiled form")),
        };
        Ok(Self { choice: Choice { implementation, refused }, vocabulary, pieces, rebuilt: None, digest })
    }
}

fn vocabulary(from: &mut Reader<'_>) -> Result<Vocabulary, CompiledError> {
    // The IDs of the vocabulary set the limit for all others.
    from.set_max_id(u32::MAX);
    let (size, max_base_id, unknown) = (from.number()?, from.id()?, from.option()?);
    let mut added = Vec::new();
    for _ in 0..from.number()? {
        let (id, content, special) = (from.id()?, from.text()?, from.number()? != 0);
        added.push(AddedToken { id, content, special });
    }
    match added.is_sorted_by_key(|token| token.id) {
        true => Ok(Vocabulary { size, max_base_id, unknown, added }),
        false => Err(CompiledError::Damaged("the added tokens are not in the order of their IDs")),
    }
}

/// Returns the name of the implementation that is called `name`.
fn known(name: &str) -> Result<&'static str, CompiledError> {
    let names = [SentencePieceBpe::NAME, ByteBpe::NAME, Unigram::NAME, HfTokenizer::NAME];
    names.into_iter().find(|known| *known == name).ok_or(CompiledError::Damaged("it names an unknown implementation"))
}
