//! Writes the tensors of layer 0 as one safetensors file, piece by piece, so that the memory use does not grow with the
//! table.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo as Entry};
use sha2::{Digest, Sha256};

use super::source::{Selection, Source, TensorInfo, table_dtype};
use super::staging::readable;
use crate::error::{ExtractError, FileError, FileErrorKind};
use crate::progress::Progress;
use crate::table::{TableDtype, for_each};
use layer0_files as files;

/// A tensor as it was written, with its name in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenTensor {
    pub info: TensorInfo,
    pub source: String,
}

/// The content of a file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    tensors: Vec<WrittenTensor>,
    table_sha256: String,
}

impl Written {
    /// Returns the tensors, the table first.
    pub fn tensors(&self) -> &[WrittenTensor] {
        &self.tensors
    }

    pub fn table(&self) -> &TensorInfo {
        const NONE: &TensorInfo =
            &TensorInfo { name: String::new(), dtype: Dtype::F32, shape: Vec::new(), len: 0, format: None };
        self.tensors.first().map_or(NONE, |tensor| &tensor.info)
    }

    /// Returns the SHA-256 digest of the table's bytes as they were written, in hexadecimal.
    pub fn table_sha256(&self) -> &str {
        &self.table_sha256
    }
}

/// Writes `selection` to `path`, converted to `dtype` if one is given. If the source is resumable and nothing is
/// converted, the function continues a file that an earlier run left at `path`.
///
/// # Errors
/// Returns the errors of the source and of the disk, and an error for a number that `dtype` cannot hold.
pub fn write(
    source: &dyn Source,
    selection: &Selection,
    dtype: Option<TableDtype>,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Written, ExtractError> {
    let unwritable = |problem: String| FileError::new(FileErrorKind::Malformed, path, problem);
    let layout = Layout::new(selection, dtype).map_err(|e| unwritable(e.to_string()))?;
    let failed = |e: io::Error| FileError::writing(path, &e);
    let (mut file, mut done) = open(path, &layout, source.resumable() && !layout.converts()).map_err(failed)?;

    progress.start(&source.origin().name, done, layout.data_len());
    let mut hash = Sha256::new();
    let mut offset = layout.header.len() as u64;
    for (from, info) in &layout.tensors {
        let there = done.min(info.len);
        done -= there;
        if from.name == layout.table {
            hash_range(&mut file, offset, there, &mut hash).map_err(failed)?;
        }
        offset += info.len;
        if there == info.len {
            continue;
        }
        let mut out = BufWriter::with_capacity(1 << 20, &mut file);
        let mut convert = Converter::new(from, info);
        let mut sink = |piece: &[u8]| {
            let piece = convert.next(piece).map_err(unwritable)?;
            if from.name == layout.table {
                hash.update(piece);
            }
            out.write_all(piece).map_err(failed)?;
            progress.advance(piece.len() as u64);
            Ok(())
        };
        source.copy(from, there, &mut sink)?;
        out.flush().map_err(failed)?;
    }
    progress.finish();
    file.sync_all().and_then(|()| readable(path)).map_err(failed)?;
    let written = file.metadata().map_err(failed)?.len();
    if written != layout.header.len() as u64 + layout.data_len() {
        let found = unwritable(format!("has {written} bytes after all was written"));
        return Err(found.expected(format!("{}", layout.header.len() as u64 + layout.data_len())).into());
    }
    let table_sha256 = files::hexadecimal(&hash.finalize());
    Ok(Written { tensors: layout.written(), table_sha256 })
}

/// The order of the tensors in the file, and its header.
struct Layout {
    header: Vec<u8>,
    /// The name of the table in the source.
    table: String,
    /// The tensors in the file's order: each as the source holds it, and as it is written.
    tensors: Vec<(TensorInfo, TensorInfo)>,
}

impl Layout {
    fn new(selection: &Selection, dtype: Option<TableDtype>) -> Result<Self, Box<dyn std::error::Error>> {
        let mut tensors: Vec<(TensorInfo, TensorInfo)> = selection
            .tensors()
            .iter()
            .map(|from| (from.clone(), target(from, selection.written_name(&from.name), dtype)))
            .collect();
        // The order is that of the safetensors library, in which every tensor is aligned to the size of its numbers.
        tensors.sort_by(|(_, a), (_, b)| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
        let mut end = 0;
        let mut entries = Vec::new();
        for (_, info) in &tensors {
            let start = end;
            end += usize::try_from(info.len)?;
            let entry = Entry { dtype: info.dtype, shape: info.shape.clone(), data_offsets: (start, end) };
            entries.push((info.name.clone(), entry));
        }
        // The value of `format` determines how a norm's weight is read: a conversion to MLX must keep its value.
        let norm = selection.tensors().iter().skip(1).find_map(|norm| norm.format.clone());
        let format = HashMap::from([("format".to_owned(), norm.unwrap_or_else(|| "pt".to_owned()))]);
        let mut json = serde_json::to_vec(&Metadata::new(Some(format), entries)?)?;
        json.resize(json.len().next_multiple_of(8), b' ');
        let header = [(json.len() as u64).to_le_bytes().as_slice(), &json].concat();
        let table = selection.tensors().first().map_or_else(String::new, |table| table.name.clone());
        Ok(Self { header, table, tensors })
    }

    fn converts(&self) -> bool {
        self.tensors.iter().any(|(from, to)| from.dtype != to.dtype)
    }

    fn data_len(&self) -> u64 {
        self.tensors.iter().map(|(_, info)| info.len).sum()
    }

    /// Returns the written tensors, the table first.
    fn written(&self) -> Vec<WrittenTensor> {
        let written =
            |(from, info): &(TensorInfo, TensorInfo)| WrittenTensor { info: info.clone(), source: from.name.clone() };
        let (mut table, rest): (Vec<_>, Vec<_>) =
            self.tensors.iter().map(written).partition(|t| t.source == self.table);
        table.extend(rest);
        table
    }
}

fn target(from: &TensorInfo, name: String, dtype: Option<TableDtype>) -> TensorInfo {
    let dtype = match dtype {
        // Integer dtypes need scales, for which an extracted table has no place, so they leave the tensors unconverted.
        // F64 becomes F32, because vectors are computed in f32.
        None | Some(TableDtype::Int8 | TableDtype::Int4) if from.dtype == Dtype::F64 => Dtype::F32,
        None | Some(TableDtype::Int8 | TableDtype::Int4) => from.dtype,
        Some(TableDtype::Bf16) => Dtype::BF16,
        Some(TableDtype::F16) => Dtype::F16,
        Some(TableDtype::F32) => Dtype::F32,
    };
    let size = |dtype: Dtype| dtype.bitsize() as u64 / 8;
    let len = from.len / size(from.dtype).max(1) * size(dtype);
    TensorInfo { name, dtype, shape: from.shape.clone(), len, format: from.format.clone() }
}

/// Opens the file at `path`, positioned at its end, and returns it with the number of tensor bytes that it already
/// holds.
fn open(path: &Path, layout: &Layout, resume: bool) -> io::Result<(File, u64)> {
    let mut file = files::resume(path)?;
    let len = file.metadata()?.len();
    let header = layout.header.len() as u64;
    let mut start = vec![0; layout.header.len()];
    let same = resume && len >= header && file.read_exact(&mut start).is_ok() && start == layout.header;
    if same && len <= header + layout.data_len() {
        file.seek(SeekFrom::End(0))?;
        return Ok((file, len - header));
    }
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&layout.header)?;
    Ok((file, 0))
}

/// Hashes `len` bytes from `offset` on. Afterwards the file is positioned at the end of these bytes.
fn hash_range(file: &mut File, offset: u64, len: u64, hash: &mut Sha256) -> io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    let mut buffer = vec![0; 1 << 20];
    let mut rest = Read::take(&mut *file, len);
    loop {
        let n = rest.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hash.update(buffer.get(..n).unwrap_or_default());
    }
    file.seek(SeekFrom::End(0)).map(|_| ())
}

