//! The model inside the program: the files of `models/default` are compiled in.

use std::path::Path;

use crate::model_error::ModelError;
#[cfg(feature = "default-model")]
use layer0::checkpoint::EmbeddedCheckpoint;
use layer0::checkpoint::{Checkpoint, Overrides, Preview};

/// The path that stands for the model inside the program.
pub const BUILTIN: &str = "builtin:default";

/// The name under which the built-in model is served.
#[cfg(feature = "default-model")]
pub const ID: &str = "multilingual-e5-small-static-2";

#[cfg(feature = "default-model")]
static FILES: EmbeddedCheckpoint = EmbeddedCheckpoint {
    name: BUILTIN,
    config: include_str!("../models/default/config.json"),
    tokenizer: include_str!("../models/default/tokenizer.json"),
    weights: include_bytes!(concat!(env!("OUT_DIR"), "/model.safetensors")),
};

/// Opens a checkpoint like [`Checkpoint::open`], or the model inside the program for the path [`BUILTIN`].
///
/// # Errors
/// Returns the errors of [`Checkpoint::open`], and an error if this build has no built-in model.
pub fn open_checkpoint(path: &Path, overrides: &Overrides) -> Result<Checkpoint, ModelError> {
    if path != Path::new(BUILTIN) {
        return Ok(Checkpoint::open(path, overrides)?);
    }
    #[cfg(feature = "default-model")]
    return Ok(FILES.open(overrides)?);
    #[cfg(not(feature = "default-model"))]
    return Err(ModelError::NotInThisBuild);
}

/// Previews a checkpoint like [`Checkpoint::preview`], or the model inside the program for the path [`BUILTIN`].
///
/// # Errors
/// Returns the errors of [`Checkpoint::preview`], and an error if this build has no built-in model.
pub fn preview_checkpoint(path: &Path, overrides: &Overrides) -> Result<Option<Preview>, ModelError> {
    if path != Path::new(BUILTIN) {
        return Ok(Checkpoint::preview(path, overrides)?);
    }
    #[cfg(feature = "default-model")]
    return Ok(FILES.preview(overrides).map(Some)?);
    #[cfg(not(feature = "default-model"))]
    return Err(ModelError::NotInThisBuild);
}
