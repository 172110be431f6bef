//! Reads the prompt that sentence-transformers puts before each text if a model names one as its default.

use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::LoadError;
use layer0_files::{self as files, json};

const FILE: &str = "config_sentence_transformers.json";

/// Returns the default prompt of the model in `dir`: the entry of `prompts` in config_sentence_transformers.json that
/// `default_prompt_name` names. An empty prompt or a prompt that is null counts as none.
///
/// # Errors
/// Returns an error if the file exists and cannot be read, or names a prompt that it does not define.
pub fn default_prompt(dir: &Path) -> Result<Option<String>, LoadError> {
    let path = dir.join(FILE);
    let content = match files::read(&path) {
        Ok(content) => content,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(LoadError::io(path, &e)),
    };
    let config: Map<String, Value> = json::from_slice(&content).map_err(|e| {
        LoadError::malformed(&path, format!("is not a JSON object: {e}"))
            .expected("the file as sentence-transformers writes it")
    })?;
    let name = match config.get("default_prompt_name") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(name)) => name,
        Some(other) => {
            return Err(
                LoadError::malformed(path, format!("has {other} as default_prompt_name")).expected("a name, or null")
            );
        }
    };
    match config.get("prompts").and_then(|prompts| prompts.get(name)) {
        Some(Value::String(prompt)) => Ok(Some(prompt.clone()).filter(|prompt| !prompt.is_empty())),
        Some(Value::Null) => Ok(None),
        // sentence-transformers defines empty prompts under these two names unless the file says otherwise.
        None if name == "query" || name == "document" => Ok(None),
        Some(other) => {
            Err(LoadError::malformed(path, format!("has {other} as the prompt {name:?}")).expected("a text"))
        }
        None => Err(LoadError::malformed(path, format!("has no prompt {name:?}, which is its default_prompt_name"))
            .expected("a text of that name in prompts")),
    }
}

/// Returns the warning for a model that is served without the `prompt` that its own library puts before each text.
pub fn ignored(prompt: &str) -> String {
    format!(
        "{FILE} names the default prompt {prompt:?}, which is not put before the texts of this kind of model: \
         put it before your texts if the model was trained with it"
    )
}
