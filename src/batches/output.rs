//! Appends the answers of a batch to the contents of its output files.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use layer0_files::{self as files, FileError, FileErrorKind};

use super::record::Progress;

/// The contents of the two output files of a batch.
#[derive(Debug)]
pub struct BatchOutput {
    output: (File, PathBuf),
    errors: (File, PathBuf),
}

impl BatchOutput {
    /// Opens the contents, and cuts off what was written after `progress`.
    ///
    /// # Errors
    /// If a content cannot be opened, or is shorter than `progress` says.
    pub fn open(output: &Path, errors: &Path, progress: &Progress) -> Result<Self, FileError> {
        let opened = |path: &Path, size| Ok::<_, FileError>((open(path, size)?, path.to_owned()));
        Ok(Self { output: opened(output, progress.output)?, errors: opened(errors, progress.errors)? })
    }

    /// Appends the answers to requests that succeeded and to requests that failed.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn append(&mut self, output: &[u8], errors: &[u8]) -> Result<(), FileError> {
        for ((file, path), bytes) in [(&mut self.output, output), (&mut self.errors, errors)] {
            file.write_all(bytes).map_err(|error| FileError::writing(&*path, &error))?;
        }
        Ok(())
    }

    /// Waits until all answers are on disk.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn synchronize(&self) -> Result<(), FileError> {
        for (file, path) in [&self.output, &self.errors] {
            file.sync_data().map_err(|error| FileError::writing(path, &error))?;
        }
        Ok(())
    }
}

fn open(path: &Path, size: u64) -> Result<File, FileError> {
    let mut options = OpenOptions::new();
    let mut open = || -> io::Result<(File, u64)> {
        let mut file = files::without_links(options.read(true).write(true).create(true)).open(path)?;
        let found = file.metadata()?.len();
        if found >= size {
            file.set_len(size)?;
        }
        file.seek(SeekFrom::Start(size))?;
        Ok((file, found))
    };
    let (file, found) = open().map_err(|error| FileError::writing(path, &error))?;
    if found < size {
        let problem = format!("has {found} bytes, but {size} bytes were written: something else has cut it");
        return Err(FileError::new(FileErrorKind::Malformed, path, problem));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_progress_is_cut_off_and_a_missing_part_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let [output, errors] = ["a", "b"].map(|name| dir.path().join(name));
        let open = |output_size, error_size| {
            let progress = Progress { output: output_size, errors: error_size, ..Progress::default() };
            BatchOutput::open(&output, &errors, &progress)
        };
        open(0, 0).unwrap().append(b"one\ntwo\n", b"bad\n").unwrap();
        open(4, 4).unwrap().append(b"2\n", b"").unwrap();
        assert_eq!(std::fs::read(&output).unwrap(), b"one\n2\n");
        assert_eq!(std::fs::read(&errors).unwrap(), b"bad\n");
        assert!(open(7, 0).is_err());
        assert_eq!(std::fs::read(&output).unwrap(), b"one\n2\n");
    }
}
