//! The cache of Python's huggingface_hub: `blobs/ETAG`, `snapshots/COMMIT/FILE` with links to the blobs,
//! `refs/REVISION`, and `.locks`. Python programs and this program can use the cache at the same time. Only this
//! program uses the directories `layer0/COMMIT/`.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde::de::IgnoredAny;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::client::{Client, FileMetadata};
use crate::error::{FileError, HubError, RequestError, RequestErrorKind};
use crate::extract::staging::Lock;
use crate::location::HubId;
use crate::progress::Progress;
use layer0_files::{self as files, json};

/// The part of the cache that belongs to one model.
pub struct ModelCache {
    root: PathBuf,
    folder: String,
    revision: String,
    repo: CacheRepo,
}

impl ModelCache {
    pub fn new(root: &Path, id: &HubId) -> Self {
        let repo = Repo::with_revision(id.name.clone(), RepoType::Model, id.revision.clone());
        let folder = repo.folder_name();
        let cache = Cache::new(root.to_owned()).repo(repo);
        Self { root: root.to_owned(), folder, revision: id.revision.clone(), repo: cache }
    }

    fn dir(&self) -> PathBuf {
        self.root.join(&self.folder)
    }

    /// Returns the directory of a commit's files. It holds the files that have been fetched so far.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo.pointer_path(commit)
    }

    /// Returns the path of a commit's layer-0 directory, which may not exist yet.
    pub fn layer0(&self, commit: &str) -> PathBuf {
        self.dir().join("layer0").join(commit)
    }

    /// Returns the commit to which the revision referred when the Hub was last asked. A revision that is itself a
    /// commit is returned unchanged.
    pub fn commit(&self) -> Option<String> {
        if is_commit(&self.revision) {
            return Some(self.revision.clone());
        }
        let commit = files::read_to_string(&self.dir().join("refs").join(&self.revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Records the commit of the revision. If the same commit is already recorded, nothing is written, because this
    /// user may have no permission to write to the cache.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn remember(&self, commit: &str) -> Result<(), HubError> {
        if self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.dir().join("refs").join(&self.revision);
        Ok(replace(&path, |new| fs::write(new, commit)).map_err(|e| refused(&path, &e))?)
    }

    /// Returns the path of a file of that commit. If the cache lacks the file, it is fetched, and checked before it is
    /// added to the cache.
    ///
    /// # Errors
    /// Returns an error if the file cannot be fetched, or differs from the Hub's description.
    pub fn file(
        &self,
        client: &Client<'_>,
        commit: &str,
        file: &str,
        progress: &dyn Progress,
    ) -> Result<PathBuf, HubError> {
        let pointer = self.snapshot(commit).join(file);
        if pointer.exists() {
            return Ok(pointer);
        }
        let url = client.file_url(commit, file);
        let metadata = client.metadata(&url)?;
        let blob = self.dir().join("blobs").join(&metadata.etag);
        if !blob.exists() {
            let locks = self.root.join(".locks").join(&self.folder);
            let blobs = self.dir().join("blobs");
            for dir in [&locks, &blobs] {
                fs::create_dir_all(dir).map_err(|e| refused(dir, &e))?;
            }
            let _lock = Lock::take(&locks.join(format!("{}.lock", metadata.etag)), Some(progress))?;
            if !blob.exists() {
                fetch(client, &url, file, &metadata, &blob, progress)?;
            }
        }
        link(&blob, &pointer).map_err(|e| refused(&pointer, &e))?;
        Ok(pointer)
    }
}

/// Returns the error for a file of the cache that cannot be written.
fn refused(path: &Path, error: &io::Error) -> FileError {
    let found = FileError::writing(path, error);
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => found.remedy(
            "set HF_HOME to a directory that this user may write to, or run the command as the owner of the cache",
        ),
        _ => found,
    }
}

/// Returns whether a revision is a commit. The content of a commit never changes.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
}

