//! Writes sparse vectors beside the dense ones: as JSON, as columns of Parquet, and as the arrays of a compressed sparse row matrix.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::builder::{Float32Builder, Int32Builder, ListBuilder};
use arrow_array::{ArrayRef, ListArray, StructArray};
use arrow_schema::{DataType, Field, Fields};

use super::error::UnwritableRows;
use super::parts::Part;
use crate::decimal;
use layer0::retrieval::sparse::SparseVector;

/// The sparse vectors of an output.
#[derive(Debug, Clone)]
pub struct SparseLayout {
    /// The name of the field or column, and the beginning of the names of tensors.
    pub column: String,
    pub kind: SparseKind,
    /// The number of rows of the table. All indices are below it.
    pub vocabulary: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SparseKind {
    Documents,
    /// Queries, in which each token is expanded by this number of similar ones.
    Queries(usize),
}

/// The bytes of an index, and of a value, in a part.
const NUMBER: u64 = 4;

impl SparseLayout {
    /// Appends a vector as a field of a JSON object: `,"name":{"indices":[...],"values":[...]}`.
    pub fn json(&self, vector: &SparseVector, out: &mut Vec<u8>) {
        out.push(b',');
        // Strings and numbers can always be written as JSON.
        let _ = serde_json::to_writer(&mut *out, &self.column);
        out.extend_from_slice(br#":{"indices":"#);
        let _ = serde_json::to_writer(&mut *out, &vector.indices);
        out.extend_from_slice(br#","values":"#);
        decimal::array(out, &vector.values);
        out.push(b'}');
    }

    /// Returns the column of the vectors: a struct of the lists `indices` (int32) and `values` (float32).
    ///
    /// # Errors
    /// Fails if the vectors of one part have more than 2^31 numbers.
    pub fn column(&self, vectors: &[SparseVector]) -> Result<(Field, ArrayRef), UnwritableRows> {
        let failed = |error: &dyn std::fmt::Display| UnwritableRows(error.to_string());
        let total: usize = vectors.iter().map(|vector| vector.indices.len()).sum();
        i32::try_from(total).map_err(|e| failed(&e))?;
        let item = |item: DataType| Arc::new(Field::new("element", item, false));
        let mut indices = ListBuilder::new(Int32Builder::with_capacity(total)).with_field(item(DataType::Int32));
        let mut values = ListBuilder::new(Float32Builder::with_capacity(total)).with_field(item(DataType::Float32));
        for vector in vectors {
            indices.values().extend(vector.indices.iter().map(|&index| Some(index.cast_signed())));
            values.values().append_slice(&vector.values);
            indices.append(true);
            values.append(true);
        }
        let (indices, values) = (indices.finish(), values.finish());
        let field = |name: &str, list: &ListArray| {
            let data_type = arrow_array::Array::data_type(list).clone();
            Field::new(name, data_type, false)
        };
        let fields = Fields::from(vec![field("indices", &indices), field("values", &values)]);
        let columns: Vec<ArrayRef> = vec![Arc::new(indices), Arc::new(values)];
        let column = StructArray::try_new_with_length(fields.clone(), columns, None, vectors.len());
        let column = column.map_err(|e| failed(&e))?;
        Ok((Field::new(&self.column, DataType::Struct(fields), false), Arc::new(column)))
    }

    /// Appends the vectors of a part: the length of each, then all indices, then all values, each of 4 bytes.
    pub fn raw(vectors: &[SparseVector], out: &mut Vec<u8>) {
        out.extend(vectors.iter().flat_map(|vector| (vector.indices.len() as u32).to_le_bytes()));
        out.extend(vectors.iter().flat_map(|vector| &vector.indices).flat_map(|index| index.to_le_bytes()));
        out.extend(vectors.iter().flat_map(|vector| &vector.values).flat_map(|value| value.to_le_bytes()));
    }
}

/// Where the arrays of a part are in its file, after the dense vectors.
struct Sections {
    path: PathBuf,
    rows: u64,
    numbers: u64,
    /// The number of bytes of the dense vectors.
    dense: u64,
}

/// The tensor of the dense vectors in a safetensors file.
pub struct DenseTensor<'a> {
    pub name: &'a str,
    /// The type of the numbers, as safetensors names it.
    pub dtype: &'static str,
    /// The number of bytes of each number.
    pub number_bytes: u64,
    pub columns: u64,
}

/// Writes a safetensors file with these `metadata`, of the dense vectors and the three arrays of a compressed sparse row matrix, as scipy has it: `indptr`,
/// `indices` and `values`.
///
/// # Errors
/// Fails if a file cannot be read or written.
pub fn join_safetensors(
    sparse: &SparseLayout,
    dense: &DenseTensor<'_>,
    metadata: impl IntoIterator<Item = (String, String)>,
    parts: &[(PathBuf, Part)],
    file: &File,
) -> io::Result<()> {
    let row_bytes = dense.columns * dense.number_bytes;
    let sections: Vec<Sections> = parts
        .iter()
        .map(|(path, part)| {
            let dense = part.rows * row_bytes;
            let numbers = std::fs::metadata(path)?.len().saturating_sub(dense + part.rows * NUMBER) / (2 * NUMBER);
            Ok(Sections { path: path.clone(), rows: part.rows, numbers, dense })
        })
        .collect::<io::Result<_>>()?;
    let rows: u64 = sections.iter().map(|section| section.rows).sum();
    let numbers: u64 = sections.iter().map(|section| section.numbers).sum();
    let mut end = 0;
    let mut tensor = |dtype: &str, shape: &[u64], bytes: u64| {
        let begin = end;
        end += bytes;
        serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]})
    };
    let name = |array: &str| format!("{}.{array}", sparse.column);
    let shape = (name("shape"), format!("[{rows}, {}]", sparse.vocabulary));
    let metadata: BTreeMap<String, String> = metadata.into_iter().chain([shape]).collect();
    // The order is that of the bytes, and every array begins at a multiple of its numbers' size.
    let header = serde_json::json!({
        "__metadata__": metadata,
        name("indptr"): tensor("I64", &[rows + 1], (rows + 1) * 8),
        name("indices"): tensor("I32", &[numbers], numbers * NUMBER),
        name("values"): tensor("F32", &[numbers], numbers * NUMBER),
        dense.name: tensor(dense.dtype, &[rows, dense.columns], rows * row_bytes),
    });
    let mut text = header.to_string();
    text += &" ".repeat((8 - text.len() % 8) % 8);
    let mut out = BufWriter::new(file);
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(text.as_bytes())?;
    let mut pointer = 0u64;
    out.write_all(&pointer.to_le_bytes())?;
    for section in &sections {
        let mut lengths = section.open(section.dense)?.take(section.rows * NUMBER);
        let mut length = [0; NUMBER as usize];
        for _ in 0..section.rows {
            lengths.read_exact(&mut length)?;
            pointer += u64::from(u32::from_le_bytes(length));
            out.write_all(&pointer.to_le_bytes())?;
        }
    }
    for array in 0..2 {
        for section in &sections {
            let bytes = section.numbers * NUMBER;
            let start = section.dense + section.rows * NUMBER + array * bytes;
            io::copy(&mut section.open(start)?.take(bytes), &mut out)?;
        }
    }
    for section in &sections {
        io::copy(&mut section.open(0)?.take(section.dense), &mut out)?;
    }
    out.flush()
}

impl Sections {
    fn open(&self, start: u64) -> io::Result<BufReader<File>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(start))?;
        Ok(BufReader::new(file))
    }
}
