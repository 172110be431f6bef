//! Read-only memory maps of weight files, and weights inside the program, which is a mapped file itself.
//!
//! A mapped file that is cut short while it is read raises SIGBUS. [`Map::guard`] turns that into [`Map::is_damaged`]:
//! `guard.rs` puts zeros in the place of the pages that are gone. [`guarded`] does so for all maps that are opened while a
//! checkpoint is read.

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
use memmap2::{Mmap, UncheckedAdvice};

use crate::error::LoadError;
use crate::files;

/// A whole file, mapped read-only. Nothing is read until touched. Clones share the map.
#[derive(Debug, Clone)]
pub struct Map(Held);

#[derive(Debug, Clone)]
enum Held {
    File(Arc<Mapped>),
    Program(&'static [u8]),
}

#[derive(Debug)]
struct Mapped {
    /// Before the map: what guards it must be gone when the addresses are.
    #[cfg(unix)]
    guard: OnceLock<guard::Guard>,
    map: Mmap,
    /// Kept open to ask what the file has become: at its path there may be another by now.
    file: File,
    /// When it was mapped.
    modified: Option<SystemTime>,
}

thread_local! {
    /// The maps that this thread has opened since [`guarded`] began, if it has.
    static OPENED: RefCell<Option<Vec<(PathBuf, Map)>>> = const { RefCell::new(None) };
}

/// Guards every map that `read` opens on this thread, from before its first byte is read.
///
/// # Errors
/// Those of `read`; and where a file was cut short meanwhile, that, whatever `read` made of it.
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
    /// A file that was compiled into the program.
    pub const fn of_program(bytes: &'static [u8]) -> Self {
        Self(Held::Program(bytes))
    }

    /// Maps the file at `path`.
    ///
    /// # Errors
    /// When it is missing, unreadable, empty or no regular file.
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

    /// Maps an open file; `path` is for errors. The map outlives the handle.
    ///
    /// # Errors
    /// As [`Map::open`].
    pub fn of(file: &File, path: &Path) -> Result<Self, LoadError> {
        let metadata = file.metadata().map_err(|e| LoadError::io(path, &e))?;
        if !metadata.is_file() {
            return Err(LoadError::new(path, "is not a regular file"));
        }
        if metadata.len() == 0 {
            return Err(LoadError::new(path, "is empty").expected("a safetensors file"));
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

    /// Whether the mapped file itself, wherever its name is now, has another size or time of change than when it was
    /// mapped.
    pub fn is_changed(&self) -> bool {
        let Held::File(mapped) = &self.0 else { return false };
        let now = mapped.file.metadata();
        now.is_ok_and(|now| now.len() != mapped.map.len() as u64 || now.modified().ok() != mapped.modified)
    }

    /// From here on, pages that the file no longer has read as zeros, and [`Map::is_damaged`] says so. For those who ask
    /// that after they have read, and before they believe it: all others are better off with a crash.
    pub fn guard(&self) {
        #[cfg(unix)]
        if let Held::File(mapped) = &self.0 {
            mapped.guard.get_or_init(|| guard::Guard::of(&mapped.map));
        }
    }

    /// Whether the guarded file was cut short, or could not be read, under the map.
    pub fn is_damaged(&self) -> bool {
        #[cfg(unix)]
        if let Held::File(mapped) = &self.0 {
            return mapped.guard.get().is_some_and(guard::Guard::is_damaged);
        }
        false
    }

    /// To be asked after reading from a guarded map, and before what was read is believed; `path` is for the error.
    ///
    /// # Errors
    /// When the file was cut short under the map.
    pub fn check(&self, path: &Path) -> Result<(), LoadError> {
        if !self.is_damaged() {
            return Ok(());
        }
        Err(LoadError::new(path, "was cut short while it was read")
            .at_run_time()
            .expected("a file that nobody writes to")
            .remedy("write a new checkpoint beside it and rename it into place"))
    }

    /// The whole file; the bytes keep the map alive.
    pub fn bytes(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }

    /// Takes the pages out of this process's resident memory. They stay in the page cache and come back on the next
    /// touch: after a scan of a table, resident memory again follows the rows in use.
    pub fn release(&self) {
        let Held::File(mapped) = &self.0 else { return };
        // SAFETY: MADV_DONTNEED on a shared, read-only file map drops page table entries, never contents.
        let released = unsafe { mapped.map.unchecked_advise(UncheckedAdvice::DontNeed) };
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

    /// The whole file, the head of it, and one that stays whole beside it.
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

    /// What was read of it would be believed: zeros are numbers.
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
