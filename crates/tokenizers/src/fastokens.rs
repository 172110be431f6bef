//! Byte-level BPE (Llama 3, Qwen, GPT) by the fastokens crate.

use super::{EncodeError, Tokenize};

pub struct Fastokens(fastokens::Tokenizer);

impl std::fmt::Debug for Fastokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(Self::NAME)
    }
}

impl Fastokens {
    pub const NAME: &str = "fastokens";

    /// From a tokenizer.json.
    ///
    /// # Errors
    /// When fastokens does not take it.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let value = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        let mut tokenizer = fastokens::Tokenizer::from_json(value).map_err(|e| e.to_string())?;
        tokenizer.set_truncation(None);
        tokenizer.set_padding(None);
        Ok(Self(tokenizer))
    }
}

impl Tokenize for Fastokens {
    fn encode(&self, text: &str, special: bool, ids: &mut Vec<u32>) -> Result<(), EncodeError> {
        ids.extend(self.0.encode_with_special_tokens(text, special).map_err(|e| EncodeError::Failed(e.to_string()))?);
        Ok(())
    }

    fn name(&self) -> &'static str {
        Self::NAME
    }
}
