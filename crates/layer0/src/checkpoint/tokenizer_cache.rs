//! Keeps compiled tokenizers in files, so that a start does not build the tables of a tokenizer again.
//!
//! A compiled tokenizer is looked for in two places: beside the tokenizer.json, where the commands that write checkpoints put it, and in a
//! directory of the user, where it is written when a tokenizer.json is opened for the first time. Its key is the digest of the
//! tokenizer.json. A file that is missing, damaged, outdated, or that other users could have written is never used: the tokenizer.json
//! is read instead.
//!
//! For example, the first start with Gemma 3's tokenizer.json, of 33 MB, writes 27 MB to
//! `~/.cache/embedding-server/tokenizers/d0c2....tokenizer`. The next start reads these in a sixtieth of the time.

use std::fmt;
use std::fs::{self, Metadata};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use layer0_tokenizers::choose::Tokenizer;
use layer0_tokenizers::compiled::CompiledError;
use serde::{Deserialize, Serialize};
use twox_hash::xxhash3_128::Hasher;

use super::tokenizer_json;
use crate::error::LoadError;

/// The name of a compiled tokenizer beside its tokenizer.json.
pub const BESIDE: &str = "tokenizer.compiled";

/// The size of a tokenizer.json in bytes from which on it is compiled. Smaller files are read in a few hundredths of a second.
pub const SMALLEST: u64 = 1 << 20;

/// The ending of the names of compiled tokenizers in a directory.
const EXTENSION: &str = "tokenizer";

/// The number of compiled tokenizers that a directory keeps.
const KEPT: usize = 16;

/// Where compiled tokenizers are kept.
///
/// # Examples
///
/// ```
/// use layer0::TokenizerCache;
///
/// assert_eq!(TokenizerCache::from("user".to_owned()), TokenizerCache::User);
/// assert_eq!(TokenizerCache::from("/var/cache/x".to_owned()).to_string(), "/var/cache/x");
/// assert_eq!(TokenizerCache::Off.directory(), None);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum TokenizerCache {
    /// In `embedding-server/tokenizers` in the user's cache directory: `XDG_CACHE_HOME`, or else `.cache` in the home directory;
    /// `LOCALAPPDATA` on Windows.
    #[default]
    User,
    /// Nowhere: compiled tokenizers are neither written nor read.
    Off,
    /// In this directory.
    Directory(PathBuf),
}

impl From<String> for TokenizerCache {
    fn from(text: String) -> Self {
        match text.as_str() {
            "user" => Self::User,
            "off" => Self::Off,
            _ => Self::Directory(text.into()),
        }
    }
}

impl From<TokenizerCache> for String {
    fn from(cache: TokenizerCache) -> Self {
        cache.to_string()
    }
}

impl fmt::Display for TokenizerCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.write_str("user"),
            Self::Off => f.write_str("off"),
            Self::Directory(dir) => dir.display().fmt(f),
        }
    }
}

impl TokenizerCache {
    /// Returns the directory of compiled tokenizers, if there is one.
    pub fn directory(&self) -> Option<PathBuf> {
        let given = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
        match self {
            Self::Off => None,
            Self::Directory(dir) => Some(dir.clone()),
            Self::User => {
                let home = || given("HOME").map(|home| home.join(".cache"));
                let base = if cfg!(windows) { given("LOCALAPPDATA") } else { given("XDG_CACHE_HOME").or_else(home) };
                base.map(|base| base.join("embedding-server").join("tokenizers"))
            }
        }
    }
}

/// Opens the tokenizer.json at `path`, from its compiled form if there is one. Otherwise compiles it into the directory of `cache`.
///
/// # Errors
/// Returns the errors of [`tokenizer_json::open`]. Problems with compiled files are logged, and the tokenizer.json is read.
pub fn open(path: &Path, cache: &TokenizerCache) -> Result<Tokenizer, LoadError> {
    let Some((key, metadata)) = (*cache != TokenizerCache::Off).then(|| key(path)).flatten() else {
        return tokenizer_json::open(path);
    };
    let place = cache.directory().map(|dir| dir.join(format!("{key:032x}.{EXTENSION}")));
    let beside = read(&path.with_file_name(BESIDE), key, Some(&metadata));
    if let Some(tokenizer) = beside.or_else(|| read(place.as_deref()?, key, None)) {
        return Ok(tokenizer);
    }
    let (tokenizer, compiled, key) = tokenizer_json::open_and_compile(path)?;
    if let (Some(dir), Some(compiled)) = (cache.directory(), compiled) {
        let place = dir.join(format!("{key:032x}.{EXTENSION}"));
        match create(&dir).and_then(|()| write(&place, &compiled)).and_then(|()| prune(&dir)) {
            Ok(()) => tracing::debug!(path = %place.display(), "compiled tokenizer written"),
            Err(error) => tracing::info!(
                path = %place.display(),
                %error,
                "cannot write the compiled tokenizer, so the next start builds it again: set tokenizer_cache to a directory that can be \
                 written, or to \"off\""
            ),
        }
    }
    Ok(tokenizer)
}

/// Returns the compiled form of the tokenizer.json of a new checkpoint in the directory `dir`, to be written beside it as [`BESIDE`].
/// Returns `None` for a tokenizer.json that is small or has no compiled form, and for one that cannot be read, because opening the
/// checkpoint reports the problem.
pub fn compiled(dir: &Path) -> Option<Vec<u8>> {
    let path = dir.join("tokenizer.json");
    fs::metadata(&path).ok().filter(|metadata| metadata.len() >= SMALLEST)?;
    let (_, compiled, _) = tokenizer_json::open_and_compile(&path).ok()?;
    compiled
}

/// Returns the digest of a tokenizer.json that is large enough to be compiled, and its metadata.
fn key(path: &Path) -> Option<(u128, Metadata)> {
    let mut file = layer0_files::open(path).ok()?;
    let metadata = file.metadata().ok().filter(|metadata| metadata.is_file() && metadata.len() >= SMALLEST)?;
    let (mut digest, mut buffer) = (Hasher::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return Some((digest.finish_128(), metadata)),
            count => digest.write(buffer.get(..count)?),
        }
    }
}

/// Returns the compiled tokenizer at `path`, if it can be used. It must belong to the owner of the tokenizer.json, or, without its
/// metadata, to this user.
fn read(path: &Path, key: u128, like: Option<&Metadata>) -> Option<Tokenizer> {
    let opened = layer0_files::open_trusted(path, like).and_then(|file| Ok((file.metadata()?.len(), file)));
    let found = match opened {
        Ok((length, mut file)) => Tokenizer::from_compiled(&mut file, length, key),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => Err(error.into()),
    };
    match found {
        Ok(tokenizer) => return Some(tokenizer),
        Err(error @ CompiledError::Outdated(_)) => {
            tracing::debug!(path = %path.display(), %error, "compiled tokenizer not used");
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "compiled tokenizer not used: delete the file");
        }
    }
    None
}

/// Creates the directory, for this user alone.
fn create(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(dir)
}

/// Writes a file that appears under its name when it is complete.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    file.write_all(content)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Deletes all compiled tokenizers in the directory except the newest ones.
fn prune(dir: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    for (path, is_directory) in layer0_files::entries(dir)? {
        if !is_directory && path.extension().is_some_and(|extension| extension == EXTENSION) {
            files.push((fs::symlink_metadata(&path)?.modified()?, path));
        }
    }
    files.sort();
    let surplus = files.len().saturating_sub(KEPT);
    files.into_iter().take(surplus).try_for_each(|(_, path)| fs::remove_file(path))
}
