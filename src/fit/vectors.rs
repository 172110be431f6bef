//! The teacher's vectors, from wherever they come: the seam, and files of them.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use half::f16;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::LoadError;
use crate::files;
use crate::records::{InputFormat, Source};

/// The longest line of a JSONL file, and the longest header of an npy file, that is read.
const MAX_LINE: u64 = 16 << 20;
const MAX_HEADER: usize = 64 << 10;
/// The longest vector that a file may announce.
const MAX_DIMENSIONS: usize = 1 << 16;

/// Where a teacher's vectors come from.
pub trait Vectors {
    /// One vector a text, in order. Asked for a corpus' texts in their order, each once.
    ///
    /// # Errors
    /// When there are none for these texts.
    fn of(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>, LoadError>;

    /// Told after the last text.
    ///
    /// # Errors
    /// When there are vectors of more texts.
    fn finish(&mut self) -> Result<(), LoadError>;

    /// The error of a vector that is none: that of `text`, before which there were `number` others.
    fn wrong(&self, number: u64, text: &str, problem: &str) -> LoadError;

    /// What the output's config.json says of it.
    fn description(&self) -> Value;
}

/// Vectors in a file, in the order of the corpus' texts: an npy matrix, or JSONL.
pub struct VectorFile {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    format: Format,
    read: u64,
}

#[derive(Clone, Copy)]
enum Format {
    Npy { number: Number, rows: u64, dimensions: usize },
    Jsonl,
}

#[derive(Clone, Copy)]
enum Number {
    F16,
    F32,
    F64,
}

/// A line of JSONL: the numbers alone, or an object as OpenAI's answers have them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Numbers(Vec<f32>),
    Object { embedding: Vec<f32> },
}

impl VectorFile {
    /// Opens `*.npy` (two dimensions of little-endian f2, f4 or f8, C order) or JSONL.
    ///
    /// # Errors
    /// When it cannot be read as that.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let is_npy = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npy"));
        let mut reader: Box<dyn BufRead> = if is_npy {
            let file = files::open(path).map_err(|e| LoadError::io(path, &e))?;
            Box::new(BufReader::with_capacity(1 << 20, file))
        } else {
            let source = Source::new(path, None)?;
            if source.format() != InputFormat::Jsonl {
                return Err(LoadError::new(path, "is of no known kind").expected("an .npy or .jsonl file of vectors"));
            }
            source.text(false)?.reader
        };
        let format = match is_npy {
            true => npy(&mut reader).map_err(|problem| {
                LoadError::new(path, problem)
                    .expected("numpy.save of a matrix of float16, float32 or float64, a row a text")
            })?,
            false => Format::Jsonl,
        };
        Ok(Self { path: path.to_owned(), reader, format, read: 0 })
    }

    fn next(&mut self) -> Result<Option<Vec<f32>>, LoadError> {
        let vector = match self.format {
            Format::Npy { rows, .. } if self.read == rows => None,
            Format::Npy { number, dimensions, .. } => Some(
                row(&mut self.reader, number, dimensions)
                    .map_err(|e| LoadError::new(&self.path, format!("ends within row {}: {e}", self.read)))?,
            ),
            Format::Jsonl => {
                let mut line = Vec::new();
                let taken = (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut line);
                taken.map_err(|e| LoadError::io(&self.path, &e))?;
                if line.is_empty() {
                    None
                } else {
                    let at = self.read + 1;
                    let line: Line = serde_json::from_slice(&line).map_err(|e| {
                        LoadError::new(&self.path, format!("has a line {at} that is no vector: {e}"))
                            .expected("an array of numbers, or an object with one as \"embedding\", on each line")
                    })?;
                    Some(match line {
                        Line::Numbers(numbers) | Line::Object { embedding: numbers } => numbers,
                    })
                }
            }
        };
        self.read += u64::from(vector.is_some());
        Ok(vector)
    }

    fn mismatch(&self, problem: String) -> LoadError {
        LoadError::new(&self.path, problem)
            .expected("one for each text of the corpus, in its order; empty lines are no texts")
    }
}

