//! Stores the output in parts, each of which is moved to its place atomically. A later run continues with the parts
//! that an interrupted run finished.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::BulkError;
use layer0::extract::staging::Lock;
use layer0_files::{self as files, Diagnostic, FileError};

/// The parts of one output, in the directory `.NAME.parts` beside the output, and a lock that gives this process
/// exclusive access.
pub struct Parts {
    dir: PathBuf,
    earlier: BTreeMap<usize, Part>,
    lock: PathBuf,
    // Fields are dropped in order, so the lock is released last.
    _lock: Lock,
}

/// The counts and the checksum of one part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Part {
    pub rows: u64,
    pub skipped: u64,
    pub tokens: u64,
    /// The size of the part's file, in bytes.
    pub size: u64,
    /// The first half of the SHA-256 of the part's bytes.
    pub digest: u128,
}

/// The name of the file that identifies the run. Parts of a run with another identity are not reused.
const IDENTITY: &str = "run.json";
/// The suffix of a file's name while the file is being written.
const INCOMPLETE: &str = ".incomplete";

impl Parts {
    /// Opens the parts directory beside `out`. It keeps the complete parts of an earlier run with the same `identity`.
    ///
    /// # Errors
    /// Fails if another process writes this output, if the directory holds parts of a run with another identity and
    /// `restart` is false, or if the directory was not created by a run of this user.
    pub fn open(out: &Path, identity: &str, restart: bool) -> Result<Self, BulkError> {
        let name = out
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| Diagnostic::new(out, "is no place to write to").expected("the name of a file"))
            .map_err(BulkError::Output)?;
        let dir = out.with_file_name(format!(".{name}.parts"));
        let failed = |e: std::io::Error| FileError::writing(&dir, &e);
        let lock = out.with_file_name(format!(".{name}.lock"));
        let held = Lock::take(&lock, None)?;
        let found = files::own_directory(&dir, is_own_name).inspect_err(|_| drop(fs::remove_file(&lock)))?;
        let mut parts = Self { dir: dir.clone(), earlier: BTreeMap::new(), lock, _lock: held };
        let identity_path = dir.join(IDENTITY);
        let earlier = match files::read_to_string(&identity_path) {
            Ok(earlier) => Some(earlier),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed(e).into()),
        };
        if !restart && earlier.as_deref() == Some(identity) {
            parts.earlier = parts.find().map_err(failed)?;
            // A part whose bytes have changed since it was written is computed again.
            parts.earlier.retain(|&number, part| part.is_whole(&dir.join(part.file_name(number))));
            return Ok(parts);
        }
        if !restart && earlier.is_some() && !parts.find().map_err(failed)?.is_empty() {
            let problem = "holds parts of a run with other inputs, another model or other settings";
            return Err(BulkError::OtherRun(Diagnostic::new(&dir, problem)));
        }
        // The files in the directory are not needed: their run finished no part, or the caller asked to discard them.
        for path in found {
            fs::remove_file(&path).map_err(failed)?;
        }
        parts.place(IDENTITY, identity.as_bytes())?;
        Ok(parts)
    }

    /// Returns the part with this number if an earlier run made it.
    pub fn earlier(&self, number: usize) -> Option<&Part> {
        self.earlier.get(&number)
    }

    pub fn count_of_earlier(&self) -> usize {
        self.earlier.len()
    }

    /// Writes a part to its place.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn put(&self, number: usize, part: Part, bytes: &[u8]) -> Result<(), BulkError> {
        let part = Part { size: bytes.len() as u64, digest: digest(bytes), ..part };
        self.place(&part.file_name(number), bytes)
    }

    /// Returns the files of the parts in order. Each file is read once more and compared with its digest.
    ///
    /// # Errors
    /// Fails if the directory cannot be read, if parts are missing, or if the bytes of a part have changed since it was
    /// written.
    pub fn in_order(&self) -> Result<Vec<(PathBuf, Part)>, BulkError> {
        let found = self.find().map_err(|e| FileError::reading(&self.dir, &e))?;
        if let Some(missing) = (0..).zip(found.keys()).find_map(|(i, &number)| (i != number).then_some(i)) {
            let problem = format!("lacks part {missing}: something else deleted it");
            return Err(BulkError::DamagedPart(Diagnostic::new(&self.dir, problem)));
        }
        let in_place = |(number, part): (usize, Part)| (self.dir.join(part.file_name(number)), part);
        let found: Vec<(PathBuf, Part)> = found.into_iter().map(in_place).collect();
        if let Some((path, _)) = found.iter().find(|(path, part)| !part.is_whole(path)) {
            let problem = "has other bytes than were written: something changed it, or the disk fails";
            let problem = Diagnostic::new(path, problem).remedy("run the same again: this part is then made anew");
            return Err(BulkError::DamagedPart(problem));
        }
        Ok(found)
    }

    /// Deletes the directory with all parts.
    ///
    /// # Errors
    /// Fails if a file cannot be deleted.
    pub fn remove(&self) -> Result<(), BulkError> {
        let failed = |e: std::io::Error| FileError::writing(&self.dir, &e);
        for (path, _) in files::entries(&self.dir).map_err(failed)? {
            if path.file_name().and_then(|name| name.to_str()).is_some_and(is_own_name) {
                fs::remove_file(&path).map_err(failed)?;
            }
        }
        Ok(fs::remove_dir(&self.dir).map_err(failed)?)
    }

    fn place(&self, name: &str, bytes: &[u8]) -> Result<(), BulkError> {
        let written = self.dir.join(format!("{name}{INCOMPLETE}"));
        let result = files::create(&written)
            .and_then(|mut file| file.write_all(bytes))
            .and_then(|()| fs::rename(&written, self.dir.join(name)));
        Ok(result.map_err(|e| FileError::writing(&written, &e))?)
    }

    fn find(&self) -> std::io::Result<BTreeMap<usize, Part>> {
        let mut found = BTreeMap::new();
        for entry in self.dir.read_dir()? {
            let entry = entry?;
            if let Some((number, part)) = entry.file_name().to_str().and_then(Part::parse)
                && entry.metadata()?.len() == part.size
            {
                found.insert(number, part);
            }
        }
        Ok(found)
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        // A run that finished no part removes the directory, so that a later run with other settings has nothing to
        // discard.
        if self.find().is_ok_and(|found| found.is_empty()) {
            let _ = self.remove();
        }
        let _ = fs::remove_file(&self.lock);
    }
}