/// Fetches a file into `blob.incomplete`, continues a download that an earlier run began, and renames the file when it
/// is complete and has been verified.
fn fetch(
    client: &Client<'_>,
    url: &str,
    name: &str,
    metadata: &FileMetadata,
    blob: &Path,
    progress: &dyn Progress,
) -> Result<(), HubError> {
    let incomplete = blob.with_file_name(format!("{}.incomplete", metadata.etag));
    let failed = |e: io::Error| refused(&incomplete, &e);
    let mut file = files::resume(&incomplete).map_err(failed)?;
    let mut there = file.metadata().map_err(failed)?.len();
    loop {
        if there > metadata.size {
            file.set_len(0).map_err(failed)?;
            there = 0;
        }
        file.seek(SeekFrom::Start(there)).map_err(failed)?;
        progress.start(name, there, metadata.size);
        client.copy(url, (there, metadata.size), metadata.size, true, &mut |piece| {
            progress.advance(piece.len() as u64);
            file.write_all(piece).map_err(failed)
        })?;
        progress.finish();
        file.sync_all().map_err(failed)?;
        if let Err(problem) = verify(&mut file, name, metadata).map_err(failed)? {
            file.set_len(0).map_err(failed)?;
            // The part that an earlier run left may be wrong, so the file is fetched once more from the start.
            if std::mem::take(&mut there) > 0 {
                continue;
            }
            drop(file);
            let _ = fs::remove_file(&incomplete);
            return Err(RequestError::new(RequestErrorKind::WrongAnswer, url, problem)
                .expected("the bytes that the Hub has")
                .remedy("they changed on their way: run the same again; a proxy that alters files must be told not to. Nothing of it was kept")
                .into());
        }
        return Ok(fs::rename(&incomplete, blob).map_err(failed)?);
    }
}

/// Checks the file against its ETag, which is the SHA-256 of a large file and git's SHA-1 of a small one. With any
/// other ETag, a file with the extension .json must at least be JSON.
fn verify(file: &mut File, name: &str, metadata: &FileMetadata) -> io::Result<Result<(), String>> {
    let len = file.metadata()?.len();
    if len != metadata.size {
        return Ok(Err(format!("has {len} bytes, not {}", metadata.size)));
    }
    file.seek(SeekFrom::Start(0))?;
    let hex = metadata.etag.bytes().all(|b| b.is_ascii_hexdigit());
    let (digest, kind) = match metadata.etag.len() {
        64 if hex => (digest::<Sha256>(file, b"")?, "sha256"),
        40 if hex => (digest::<Sha1>(file, format!("blob {len}\0").as_bytes())?, "git sha1"),
        _ if name.ends_with(".json") => {
            let mut content = Vec::new();
            file.read_to_end(&mut content)?;
            let parsed: Result<IgnoredAny, _> = json::from_slice(&content);
            return Ok(parsed.map(|_| ()).map_err(|e| format!("is not JSON: {e}")));
        }
        _ => return Ok(Ok(())),
    };
    let same = digest.eq_ignore_ascii_case(&metadata.etag);
    Ok(if same { Ok(()) } else { Err(format!("has the {kind} {digest}, not {}", metadata.etag)) })
}

fn digest<D: Digest>(file: &mut File, start: &[u8]) -> io::Result<String> {
    let mut hash = D::new();
    hash.update(start);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(files::hexadecimal(&hash.finalize()));
        }
        hash.update(buffer.get(..n).unwrap_or_default());
    }
}

/// Creates a relative link, as huggingface_hub does, or a copy if links are not supported.
fn link(blob: &Path, pointer: &Path) -> io::Result<()> {
    replace(pointer, |new| {
        #[cfg(unix)]
        {
            let name = blob.file_name().unwrap_or_default();
            std::os::unix::fs::symlink(Path::new("../../blobs").join(name), new)
        }
        #[cfg(not(unix))]
        fs::copy(blob, new).map(|_| ())
    })
}

/// Creates a file under a temporary name and renames it, so that no other process sees an incomplete file.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let new = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let _ = fs::remove_file(&new);
    make(&new)?;
    fs::rename(&new, path)
}