impl Vectors for VectorFile {
    fn of(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>, LoadError> {
        let mut vectors = Vec::with_capacity(texts.len());
        for _ in texts {
            let vector = self.next()?;
            vectors.push(
                vector.ok_or_else(|| {
                    self.mismatch(format!("holds {} vectors, and the corpus has more texts", self.read))
                })?,
            );
        }
        Ok(vectors)
    }

    fn finish(&mut self) -> Result<(), LoadError> {
        let texts = self.read;
        match self.next()? {
            None => Ok(()),
            Some(_) => Err(self.mismatch(format!("holds more vectors than the {texts} texts of the corpus"))),
        }
    }

    fn wrong(&self, number: u64, _: &str, problem: &str) -> LoadError {
        LoadError::new(&self.path, format!("has a vector in row {number}, counted from 0, that {problem}"))
            .expected("vectors of one length, of finite numbers that are not all zero")
    }

    fn description(&self) -> Value {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        json!({ "vectors": name })
    }
}

/// What is wrong with a vector that should have `dimensions` numbers.
///
/// # Errors
/// In words that read on from "a vector that".
pub fn check(vector: &[f32], dimensions: usize) -> Result<(), String> {
    if vector.len() != dimensions || vector.is_empty() {
        return Err(format!("has {} numbers, where the first had {dimensions}", vector.len()));
    }
    if let Some(number) = vector.iter().find(|x| !x.is_finite()) {
        return Err(format!("holds {number}"));
    }
    if vector.iter().all(|&x| x == 0.0) {
        return Err("is all zeros".to_owned());
    }
    Ok(())
}

/// Reads the header of an npy file (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>).
fn npy(reader: &mut impl Read) -> Result<Format, String> {
    let mut bytes = |n: usize| -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; n];
        reader.read_exact(&mut bytes).map_err(|e| format!("is no npy file: {e}"))?;
        Ok(bytes)
    };
    let start = bytes(8)?;
    let Some(version) = start.strip_prefix(b"\x93NUMPY") else { return Err("is no npy file".to_owned()) };
    let size = bytes(if version.first() == Some(&1) { 2 } else { 4 })?;
    let size = size.iter().rev().fold(0usize, |size, &byte| size << 8 | usize::from(byte));
    if size > MAX_HEADER {
        return Err(format!("announces a header of {size} bytes"));
    }
    let header = String::from_utf8_lossy(&bytes(size)?).into_owned();
    let value = |key: &str| header.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    let number = match value("descr").and_then(|rest| rest.split('\'').nth(1)) {
        Some("<f2") => Number::F16,
        Some("<f4") => Number::F32,
        Some("<f8") => Number::F64,
        other => return Err(format!("holds numbers of type {other:?}")),
    };
    if !value("fortran_order").is_some_and(|rest| rest.starts_with("False")) {
        return Err("is in Fortran order".to_owned());
    }
    let shape = value("shape").and_then(|rest| rest.strip_prefix('(')?.split(')').next()).unwrap_or_default();
    let sizes: Option<Vec<u64>> =
        shape.split(',').map(str::trim).filter(|n| !n.is_empty()).map(|n| n.parse().ok()).collect();
    match sizes.as_deref() {
        Some(&[rows, dimensions]) if (1..=MAX_DIMENSIONS as u64).contains(&dimensions) => {
            Ok(Format::Npy { number, rows, dimensions: usize::try_from(dimensions).unwrap_or(MAX_DIMENSIONS) })
        }
        _ => Err(format!("has the shape ({shape})")),
    }
}

fn row(reader: &mut impl Read, number: Number, dimensions: usize) -> io::Result<Vec<f32>> {
    let mut bytes = vec![
        0;
        dimensions
            * match number {
                Number::F16 => 2,
                Number::F32 => 4,
                Number::F64 => 8,
            }
    ];
    reader.read_exact(&mut bytes)?;
    Ok(match number {
        Number::F16 => bytes.as_chunks().0.iter().map(|&x| f16::from_le_bytes(x).to_f32()).collect(),
        Number::F32 => bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect(),
        Number::F64 => bytes.as_chunks().0.iter().map(|&x| f64::from_le_bytes(x) as f32).collect(),
    })
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
            assert!(check(vector, 2).unwrap_err().contains(part), "{vector:?}");
        }
    }
}
