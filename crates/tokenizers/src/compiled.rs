//! The parts of a compiled tokenizer: numbers, texts, lists, and tables of which most entries are unused.
//!
//! A compiled tokenizer holds the tables of an implementation as they are in memory, so that they need not be built from a tokenizer.json
//! again ([`Tokenizer::compile`](crate::choose::Tokenizer::compile)). All numbers are little-endian. Each part is preceded by its length:
//!
//! | part | bytes |
//! |---|---|
//! | number | 8 |
//! | list | the number of its items as a number, then the items |
//! | text | a list of bytes |
//! | table | the number of its entries as a number, a list with a bit for each entry that is used, then a list of these entries |
//!
//! For example, the text `ab` is `2 0 0 0 0 0 0 0 a b`. A reader trusts nothing: a length is compared with the bytes that are left before
//! memory is allocated for it, and every token ID is compared with the size of the vocabulary.

use std::io::{self, Read};
use std::mem::size_of;

use bytemuck::{NoUninit, Pod};
use twox_hash::xxhash3_128::Hasher;

use crate::large_pages::LargePages;

/// The number that stands for no number.
const NOTHING: u64 = u64::MAX;

/// The largest number of entries of a table for each used entry. The tables of this crate have at most 8.
const SPARSEST: usize = 64;

/// The number of bytes that are read at a time.
const CHUNK: usize = 1 << 16;

/// Why a compiled tokenizer cannot be used. The tokenizer.json has to be read instead, and can be compiled again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompiledError {
    /// The file could not be read, or is shorter than it says.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The file was compiled from another tokenizer.json, by another version of this crate, or is not a compiled tokenizer.
    #[error("{0}")]
    Outdated(&'static str),
    /// The content of the file is not what was written.
    #[error("is damaged: {0}")]
    Damaged(&'static str),
}

/// Collects the parts of a compiled tokenizer.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn number(&mut self, number: usize) {
        self.bytes.extend_from_slice(&(number as u64).to_le_bytes());
    }

    pub(crate) fn option(&mut self, number: Option<u32>) {
        self.bytes.extend_from_slice(&number.map_or(NOTHING, u64::from).to_le_bytes());
    }

    pub(crate) fn list<T: NoUninit>(&mut self, items: &[T]) {
        self.number(items.len());
        self.bytes.extend_from_slice(bytemuck::cast_slice(items));
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.list(text.as_bytes());
    }

    /// Adds a table whose unused entries are `unused`.
    pub(crate) fn table<T: Pod + PartialEq>(&mut self, table: &[T], unused: T) {
        let mut bits = vec![0_u64; table.len().div_ceil(64)];
        let mut entries = Vec::new();
        for (at, entry) in table.iter().enumerate().filter(|(_, entry)| **entry != unused) {
            if let Some(word) = bits.get_mut(at / 64) {
                *word |= 1 << (at % 64);
            }
            entries.push(*entry);
        }
        self.number(table.len());
        self.list(&bits);
        self.list(&entries);
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads the parts of a compiled tokenizer in the order in which they were written.
pub(crate) struct Reader<'a> {
    from: &'a mut dyn Read,
    /// The number of bytes that are left.
    left: u64,
    digest: Hasher,
    /// The largest token ID of the vocabulary.
    max_id: u32,
}

impl<'a> Reader<'a> {
    /// Creates a reader of `length` bytes.
    pub(crate) fn new(from: &'a mut dyn Read, length: u64) -> Self {
        Self { from, left: length, digest: Hasher::new(), max_id: 0 }
    }

    /// Sets the largest ID that [`Reader::check_ids`] accepts.
    pub(crate) fn set_max_id(&mut self, max_id: u32) {
        self.max_id = max_id;
    }

    fn bytes(&mut self, to: &mut [u8]) -> Result<(), CompiledError> {
        self.left = self.left.checked_sub(to.len() as u64).ok_or(CompiledError::Damaged(SHORT))?;
        self.from.read_exact(to)?;
        self.digest.write(to);
        Ok(())
    }

