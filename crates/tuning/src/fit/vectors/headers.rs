//! Reads the headers of files that hold a matrix: npy, npz and safetensors.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::matrix::{Layout, Number};
use crate::error::InvalidVectors;

/// The longest headers of npy and safetensors files that are accepted, in bytes.
const MAX_NPY_HEADER: usize = 64 << 10;
const MAX_SAFETENSORS_HEADER: u64 = 16 << 20;
/// The largest number of dimensions that a file may announce.
pub const MAX_DIMENSIONS: u64 = 1 << 16;

/// Reads the header of an npy file (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>).
///
/// # Errors
/// Fails if the file does not hold a matrix of floating-point numbers.
pub fn npy(reader: &mut impl Read) -> Result<Layout, InvalidVectors> {
    let mut bytes = |n: usize| -> Result<Vec<u8>, InvalidVectors> {
        let mut bytes = vec![0; n];
        reader.read_exact(&mut bytes).map_err(|e| format!("is no npy file: {e}"))?;
        Ok(bytes)
    };
    let start = bytes(8)?;
    let Some(version) = start.strip_prefix(b"\x93NUMPY") else { return Err("is no npy file".into()) };
    let size = bytes(if version.first() == Some(&1) { 2 } else { 4 })?;
    let size = size.iter().rev().fold(0usize, |size, &byte| size << 8 | usize::from(byte));
    if size > MAX_NPY_HEADER {
        return Err(format!("announces a header of {size} bytes").into());
    }
    let header = String::from_utf8_lossy(&bytes(size)?).replace('"', "'");
    let value = |key: &str| {
        let (_, rest) = header.split_once(&format!("'{key}'"))?;
        rest.trim_start().strip_prefix(':').map(str::trim_start)
    };
    let descr = value("descr").and_then(|rest| rest.strip_prefix('\'')?.split('\'').next()).unwrap_or("unknown");
    let number = match descr.get(1..) {
        Some("f2") => Number::F16,
        Some("f4") => Number::F32,
        Some("f8") => Number::F64,
        _ => return Err(format!("holds numbers of type {descr:?}").into()),
    };
    let big_endian = match descr.get(..1) {
        Some(">") => true,
        Some("<") => false,
        Some("=") => cfg!(target_endian = "big"),
        _ => return Err(format!("holds numbers of type {descr:?}").into()),
    };
    let by_columns = match value("fortran_order") {
        Some(order) if order.starts_with("True") => true,
        Some(order) if order.starts_with("False") => false,
        _ => return Err("does not say whether it is in Fortran order".into()),
    };
    let shape = value("shape").and_then(|rest| rest.strip_prefix('(')?.split(')').next()).unwrap_or_default();
    // Python 2 wrote the letter L after each number.
    let sizes = shape.split(',').map(|n| n.trim().trim_end_matches('L')).filter(|n| !n.is_empty());
    let sizes: Option<Vec<u64>> = sizes.map(|n| n.parse().ok()).collect();
    layout(number, big_endian, by_columns, &sizes.unwrap_or_default())
        .ok_or_else(|| format!("has the shape ({shape})").into())
}

fn layout(number: Number, big_endian: bool, by_columns: bool, shape: &[u64]) -> Option<Layout> {
    let &[rows, dimensions] = shape else { return None };
    let dimensions = usize::try_from(dimensions).ok().filter(|d| (1..=MAX_DIMENSIONS).contains(&(*d as u64)))?;
    Some(Layout { number, big_endian, by_columns, rows, dimensions })
}

/// Extracts the only array of an npz file, which is a zip archive of npy files, to an unnamed file. The returned file
/// is positioned at its start.
///
/// # Errors
/// Fails if the archive cannot be read, or if it does not hold exactly one array.
pub fn unpacked(file: File) -> Result<File, InvalidVectors> {
    let wrong = |e: &dyn std::fmt::Display| format!("is no npz file that can be read: {e}");
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(|e| wrong(&e))?;
    let names: Vec<String> =
        archive.file_names().flatten().map(|name| name.trim_end_matches(".npy").to_owned()).collect();
    if archive.len() != 1 {
        return Err(format!("holds the arrays {names:?}, not one").into());
    }
    let mut array = archive.by_index(0).map_err(|e| wrong(&e))?;
    let mut whole = tempfile::tempfile().map_err(|e| wrong(&e))?;
    std::io::copy(&mut array, &mut whole).map_err(|e| wrong(&e))?;
    whole.seek(SeekFrom::Start(0)).map_err(|e| wrong(&e))?;
    Ok(whole)
}

#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// Reads the header of a safetensors file that holds one matrix, and moves `reader` to its numbers.
///
/// # Errors
/// Fails if the file holds no matrix of floating-point numbers, or more than one.
pub fn safetensors(reader: &mut (impl Read + Seek)) -> Result<Layout, InvalidVectors> {
    let wrong = |e: &dyn std::fmt::Display| format!("is no safetensors file: {e}");
    let mut size = [0; 8];
    reader.read_exact(&mut size).map_err(|e| wrong(&e))?;
    let size = u64::from_le_bytes(size);
    if size > MAX_SAFETENSORS_HEADER {
        return Err(format!("announces a header of {size} bytes").into());
    }
    let mut header = Vec::new();
    reader.by_ref().take(size).read_to_end(&mut header).map_err(|e| wrong(&e))?;
    let mut tensors: Map<String, Value> = serde_json::from_slice(&header).map_err(|e| wrong(&e))?;
    tensors.remove("__metadata__");
    let names: Vec<String> = tensors.keys().cloned().collect();
    let (Some(tensor), 1) = (tensors.into_iter().map(|(_, tensor)| tensor).next(), names.len()) else {
        return Err(format!("holds the tensors {names:?}, not one").into());
    };
    let Tensor { dtype, shape, data_offsets: [start, end] } = serde_json::from_value(tensor).map_err(|e| wrong(&e))?;
    let number = match dtype.as_str() {
        "F16" => Number::F16,
        "BF16" => Number::Bf16,
        "F32" => Number::F32,
        "F64" => Number::F64,
        other => return Err(format!("holds numbers of type {other:?}").into()),
    };
    let layout = layout(number, false, false, &shape).ok_or_else(|| format!("has the shape {shape:?}"))?;
    let expected = layout.rows.checked_mul((layout.dimensions * number.size()) as u64);
    if end.checked_sub(start) != expected {
        return Err(
            format!("says that its numbers lie from byte {start} to {end}, which is not its shape {shape:?}").into()
        );
    }
    let place = start.checked_add(8 + size).ok_or("is no safetensors file")?;
    reader.seek(SeekFrom::Start(place)).map_err(|e| wrong(&e))?;
    Ok(layout)
}
