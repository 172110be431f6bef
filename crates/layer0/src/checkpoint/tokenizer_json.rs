//! Reads the tokenizer.json of a checkpoint.

use std::borrow::Cow;
use std::path::Path;

use layer0_files::json::{self, NonFinite};
use layer0_tokenizers::TokenizerError;
use layer0_tokenizers::bounds;
use layer0_tokenizers::choose::Tokenizer;
use layer0_tokenizers::reference::HfTokenizer;

use twox_hash::XxHash3_128;

use super::Checkpoint;
use crate::error::LoadError;

/// Opens the tokenizer.json at `path` with the fastest exact implementation.
///
/// # Errors
/// Returns an error if the file is missing, or is not a tokenizer.json.
pub fn open(path: &Path) -> Result<Tokenizer, LoadError> {
    read(path, |json, _| Tokenizer::from_json(json))
}

/// Opens the tokenizer.json at `path` like [`open`], and also returns the tokenizer's compiled form, if it has one, and its key: the
/// 128 bits of XXH3 over the file.
///
/// # Errors
/// Returns the errors of [`open`].
pub fn open_and_compile(path: &Path) -> Result<(Tokenizer, Option<Vec<u8>>, u128), LoadError> {
    read(path, |json, content| {
        let (tokenizer, key) = (Tokenizer::from_json(json)?, XxHash3_128::oneshot(content));
        let compiled = tokenizer.compile(json, key);
        Ok((tokenizer, compiled, key))
    })
}

/// Loads the tokenizer of a checkpoint again, with the `tokenizers` library.
///
/// # Errors
/// Returns an error if the file of the tokenizer no longer exists, or is no longer a tokenizer.json.
pub fn reference(checkpoint: &Checkpoint) -> Result<HfTokenizer, LoadError> {
    let path = &checkpoint.tokenizer_path;
    match &checkpoint.tokenizer.rebuilt {
        Some(json) => HfTokenizer::from_json(json.as_bytes()).map_err(|error| load_error(path, &error)),
        None => read(path, |json, _| {
            // The file may have changed since it was opened.
            bounds::check(json)?;
            HfTokenizer::from_json(json)
        }),
    }
}

/// Reads a tokenizer.json. `parse` gets the JSON and the content of the file.
fn read<T>(path: &Path, parse: impl Fn(&[u8], &[u8]) -> Result<T, TokenizerError>) -> Result<T, LoadError> {
    let content = layer0_files::read(path).map_err(|e| LoadError::io(path, &e))?;
    let json = json::utf8(&content);
    parse(&json, &content)
        .or_else(|error| match json::strict(&json, NonFinite::Null) {
            // Python and JavaScript write more than the tokenizers library reads.
            Cow::Owned(strict) => parse(&strict, &content),
            Cow::Borrowed(_) => Err(error),
        })
        .map_err(|error| load_error(path, &error))
}

/// Returns the error for the tokenizer in the file `path`.
pub(super) fn load_error(path: &Path, error: &TokenizerError) -> LoadError {
    let text = error.to_string();
    let found = match error {
        TokenizerError::Excessive(_) => LoadError::unsupported(path, text),
        _ => LoadError::malformed(path, text),
    };
    match error {
        TokenizerError::Malformed(_) => found.expected("a tokenizer.json of the tokenizers library"),
        TokenizerError::Excessive(_) => found
            .expected("a tokenizer whose work and memory follow the length of the text")
            .remedy("take the tokenizer.json from the model's own repository"),
        TokenizerError::Panics => {
            found.expected("a post_processor that places one text, and special tokens that it defines")
        }
        _ => found,
    }
}
