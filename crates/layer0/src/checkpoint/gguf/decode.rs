//! Reads a GGUF file's tensors as rows of numbers. Plain tensors are memory-mapped; quantized tensors are decoded.

mod blocks;

use blocks::BlockType;

use super::header::{Gguf, TensorInfo};
use crate::checkpoint::TableSource;
use crate::error::LoadError;
use crate::table::{EmbeddingTable, TableDtype};

/// How the numbers of a tensor are stored.
enum Stored {
    Plain(TableDtype),
    Quantized(BlockType),
}

/// Returns how tensors of a type are stored. `dtype` is a number from ggml.h; only the types that this
/// program decodes are listed.
fn stored(dtype: u32) -> Option<(&'static str, Stored)> {
    Some(match dtype {
        0 => ("F32", Stored::Plain(TableDtype::F32)),
        1 => ("F16", Stored::Plain(TableDtype::F16)),
        30 => ("BF16", Stored::Plain(TableDtype::Bf16)),
        _ => {
            let blocks = BlockType::from_id(dtype)?;
            (blocks.name, Stored::Quantized(blocks))
        }
    })
}

/// Returns the tensor as an embedding table: a part of the memory map, or a copy that was decoded to f16.
///
/// The decoded format is f16 rather than bf16: a quantized number is a small integer times an f16, so that the relative
/// error of f16 is at most 2^-12 and that of bf16 2^-9, in the same memory. f32 would double the memory to avoid an
/// error that pooling already hides. A number beyond the range of f16 (65504) becomes an infinity, and a table that
/// holds one is refused.
///
/// # Errors
/// Returns an error if the tensor is not a table, extends beyond the end of the file, or is quantized in a way that
/// is not decoded.
pub fn table(file: &Gguf, tensor: &TensorInfo) -> Result<(EmbeddingTable, TableSource), LoadError> {
    let (name, stored, rows, columns) = checked(file, tensor)?;
    let source =
        |map| TableSource { name: tensor.name.clone(), path: file.path().to_owned(), dtype: name.to_owned(), map };
    let (table, source) = match stored {
        Stored::Plain(dtype) => {
            let bytes = file.bytes(tensor, size(file, tensor, rows, columns, 1, dtype.row_bytes(1).unwrap_or(1))?)?;
            (EmbeddingTable::new(bytes, dtype, rows, columns), source(Some(file.map().clone())))
        }
        Stored::Quantized(blocks) => {
            let bytes = file.bytes(tensor, size(file, tensor, rows, columns, blocks.numbers, blocks.bytes)?)?;
            file.map().guard();
            let decoded = blocks.decode_rows(&bytes, rows, columns);
            file.map().check(file.path())?;
            file.map().release();
            (EmbeddingTable::new(decoded.into(), TableDtype::F16, rows, columns), source(None))
        }
    };
    table.map(|table| (table, source)).ok_or_else(|| no_table(file, tensor))
}

/// Returns the tensor as `count` finite numbers.
///
/// # Errors
/// Returns an error if the tensor has another shape or holds a number that is not finite.
pub fn vector(file: &Gguf, tensor: &TensorInfo, count: usize) -> Result<Vec<f32>, LoadError> {
    let row = TensorInfo { shape: [&[1], tensor.shape.as_slice()].concat(), ..tensor.clone() };
    let wrong =
        |problem: String| LoadError::malformed(file.path(), problem).expected(format!("{count} finite numbers"));
    if tensor.shape != [count as u64] {
        return Err(wrong(format!("holds {} with shape {:?}", tensor.name, tensor.shape)));
    }
    let mut numbers = vec![0.0; count];
    table(file, &row)?.0.read_row(0, &mut numbers);
    if numbers.iter().any(|x| !x.is_finite()) {
        return Err(wrong(format!("holds a number in {} that is not finite", tensor.name)));
    }
    Ok(numbers)
}

/// Returns the number of columns of the tensor, read as a table.
///
/// # Errors
/// Returns an error if the tensor is not a table, or is quantized in a way that is not decoded.
pub fn columns(file: &Gguf, tensor: &TensorInfo) -> Result<usize, LoadError> {
    checked(file, tensor).map(|(_, _, _, columns)| columns)
}

fn checked(file: &Gguf, tensor: &TensorInfo) -> Result<(&'static str, Stored, usize, usize), LoadError> {
    let &[rows, columns] = tensor.shape.as_slice() else { return Err(no_table(file, tensor)) };
    let (Ok(rows), Ok(columns)) = (usize::try_from(rows), usize::try_from(columns)) else {
        return Err(no_table(file, tensor));
    };
    let (name, stored) = stored(tensor.dtype).ok_or_else(|| {
        LoadError::unsupported(file.path(), format!("holds {} as ggml type {}", tensor.name, tensor.dtype))
            .expected("F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K or Q6_K")
            .remedy("take another quantization of the model, such as Q8_0")
    })?;
    Ok((name, stored, rows, columns))
}

/// Returns the size in bytes of `rows` x `columns` numbers that are stored in blocks of `block` numbers and `bytes`
/// bytes.
fn size(
    file: &Gguf,
    tensor: &TensorInfo,
    rows: usize,
    columns: usize,
    block: usize,
    bytes: usize,
) -> Result<usize, LoadError> {
    let whole = columns.is_multiple_of(block).then_some(columns / block);
    let size = whole.and_then(|blocks| blocks.checked_mul(bytes)?.checked_mul(rows)).filter(|&size| size > 0);
    size.ok_or_else(|| no_table(file, tensor))
}

fn no_table(file: &Gguf, tensor: &TensorInfo) -> LoadError {
    LoadError::malformed(file.path(), format!("holds {} with shape {:?}", tensor.name, tensor.shape))
        .expected("a table of shape [vocabulary, dimensions], neither zero, in whole blocks of its type")
        .remedy("set embedding_tensor if another tensor is meant")
}
