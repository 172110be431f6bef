//! Read-only memory maps of weight files, and of weights that are compiled into the program.
//!
//! A read from a mapped file that was cut short raises SIGBUS. [`Map::guard`] prevents the crash: the signal handler in
//! `guard.rs` replaces the missing pages with zeros, and [`Map::is_damaged`] then returns true. [`guarded`] guards all
//! maps that are opened while a checkpoint is read.

#![allow(unsafe_code)] // Mapping a file is a promise that nobody rewrites it in place.

#[cfg(unix)]
mod guard;

use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(unix)]
use std::sync::OnceLock;
use std::time::SystemTime;

use bytes::Bytes;
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

use crate::error::LoadError;
use layer0_files as files;

/// A whole file, memory-mapped read-only. No page is read until it is touched. Clones share the map.
#[derive(Debug, Clone)]
pub struct Map(Held);

#[derive(Debug, Clone)]
enum Held {
    File(Arc<Mapped>),
    Program(&'static [u8]),
}

#[derive(Debug)]
struct Mapped {
    /// The guard is declared before the map, because it must be dropped while the map's addresses are still valid.
    #[cfg(unix)]
    guard: OnceLock<guard::Guard>,
    map: Mmap,
    /// The mapped file. It is kept open to query its metadata, because the path may name another file by now.
    file: File,
    /// The file's modification time at the moment it was mapped.
    modified: Option<SystemTime>,
}

thread_local! {
    /// The maps that this thread has opened since [`guarded`] began, or `None` outside of [`guarded`].
    static OPENED: RefCell<Option<Vec<(PathBuf, Map)>>> = const { RefCell::new(None) };
}

/// Calls `read` and guards every map that it opens on this thread before the first byte is read.
///
/// # Errors
/// Returns the errors of `read`. If a file was cut short meanwhile, that error is returned, whatever the result of
/// `read`.
pub fn guarded<T>(read: impl FnOnce() -> Result<T, LoadError>) -> Result<T, LoadError> {
    let outer = OPENED.replace(Some(Vec::new()));
    let result = read();
    let opened = OPENED.replace(outer).unwrap_or_default();
    opened.iter().try_for_each(|(path, map)| map.check(path))?;
    result
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        match &self.0 {
            Held::File(mapped) => &mapped.map,
            Held::Program(bytes) => bytes,
        }
    }
}

impl Map {
    /// Returns a map of a file that was compiled into the program.
    pub const fn of_program(bytes: &'static [u8]) -> Self {
        Self(Held::Program(bytes))
    }

    /// Maps the file at `path`.
    ///
    /// # Errors
    /// Returns an error if the file is missing, unreadable, empty or not a regular file.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let map = Self::of(&files::open(path).map_err(|e| LoadError::io(path, &e))?, path)?;
        OPENED.with_borrow_mut(|opened| {
            if let Some(opened) = opened {
                map.guard();
                opened.push((path.to_owned(), map.clone()));
            }
        });
        Ok(map)
    }

    /// Maps an open file; `path` is used in errors. The map outlives the handle.
    ///
    /// # Errors
    /// Returns the same errors as [`Map::open`].
    pub fn of(file: &File, path: &Path) -> Result<Self, LoadError> {
        let metadata = file.metadata().map_err(|e| LoadError::io(path, &e))?;
        if !metadata.is_file() {
            return Err(LoadError::malformed(path, "is not a regular file"));
        }
        if metadata.len() == 0 {
            return Err(LoadError::malformed(path, "is empty").expected("a safetensors file"));
        }
        // SAFETY: the map is read-only and only ever lent as `&[u8]`. A process that rewrites or truncates the file
        // in place would break that promise; checkpoints are replaced by rename, which leaves the mapped inode as
        // it is (ARCHITECTURE.md, "Memory maps").
        let map = unsafe { Mmap::map(file) }.map_err(|e| LoadError::io(path, &e))?;
        let file = file.try_clone().map_err(|e| LoadError::io(path, &e))?;
        Ok(Self(Held::File(Arc::new(Mapped {
            #[cfg(unix)]
            guard: OnceLock::new(),
            map,
            file,
            modified: metadata.modified().ok(),
        }))))
    }

    /// Returns whether the size or the modification time of the mapped file has changed since it was mapped. The file
    /// is the one that was mapped, even if it was renamed.
    pub fn is_changed(&self) -> bool {
        let Held::File(mapped) = &self.0 else { return false };
        let now = mapped.file.metadata();
        now.is_ok_and(|now| now.len() != mapped.map.len() as u64 || now.modified().ok() != mapped.modified)
    }

    /// Makes missing pages of the file read as zeros from now on, and makes [`Map::is_damaged`] report them. Only a
    /// caller that asks [`Map::is_damaged`] after reading and before it uses the result may guard a map: for all others
    /// a crash is better than wrong numbers.
    pub fn guard(&self) {
        #[cfg(unix)]
        if let Held::File(mapped) = &self.0 {
            mapped.guard.get_or_init(|| guard::Guard::of(&mapped.map));
        }
    }

    /// Returns whether the guarded file was cut short or could not be read.
    pub fn is_damaged(&self) -> bool {
        #[cfg(unix)]
        if let Held::File(mapped) = &self.0 {
            return mapped.guard.get().is_some_and(guard::Guard::is_damaged);
        }
        false
    }

    /// Checks that a guarded map was read correctly. The caller calls this method after reading and before it uses what
    /// was read; `path` is used in the error.
    ///
    /// # Errors
    /// Returns an error if the file was cut short after it was mapped.
    pub fn check(&self, path: &Path) -> Result<(), LoadError> {
        if !self.is_damaged() {
            return Ok(());
        }
        Err(LoadError::damaged(path, "was cut short while it was read")
            .expected("a file that nobody writes to")
            .remedy("write a new checkpoint beside it and rename it into place"))
    }

    /// Returns the whole file. The returned bytes keep the map alive.
    pub fn bytes(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }

    /// Removes the map's pages from this process's resident memory. The pages stay in the page cache and return when
    /// they are touched, so that after a scan of a table resident memory again follows the rows in use. Windows has no such
    /// request, and removes unused pages on its own when memory is short.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Held::File(mapped) = &self.0 {
            mapped.release();
        }
    }
}

