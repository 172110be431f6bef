//! Opens files safely. Files that are read must be regular files, so that no FIFO, device or socket blocks the process.
//! Files that are written beside an output are never reached through a link that somebody else created.

// These macros panic if their stream is closed or full.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![deny(missing_docs, missing_debug_implementations)]

/// Runs the examples of the README as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;

mod diagnostic;
mod error;
pub mod json;

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use diagnostic::{Diagnostic, Place};
pub use error::{FileError, FileErrorKind};

/// The limit on the size in bytes of a file that is read into memory as a whole. The largest known tokenizer.json has
/// 35 MB.
const LARGEST: u64 = 1 << 30;

/// The first bytes of a Git LFS pointer, the small text file that Git leaves in place of a large file until
/// `git lfs pull` fetches it.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1";

/// The error for a file that is a Git LFS pointer. In messages, its text follows the path of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is a Git LFS pointer, not the file that the pointer stands for")]
pub struct LfsPointer;

impl LfsPointer {
    /// What the user can do about the error.
    pub const REMEDY: &str = "run `git lfs pull` in that repository, or download the file again";

    /// Returns an error if a file that begins with these bytes is a Git LFS pointer.
    ///
    /// # Errors
    /// Returns an error if the bytes are the beginning of a Git LFS pointer.
    pub fn check(start: &[u8]) -> Result<(), Self> {
        if start.starts_with(LFS_POINTER) { Err(Self) } else { Ok(()) }
    }

    /// Returns whether these first bytes of a file could be the beginning of a Git LFS pointer. `start` may be shorter
    /// than the pointer's first line. No other file that this program reads begins with "version ".
    pub fn begins_like(start: &[u8]) -> bool {
        start.len() >= 8 && LFS_POINTER.starts_with(start)
    }
}

/// Opens a file for reading without waiting for another process.
///
/// The function accepts regular files, `/dev/null`, and pipes that this process inherited and that are named by their
/// descriptor, as a shell's `<(...)` names them.
///
/// # Errors
/// Returns the errors of the file system, and an error for a FIFO, a device or a socket.
pub fn open(path: &Path) -> io::Result<File> {
    let metadata = fs::metadata(path)?;
    if is_readable_at_once(path, &metadata) {
        let file = open_at_once(path)?;
        // Another file may have taken the place of the first one between the two calls.
        let opened = file.metadata()?;
        if is_readable_at_once(path, &opened) {
            return Ok(file);
        }
        return Err(not_regular(&opened));
    }
    Err(not_regular(&metadata))
}

/// Opens a file that nobody could have written but root and this user, or, with `like`, nobody but root and those who can write the
/// file with that metadata. A link is not followed.
///
/// # Errors
/// Returns the errors of the file system, and an error for a file that others could have written.
pub fn open_trusted(path: &Path, like: Option<&Metadata>) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = without_links(options.read(true)).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(not_regular(&metadata));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let owned =
            metadata.uid() == 0 || like.map_or_else(|| is_own(&metadata, path), |like| like.uid() == metadata.uid());
        let others = metadata.mode() & 0o022 & !like.map_or(0, MetadataExt::mode);
        if !owned || others != 0 {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "could have been written by another user"));
        }
    }
    #[cfg(not(unix))]
    let _ = like;
    Ok(file)
}

/// Returns the whole content of a file that [`open`] can open.
///
/// # Errors
/// Returns the errors of [`open`], and an error for a file of more than 1 GiB and for a Git LFS pointer
/// ([`LfsPointer`]).
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let announced = usize::try_from(file.metadata()?.len().min(LARGEST)).unwrap_or(0);
    let mut content = Vec::with_capacity(announced + 1);
    file.take(LARGEST + 1).read_to_end(&mut content)?;
    if content.len() as u64 > LARGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("has more than {} GiB", LARGEST >> 30)));
    }
    if content.is_empty() && is_descriptor(path) {
        let problem = "is a pipe without content: a pipe can be read only once, so name a regular file instead";
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, problem));
    }
    LfsPointer::check(&content).map_err(|pointer| io::Error::new(io::ErrorKind::InvalidData, pointer))?;
    Ok(content)
}

/// Returns the whole content of a file as text, like [`read`].
///
/// # Errors
/// Returns the errors of [`read`], and an error for a file that is not UTF-8.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.utf8_error()))
}

/// Returns bytes as hexadecimal digits, the form in which digests of files are written.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Copies a regular file. An existing file at `to` is replaced, and a link there is not followed.
///
/// # Errors
/// Returns the errors of the file system.
pub fn copy(from: &Path, to: &Path) -> io::Result<u64> {
    io::copy(&mut open(from)?, &mut create(to)?)
}

/// Creates an empty file. An existing file or link of that name is deleted first, so that nothing is written through a
/// link.
///
/// # Errors
/// Returns the errors of the file system.
pub fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

