//! Defines the trait [`Vectors`], a source of a teacher's vectors, and reads vectors from files.

mod columns;
mod headers;
mod matrix;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{FitError, InvalidVectors};
use layer0::progress::Progress;
use layer0_files::{self as files, Diagnostic, FileError, FileErrorKind};
use layer0_records::{InputFormat, Source};
use matrix::Matrix;

/// The length of the longest line of a JSONL file that is accepted, in bytes.
const MAX_LINE: u64 = 16 << 20;
/// What the vectors of a teacher must be, for messages.
pub const VALID: &str = "vectors of one length, of finite numbers that are not all zero";
const KINDS: &str = "an .npy, .npz, .safetensors, .parquet or .jsonl file of vectors";

/// A source of a teacher's vectors.
pub trait Vectors {
    /// Returns one vector for each text, in order, and reports the texts to `progress`. The caller passes the texts of a
    /// corpus in their order, and each text once.
    ///
    /// # Errors
    /// Fails if the source has no vectors for these texts.
    fn of(&mut self, texts: &[String], progress: &dyn Progress) -> Result<Vec<Vec<f32>>, FitError>;

    /// Checks that no vectors are left. The caller calls this method after the last text.
    ///
    /// # Errors
    /// Fails if the source has vectors of more texts.
    fn finish(&mut self) -> Result<(), FitError>;

    /// Returns the error for an invalid vector. The vector is that of `text`, and `number` vectors came before it.
    fn wrong(&self, number: u64, text: &str, problem: &InvalidVectors) -> FitError;

    /// Returns the description of this source for the config.json of the output.
    fn description(&self) -> Value;
}

/// A file of vectors in the order of the texts of the corpus.
pub struct VectorFile {
    path: PathBuf,
    format: Format,
    read: u64,
}

impl std::fmt::Debug for VectorFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VectorFile").finish_non_exhaustive()
    }
}

enum Format {
    Matrix(Matrix),
    Jsonl(Box<dyn BufRead>),
    Parquet(columns::VectorColumn),
}

/// A line of JSONL: either an array of numbers, or an object with an `embedding` as in OpenAI's responses.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Numbers(Vec<f32>),
    Object { embedding: Vec<f32> },
}

impl VectorFile {
    /// Opens a file of vectors. Its extension decides how the file is read: as a matrix in `.npy`, `.npz` or
    /// `.safetensors`, as a column of lists in `.parquet`, or as lines of `.jsonl`, which may be compressed.
    ///
    /// # Errors
    /// Fails if the file cannot be read in the format of its extension.
    pub fn open(path: &Path) -> Result<Self, FitError> {
        let file = files::open(path).map_err(|e| FileError::reading(path, &e))?;
        if file.metadata().is_ok_and(|m| m.is_dir()) {
            return Err(FileError::new(FileErrorKind::WrongType, path, "is a directory").expected(KINDS).into());
        }
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        let unusable = |problem: &InvalidVectors, expected: &str| {
            FitError::Vectors(Diagnostic::new(path, problem.to_string()).expected(expected))
        };
        let no_matrix = |problem: InvalidVectors| {
            unusable(&problem, "one matrix of float16, float32 or float64, a row for each text")
        };
        let reader = |file| BufReader::with_capacity(1 << 20, file);
        let matrix =
            |layout, reader| Matrix::new(reader, layout).map(Format::Matrix).map_err(|e| FileError::reading(path, &e));
        let format = match extension.as_str() {
            "npy" => {
                let mut reader = reader(file);
                matrix(headers::npy(&mut reader).map_err(no_matrix)?, reader)?
            }
            "npz" => {
                let mut reader = reader(headers::unpacked(file).map_err(no_matrix)?);
                matrix(headers::npy(&mut reader).map_err(no_matrix)?, reader)?
            }
            "safetensors" => {
                let mut reader = reader(file);
                matrix(headers::safetensors(&mut reader).map_err(no_matrix)?, reader)?
            }
            "parquet" => Format::Parquet(
                columns::VectorColumn::open(file)
                    .map_err(|problem| unusable(&problem, "one column of lists of floating-point numbers"))?,
            ),
            _ => {
                drop(file);
                let source = Source::new(path, None)?;
                if source.format() != InputFormat::Jsonl {
                    return Err(unusable(&"is of no known kind".into(), KINDS));
                }
                Format::Jsonl(source.text(false)?.reader)
            }
        };
        Ok(Self { path: path.to_owned(), format, read: 0 })
    }

