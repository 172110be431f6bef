//! Builds a directory beside its final place and moves it there when it is complete.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::checkpoint::tokenizer_cache;
use crate::progress::Progress;
use layer0_files::{self as files, FileError, FileErrorKind, json};

/// What to do with an output that already exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Report an error, unless the output is an empty directory.
    #[default]
    Refuse,
    /// Replace the output if it holds a checkpoint and nothing else.
    Replace,
    /// Keep the output as it is. The Hub's cache uses this, because several processes can create the same output at
    /// once.
    Keep,
}

/// The directory under construction. If it is dropped without [`Staging::commit`], it stays on disk if the next run can
/// continue it. A killed process always leaves it, and the next run clears it.
#[derive(Debug)]
pub struct Staging {
    out: PathBuf,
    dir: PathBuf,
    existing: Existing,
    resumable: bool,
    // This field is dropped last: no other process may build the output until everything else is done.
    lock: Lock,
}

impl Staging {
    /// Creates the directory `.NAME.incomplete` beside `out`, and holds the lock `.NAME.lock` for as long as this
    /// process builds. Everything that an earlier run left in the directory is deleted, except the file `kept`. Returns
    /// `None` if `out` exists and [`Existing::Keep`] accepts it.
    ///
    /// # Errors
    /// Returns an error if `out` exists and must not be replaced, if another process builds it, or if
    /// `.NAME.incomplete` was not left by a run of this user. In the last case nothing is deleted.
    pub fn begin(
        out: &Path,
        existing: Existing,
        kept: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Option<Self>, FileError> {
        let name = out.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
            FileError::new(FileErrorKind::WrongType, out, "is no place to write to")
                .expected("the name of a new directory")
        })?;
        let beside = |suffix: &str| out.with_file_name(format!(".{name}.{suffix}"));
        existing.check(out)?;
        if let Some(parent) = out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(|e| FileError::writing(parent, &e))?;
        }
        let wait = (existing == Existing::Keep).then_some(progress);
        let lock = Lock::take(&beside("lock"), wait)?;
        if existing == Existing::Keep && out.exists() {
            return Ok(None);
        }
        let mut staging = Self { out: out.to_owned(), dir: beside("incomplete"), existing, resumable: true, lock };
        existing.check(out)?;
        // A run that was killed between its last two steps leaves the old output under this name.
        delete_checkpoint(&beside("replaced"))?;
        for entry in files::own_directory(&staging.dir, is_checkpoint_file)? {
            if kept.is_none_or(|kept| entry.file_name() != Some(kept.as_ref())) {
                fs::remove_file(&entry).map_err(|e| FileError::writing(&entry, &e))?;
            }
        }
        staging.resumable = kept.is_some();
        Ok(Some(staging))
    }

    /// Returns the directory to write to.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves the directory to its final place. An output that it replaces is deleted afterwards.
    ///
    /// # Errors
    /// Returns an error if the file system refuses a step, or if files that must not be deleted were added to the
    /// output in the meantime. The output is then unchanged, or was renamed to `.NAME.replaced`.
    pub fn commit(self) -> Result<(), FileError> {
        let failed = |e: io::Error| FileError::writing(&self.out, &e);
        if !fs::symlink_metadata(&self.dir).map_err(failed)?.is_dir() {
            return Err(FileError::new(
                FileErrorKind::Foreign,
                &self.dir,
                "is no longer the directory that was written",
            ));
        }
        let there = fs::symlink_metadata(&self.out).is_ok();
        let empty = self.out.read_dir().is_ok_and(|mut entries| entries.next().is_none());
        if there && !empty {
            // The output is checked again, because the work may have taken hours since the first check.
            self.existing.check(&self.out)?;
            let replaced = self.lock.path.with_extension("replaced");
            fs::rename(&self.out, &replaced).map_err(failed)?;
            fs::rename(&self.dir, &self.out).map_err(failed)?;
            return delete_checkpoint(&replaced);
        }
        fs::rename(&self.dir, &self.out).map_err(failed)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.resumable && fs::symlink_metadata(&self.dir).is_ok_and(|metadata| metadata.is_dir()) {
            let _ = delete_checkpoint(&self.dir);
        }
        let _ = fs::remove_file(&self.lock.path);
    }
}

