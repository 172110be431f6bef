//! Extracts a layer-0 checkpoint from a model: its table, its norms, its tokenizer, and a model card that names the
//! source.
//!
//! This module does not use the network: a [`Source`] returns tensors by name, and a directory with the small files.
//! The output appears under its own name only by a rename, when it is complete.

#[doc(hidden)]
pub mod card;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod gguf;
#[doc(hidden)]
pub mod source;
#[doc(hidden)]
pub mod staging;
#[doc(hidden)]
pub mod tensors;

use std::path::{Path, PathBuf};

use crate::checkpoint::family::{self, ModelConfig, overridden};
use crate::checkpoint::{Checkpoint, Overrides, missing_tokenizer, tokenizer_cache};
use crate::error::{ExtractError, FileError};
use crate::progress::Progress;
use crate::table::TableDtype;
pub use card::Origin;
pub use gguf::GgufSource;
use source::Selection;
pub use source::{GivenNames, LocalSource, Source};
pub use staging::Existing;
use staging::Staging;
pub use tensors::Written;

const WEIGHTS: &str = "model.safetensors";

/// The options of an extraction. `Default` copies the tensors unchanged and replaces nothing.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The dtype to convert the tensors to, or `None` to copy them byte for byte.
    pub dtype: Option<TableDtype>,
    /// What to do if the output already exists.
    pub existing: Existing,
    /// The paths of config.json and of the tokenizer, and the names of the tensors, if they differ from what the source
    /// says.
    pub overrides: Overrides,
    /// How tensors whose names are given in `overrides` are named in the output.
    pub given_names: GivenNames,
}

/// Writes the layer-0 directory of `source` to `out`. Returns `None` if another process has created `out` in the
/// meantime and [`Existing::Keep`] accepts its output.
///
/// # Errors
/// Returns an error if the source is broken, the output exists, or the disk is full. `out` is then unchanged.
///
/// # Examples
///
/// ```
/// use std::path::Path;
///
/// use layer0::extract::{LocalSource, Options, Origin, extract};
/// use layer0::error::FileErrorKind;
/// use layer0::progress::Silent;
/// use layer0::{Checkpoint, ExtractError, Overrides};
///
/// let model = Path::new("../../tests/fixtures/checkpoints/llama-full");
/// let out = tempfile::tempdir().unwrap().path().join("layer0");
/// let source = LocalSource::open(model, Origin::local(model))?;
/// extract(&source, &out, &Options::default(), &Silent)?;
/// let checkpoint = Checkpoint::open(&out, &Overrides::default())?;
/// assert_eq!(checkpoint.model_type, "llama");
///
/// // The output exists now, so a second extraction is an error.
/// match extract(&source, &out, &Options::default(), &Silent) {
///     Err(ExtractError::File(error)) if error.kind() == FileErrorKind::Exists => {}
///     other => panic!("{other:?}"),
/// }
/// # std::fs::remove_dir_all(out.parent().unwrap()).unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn extract(
    source: &dyn Source,
    out: &Path,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Option<Written>, ExtractError> {
    let overrides = &options.overrides;
    let config_path = overrides.config.clone().unwrap_or_else(|| source.dir().join("config.json"));
    let config = ModelConfig::open(&config_path)?;
    let overrides = &overridden::read(&config, overrides)?;
    let family = family::resolve(&config, overrides)?;
    let selection = Selection::find(source, &config, &family, overrides, options.given_names)?;
    let tokenizer = tokenizer_files(source.dir(), overrides)?;

    let mut sources = vec![source.dir()];
    sources.extend(source.file());
    sources.extend(overrides.config.as_deref());
    sources.extend(overrides.tokenizer.as_deref());
    staging::protect(out, &sources)?;
    let kept = source.resumable().then_some(WEIGHTS);
    let Some(staging) = Staging::begin(out, options.existing, kept, progress)? else { return Ok(None) };
    let dir = staging.dir();
    let weights = dir.join(WEIGHTS);
    let written = tensors::write(source, &selection, options.dtype, &weights, progress)?;
    let config = config::layer0(&config_path, &config, &family, overrides, written.table())?;
    staging::write(&dir.join("config.json"), &config)?;
    for (from, name) in &tokenizer {
        staging::copy(from, &dir.join(name))?;
    }
    let card = card::text(source.origin(), &written, options.dtype);
    staging::write(&dir.join("README.md"), card.as_bytes())?;

    if let Some(compiled) = tokenizer_cache::compiled(dir) {
        staging::write(&dir.join(tokenizer_cache::BESIDE), &compiled)?;
    }

    // The output is opened once, so that a damaged table or another model's tokenizer is reported here and not when a
    // server starts.
    let named = Overrides { config: None, tokenizer: None, ..overrides.clone() };
    let check = if options.given_names == GivenNames::Kept { named } else { Overrides::default() };
    Checkpoint::open(dir, &check)?;
    staging.commit()?;
    Ok(Some(written))
}

/// Returns whether a file in a model's directory belongs to the tokenizer, or configures text generation.
pub fn is_tokenizer_file(name: &str) -> bool {
    const FILES: [&str; 13] = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "tokenizer.model",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "tekken.json",
        "tiktoken.model",
        "generation_config.json",
    ];
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    FILES.contains(&name) || ((name.starts_with("chat_template") || name.ends_with(".tiktoken")) && plain)
}

/// Returns the paths of the tokenizer's files and the names that they have in the output.
fn tokenizer_files(dir: &Path, overrides: &Overrides) -> Result<Vec<(PathBuf, String)>, ExtractError> {
    let from = overrides.tokenizer.as_deref().filter(|tokenizer| tokenizer.is_dir()).unwrap_or(dir);
    let entries = std::fs::read_dir(from).map_err(|e| FileError::reading(from, &e))?;
    let mut files: Vec<(PathBuf, String)> = entries
        .filter_map(|entry| Some((entry.as_ref().ok()?.path(), entry.ok()?.file_name().into_string().ok()?)))
        .filter(|(path, name)| is_tokenizer_file(name) && path.is_file())
        .collect();
    if let Some(file) = overrides.tokenizer.as_ref().filter(|tokenizer| !tokenizer.is_dir()) {
        files.retain(|(_, name)| name != "tokenizer.json");
        files.push((file.clone(), "tokenizer.json".to_owned()));
    }
    files.sort();
    if files.iter().any(|(_, name)| name == "tokenizer.json") {
        return Ok(files);
    }
    let (problem, remedy) = missing_tokenizer(from.join("tokenizer.json"), from);
    Err(ExtractError::MissingTokenizer { problem, remedy })
}