/// Opens a file that an earlier run of this user may have begun, for reading and for continuing it. Anything else of
/// that name (a link, a file with a second name, another user's file, a FIFO) is deleted and replaced by an empty file.
///
/// # Errors
/// Returns the errors of the file system.
pub fn resume(path: &Path) -> io::Result<File> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if is_own_file(&metadata, path) => {
            let mut options = OpenOptions::new();
            without_links(options.read(true).write(true));
            options.open(path)
        }
        _ => create(path),
    }
}

/// Sets options with which opening a link is an error and opening a FIFO does not block.
pub fn without_links(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC);
    }
    options
}

/// Creates the directory `dir`, or takes over the one that an earlier run of this user left under that name, and
/// returns the files in it.
///
/// # Errors
/// Returns an error if the name belongs to something else: a link, a file, another user's directory, or a directory
/// with an entry that `is_ours` does not accept. In that case nothing is deleted and no link is followed.
pub fn own_directory(dir: &Path, is_ours: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, FileError> {
    match fs::create_dir(dir) {
        Ok(()) => return Ok(Vec::new()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(FileError::writing(dir, &e)),
    }
    let foreign = |problem: String| {
        FileError::new(FileErrorKind::Foreign, dir, problem)
            .expected("nothing, or what an interrupted run of this user left there")
            .remedy("look at it, and delete it or give the output another name")
    };
    let metadata = fs::symlink_metadata(dir).map_err(|e| FileError::reading(dir, &e))?;
    if !metadata.is_dir() {
        return Err(foreign(format!("is {}, not a directory", kind(&metadata))));
    }
    if !is_own(&metadata, dir) {
        return Err(foreign("belongs to another user".to_owned()));
    }
    let entries = entries(dir).map_err(|e| FileError::reading(dir, &e))?;
    // An empty directory holds nothing that could be lost.
    let is_empty = |path: &Path| path.read_dir().is_ok_and(|mut inner| inner.next().is_none());
    let (empty, entries): (Vec<_>, Vec<_>) =
        entries.into_iter().partition(|(path, is_directory)| *is_directory && is_empty(path));
    if let Some(entry) = first_foreign(&entries, is_ours) {
        return Err(foreign(format!("holds {entry}, which no run of embedding-server left there")));
    }
    for (path, _) in empty {
        fs::remove_dir(&path).map_err(|e| FileError::writing(&path, &e))?;
    }
    Ok(entries.into_iter().map(|(path, _)| path).collect())
}

/// Returns the entries of a directory in the order of their names, each with whether it is itself a directory.
///
/// # Errors
/// Returns an error if the directory cannot be read.
pub fn entries(dir: &Path) -> io::Result<Vec<(PathBuf, bool)>> {
    let mut found = Vec::new();
    for entry in dir.read_dir()? {
        let entry = entry?;
        found.push((entry.path(), entry.file_type()?.is_dir()));
    }
    found.sort();
    Ok(found)
}

/// Returns, for messages, the name of the first entry that is a directory or that `is_ours` does not accept.
pub fn first_foreign(entries: &[(PathBuf, bool)], is_ours: impl Fn(&str) -> bool) -> Option<String> {
    entries.iter().find_map(|(path, is_directory)| {
        let name = path.file_name().unwrap_or_default();
        let ours = !is_directory && name.to_str().is_some_and(&is_ours);
        (!ours).then(|| format!("{}{}", name.to_string_lossy(), if *is_directory { "/" } else { "" }))
    })
}

/// Returns whether two files are the same file, whatever the names and links by which they were found.
pub fn is_same(a: &Metadata, b: &Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (a.dev(), a.ino()) == (b.dev(), b.ino())
    }
    #[cfg(not(unix))]
    {
        let _ = (a, b);
        false
    }
}

fn is_readable_at_once(path: &Path, metadata: &Metadata) -> bool {
    // Reading a directory fails later, with a message of its own.
    metadata.is_file() || metadata.is_dir() || path == Path::new("/dev/null") || is_descriptor(path)
}

/// Returns whether the path names a descriptor that this process has already opened.
fn is_descriptor(path: &Path) -> bool {
    path == Path::new("/dev/stdin") || path.starts_with("/dev/fd") || path.starts_with("/proc/self/fd")
}

/// Opens a file without waiting. Opening a FIFO waits for its other end unless O_NONBLOCK is set, and the flag has no
/// effect on reads of regular files.
fn open_at_once(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    if !is_descriptor(path) {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC);
    }
    options.open(path)
}

fn not_regular(metadata: &Metadata) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("is {}, not a regular file", kind(metadata)))
}

fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a named pipe (FIFO)";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    match () {
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_dir() => "a directory",
        () => "a file",
    }
}