/// Deletes a directory that holds only a checkpoint's own files. The files are deleted one by one, so that a file that
/// appears meanwhile is never deleted with the directory. If `dir` is a symbolic link, only the link is deleted.
fn delete_checkpoint(dir: &Path) -> Result<(), FileError> {
    let failed = |e: io::Error| FileError::writing(dir, &e);
    match fs::symlink_metadata(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
        Ok(metadata) if !metadata.is_dir() => return fs::remove_file(dir).map_err(failed),
        Ok(_) => {}
    }
    let entries = files::entries(dir).map_err(failed)?;
    if let Some(entry) = files::first_foreign(&entries, is_checkpoint_file) {
        let problem = format!("holds {entry}, which is no file of a checkpoint, and is kept");
        let found = FileError::new(FileErrorKind::Foreign, dir, problem);
        return Err(found.remedy("look at it, and delete it yourself"));
    }
    for (entry, _) in entries {
        fs::remove_file(&entry).map_err(failed)?;
    }
    fs::remove_dir(dir).map_err(failed)
}

/// Returns whether a checkpoint's directory may hold a file of this name. The names are those that this program,
/// transformers, mergekit, sentence-transformers, Model2Vec and a download from the Hub write.
pub fn is_checkpoint_file(name: &str) -> bool {
    const FILES: [&str; 16] = [
        tokenizer_cache::BESIDE,
        "config.json",
        "modules.json",
        "README.md",
        "LICENSE",
        "LICENSE.txt",
        "LICENSE.md",
        "NOTICE",
        "USE_POLICY.md",
        ".gitattributes",
        "mergekit_config.yml",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "pipeline.skops",
    ];
    let weights = [".safetensors", ".safetensors.index.json", ".bin.index.json"].iter().any(|end| name.ends_with(end))
        || (name.starts_with("pytorch_model") && name.ends_with(".bin"));
    FILES.contains(&name) || weights || super::is_tokenizer_file(name)
}

/// Returns whether the directory holds a model: it has weights, or a config.json of a model.
fn is_checkpoint(dir: &Path, entries: &[(PathBuf, bool)]) -> bool {
    let has_weights = entries.iter().any(|(path, _)| path.extension().is_some_and(|e| e == "safetensors"));
    let has_config = || {
        let config = files::read(&dir.join("config.json")).ok();
        json::object(&config?)
            .ok()
            .map(|config| ["model_type", "architectures", "refined"].iter().any(|key| config.contains_key(*key)))
    };
    has_weights || has_config().unwrap_or(false)
}

impl Existing {
    /// Checks that `out` may be written. [`Staging::begin`] checks the same; callers that do long work before it call
    /// this method first.
    ///
    /// # Errors
    /// Returns an error if `out` exists and must not be replaced.
    pub fn check(self, out: &Path) -> Result<(), FileError> {
        let entries = match files::entries(out) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return match fs::symlink_metadata(out) {
                    Ok(_) => Err(FileError::new(FileErrorKind::Foreign, out, "is a symbolic link to nothing")
                        .remedy("delete it")),
                    Err(_) => Ok(()),
                };
            }
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
                return Err(
                    FileError::new(FileErrorKind::WrongType, out, "is a file").expected("the name of a new directory")
                );
            }
            Err(e) => return Err(FileError::writing(out, &e)),
        };
        if entries.is_empty() || self == Self::Keep {
            return Ok(());
        }
        if self == Self::Refuse {
            return Err(FileError::new(FileErrorKind::Exists, out, "exists"));
        }
        let kept = |problem: String| {
            let found = FileError::new(FileErrorKind::Foreign, out, problem);
            Err(found.remedy("give another name, or delete it yourself"))
        };
        if let Some(entry) = files::first_foreign(&entries, is_checkpoint_file) {
            return kept(format!("holds {entry}, which is no checkpoint's file, so it is not deleted"));
        }
        if !is_checkpoint(out, &entries) {
            return kept("exists and is no checkpoint, so it is not deleted".to_owned());
        }
        Ok(())
    }
}

