//! The error for a file or directory that cannot be used.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::LfsPointer;

/// Why a checkpoint cannot be loaded: which file is wrong, what was found, what was expected, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    path: PathBuf,
    problem: String,
    expected: Option<String>,
    remedy: Option<String>,
    /// The kind of the I/O error, if standard output could not be written.
    standard_output: Option<std::io::ErrorKind>,
    at_run_time: bool,
}

impl LoadError {
    /// Creates an error. `problem` continues a sentence that begins with the path: "/models/x/config.json: is
    /// missing".
    pub fn new(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            problem: problem.into(),
            expected: None,
            remedy: None,
            standard_output: None,
            at_run_time: false,
        }
    }

    /// Adds what was expected. The text follows the word "expected".
    #[must_use]
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    /// Adds the remedy: the setting to change, or what to do, as a sentence without its period.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Marks an error that no change of the configuration can fix, such as one of the network, a device, or damaged
    /// data.
    #[must_use]
    pub fn at_run_time(self) -> Self {
        Self { at_run_time: true, ..self }
    }

    /// Returns whether no change of the configuration can fix the error.
    pub fn is_at_run_time(&self) -> bool {
        self.at_run_time
    }

    /// Creates an error for a failure to read `path`, with a remedy for common causes.
    pub fn io(path: impl Into<PathBuf>, error: &std::io::Error) -> Self {
        let path = path.into();
        if let Some(inner) = error.get_ref()
            && inner.is::<LfsPointer>()
        {
            return Self::lfs_pointer(path);
        }
        if error.kind() == std::io::ErrorKind::PermissionDenied
            && let Some(directory) = closed_directory(&path)
        {
            let directory = directory.display().to_string();
            let problem = format!("cannot be reached: this process may not enter the directory {directory}");
            return Self::new(path, problem).remedy(format!(
                "run `chmod a+x {directory}` as its owner, or run this program as a user who may enter it"
            ));
        }
        let found = Self::new(path, error.to_string());
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => found.expected("a file that this user may read").remedy(
                "mergekit and save_pretrained write model.safetensors with mode 0600: run `chmod a+r` on it, \
                         or serve as the user who owns it",
            ),
            std::io::ErrorKind::NotFound => found.expected("an existing file"),
            std::io::ErrorKind::NotADirectory | std::io::ErrorKind::IsADirectory => found,
            _ => found.at_run_time(),
        }
    }

    /// Creates the error for a Git LFS pointer at `path` in place of the file that the pointer stands for.
    pub fn lfs_pointer(path: impl Into<PathBuf>) -> Self {
        Self::new(path, LfsPointer.to_string()).remedy(LfsPointer::REMEDY)
    }

    /// Creates an error for a failure to write to standard output.
    pub fn of_standard_output(error: &std::io::Error) -> Self {
        Self { standard_output: Some(error.kind()), ..Self::new("standard output", error.to_string()) }
    }

    /// Returns the kind of the I/O error, if standard output could not be written.
    pub fn standard_output(&self) -> Option<std::io::ErrorKind> {
        self.standard_output
    }

    /// Creates an error for a failure to write `path`, with a remedy for common causes.
    pub fn writing(path: impl Into<PathBuf>, error: &std::io::Error) -> Self {
        let path = path.into();
        let owner = match error.kind() {
            std::io::ErrorKind::PermissionDenied => owner(&path).unwrap_or_default(),
            _ => String::new(),
        };
        let found = Self::new(path, format!("cannot be written: {error}{owner}"));
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => found
                .expected("a place where this user may write")
                .remedy("give another output, or run the command as the owner of that directory"),
            std::io::ErrorKind::ReadOnlyFilesystem => found
                .expected("a file system that is not mounted read-only")
                .remedy("give another output, or mount it for writing"),
            std::io::ErrorKind::NotFound => {
                found.expected("a directory that exists").remedy("make it with `mkdir -p`, or correct the path")
            }
            std::io::ErrorKind::StorageFull => found.remedy("free space on that disk, and run the same command again"),
            _ => found,
        }
    }

    /// Returns the file or directory that the error is about.
    pub fn path(&self) -> &Path {
        &self.path
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

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.problem)?;
        if let Some(expected) = &self.expected {
            write!(f, "; expected {expected}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, " ({remedy})")?;
        }
        Ok(())
    }
}

impl std::error::Error for LoadError {}
