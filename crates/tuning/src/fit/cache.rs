//! Keeps the answers of a teacher on disk, so that no text is ever requested twice.
//!
//! There is one file per address, model and prefix. Its name is derived from the SHA-256 of the three. The first line of
//! the file is JSON that states the three and the number of dimensions of the vectors. Records of equal size follow, and
//! are appended as answers arrive:
//!
//! ```text
//! sha256 of the text   32 bytes
//! vector               dimensions x f32, little-endian
//! check                the first 8 bytes of the SHA-256 of the two fields above
//! ```
//!
//! A killed process leaves at most one torn record at the end of the file. The next process that opens the file cuts
//! off the torn record. A record whose check fails is ignored.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::FitError;
use layer0::extract::staging::Lock;
use layer0::progress::Progress;
use layer0_files::{self as files, Diagnostic, FileError};

const FORMAT: &str = "embedding-server teacher cache 1";
const MAX_HEADER: u64 = 64 << 10;
const MAX_DIMENSIONS: usize = 1 << 16;
const CHECK: usize = 8;

/// The key of a text in the cache: the SHA-256 of the text.
pub type Key = [u8; 32];

/// The teacher and the prefix whose vectors a cache file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The address of the endpoint.
    pub url: String,
    /// The name of the model.
    pub model: String,
    /// The prefix that is put before each text that is sent.
    pub prefix: String,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    #[serde(flatten)]
    identity: Identity,
    dimensions: usize,
}

/// The cached vectors of one teacher. Only one process at a time holds a cache file.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
    identity: Identity,
    /// The open file. It is `None` until the first answer is stored.
    store: Option<Store>,
    _lock: Lock,
}

#[derive(Debug)]
struct Store {
    file: File,
    dimensions: usize,
    /// The offset of the first record, in bytes.
    start: u64,
    records: u64,
    index: HashMap<Key, u64>,
}

impl Cache {
    /// Opens or creates the cache file of `identity` in `dir`. If another process holds the file, the call waits until
    /// that process releases it.
    ///
    /// # Errors
    /// Fails if the file or the directory cannot be read or written, or if the file is not a cache of this teacher.
    pub fn open(dir: &Path, identity: Identity, progress: &dyn Progress) -> Result<Self, FitError> {
        std::fs::create_dir_all(dir).map_err(|e| FileError::writing(dir, &e))?;
        let name = [&identity.url, &identity.model, &identity.prefix]
            .map(|part| files::hexadecimal(&Sha256::digest(part.as_bytes())));
        let name = files::hexadecimal(&Sha256::digest(name.concat().as_bytes()));
        let path = dir.join(format!("{}.vectors", name.get(..32).unwrap_or(&name)));
        let lock = Lock::take(&path.with_extension("lock"), Some(progress))?;
        let store = Store::open(&path, &identity)?;
        Ok(Self { path, identity, store, _lock: lock })
    }

    /// Returns the path of the cache file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the key of a text: its digest.
    pub fn key(text: &str) -> Key {
        Sha256::digest(text.as_bytes()).into()
    }

    /// Returns whether the vector of the text with this key is cached.
    pub fn contains(&self, key: &Key) -> bool {
        self.store.as_ref().is_some_and(|store| store.index.contains_key(key))
    }

