//! A directory that is built beside its place and moved there whole.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::LoadError;
use crate::progress::Progress;

/// What to do with an output that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// An error; an empty directory is none.
    #[default]
    Refuse,
    /// Replace it, if it is a checkpoint.
    Replace,
    /// Take it as it is: the output of a cache, which several processes may make at once.
    Keep,
}

/// The directory under construction. Dropped without [`Staging::commit`], it stays if the next run can go on with it.
/// A killed process leaves it in any case, and the next run clears it.
pub struct Staging {
    out: PathBuf,
    dir: PathBuf,
    resumable: bool,
    // Dropped last: the place is this process's until everything else is done.
    lock: Lock,
}

impl Staging {
    /// Takes the place beside `out`: `.NAME.incomplete`, and `.NAME.lock` for as long as this process builds. All that
    /// an earlier run left there goes, but for the file `kept`. `None` if `out` is there and [`Existing::Keep`] takes it.
    ///
    /// # Errors
    /// When `out` exists and must not be replaced, or another process makes it.
    pub fn begin(
        out: &Path,
        existing: Existing,
        kept: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Option<Self>, LoadError> {
        let name = out
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| LoadError::new(out, "is no place to write to").expected("the name of a new directory"))?;
        let beside = |suffix: &str| out.with_file_name(format!(".{name}.{suffix}"));
        refuse(out, existing)?;
        if let Some(parent) = out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(|e| LoadError::io(parent, &e))?;
        }
        let wait = (existing == Existing::Keep).then_some(progress);
        let lock = Lock::take(&beside("lock"), wait)?;
        if existing == Existing::Keep && out.exists() {
            return Ok(None);
        }
        refuse(out, existing)?;
        let dir = beside("incomplete");
        clear(&dir, kept).map_err(|e| LoadError::io(&dir, &e))?;
        Ok(Some(Self { out: out.to_owned(), dir, resumable: kept.is_some(), lock }))
    }

    /// Where to write.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves the directory to its place. An output that it replaces is deleted after that.
    ///
    /// # Errors
    /// When the file system refuses; the output is then what it was, or lies beside as `.NAME.replaced`.
    pub fn commit(self) -> Result<(), LoadError> {
        let failed = |e: io::Error| LoadError::io(&self.out, &e);
        let replaced = self.lock.path.with_extension("replaced");
        if replaced.exists() {
            fs::remove_dir_all(&replaced).map_err(failed)?;
        }
        let full = self.out.read_dir().is_ok_and(|mut entries| entries.next().is_some());
        if full {
            fs::rename(&self.out, &replaced).map_err(failed)?;
        }
        fs::rename(&self.dir, &self.out).map_err(failed)?;
        if full {
            fs::remove_dir_all(&replaced).map_err(failed)?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.resumable {
            let _ = fs::remove_dir_all(&self.dir);
        }
        let _ = fs::remove_file(&self.lock.path);
    }
}

/// An empty directory, or one that holds the file `kept` alone.
fn clear(dir: &Path, kept: Option<&str>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for entry in dir.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else if kept.is_none_or(|kept| entry.file_name() != kept) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl Existing {
    /// Whether `out` may be written: for who does long work before [`Staging::begin`] asks the same.
    ///
    /// # Errors
    /// When it exists and must not be replaced.
    pub fn check(self, out: &Path) -> Result<(), LoadError> {
        refuse(out, self)
    }
}

fn refuse(out: &Path, existing: Existing) -> Result<(), LoadError> {
    let entries: Vec<_> = match out.read_dir() {
        Ok(entries) => entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            return Err(LoadError::new(out, "is a file").expected("the name of a new directory"));
        }
        Err(e) => return Err(LoadError::io(out, &e)),
    };
    let checkpoint = entries.iter().any(|name| name == "config.json" || name.ends_with(".safetensors"));
    match existing {
        _ if entries.is_empty() => Ok(()),
        Existing::Keep => Ok(()),
        Existing::Refuse => Err(LoadError::new(out, "exists").remedy("give --force to replace it")),
        Existing::Replace if checkpoint => Ok(()),
        Existing::Replace => Err(LoadError::new(out, "exists and is no checkpoint, so --force does not delete it")
            .remedy("give another name, or delete it yourself")),
    }
}

/// A lock between processes: held while the value lives, freed by the system if the process dies.
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Locks the file at `path`, which is made and, in the end, deleted. With `wait`, after its other holder; else that is an error.
    ///
    /// # Errors
    /// When another process holds it and `wait` is `None`, or the file system has no locks.
    pub fn take(path: &Path, wait: Option<&dyn Progress>) -> Result<Self, LoadError> {
        let failed = |e: &io::Error| LoadError::io(path, e);
        loop {
            let file = OpenOptions::new().create(true).append(true).open(path).map_err(|e| failed(&e))?;
            match (file.try_lock(), wait) {
                (Ok(()), _) => {}
                (Err(TryLockError::Error(e)), _) => return Err(failed(&e)),
                (Err(TryLockError::WouldBlock), Some(progress)) => {
                    progress.note(&format!("waiting for another process, which holds {}", path.display()));
                    file.lock().map_err(|e| failed(&e))?;
                }
                (Err(TryLockError::WouldBlock), None) => {
                    return Err(LoadError::new(path, "is locked: another process writes there").remedy("wait for it"));
                }
            }
            // The holder before us deleted the file when it was done: then this lock is on nothing.
            if is_at(&file, path) {
                return Ok(Self { path: path.to_owned(), _file: file });
            }
        }
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    file.metadata().is_ok_and(|a| fs::metadata(path).is_ok_and(|b| same(a, b)))
}

/// An open file cannot be deleted there.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// Writes a file that everybody may read.
///
/// # Errors
/// When the disk refuses.
pub fn write(path: &Path, content: &[u8]) -> Result<(), LoadError> {
    fs::write(path, content).and_then(|()| readable(path)).map_err(|e| LoadError::io(path, &e))
}

/// Copies a file; the copy is one that everybody may read.
///
/// # Errors
/// When the source cannot be read or the disk refuses.
pub fn copy(from: &Path, to: &Path) -> Result<(), LoadError> {
    fs::copy(from, to).map_err(|e| LoadError::io(from, &e))?;
    readable(to).map_err(|e| LoadError::io(to, &e))
}

/// mergekit and save_pretrained leave weights with mode 0600, which a container's other user cannot read.
///
/// # Errors
/// When the file is not this user's.
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
