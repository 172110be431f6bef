//! Reads what the headers of a checkpoint say. That takes milliseconds, however large the table and the tokenizer are.

use std::path::Path;

use super::{Checkpoint, Conventions, EmbeddedCheckpoint, Overrides, Source, gguf, hf, tokenizer_file};
use crate::error::LoadError;

/// What the headers of a checkpoint say about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preview {
    /// The number of columns of the table.
    pub dimensions: usize,
    /// The number of columns of the lexical tail, which follow those of the table.
    pub lexical_dimensions: usize,
}

impl Checkpoint {
    /// Reads the configuration, the headers of the weights and the norm of the checkpoint that [`Checkpoint::open`]
    /// would open, but neither the tokenizer nor the table. Returns `None` if one of the files is a pipe or a device,
    /// which would have to be read to the end.
    ///
    /// # Errors
    /// Returns the errors of [`Checkpoint::open`] that can be found without reading the tokenizer and the table.
    pub fn preview(path: &Path, overrides: &Overrides) -> Result<Option<Preview>, LoadError> {
        if holds_special_files(path) || overrides.config.as_deref().is_some_and(is_special) {
            return Ok(None);
        }
        let source = Source::of(path, overrides)?;
        let by_kind = Conventions::TRANSFORMERS;
        let (dimensions, conventions, tokenizer_dir) = match &source {
            Source::Refined(header) => {
                super::refined::check(path, header)?;
                (header.dimensions, header.conventions(), Some(path))
            }
            Source::Static(found) => (found.dimensions(path, overrides)?, by_kind, Some(found.dir())),
            Source::HuggingFace => {
                let (dimensions, conventions) = hf::preview(path, overrides)?;
                (dimensions, conventions, Some(path))
            }
            Source::Gguf => (gguf::dimensions(path, overrides)?, by_kind, None),
        };
        check_tokenizer(path, tokenizer_dir, overrides)?;
        let lexical_dimensions = conventions.overridden(path, overrides)?.lexical_dimensions;
        Ok(Some(Preview { dimensions, lexical_dimensions }))
    }
}

impl EmbeddedCheckpoint {
    /// Reads the headers of the checkpoint and opens the file of the user's tokenizer, if there is one.
    ///
    /// # Errors
    /// Returns the errors of [`EmbeddedCheckpoint::open`] that can be found without reading the tokenizer and the table.
    pub fn preview(&self, overrides: &Overrides) -> Result<Preview, LoadError> {
        check_tokenizer(Path::new(self.name), None, overrides)?;
        let header = self.header()?;
        let conventions = header.conventions().overridden(Path::new(self.name), overrides)?;
        Ok(Preview { dimensions: header.dimensions, lexical_dimensions: conventions.lexical_dimensions })
    }
}

/// Checks that the tokenizer of the checkpoint at `path` exists and that this process may read it. `dir` is the directory
/// that holds the tokenizer if there is no override, or `None` if the tokenizer is not a file.
fn check_tokenizer(path: &Path, dir: Option<&Path>, overrides: &Overrides) -> Result<(), LoadError> {
    let tokenizer = match (dir, &overrides.tokenizer) {
        (None, None) => None,
        (dir, _) => Some(tokenizer_file(dir.unwrap_or(path), overrides)?),
    };
    // Opening the tokenizer shows whether this process may read it.
    if let Some(file) = tokenizer.filter(|file| !is_special(file)) {
        layer0_files::open(&file).map_err(|e| LoadError::io(&file, &e))?;
    }
    Ok(())
}

/// Returns whether `path` or, if it is a directory, a file in it other than the tokenizer is a pipe, a socket or a
/// device.
fn holds_special_files(path: &Path) -> bool {
    if is_special(path) {
        return true;
    }
    let Ok(entries) = std::fs::read_dir(path) else { return false };
    entries.filter_map(Result::ok).any(|entry| entry.file_name() != "tokenizer.json" && is_special(&entry.path()))
}

fn is_special(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}