/// Refuses an output that is, or contains, one of the `sources` from which it is made: replacing the output would
/// destroy the source. The check follows symbolic and hard links.
///
/// # Errors
/// Returns an error that names what the output holds.
pub fn protect(out: &Path, sources: &[&Path]) -> Result<(), FileError> {
    let Ok(to) = out.canonicalize() else { return Ok(()) };
    let refused =
        |problem: String| Err(FileError::new(FileErrorKind::SameFile, out, problem).expected("another directory"));
    let outputs: Vec<_> = files::entries(&to).unwrap_or_default();
    let outputs: Vec<_> =
        outputs.iter().filter_map(|(path, _)| Some((path.file_name()?, fs::symlink_metadata(path).ok()?))).collect();
    for source in sources {
        let mut pending = vec![(source.to_path_buf(), 2)];
        while let Some((path, depth)) = pending.pop() {
            let Ok(from) = path.canonicalize() else { continue };
            if from.starts_with(&to) {
                return refused(match path == *source {
                    true => "is, or holds, the source".to_owned(),
                    false => format!("holds the file that {} links to", path.display()),
                });
            }
            let Ok(metadata) = fs::metadata(&from) else { continue };
            if metadata.is_dir() && depth > 0 {
                // The output itself may be in a source's directory.
                let mut entries = files::entries(&path).unwrap_or_default();
                entries.retain(|(path, is_directory)| {
                    !(*is_directory && path.canonicalize().is_ok_and(|path| path == to))
                });
                pending.extend(entries.into_iter().map(|(path, _)| (path, depth - 1)));
            } else if let Some((name, _)) = outputs.iter().find(|(_, output)| files::is_same(output, &metadata)) {
                let name = name.to_string_lossy();
                return refused(format!("holds {name}, which is {} by another name", path.display()));
            }
        }
    }
    Ok(())
}

/// A lock between processes. It is held while the value lives, and the operating system releases it if the process
/// dies.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Locks the file at `path`, which is created if necessary and deleted on release. If another process holds the
    /// lock, the function waits for it if `wait` is given and returns an error otherwise.
    ///
    /// # Errors
    /// Returns an error if another process holds the lock and `wait` is `None`, or if the file system has no locks.
    pub fn take(path: &Path, wait: Option<&dyn Progress>) -> Result<Self, FileError> {
        let failed = |e: &io::Error| FileError::writing(path, e);
        loop {
            let mut options = OpenOptions::new();
            let file = files::without_links(options.create(true).append(true)).open(path).map_err(|e| failed(&e))?;
            match (file.try_lock(), wait) {
                (Ok(()), _) => {}
                (Err(TryLockError::Error(e)), _) => return Err(failed(&e)),
                (Err(TryLockError::WouldBlock), Some(progress)) => {
                    progress.note(&format!("waiting for another process, which holds {}", path.display()));
                    file.lock().map_err(|e| failed(&e))?;
                }
                (Err(TryLockError::WouldBlock), None) => {
                    return Err(FileError::new(FileErrorKind::Locked, path, "is locked: another process writes there")
                        .remedy("wait for it"));
                }
            }
            // The previous holder deletes the file when it is done. In that case this lock is on a file that no longer
            // has a name, and the loop tries again.
            if is_at(&file, path) {
                return Ok(Self { path: path.to_owned(), _file: file });
            }
        }
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    file.metadata().is_ok_and(|a| fs::symlink_metadata(path).is_ok_and(|b| files::is_same(&a, &b)))
}

/// An open file cannot be deleted on this system, so it is always at its path.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// Writes a file that all users may read.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn write(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let written = files::create(path).and_then(|mut file| file.write_all(content)).and_then(|()| readable(path));
    written.map_err(|e| FileError::writing(path, &e))
}

/// Copies a file. All users may read the copy.
///
/// # Errors
/// Returns an error if the source cannot be read or the copy cannot be written.
pub fn copy(from: &Path, to: &Path) -> Result<(), FileError> {
    files::copy(from, to).map_err(|e| FileError::reading(from, &e))?;
    readable(to).map_err(|e| FileError::writing(to, &e))
}

/// Makes a file readable for all users. mergekit and save_pretrained write weights with mode 0600, which another user
/// in a container cannot read.
///
/// # Errors
/// Returns an error if the file belongs to another user.
pub fn readable(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}