    /// Returns the vector of the text with this key, or `None` if the cache has none.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn get(&mut self, key: &Key) -> Result<Option<Vec<f32>>, FitError> {
        let Some(store) = &mut self.store else { return Ok(None) };
        let Some(&record) = store.index.get(key) else { return Ok(None) };
        Ok(store.vector(record).map(Some).map_err(|e| FileError::reading(&self.path, &e))?)
    }

    /// Appends vectors. They must have as many dimensions as the vectors in the file.
    ///
    /// # Errors
    /// Fails if a vector has another number of dimensions, or if the file cannot be written.
    pub fn append(&mut self, answers: &[(Key, Vec<f32>)]) -> Result<(), FitError> {
        let Some((_, first)) = answers.first() else { return Ok(()) };
        let failed = |e: io::Error| FileError::writing(&self.path, &e);
        let store = match &mut self.store {
            Some(store) => store,
            none => none.insert(Store::create(&self.path, &self.identity, first.len()).map_err(failed)?),
        };
        if let Some((_, other)) = answers.iter().find(|(_, vector)| vector.len() != store.dimensions) {
            let (stored, answered) = (store.dimensions, other.len());
            let problem = format!("holds vectors of {stored} numbers, and the teacher answered {answered}");
            let problem = Diagnostic::new(&self.path, problem);
            return Err(FitError::OutdatedCache(problem.expected("vectors of one length")));
        }
        Ok(store.append(answers).map_err(failed)?)
    }

    /// Flushes everything that was appended to the disk.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn sync(&self) -> Result<(), FitError> {
        let Some(store) = &self.store else { return Ok(()) };
        Ok(store.file.sync_data().map_err(|e| FileError::writing(&self.path, &e))?)
    }
}

impl Store {
    const fn record(dimensions: usize) -> usize {
        size_of::<Key>() + dimensions * size_of::<f32>() + CHECK
    }

    /// Opens the cache file. Returns `None` if there is no file, or only an incomplete first line.
    fn open(path: &Path, identity: &Identity) -> Result<Option<Self>, FitError> {
        let failed = |e: io::Error| FileError::reading(path, &e);
        let file = match OpenOptions::new().read(true).append(true).open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        let mut reader = BufReader::with_capacity(1 << 20, &file);
        let mut line = Vec::new();
        (&mut reader).take(MAX_HEADER).read_until(b'\n', &mut line).map_err(failed)?;
        let start = line.len() as u64;
        if line.last() != Some(&b'\n') && start < MAX_HEADER {
            // The process that wrote the file was killed before it stored the first answer.
            return Ok(None);
        }
        let header = serde_json::from_slice::<Header>(&line).ok();
        let header = header
            .filter(|h| h.format == FORMAT && h.identity == *identity && (1..=MAX_DIMENSIONS).contains(&h.dimensions));
        let Some(Header { dimensions, .. }) = header else {
            return Err(FitError::ForeignCache(Diagnostic::new(path, "is no cache of this teacher")));
        };
        let mut record = vec![0; Self::record(dimensions)];
        let (mut index, mut records) = (HashMap::new(), 0);
        loop {
            match reader.read_exact(&mut record) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
                read => read.map_err(failed)?,
            }
            if let Some(key) = checked(&record) {
                index.insert(key, records);
            }
            records += 1;
        }
        file.set_len(start + records * record.len() as u64).map_err(failed)?;
        Ok(Some(Self { file, dimensions, start, records, index }))
    }

    fn create(path: &Path, identity: &Identity, dimensions: usize) -> io::Result<Self> {
        let header = Header { format: FORMAT.to_owned(), identity: identity.clone(), dimensions };
        let line = format!("{}\n", serde_json::to_string(&header)?);
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        file.set_len(0)?;
        (&file).write_all(line.as_bytes())?;
        Ok(Self { file, dimensions, start: line.len() as u64, records: 0, index: HashMap::new() })
    }

    fn append(&mut self, answers: &[(Key, Vec<f32>)]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(answers.len() * Self::record(self.dimensions));
        for (key, vector) in answers {
            let mut record = key.to_vec();
            record.extend(vector.iter().flat_map(|x| x.to_le_bytes()));
            record.extend(check(&record));
            bytes.extend(record);
        }
        self.file.write_all(&bytes)?;
        for (key, _) in answers {
            self.index.insert(*key, self.records);
            self.records += 1;
        }
        Ok(())
    }

    fn vector(&mut self, record: u64) -> io::Result<Vec<f32>> {
        let at = self.start + record * Self::record(self.dimensions) as u64 + size_of::<Key>() as u64;
        let mut bytes = vec![0; self.dimensions * size_of::<f32>()];
        self.file.seek(SeekFrom::Start(at))?;
        self.file.read_exact(&mut bytes)?;
        Ok(bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect())
    }
}