/// Converts numbers from one dtype to another, in pieces that may split a number.
struct Converter {
    /// The dtypes of the input and of the output, or `None` if bytes are copied unchanged.
    dtypes: Option<(Dtype, TableDtype)>,
    name: String,
    rest: Vec<u8>,
    numbers: Vec<f32>,
    out: Vec<u8>,
}

impl Converter {
    fn new(from: &TensorInfo, to: &TensorInfo) -> Self {
        let dtypes = table_dtype(to.dtype).filter(|_| from.dtype != to.dtype).map(|to| (from.dtype, to));
        Self { dtypes, name: from.name.clone(), rest: Vec::new(), numbers: Vec::new(), out: Vec::new() }
    }

    fn next<'a>(&'a mut self, piece: &'a [u8]) -> Result<&'a [u8], String> {
        let Some((from, to)) = self.dtypes else { return Ok(piece) };
        self.rest.extend_from_slice(piece);
        let size = from.bitsize() / 8;
        let whole = self.rest.len() / size * size;
        let bytes = self.rest.get(..whole).unwrap_or_default();
        match table_dtype(from) {
            Some(from) => {
                self.numbers.resize(whole / size, 0.0);
                for_each(from, bytes, &mut self.numbers, |out, x| *out = x);
            }
            // The only other dtype that can be selected is F64.
            None => {
                self.numbers.clear();
                self.numbers.extend(bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes) as f32));
            }
        }
        self.rest.drain(..whole);
        self.out.clear();
        for &x in &self.numbers {
            let fits = match to {
                TableDtype::Bf16 => push(&mut self.out, bf16::from_f32(x).to_le_bytes(), bf16::from_f32(x).is_finite()),
                TableDtype::F16 => push(&mut self.out, f16::from_f32(x).to_le_bytes(), f16::from_f32(x).is_finite()),
                TableDtype::F32 | TableDtype::Int8 | TableDtype::Int4 => push(&mut self.out, x.to_le_bytes(), true),
            };
            if !fits && x.is_finite() {
                return Err(format!("cannot hold {} as {}: it has the number {x}", self.name, to.name()));
            }
        }
        Ok(&self.out)
    }
}

