//! The error for a file or a directory that cannot be read or written.

use std::io;
use std::path::{Path, PathBuf};

use crate::{Diagnostic, LfsPointer};

/// Why a file or a directory cannot be read or written.
///
/// ```
/// use std::path::Path;
/// use layer0_files::{FileError, FileErrorKind};
///
/// let path = Path::new("/does/not/exist");
/// let error = layer0_files::read(path).map_err(|error| FileError::reading(path, &error)).unwrap_err();
/// match error.kind() {
///     FileErrorKind::NotFound => assert_eq!(error.path(), path),
///     kind => panic!("{kind:?}"),
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{diagnostic}")]
pub struct FileError {
    kind: FileErrorKind,
    diagnostic: Diagnostic,
}

/// The kinds of [`FileError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileErrorKind {
    /// The file or the directory does not exist.
    NotFound,
    /// This process may not read or write the file, or not enter a directory above it.
    PermissionDenied,
    /// The path names a directory where a file is needed, or a file where a directory is needed.
    WrongType,
    /// The file is a FIFO, a socket or a device.
    NotRegular,
    /// The file is a Git LFS pointer, not the file that the pointer stands for.
    LfsPointer,
    /// The file is too large to be read into memory.
    TooLarge,
    /// The content of the file does not have the expected form, such as text in UTF-8.
    Malformed,
    /// An output exists, and the caller did not ask to replace it.
    Exists,
    /// A directory holds something that this crate's caller did not write and therefore does not delete.
    Foreign,
    /// Another process holds the lock of an output.
    Locked,
    /// An output is one of the files from which it is made.
    SameFile,
    /// The file system is full, or is mounted read-only.
    NotWritable,
    /// Any other failure of the operating system.
    Io,
}

impl FileErrorKind {
    /// Returns whether the error comes from the machine, so that no other path or option avoids it.
    pub const fn is_at_run_time(self) -> bool {
        matches!(self, Self::Io | Self::NotRegular | Self::TooLarge | Self::Malformed)
    }
}

impl FileError {
    /// Creates an error. `problem` continues a sentence that begins with the path: "config.json: is missing".
    pub fn new(kind: FileErrorKind, path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self { kind, diagnostic: Diagnostic::new(path.into(), problem) }
    }

    /// Adds what was expected. The text follows the word "expected".
    #[must_use]
    pub fn expected(self, expected: impl Into<String>) -> Self {
        Self { diagnostic: self.diagnostic.expected(expected), ..self }
    }

    /// Adds the remedy, as a sentence without its period.
    #[must_use]
    pub fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { diagnostic: self.diagnostic.remedy(remedy), ..self }
    }

    /// Creates the error for a failure to read `path`, with a remedy for common causes.
    pub fn reading(path: impl Into<PathBuf>, error: &io::Error) -> Self {
        let path = path.into();
        if let Some(inner) = error.get_ref()
            && inner.is::<LfsPointer>()
        {
            return Self::lfs_pointer(path);
        }
        if error.kind() == io::ErrorKind::PermissionDenied
            && let Some(directory) = closed_directory(&path)
        {
            let directory = directory.display().to_string();
            let problem = format!("cannot be reached: this process may not enter the directory {directory}");
            return Self::new(FileErrorKind::PermissionDenied, path, problem).remedy(format!(
                "run `chmod a+x {directory}` as its owner, or run this program as a user who may enter it"
            ));
        }
        let found = |kind| Self::new(kind, path, error.to_string());
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                found(FileErrorKind::PermissionDenied).expected("a file that this user may read").remedy(
                    "mergekit and save_pretrained write model.safetensors with mode 0600: run `chmod a+r` on it, \
                     or serve as the user who owns it",
                )
            }
            io::ErrorKind::NotFound => found(FileErrorKind::NotFound).expected("an existing file"),
            io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => found(FileErrorKind::WrongType),
            io::ErrorKind::FileTooLarge => found(FileErrorKind::TooLarge),
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => found(FileErrorKind::Malformed),
            io::ErrorKind::InvalidInput => found(FileErrorKind::NotRegular),
            _ => found(FileErrorKind::Io),
        }
    }

    /// Creates the error for a failure to write `path`, with a remedy for common causes.
    pub fn writing(path: impl Into<PathBuf>, error: &io::Error) -> Self {
        let path = path.into();
        let owner = match error.kind() {
            io::ErrorKind::PermissionDenied => owner(&path).unwrap_or_default(),
            _ => String::new(),
        };
        let found = |kind| Self::new(kind, path, format!("cannot be written: {error}{owner}"));
        match error.kind() {
            io::ErrorKind::PermissionDenied => found(FileErrorKind::PermissionDenied)
                .expected("a place where this user may write")
                .remedy("give another output, or run the command as the owner of that directory"),
            io::ErrorKind::ReadOnlyFilesystem => found(FileErrorKind::NotWritable)
                .expected("a file system that is not mounted read-only")
                .remedy("give another output, or mount it for writing"),
            io::ErrorKind::NotFound => found(FileErrorKind::NotFound)
                .expected("a directory that exists")
                .remedy("make it with `mkdir -p`, or correct the path"),
            io::ErrorKind::StorageFull => {
                found(FileErrorKind::NotWritable).remedy("free space on that disk, and run the same command again")
            }
            _ => found(FileErrorKind::Io),
        }
    }

    /// Creates the error for a Git LFS pointer at `path` in place of the file that the pointer stands for.
    pub fn lfs_pointer(path: impl Into<PathBuf>) -> Self {
        Self::new(FileErrorKind::LfsPointer, path, LfsPointer.to_string()).remedy(LfsPointer::REMEDY)
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> FileErrorKind {
        self.kind
    }

    /// Returns the file or the directory that the error is about.
    pub fn path(&self) -> &Path {
        self.diagnostic.place().file().unwrap_or(Path::new(""))
    }

    /// Returns the parts of the message.
    pub fn into_diagnostic(self) -> Diagnostic {
        self.diagnostic
    }
}

/// Returns who owns the file or directory that prevents writing `path`, as a continuation of the error message.
fn owner(path: &Path) -> Option<String> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let (existing, metadata) =
            path.ancestors().find_map(|path| Some((path, std::fs::symlink_metadata(path).ok()?)))?;
        Some(format!("; {} belongs to the user with the ID {}", existing.display(), metadata.uid()))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// Returns the directory above `path` that this process may not enter, if there is one.
fn closed_directory(path: &Path) -> Option<&Path> {
    let is_hidden = |path: &&Path| {
        std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    };
    path.ancestors().take_while(is_hidden).last()?.parent().filter(|directory| !directory.as_os_str().is_empty())
}
