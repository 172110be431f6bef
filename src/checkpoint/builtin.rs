//! The model inside the program: the files of `models/default` are compiled in, and rows are read from the program's
//! own memory.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::map::Map;
use super::weights::Weights;
use super::{BUILTIN, Checkpoint, Overrides, open_tokenizer, refined};
use crate::error::LoadError;
use crate::tokenize::choose::Tokenizer;

/// The name under which the built-in model is served.
pub const ID: &str = "multilingual-e5-small-static";

const CONFIG: &str = include_str!("../../models/default/config.json");
const TOKENIZER: &str = include_str!("../../models/default/tokenizer.json");
static WEIGHTS: &[u8] = include_bytes!("../../models/default/model.safetensors");

#[derive(Deserialize)]
struct Config {
    refined: Shape,
}

#[derive(Deserialize)]
struct Shape {
    dimensions: usize,
}

/// Opens the built-in model. Only the tokenizer override applies: the built-in model has no norm and no scale to
/// override.
///
/// # Errors
/// Returns an error if the user's tokenizer cannot be read or has another vocabulary.
pub fn open(overrides: &Overrides) -> Result<Checkpoint, LoadError> {
    let path = Path::new(BUILTIN);
    let dimensions = dimensions()?;
    let weights = Weights::of_program(PathBuf::from(BUILTIN), Map::of_program(WEIGHTS));
    let tokenizer = match &overrides.tokenizer {
        Some(_) => open_tokenizer(path, overrides)?,
        None => (Tokenizer::of_program(TOKENIZER, path)?, PathBuf::from(BUILTIN)),
    };
    refined::join(path, dimensions, &weights, tokenizer)
}

/// Returns the number of columns of the built-in model's table.
///
/// # Errors
/// Returns an error if the program was built with a broken config.json.
pub fn dimensions() -> Result<usize, LoadError> {
    let config: Config = serde_json::from_str(CONFIG)
        .map_err(|e| LoadError::new(BUILTIN, format!("was built with a config.json that is not one: {e}")))?;
    Ok(config.refined.dimensions)
}