/// Tells whether this module uses names like `name` in the parts directory.
fn is_own_name(name: &str) -> bool {
    let name = name.strip_suffix(INCOMPLETE).unwrap_or(name);
    name == IDENTITY || name.ends_with(".part")
}

fn digest(bytes: &[u8]) -> u128 {
    half_of(&Sha256::digest(bytes))
}

fn half_of(digest: &[u8]) -> u128 {
    digest.first_chunk().map_or(0, |half| u128::from_be_bytes(*half))
}

impl Part {
    /// Returns the file name. It contains the size and the digest, because after a power failure a file may exist
    /// without its content.
    fn file_name(self, number: usize) -> String {
        let Self { rows, skipped, tokens, size, digest } = self;
        format!("{number:08}-{rows}-{skipped}-{tokens}-{size}-{digest:032x}.part")
    }

    fn parse(name: &str) -> Option<(usize, Self)> {
        let (numbers, digest) = name.strip_suffix(".part")?.rsplit_once('-')?;
        let digest = u128::from_str_radix(digest, 16).ok().filter(|_| digest.len() == 32)?;
        let mut numbers = numbers.split('-').map(|n| n.parse::<u64>().ok());
        let number = usize::try_from(numbers.next()??).ok()?;
        let [rows, skipped, tokens, size] = std::array::from_fn(|_| numbers.next().flatten());
        Some((number, Self { rows: rows?, skipped: skipped?, tokens: tokens?, size: size?, digest }))
    }

