//! Saves the state of a training to a file, and reads it back.
//!
//! The file begins with a line of text, then the length of a JSON header as 8 bytes, then the header, and then the rows,
//! their mean squares and their numbers of changes as little-endian numbers of 4 bytes. It is replaced by a rename, so
//! an interrupted write leaves the old file.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::table::Table;
use crate::error::FitError;
use layer0_files::{self as files, Diagnostic, FileError};

const MAGIC: &[u8] = b"state of a training on pairs, version 1\n";
/// The largest size of the header in bytes. It has a few numbers for each file of pairs.
const LARGEST_HEADER: u64 = 64 << 20;

/// Everything but the numbers of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The digest of everything that determines the training: the rows, the pairs, the teacher's vectors, the options.
    pub training: String,
    /// The number of steps that are done.
    pub step: u64,
    /// The number of pairs that were drawn from each file.
    pub drawn: Vec<u64>,
    /// The number of texts that were drawn from each file of the corpus.
    pub texts_drawn: Vec<u64>,
    /// The number of rows.
    pub rows: usize,
    /// The number of columns.
    pub dimensions: usize,
}

/// Writes the state to `path`.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn save(path: &Path, header: &Header, table: &Table) -> Result<(), FitError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, files::create(&new)?);
        let json = serde_json::to_vec(header)?;
        file.write_all(MAGIC)?;
        file.write_all(&(json.len() as u64).to_le_bytes())?;
        file.write_all(&json)?;
        table.rows.iter().chain(&table.squares).try_for_each(|x| file.write_all(&x.to_le_bytes()))?;
        table.changes.iter().try_for_each(|x| file.write_all(&x.to_le_bytes()))?;
        file.into_inner()?.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(|e| FileError::writing(path, &e).into())
}

/// Reads the state at `path` into `table`, and returns its header. Returns `None` if there is no file. `expected` is the
/// header of the training that wants to go on, of which only the step and the draws may differ.
///
/// # Errors
/// Fails if the file cannot be read, is damaged, or is the state of another training.
pub fn load(path: &Path, expected: &Header, table: &mut Table) -> Result<Option<Header>, FitError> {
    let file = match files::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(FileError::reading(path, &e).into()),
    };
    let length = file.metadata().map_err(|e| FileError::reading(path, &e))?.len();
    let foreign = |problem: &str| FitError::ForeignState(Diagnostic::new(path, problem));
    let damaged = || foreign("is damaged, or is no state of a training");
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut magic = [0; MAGIC.len()];
    let mut size = [0; 8];
    file.read_exact(&mut magic).and_then(|()| file.read_exact(&mut size)).map_err(|_| damaged())?;
    let size = u64::from_le_bytes(size);
    if magic != *MAGIC || size > LARGEST_HEADER {
        return Err(damaged());
    }
    let mut json = Vec::new();
    Read::take(&mut file, size).read_to_end(&mut json).map_err(|_| damaged())?;
    let header: Header = serde_json::from_slice(&json).map_err(|_| damaged())?;
    if (&header.training, header.rows, header.dimensions) != (&expected.training, expected.rows, expected.dimensions) {
        return Err(foreign("is the state of a training with other pairs, other options or another checkpoint"));
    }
    let numbers = (table.rows.len() + table.squares.len() + table.changes.len()) as u64;
    if length != (MAGIC.len() + 8) as u64 + size + 4 * numbers
        || (header.drawn.len(), header.texts_drawn.len()) != (expected.drawn.len(), expected.texts_drawn.len())
    {
        return Err(damaged());
    }
    let mut number = [0; 4];
    let mut next = || file.read_exact(&mut number).map(|()| number);
    for x in table.rows.iter_mut().chain(&mut table.squares) {
        *x = f32::from_le_bytes(next().map_err(|e| FileError::reading(path, &e))?);
    }
    for x in &mut table.changes {
        *x = u32::from_le_bytes(next().map_err(|e| FileError::reading(path, &e))?);
    }
    Ok(Some(header))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_state_of_the_same_training_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".out.training");
        let mut table = Table::new(vec![1.5, -2.0, 3.0, 0.0], 2, None);
        table.squares = vec![0.25, 4.0];
        table.changes = vec![7, 0];
        let header =
            Header { training: "a".to_owned(), step: 12, drawn: vec![3], texts_drawn: vec![], rows: 2, dimensions: 2 };
        let empty = || Table::new(vec![0.0; 4], 2, None);
        assert_eq!(load(&path, &header, &mut empty()).unwrap(), None);
        save(&path, &header, &table).unwrap();
        let mut back = empty();
        let expected = Header { step: 0, drawn: vec![0], ..header.clone() };
        assert_eq!(load(&path, &expected, &mut back).unwrap(), Some(header.clone()));
        assert_eq!(back, table);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file is left");

        let error = |expected: &Header| load(&path, expected, &mut empty()).unwrap_err().to_string();
        assert!(error(&Header { training: "b".to_owned(), ..expected.clone() }).contains("another checkpoint"));
        assert!(error(&Header { drawn: vec![], ..expected.clone() }).contains("is damaged"));
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(error(&expected).contains("is damaged"), "{length}");
        }
        std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(error(&expected).contains("is damaged"));
        let mut huge = whole.clone();
        huge[MAGIC.len()..][..8].fill(0xff);
        std::fs::write(&path, huge).unwrap();
        assert!(error(&expected).contains("is damaged"));
    }
}
