//! Interprets a model's `path`: a file or directory on this machine, or the ID of a model on the Hub.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::checkpoint::Overrides;
use crate::error::HubError;
#[cfg(not(feature = "hub"))]
use crate::error::{RequestError, RequestErrorKind};
use crate::progress::Progress;

/// The location of a model.
///
/// # Examples
///
/// ```
/// use std::path::Path;
///
/// use layer0::location::Location;
///
/// assert!(matches!(Location::of(Path::new("google/gemma-3-270m")), Location::Hub(id) if id.revision == "main"));
/// // A path that exists, or that begins like a path, never leads to the network.
/// assert!(matches!(Location::of(Path::new("./google/gemma-3-270m")), Location::Local(_)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A file or directory on this machine.
    Local(PathBuf),
    /// A model on the Hugging Face Hub.
    Hub(HubId),
}

/// A model on the Hub: `org/name`, or `org/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// The organization and the model, `org/name`.
    pub name: String,
    /// A branch, a tag or a commit. The default is `main`.
    pub revision: String,
}

impl Location {
    /// Returns the location that `path` names. A path that exists, starts with `.`, `/` or `~`, or does not have the
    /// form of an ID is local, and no network code runs for it.
    pub fn of(path: &Path) -> Self {
        let id = path.to_str().filter(|_| path.try_exists().is_ok_and(|exists| !exists)).and_then(HubId::parse);
        id.map_or_else(|| Self::Local(path.to_owned()), Self::Hub)
    }

    /// Returns the directory to open: the path itself if it is local, or else the model's layer-0 directory in the
    /// Hub's cache, which is fetched if it is not there.
    ///
    /// # Errors
    /// Returns an error if the model cannot be fetched, or if this build lacks the feature `hub`.
    pub fn directory(self, overrides: &Overrides, progress: &dyn Progress) -> Result<PathBuf, HubError> {
        match self {
            Self::Local(path) => Ok(path),
            #[cfg(feature = "hub")]
            Self::Hub(id) => id
                .attempt(progress, || Ok(crate::hub::Hub::from_env().cached_or_fetched(&id, overrides, progress)?.dir)),
            #[cfg(not(feature = "hub"))]
            Self::Hub(id) => {
                let _ = (overrides, progress);
                Err(without_feature(&id))
            }
        }
    }
}

/// Returns the error of a build that cannot fetch models.
#[cfg(not(feature = "hub"))]
pub fn without_feature(id: &HubId) -> HubError {
    let problem = "is no directory here, and reads as a Hub id, which this build cannot fetch";
    let error = RequestError::new(RequestErrorKind::NotInThisBuild, id.to_string(), problem);
    let remedy =
        "build with `cargo build --release --features hub`, or fetch the model another way and give its directory";
    error.expected("an existing directory").remedy(remedy).into()
}

impl HubId {
    /// Reports that the path does not exist and is read as a Hub ID, and calls `fetch`. An error mentions both
    /// readings, because a path that is mistyped or relative to another directory looks like an ID.
    ///
    /// # Errors
    /// Returns the errors of `fetch`.
    pub fn attempt<T>(
        &self,
        progress: &dyn Progress,
        fetch: impl FnOnce() -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        let path = std::path::absolute(self.to_string()).unwrap_or_else(|_| self.to_string().into());
        progress.remark(&format!("{self} is taken as a model of the Hub, because there is no {}", path.display()));
        fetch().map_err(|error| {
            let hint = self.neighbours().map_or_else(String::new, |found| format!(", though {found}"));
            HubError::Unresolved { id: self.to_string(), path, hint, source: Box::new(error) }
        })
    }

    /// Returns a description of the local directory with which the ID begins, if it exists. The user may have meant one
    /// of its entries.
    fn neighbours(&self) -> Option<String> {
        const SHOWN: usize = 5;
        let (directory, _) = self.name.split_once('/')?;
        let entries = std::fs::read_dir(directory).ok()?;
        let mut names: Vec<_> =
            entries.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned())).collect();
        names.sort();
        let more = if names.len() > SHOWN { ", ..." } else { "" };
        names.truncate(SHOWN);
        Some(match names.is_empty() {
            true => format!("the directory {directory} does, and is empty"),
            false => format!("the directory {directory} does, and holds {}{more}", names.join(", ")),
        })
    }

    /// Parses a Hub ID. Returns `None` if the text cannot be one: the Hub accepts letters, digits, `-`, `_` and `.`,
    /// but not `--` or `..`.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (organization, model) = name.split_once('/')?;
        let part = |s: &str| {
            s.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !s.contains("--")
                && !s.contains("..")
                && s.len() <= 96
        };
        let file = [".gguf", ".safetensors", ".yaml", ".yml", ".json", ".bin"].iter().any(|end| model.ends_with(end));
        let revision_fits = !revision.is_empty()
            && revision.split('/').all(|s| part(&s.replace('+', "-").replace("--", "-")))
            && revision.len() <= 255;
        (part(organization) && part(model) && !file && revision_fits)
            .then(|| Self { name: name.to_owned(), revision: revision.to_owned() })
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.revision == "main" { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_local_and_ids_are_not() {
        for local in [
            "./org/name",
            "/org/name",
            "../org/name",
            "~/name",
            "name",
            "a/b/c",
            "org/x.gguf",
            "org/",
            "/",
            "",
            "org/name@",
            "org/na me",
            "org/na--me",
            "org/..",
            "src/hub.rs",
            "org/name@../../x",
            "é/a",
            "-a/b",
            "src/extract",
        ] {
            assert_eq!(Location::of(Path::new(local)), Location::Local(local.into()), "{local}");
        }
        for (text, name, revision) in [
            ("google/gemma-3-270m", "google/gemma-3-270m", "main"),
            ("meta-llama/Llama-2-7b-hf@refs/pr/1", "meta-llama/Llama-2-7b-hf", "refs/pr/1"),
            ("o/n.5_x@0123456789012345678901234567890123456789", "o/n.5_x", "0123456789012345678901234567890123456789"),
        ] {
            let id = HubId { name: name.into(), revision: revision.into() };
            assert_eq!(Location::of(Path::new(text)), Location::Hub(id.clone()));
            assert_eq!(HubId::parse(&id.to_string()), Some(id));
        }
    }
}
