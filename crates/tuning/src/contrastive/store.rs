//! Stores the tokens of pairs on disk, so that pairs are tokenized once and need not fit in memory.
//!
//! A store consists of two unnamed files, which the operating system deletes when the process ends. One holds the
//! tokens of all texts as little-endian `u32`, sorted within each text. The other holds a record of [`RECORD`] bytes for
//! each pair. Both are memory-mapped while they are read, so the operating system can evict their pages.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::FitError;
use layer0::checkpoint::map::Map;
use layer0_files::FileError;

/// The size of a pair's record in bytes: the index of its first token, the numbers of tokens of its anchor and of its
/// positive, and the digests of their texts.
const RECORD: usize = 32;

/// A pair as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPair {
    /// The tokens of the anchor and those of the positive, each in ascending order.
    pub sides: [Vec<u32>; 2],
    /// The digests of the two texts ([`super::masks::digest`]).
    pub digests: [u64; 2],
}

/// A pair in a store: the tokens of its two sides as little-endian numbers, and the digests of its two texts.
pub type Stored<'a> = ([&'a [[u8; 4]]; 2], [u64; 2]);

/// A writer of pairs.
pub struct Writer {
    tokens: BufWriter<File>,
    records: BufWriter<File>,
    dir: PathBuf,
    written: u64,
    pairs: usize,
}

/// Stored pairs.
#[derive(Debug)]
pub struct Store {
    /// The maps of the tokens and of the records, or `None` if there are no pairs.
    maps: Option<[Map; 2]>,
    pairs: usize,
}

impl Writer {
    /// Creates two unnamed files in `dir`.
    ///
    /// # Errors
    /// Fails if the files cannot be created.
    pub fn new(dir: &Path) -> Result<Self, FitError> {
        let file = || -> Result<_, FitError> {
            let file = tempfile::tempfile_in(dir).map_err(|e| FileError::writing(dir, &e))?;
            Ok(BufWriter::with_capacity(1 << 20, file))
        };
        Ok(Self { tokens: file()?, records: file()?, dir: dir.to_owned(), written: 0, pairs: 0 })
    }

    pub fn len(&self) -> usize {
        self.pairs
    }

    /// Appends a pair.
    ///
    /// # Errors
    /// Fails if a file cannot be written.
    pub fn push(&mut self, pair: &TokenPair) -> Result<(), FitError> {
        let mut record = [0; RECORD];
        let lengths = pair.sides.each_ref().map(|side| u32::try_from(side.len()).unwrap_or(u32::MAX).to_le_bytes());
        let [anchor, positive] = pair.digests.map(u64::to_le_bytes);
        let parts = [&self.written.to_le_bytes()[..], &lengths[0], &lengths[1], &anchor, &positive];
        for (slot, byte) in record.iter_mut().zip(parts.into_iter().flatten()) {
            *slot = *byte;
        }
        let write = |this: &mut Self| {
            for id in pair.sides.iter().flatten() {
                this.tokens.write_all(&id.to_le_bytes())?;
            }
            this.records.write_all(&record)
        };
        write(self).map_err(|e| FileError::writing(&self.dir, &e))?;
        self.written += pair.sides.iter().map(|side| side.len() as u64).sum::<u64>();
        self.pairs += 1;
        Ok(())
    }

    /// Finishes writing, and opens the pairs for reading.
    ///
    /// # Errors
    /// Fails if a file cannot be written or mapped.
    pub fn finish(self) -> Result<Store, FitError> {
        let Self { tokens, records, dir, pairs, .. } = self;
        let map = |file: BufWriter<File>| -> Result<Map, FitError> {
            let file = file.into_inner().map_err(|e| FileError::writing(&dir, e.error()))?;
            Ok(Map::of(&file, &dir)?)
        };
        let maps = if pairs > 0 { Some([map(tokens)?, map(records)?]) } else { None };
        Ok(Store { maps, pairs })
    }
}

impl Store {
    pub fn len(&self) -> usize {
        self.pairs
    }

    /// Returns pair `index`.
    pub fn pair(&self, index: usize) -> Option<Stored<'_>> {
        let [tokens, records] = self.maps.as_ref()?;
        let record = records.as_ref().get(index * RECORD..)?;
        let (&start, rest) = record.split_first_chunk::<8>()?;
        let (&anchor, rest) = rest.split_first_chunk::<4>()?;
        let (&positive, rest) = rest.split_first_chunk::<4>()?;
        let (&first, rest) = rest.split_first_chunk::<8>()?;
        let (&second, _) = rest.split_first_chunk::<8>()?;
        let start = usize::try_from(u64::from_le_bytes(start)).ok()?;
        let [anchor, positive] = [anchor, positive].map(|length| u32::from_le_bytes(length) as usize);
        let (tokens, _) = tokens.as_ref().as_chunks::<4>();
        let both = tokens.get(start..start + anchor + positive)?;
        let (anchor, positive) = both.split_at_checked(anchor)?;
        Some(([anchor, positive], [u64::from_le_bytes(first), u64::from_le_bytes(second)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_come_back_as_they_were_stored() {
        let dir = tempfile::tempdir().unwrap();
        let pairs: Vec<TokenPair> = (0..1000u32)
            .map(|i| TokenPair {
                sides: [(0..i % 7).map(|k| i * 1000 + k).collect(), vec![u32::MAX - i; (i % 3) as usize]],
                digests: [u64::from(i) << 40, u64::MAX - u64::from(i)],
            })
            .collect();
        let mut writer = Writer::new(dir.path()).unwrap();
        pairs.iter().for_each(|pair| writer.push(pair).unwrap());
        let store = writer.finish().unwrap();
        assert_eq!(store.len(), 1000);
        for (index, expected) in pairs.iter().enumerate() {
            let (sides, digests) = store.pair(index).unwrap();
            let sides = sides.map(|side| side.iter().map(|&id| u32::from_le_bytes(id)).collect());
            assert_eq!(*expected, TokenPair { sides, digests });
        }
        assert!(store.pair(1000).is_none());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a file is left");
        assert!(Writer::new(dir.path()).unwrap().finish().unwrap().pair(0).is_none());
    }
}