    /// Tells whether the file at `path` still has the bytes with which the part was written.
    fn is_whole(&self, path: &Path) -> bool {
        let Ok(mut file) = files::open(path) else { return false };
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return half_of(&hash.finalize()) == self.digest,
                Ok(read) => hash.update(buffer.get(..read).unwrap_or_default()),
                Err(_) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Part = Part { rows: 3, skipped: 1, tokens: 9, size: 0, digest: 0 };

    fn name(part: Part, number: usize, bytes: &[u8]) -> String {
        Part { size: bytes.len() as u64, digest: digest(bytes), ..part }.file_name(number)
    }

    #[test]
    fn parts_outlive_a_run_unless_they_are_torn_or_of_another_run() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out.npy");
        let place = dir.path().join(".out.npy.parts");
        let parts = Parts::open(&out, "a", false).unwrap();
        for number in 0..4 {
            parts.put(number, ONE, b"12345").unwrap();
        }
        // Part 1 was cut off by a power failure. Part 3 was changed by a failing disk, and its size is the same.
        fs::write(place.join(name(ONE, 1, b"12345")), "123").unwrap();
        fs::write(place.join(name(ONE, 3, b"12345")), "12335").unwrap();
        fs::write(place.join("00000004-1-1-1-1-0.part.incomplete"), "x").unwrap();
        assert!(Parts::open(&out, "a", false).is_err(), "locked");
        drop(parts);
        assert!(Parts::open(&out, "b", false).is_err());
        let parts = Parts::open(&out, "a", false).unwrap();
        let earlier = |number| parts.earlier(number).map(|part| part.rows);
        assert_eq!([earlier(0), earlier(1), earlier(2), earlier(3)], [Some(3), None, Some(3), None]);
        assert!(parts.in_order().is_err());
        parts.put(1, ONE, b"54321").unwrap();
        let changed = parts.in_order().unwrap_err().to_string();
        assert!(changed.contains("00000003-") && changed.contains("other bytes"), "{changed}");
        parts.put(3, ONE, b"12345").unwrap();
        let files: Vec<_> = parts.in_order().unwrap().into_iter().map(|(path, _)| fs::read(path).unwrap()).collect();
        assert_eq!(files, [b"12345", b"54321", b"12345", b"12345"]);
        drop(parts);
        assert_eq!(Parts::open(&out, "b", true).unwrap().count_of_earlier(), 0);
    }

    #[test]
    fn a_run_without_a_finished_part_leaves_nothing_and_blocks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out.npy");
        drop(Parts::open(&out, "a", false).unwrap());
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
        // A killed process leaves the file that identifies its run.
        fs::create_dir(dir.path().join(".out.npy.parts")).unwrap();
        fs::write(dir.path().join(".out.npy.parts/run.json"), "a").unwrap();
        assert!(Parts::open(&out, "b", false).is_ok());
    }

    #[cfg(unix)]
    #[test]
    fn what_no_run_left_is_neither_followed_nor_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out.npy");
        let (place, victim) = (dir.path().join(".out.npy.parts"), dir.path().join("victim"));
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("thesis"), "x").unwrap();
        std::os::unix::fs::symlink(&victim, &place).unwrap();
        for restart in [false, true] {
            let error = Parts::open(&out, "a", restart).err().unwrap().to_string();
            assert!(error.contains("symbolic link"), "{error}");
        }
        fs::remove_file(&place).unwrap();
        fs::create_dir(&place).unwrap();
        fs::write(place.join("thesis"), "x").unwrap();
        assert!(Parts::open(&out, "a", true).err().unwrap().to_string().contains("holds thesis"));
        assert!(victim.join("thesis").exists() && place.join("thesis").exists());
    }
}