#[cfg(unix)]
impl Mapped {
    fn release(&self) {
        // SAFETY: MADV_DONTNEED on a shared, read-only file map drops page table entries, never contents.
        let released = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
        if let Err(error) = released {
            tracing::debug!(%error, "pages of a scanned table stay resident");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_read_the_same() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(file.path(), &content).unwrap();
        let map = Map::open(file.path()).unwrap();
        let bytes = map.bytes();
        assert_eq!(bytes, content);
        map.release();
        assert_eq!(bytes, content);
        drop(map);
        assert_eq!(bytes.slice(4..8).as_ref(), 1u32.to_le_bytes());
    }

    /// The test reads the file before the cut, the part that is left after the cut, and another file that stays whole.
    #[cfg(unix)]
    #[test]
    fn a_file_cut_short_under_a_guarded_map_is_damage_and_no_crash() {
        const LENGTH: usize = 1 << 20;
        let whole = vec![7u8; LENGTH];
        for left in [0, 100_000] {
            let (cut, other) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
            let [cut_map, other_map] = [&cut, &other].map(|file| {
                std::fs::write(file.path(), &whole).unwrap();
                let map = Map::open(file.path()).unwrap();
                map.guard();
                map
            });
            assert!(cut_map.as_ref() == whole && !cut_map.is_damaged());
            cut.as_file().set_len(left).unwrap();
            assert_eq!(cut_map.as_ref().last(), Some(&0));
            assert!(cut_map.is_damaged());
            let kept = usize::try_from(left).unwrap();
            assert_eq!(cut_map.as_ref().get(..kept), whole.get(..kept));
            assert!(other_map.as_ref() == whole && !other_map.is_damaged());
        }
    }

    /// Without the check the result would be accepted, because zeros are valid numbers.
    #[cfg(unix)]
    #[test]
    fn a_file_that_is_cut_short_while_a_checkpoint_is_read_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7u8; 8192]).unwrap();
        let first_byte = |cut: bool| {
            guarded(|| {
                let map = Map::open(file.path())?;
                if cut {
                    file.as_file().set_len(0).unwrap();
                }
                Ok(map.as_ref().first().copied())
            })
        };
        assert_eq!(first_byte(false).unwrap(), Some(7));
        assert!(first_byte(true).unwrap_err().to_string().contains("cut short"));
    }

    #[test]
    fn a_file_that_is_written_in_place_is_changed_and_one_that_is_replaced_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, [1u8; 64]).unwrap();
        let map = Map::open(&path).unwrap();
        assert!(!map.is_changed());
        let other = Map::open(&path).unwrap();
        std::fs::write(dir.path().join("next"), [2u8; 16]).unwrap();
        std::fs::rename(dir.path().join("next"), &path).unwrap();
        assert!(!map.is_changed() && !other.is_changed());
        let third = Map::open(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(third.is_changed() && !map.is_changed());
        assert!(!Map::of_program(b"x").is_changed());
    }

    #[test]
    fn a_replaced_file_leaves_the_map_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, [1u8; 4096]).unwrap();
        let map = Map::open(&path).unwrap();
        std::fs::write(dir.path().join("next"), [2u8; 16]).unwrap();
        std::fs::rename(dir.path().join("next"), &path).unwrap();
        map.release();
        assert_eq!(map.as_ref(), [1u8; 4096]);
    }
}