    fn raw_number(&mut self) -> Result<u64, CompiledError> {
        let mut bytes = [0; 8];
        self.bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub(crate) fn number(&mut self) -> Result<usize, CompiledError> {
        usize::try_from(self.raw_number()?).map_err(|_| CompiledError::Damaged("a number is too large"))
    }

    pub(crate) fn option(&mut self) -> Result<Option<u32>, CompiledError> {
        match self.raw_number()? {
            NOTHING => Ok(None),
            number => u32::try_from(number).map(Some).map_err(|_| CompiledError::Damaged("a number is too large")),
        }
    }

    /// Returns the length of a list of items of `size` bytes, all of which are there.
    fn length(&mut self, size: usize) -> Result<usize, CompiledError> {
        let length = self.number()?;
        match length.checked_mul(size) {
            Some(bytes) if bytes as u64 <= self.left => Ok(length),
            _ => Err(CompiledError::Damaged(SHORT)),
        }
    }

    pub(crate) fn list<T: Pod>(&mut self) -> Result<Vec<T>, CompiledError> {
        let mut items = vec![T::zeroed(); self.length(size_of::<T>())?];
        for chunk in items.chunks_mut((CHUNK / size_of::<T>().max(1)).max(1)) {
            self.bytes(bytemuck::cast_slice_mut(chunk))?;
        }
        Ok(items)
    }

    /// Reads a list into memory for random access, of a length that is a power of two.
    pub(crate) fn large_list<T: Pod>(&mut self) -> Result<LargePages<T>, CompiledError> {
        let length = self.length(size_of::<T>())?;
        let mut items = room(length)?;
        for chunk in items.chunks_mut((CHUNK / size_of::<T>().max(1)).max(1)) {
            self.bytes(bytemuck::cast_slice_mut(chunk))?;
        }
        Ok(items)
    }

    pub(crate) fn text(&mut self) -> Result<String, CompiledError> {
        String::from_utf8(self.list()?).map_err(|_| CompiledError::Damaged("a text is not UTF-8"))
    }

    /// Reads a table whose length is a power of two, and of which at most half is used. The unused entries are `unused`. All others are
    /// shown to `check`, with the largest token ID of the vocabulary.
    pub(crate) fn table<T: Pod>(
        &mut self,
        unused: Option<T>,
        check: impl Fn(&T, u32) -> bool,
    ) -> Result<LargePages<T>, CompiledError> {
        let length = self.number()?;
        let bits: Vec<u64> = self.list()?;
        let used = self.length(size_of::<T>())?;
        let count: usize = bits.iter().map(|word| word.count_ones() as usize).sum();
        let fits = length.div_ceil(64) == bits.len() && used == count && length / SPARSEST <= used + 1;
        if !fits || used > length / 2 {
            return Err(CompiledError::Damaged("a table does not have the entries that it announces"));
        }
        let mut table = room::<T>(length)?;
        if let Some(unused) = unused {
            table.fill(unused);
        }
        let mut entries = Vec::new();
        let (mut taken, mut unread) = (0, used);
        for (word, mut bits) in bits.into_iter().enumerate() {
            while bits != 0 {
                if taken == entries.len() {
                    entries.resize((CHUNK / size_of::<T>().max(1)).min(unread), T::zeroed());
                    unread -= entries.len();
                    self.bytes(bytemuck::cast_slice_mut(&mut entries))?;
                    taken = 0;
                }
                let place = table.get_mut(word * 64 + bits.trailing_zeros() as usize);
                match (place, entries.get(taken)) {
                    (Some(place), Some(entry)) if check(entry, self.max_id) => *place = *entry,
                    _ => return Err(CompiledError::Damaged("a table has an entry that no table has")),
                }
                taken += 1;
                bits &= bits - 1;
            }
        }
        Ok(table)
    }

    /// Reads the ID of a token of the vocabulary.
    pub(crate) fn id(&mut self) -> Result<u32, CompiledError> {
        let id = u32::try_from(self.raw_number()?).map_err(|_| CompiledError::Damaged(NO_TOKEN))?;
        self.check_ids([id])?;
        Ok(id)
    }

    /// Returns an error unless the vocabulary has all of these IDs.
    pub(crate) fn check_ids(&self, ids: impl IntoIterator<Item = u32>) -> Result<(), CompiledError> {
        match ids.into_iter().all(|id| id <= self.max_id) {
            true => Ok(()),
            false => Err(CompiledError::Damaged(NO_TOKEN)),
        }
    }

    /// Returns the digest of all bytes that were read, which are all that there are.
    pub(crate) fn finish(self) -> Result<u128, CompiledError> {
        match self.left {
            0 => Ok(self.digest.finish_128()),
            _ => Err(CompiledError::Damaged("it is longer than its parts")),
        }
    }
}

const NO_TOKEN: &str = "a token ID exceeds the vocabulary";
const SHORT: &str = "it is shorter than its parts";

/// Returns room for a table.
fn room<T: Pod>(length: usize) -> Result<LargePages<T>, CompiledError> {
    if !length.is_power_of_two() {
        return Err(CompiledError::Damaged("the length of a table is not a power of two"));
    }
    LargePages::zeroed(length).ok_or(CompiledError::Damaged("there is no memory for a table"))
}
