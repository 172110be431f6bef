//! Opens a checkpoint whose files are a part of the program. Its rows are read from the program's own memory.

use std::path::{Path, PathBuf};

use super::map::Map;
use super::weights::Weights;
use super::{Checkpoint, Overrides, open_tokenizer, refined, tokenizer_json};
use crate::error::LoadError;
use layer0_tokenizers::choose::Tokenizer;

/// The files of a refined table, as `include_str!` and `include_bytes!` compile them into a program.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedCheckpoint {
    /// The name that stands for the checkpoint's path in errors.
    pub name: &'static str,
    /// The content of config.json.
    pub config: &'static str,
    /// The content of tokenizer.json.
    pub tokenizer: &'static str,
    /// The content of model.safetensors.
    pub weights: &'static [u8],
}

impl EmbeddedCheckpoint {
    /// Opens the checkpoint. Only the overrides of the tokenizer and of the conventions apply: a refined table has no norm and no scale to
    /// override.
    ///
    /// # Errors
    /// Returns an error if the user's tokenizer cannot be read or has another vocabulary, or if the program was built
    /// with files that are not a refined table.
    pub fn open(&self, overrides: &Overrides) -> Result<Checkpoint, LoadError> {
        let path = Path::new(self.name);
        let weights = Weights::of_program(PathBuf::from(path), Map::of_program(self.weights));
        let tokenizer = match &overrides.tokenizer {
            Some(_) => open_tokenizer(path, overrides)?,
            None => {
                let tokenizer = Tokenizer::from_static_json(self.tokenizer);
                (tokenizer.map_err(|error| tokenizer_json::load_error(path, &error))?, PathBuf::from(path))
            }
        };
        refined::join(path, &self.header()?, &weights, tokenizer)?.overridden(overrides)
    }

    /// Returns what config.json says about the table.
    ///
    /// # Errors
    /// Returns an error if the program was built with a config.json that is not one.
    pub fn header(&self) -> Result<refined::Header, LoadError> {
        let config: refined::Config = serde_json::from_str(self.config).map_err(|e| {
            LoadError::malformed(self.name, format!("was built with a config.json that is not one: {e}"))
        })?;
        Ok(config.refined)
    }
}