/// Returns whether the file is a regular file of this user without a second name.
fn is_own_file(metadata: &Metadata, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        metadata.is_file() && metadata.nlink() == 1 && is_own(metadata, path)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        metadata.is_file()
    }
}

/// Returns whether the file has the same owner as a new file in the same directory. Comparing with a new file also
/// works on file systems that report another owner than the process's user.
fn is_own(metadata: &Metadata, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let made = tempfile::tempfile_in(parent).and_then(|file| file.metadata());
        made.is_ok_and(|made| made.uid() == metadata.uid())
    }
    #[cfg(not(unix))]
    {
        let _ = (metadata, path);
        true
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn fifo(path: &Path) {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "text").unwrap();
        symlink("file", at("link")).unwrap();
        fifo(&at("fifo"));
        symlink("fifo", at("link-to-fifo")).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        assert_eq!(read(&at("file")).unwrap(), b"text");
        assert_eq!(read_to_string(&at("link")).unwrap(), "text");
        fs::write(at("pointer"), "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n").unwrap();
        assert!(read(&at("pointer")).unwrap_err().get_ref().unwrap().is::<LfsPointer>());
        assert_eq!(read(Path::new("/dev/null")).unwrap(), b"");
        for (name, kind) in [
            ("fifo", "a named pipe"),
            ("link-to-fifo", "a named pipe"),
            ("socket", "a socket"),
            ("/dev/zero", "a device"),
        ] {
            let problem = open(&at(name)).unwrap_err().to_string();
            assert!(problem.contains(kind) && problem.contains("not a regular file"), "{name}: {problem}");
        }
    }

    #[test]
    fn a_file_that_others_could_have_written_is_not_trusted() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("file"), dir.path().join("other"));
        fs::write(&path, "text").unwrap();
        fs::write(&other, "text").unwrap();
        let set = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for (mode, other_mode, alone, beside) in [
            (0o644, 0o644, true, true),
            (0o400, 0o644, true, true),
            (0o664, 0o644, false, false),
            (0o664, 0o664, false, true),
            (0o666, 0o664, false, false),
        ] {
            set(&path, mode);
            set(&other, other_mode);
            let like = fs::metadata(&other).unwrap();
            assert_eq!(open_trusted(&path, None).is_ok(), alone, "{mode:o}");
            assert_eq!(open_trusted(&path, Some(&like)).is_ok(), beside, "{mode:o} beside {other_mode:o}");
        }
        set(&path, 0o644);
        symlink("file", dir.path().join("link")).unwrap();
        assert!(open_trusted(&dir.path().join("link"), None).is_err());
        assert_eq!(open_trusted(&dir.path().join("none"), None).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn files_are_created_and_continued_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (name, make) in [
            ("symbolic", (|victim, link| symlink(victim, link)) as fn(&Path, &Path) -> io::Result<()>),
            ("hard", |victim, link| fs::hard_link(victim, link)),
        ] {
            let victim = at("victim");
            for open in [create, resume] {
                fs::write(&victim, "precious").unwrap();
                let _ = fs::remove_file(at(name));
                make(&victim, &at(name)).unwrap();
                io::Write::write_all(&mut open(&at(name)).unwrap(), b"new").unwrap();
                assert_eq!(fs::read(&victim).unwrap(), b"precious", "{name}");
                assert_eq!(fs::read(at(name)).unwrap(), b"new", "{name}");
            }
        }
        fs::write(at("begun"), "half").unwrap();
        assert_eq!(resume(&at("begun")).unwrap().metadata().unwrap().len(), 4);
    }

    #[test]
    fn a_directory_is_taken_over_only_if_all_in_it_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let own = |name: &str| own_directory(&at(name), |entry| entry == "ours");
        assert_eq!(own("work").unwrap(), [""; 0].map(PathBuf::from));
        fs::write(at("work/ours"), "x").unwrap();
        assert_eq!(own("work").unwrap(), [at("work/ours")]);
        fs::write(at("work/thesis"), "x").unwrap();
        assert!(own("work").unwrap_err().to_string().contains("holds thesis"));
        fs::remove_file(at("work/thesis")).unwrap();
        fs::create_dir(at("work/deep")).unwrap();
        assert_eq!(own("work").unwrap(), [at("work/ours")]);
        fs::create_dir(at("work/deep")).unwrap();
        fs::write(at("work/deep/thesis"), "x").unwrap();
        assert!(own("work").unwrap_err().to_string().contains("holds deep/"));
        fs::create_dir(at("victim")).unwrap();
        symlink("victim", at("link")).unwrap();
        assert!(own("link").unwrap_err().to_string().contains("is a symbolic link"));
        fs::write(at("file"), "x").unwrap();
        assert!(own("file").unwrap_err().to_string().contains("is a file"));
    }
}