    /// Returns the next `count` vectors, or fewer at the end of the file.
    fn next(&mut self, count: usize) -> Result<Vec<Vec<f32>>, FitError> {
        let wrong = |problem: String| Diagnostic::new(&self.path, problem);
        let vectors = match &mut self.format {
            Format::Matrix(matrix) => {
                let cut = |e, position| FitError::Vectors(wrong(format!("ends within row {position}: {e}")));
                matrix.next(count).map_err(|e: std::io::Error| cut(e, matrix.position()))?
            }
            Format::Jsonl(reader) => {
                let mut vectors = Vec::new();
                while vectors.len() < count {
                    let at = self.read + vectors.len() as u64 + 1;
                    let line = line(reader).map_err(|e| FileError::reading(&self.path, &e))?;
                    let Some(line) = line else { break };
                    vectors.push(numbers(&line).map_err(|problem| {
                        let expected = "an array of numbers, or an object with one as \"embedding\", on each line";
                        let problem = wrong(format!("has a line {at} that is no vector: {problem}"));
                        FitError::Vectors(problem.expected(expected))
                    })?);
                }
                vectors
            }
            Format::Parquet(column) => {
                let mut vectors = Vec::new();
                while vectors.len() < count {
                    let at = self.read + vectors.len() as u64;
                    let failed = |problem: InvalidVectors| {
                        FitError::Vectors(wrong(format!("{problem} in row {at}, counted from 0")))
                    };
                    match column.next().map_err(failed)? {
                        Some(vector) => vectors.push(vector),
                        None => break,
                    }
                }
                vectors
            }
        };
        self.read += vectors.len() as u64;
        Ok(vectors)
    }

    fn mismatch(&self, problem: String) -> FitError {
        let expected = "one for each text of the corpus, in its order; empty lines are no texts";
        FitError::Vectors(Diagnostic::new(&self.path, problem).expected(expected))
    }
}

/// Returns the next line. Returns `None` at the end of the file, or if only empty lines follow.
fn line(reader: &mut dyn BufRead) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    Read::take(&mut *reader, MAX_LINE).read_until(b'\n', &mut line)?;
    if !line.is_empty() && line.trim_ascii().is_empty() {
        let mut rest = Vec::new();
        while Read::take(&mut *reader, MAX_LINE).read_until(b'\n', &mut rest)? > 0 {
            if !rest.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
            rest.clear();
        }
        return Ok(None);
    }
    Ok(Some(line).filter(|line| !line.is_empty()))
}

fn numbers(line: &[u8]) -> Result<Vec<f32>, InvalidVectors> {
    if let Ok(Line::Numbers(numbers) | Line::Object { embedding: numbers }) = layer0_files::json::from_slice(line) {
        return Ok(numbers);
    }
    // The line has no valid vector, so it is parsed once more to find the reason.
    let value: Value = layer0_files::json::from_slice(line).map_err(|e| e.to_string())?;
    let array = value.get("embedding").unwrap_or(&value);
    let other = array.as_array().map(|numbers| numbers.iter().find(|x| !x.is_number()));
    Err(match other {
        None => "it holds no array".into(),
        Some(Some(Value::Null)) => "null, or a number that is not finite, is among its numbers".into(),
        Some(_) => "something else than numbers is in its array".into(),
    })
}

impl Vectors for VectorFile {
    fn of(&mut self, texts: &[String], progress: &dyn Progress) -> Result<Vec<Vec<f32>>, FitError> {
        let vectors = self.next(texts.len())?;
        if vectors.len() < texts.len() {
            return Err(self.mismatch(format!("holds {} vectors, and the corpus has more texts", self.read)));
        }
        progress.advance_texts(texts.len() as u64, texts.iter().map(|text| text.len() as u64).sum());
        Ok(vectors)
    }

    fn finish(&mut self) -> Result<(), FitError> {
        let texts = self.read;
        if self.next(1)?.is_empty() {
            return Ok(());
        }
        Err(self.mismatch(format!("holds more vectors than the {texts} texts of the corpus")))
    }

    fn wrong(&self, number: u64, _: &str, problem: &InvalidVectors) -> FitError {
        let problem = format!("has a vector in row {number}, counted from 0, that {problem}");
        FitError::Vectors(Diagnostic::new(&self.path, problem).expected(VALID))
    }

    fn description(&self) -> Value {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        json!({ "vectors": name })
    }
}

/// Checks that a vector has `dimensions` numbers and that its values are valid.
///
/// # Errors
/// Fails if the vector is invalid. The message continues a sentence that begins with "a vector that".
pub fn check(vector: &[f32], dimensions: usize) -> Result<(), InvalidVectors> {
    if vector.len() != dimensions || vector.is_empty() {
        return Err(format!("has {} numbers, where the first had {dimensions}", vector.len()).into());
    }
    if let Some(number) = vector.iter().find(|x| !x.is_finite()) {
        return Err(format!("holds {number}").into());
    }
    if vector.iter().all(|&x| x == 0.0) {
        return Err("is all zeros".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_vector_is_refused() {
        assert!(check(&[1.0, 0.0], 2).is_ok());
        for (vector, part) in [
            (&[1.0][..], "1 numbers"),
            (&[], "0 numbers"),
            (&[1.0, f32::NAN], "NaN"),
            (&[f32::INFINITY, 0.0], "inf"),
            (&[0.0, -0.0], "zeros"),
        ] {
            assert!(check(vector, 2).unwrap_err().to_string().contains(part), "{vector:?}");
        }
    }
}