fn push<const N: usize>(out: &mut Vec<u8>, bytes: [u8; N], finite: bool) -> bool {
    out.extend_from_slice(&bytes);
    finite
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn info(dtype: Dtype, len: u64) -> TensorInfo {
        TensorInfo { name: "t".into(), dtype, shape: vec![len as usize], len, format: None }
    }

    proptest! {
        /// Pieces that split numbers give the same output as one piece.
        #[test]
        fn pieces_of_any_size_convert_alike(numbers in prop::collection::vec(-6e4f32..6e4, 1..40), cut in 1usize..9) {
            let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            let mut converter = Converter::new(&info(Dtype::F32, bytes.len() as u64), &info(Dtype::F16, 0));
            let mut out = Vec::new();
            for piece in bytes.chunks(cut) {
                out.extend_from_slice(converter.next(piece).unwrap());
            }
            let expected: Vec<u8> = numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
            prop_assert_eq!(out, expected);
        }
    }

    #[test]
    fn a_number_that_does_not_fit_is_an_error_and_not_infinity() {
        let mut converter = Converter::new(&info(Dtype::BF16, 2), &info(Dtype::F16, 0));
        let error = converter.next(&bf16::from_f32(70000.0).to_le_bytes()).unwrap_err();
        assert!(error.contains("f16") && error.contains("70144"), "{error}");
        assert!(converter.next(&bf16::INFINITY.to_le_bytes()).is_ok());
    }
}
