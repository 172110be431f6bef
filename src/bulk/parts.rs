//! The output in parts, each moved to its place whole: what a run that was cut has done, the next one keeps.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::LoadError;
use crate::extract::staging::Lock;

/// The parts of one output, in `.NAME.parts` beside it, and the lock that makes them this process's.
pub struct Parts {
    dir: PathBuf,
    earlier: BTreeMap<usize, Part>,
    lock: PathBuf,
    // Dropped last.
    _lock: Lock,
}

/// What one part holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Part {
    pub rows: u64,
    pub skipped: u64,
    pub tokens: u64,
    /// Of the part's file.
    pub size: u64,
}

/// What the run is of: parts of another one do not belong to it.
const IDENTITY: &str = "run.json";

impl Parts {
    /// Takes the place beside `out`, with the parts that an earlier run of the same `identity` left there.
    ///
    /// # Errors
    /// When another process writes this output, or an earlier run was another and `restart` does not discard it.
    pub fn open(out: &Path, identity: &str, restart: bool) -> Result<Self, LoadError> {
        let name = out
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| LoadError::new(out, "is no place to write to").expected("the name of a file"))?;
        let dir = out.with_file_name(format!(".{name}.parts"));
        let failed = |e: std::io::Error| LoadError::io(&dir, &e);
        let lock = out.with_file_name(format!(".{name}.lock"));
        let held = Lock::take(&lock, None)?;
        if restart && dir.exists() {
            fs::remove_dir_all(&dir).map_err(failed)?;
        }
        fs::create_dir_all(&dir).map_err(failed)?;
        let mut parts = Self { dir: dir.clone(), earlier: BTreeMap::new(), lock, _lock: held };
        match fs::read_to_string(dir.join(IDENTITY)) {
            Ok(found) if found == identity => parts.earlier = parts.find().map_err(failed)?,
            Ok(_) => {
                return Err(LoadError::new(
                    &dir,
                    "holds parts of a run with other inputs, another model or other settings",
                )
                .remedy("repeat that run, or give --force to begin anew"));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                // Whatever a run left before it said what it was.
                fs::remove_dir_all(&dir).and_then(|()| fs::create_dir_all(&dir)).map_err(failed)?;
                parts.place(IDENTITY, identity.as_bytes())?;
            }
            Err(e) => return Err(failed(e)),
        }
        Ok(parts)
    }

    /// The part of that number, if an earlier run made it.
    pub fn earlier(&self, number: usize) -> Option<&Part> {
        self.earlier.get(&number)
    }

    pub fn count_of_earlier(&self) -> usize {
        self.earlier.len()
    }

    /// Puts a part in its place.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn put(&self, number: usize, part: Part, bytes: &[u8]) -> Result<(), LoadError> {
        self.place(&part.file_name(number), bytes)
    }

    /// The parts' files in order.
    ///
    /// # Errors
    /// When the directory cannot be read, or parts are missing from it.
    pub fn in_order(&self) -> Result<Vec<(PathBuf, Part)>, LoadError> {
        let found = self.find().map_err(|e| LoadError::io(&self.dir, &e))?;
        if let Some(missing) = (0..).zip(found.keys()).find_map(|(i, &number)| (i != number).then_some(i)) {
            return Err(LoadError::new(&self.dir, format!("lacks part {missing}: something else deleted it")));
        }
        Ok(found.into_iter().map(|(number, part)| (self.dir.join(part.file_name(number)), part)).collect())
    }

    /// Deletes them all.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(&self) -> Result<(), LoadError> {
        fs::remove_dir_all(&self.dir).map_err(|e| LoadError::io(&self.dir, &e))
    }

    fn place(&self, name: &str, bytes: &[u8]) -> Result<(), LoadError> {
        let written = self.dir.join(format!("{name}.incomplete"));
        let result = fs::write(&written, bytes).and_then(|()| fs::rename(&written, self.dir.join(name)));
        result.map_err(|e| LoadError::io(&written, &e))
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
        let _ = fs::remove_file(&self.lock);
    }
}

impl Part {
    /// The size is in the name: after a power failure a file may be there and its content not.
    fn file_name(self, number: usize) -> String {
        format!("{number:08}-{}-{}-{}-{}.part", self.rows, self.skipped, self.tokens, self.size)
    }

    fn parse(name: &str) -> Option<(usize, Self)> {
        let mut numbers = name.strip_suffix(".part")?.split('-').map(|n| n.parse::<u64>().ok());
        let number = usize::try_from(numbers.next()??).ok()?;
        let [rows, skipped, tokens, size] = std::array::from_fn(|_| numbers.next().flatten());
        Some((number, Self { rows: rows?, skipped: skipped?, tokens: tokens?, size: size? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Part = Part { rows: 3, skipped: 1, tokens: 9, size: 5 };

    #[test]
    fn parts_outlive_a_run_unless_they_are_torn_or_of_another_run() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out.npy");
        let parts = Parts::open(&out, "a", false).unwrap();
        parts.put(0, ONE, b"12345").unwrap();
        parts.put(2, ONE, b"12345").unwrap();
        parts.put(1, ONE, b"123").unwrap();
        fs::write(dir.path().join(".out.npy.parts/00000003-1-1-1-1.part.incomplete"), "x").unwrap();
        assert!(Parts::open(&out, "a", false).is_err(), "locked");
        drop(parts);
        assert!(Parts::open(&out, "b", false).is_err());
        let parts = Parts::open(&out, "a", false).unwrap();
        assert_eq!((parts.earlier(0), parts.earlier(1), parts.earlier(2)), (Some(&ONE), None, Some(&ONE)));
        assert!(parts.in_order().is_err());
        parts.put(1, ONE, b"54321").unwrap();
        let files: Vec<_> = parts.in_order().unwrap().into_iter().map(|(path, _)| fs::read(path).unwrap()).collect();
        assert_eq!(files, [b"12345", b"54321", b"12345"]);
        drop(parts);
        assert_eq!(Parts::open(&out, "b", true).unwrap().count_of_earlier(), 0);
    }
}
