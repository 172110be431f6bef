//! Detects changed files by their inode, size and modification time.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The state of files and directories at one point in time. If two stamps are equal, none of the files was replaced or
/// changed in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp(Vec<(PathBuf, Option<Identity>)>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    inode: (u64, u64),
    length: u64,
    modified: Option<SystemTime>,
}

/// The depth to which directories are searched. A StaticEmbedding model has one level of subdirectories.
const DEPTH: usize = 2;

impl Stamp {
    /// Records the state of these files, and of all files in these directories. Symbolic links are followed. That a
    /// file does not exist is recorded too.
    pub fn new<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let mut found = Vec::new();
        for path in paths {
            look(path, DEPTH, &mut found);
        }
        Self(found)
    }
}

fn look(path: &Path, depth: usize, found: &mut Vec<(PathBuf, Option<Identity>)>) {
    let metadata = std::fs::metadata(path).ok();
    if depth > 0 && metadata.as_ref().is_some_and(Metadata::is_dir) {
        let entries = std::fs::read_dir(path).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let mut entries: Vec<PathBuf> = entries.collect();
        entries.sort();
        entries.iter().for_each(|entry| look(entry, depth - 1, found));
        return;
    }
    found.push((path.to_owned(), metadata.as_ref().map(Identity::from_metadata)));
}

impl Identity {
    fn from_metadata(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let inode = {
            use std::os::unix::fs::MetadataExt;
            (metadata.dev(), metadata.ino())
        };
        #[cfg(not(unix))]
        let inode = (0, 0);
        Self { inode, length: metadata.len(), modified: metadata.modified().ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_grown_and_removed_files_change_the_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let file = inner.join("f");
        let look = || Stamp::new([dir.path()]);
        let empty = look();
        std::fs::write(&file, "1").unwrap();
        let first = look();
        assert_ne!(first, empty);
        assert_eq!(first, look());
        std::fs::write(dir.path().join("next"), "1").unwrap();
        std::fs::rename(dir.path().join("next"), &file).unwrap();
        let replaced = look();
        assert_ne!(replaced, first);
        std::fs::write(&file, "12").unwrap();
        assert_ne!(look(), replaced);
        assert_ne!(Stamp::new([file.as_path()]), Stamp::new([Path::new("/nowhere")]));
    }
}