fn check(record: &[u8]) -> [u8; CHECK] {
    let digest = Sha256::digest(record);
    digest.first_chunk().copied().unwrap_or_default()
}

/// Returns the key of a record, or `None` if the check of the record fails.
fn checked(record: &[u8]) -> Option<Key> {
    let (content, stored) = record.split_last_chunk()?;
    (check(content) == *stored).then(|| content.first_chunk().copied())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer0::progress::Silent;

    fn identity() -> Identity {
        Identity { url: "http://x/v1/embeddings".into(), model: "m".into(), prefix: "query: ".into() }
    }

    fn open(dir: &Path) -> Cache {
        Cache::open(dir, identity(), &Silent).unwrap()
    }

    fn answers(texts: &[&str]) -> Vec<(Key, Vec<f32>)> {
        texts.iter().map(|text| (Cache::key(text), vec![text.len() as f32, -0.5])).collect()
    }

    #[test]
    fn a_file_cut_anywhere_keeps_all_whole_records_and_takes_new_ones() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = open(dir.path());
        cache.append(&answers(&["a", "bb"])).unwrap();
        cache.append(&answers(&["ccc"])).unwrap();
        let path = cache.path().to_owned();
        drop(cache);
        let whole = std::fs::read(&path).unwrap();
        let record = Store::record(2);
        let start = whole.len() - 3 * record;
        for length in 0..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut cache = open(dir.path());
            let kept = length.saturating_sub(start) / record;
            for (n, text) in ["a", "bb", "ccc"].iter().enumerate() {
                let found = cache.get(&Cache::key(text)).unwrap();
                assert_eq!(found, (n < kept).then(|| vec![text.len() as f32, -0.5]), "{text} of {length} bytes");
            }
            cache.append(&answers(&["dddd"])).unwrap();
            drop(cache);
            let mut cache = open(dir.path());
            assert_eq!(cache.get(&Cache::key("dddd")).unwrap(), Some(vec![4.0, -0.5]), "after {length} bytes");
            assert_eq!(cache.contains(&Cache::key("bb")), kept >= 2);
        }
    }

    #[test]
    fn a_damaged_record_is_lost_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = open(dir.path());
        cache.append(&answers(&["a", "bb", "ccc"])).unwrap();
        let path = cache.path().to_owned();
        drop(cache);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() - Store::record(2) - CHECK - 1;
        bytes[middle] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let cache = open(dir.path());
        assert_eq!(["a", "bb", "ccc"].map(|text| cache.contains(&Cache::key(text))), [true, false, true]);
    }

    #[test]
    fn teachers_have_files_of_their_own_and_vectors_one_length() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = open(dir.path());
        cache.append(&answers(&["a"])).unwrap();
        let error = cache.append(&[(Cache::key("b"), vec![1.0; 3])]).unwrap_err().to_string();
        assert!(error.contains("vectors of 2 numbers, and the teacher answered 3"), "{error}");
        for other in [
            Identity { url: "http://y/v1/embeddings".into(), ..identity() },
            Identity { model: "n".into(), ..identity() },
            Identity { prefix: String::new(), ..identity() },
        ] {
            let cache = Cache::open(dir.path(), other, &Silent).unwrap();
            assert!(!cache.contains(&Cache::key("a")));
        }
        let path = cache.path().to_owned();
        drop(cache);
        std::fs::write(&path, "{\"format\": \"another\"}\n").unwrap();
        assert!(
            Cache::open(dir.path(), identity(), &Silent)
                .err()
                .unwrap()
                .to_string()
                .contains("no cache of this teacher")
        );
    }
}
