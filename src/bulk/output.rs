//! Writes vectors, with or without the records they belong to, in the formats of other programs.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, FixedSizeListArray, Float16Array, Float32Array, Int8Array, RecordBatch, UInt8Array};
use arrow_schema::{DataType, Field, Schema};
use half::f16;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::writer::ColumnCloseResult;
use parquet::file::metadata::{KeyValue, ParquetMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;

use super::error::{BulkError, UnwritableRows};
use super::parts::Part;
use super::sparse::{DenseTensor, SparseLayout, join_safetensors};
use crate::decimal;
use layer0::retrieval::sparse::SparseVector;
use layer0::{Fingerprint, OutputDtype};
use layer0_files::{self as files, FileError, FileErrorKind};
use layer0_records::table;

/// The format of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// The records as JSON lines. The vector is added as one more field.
    Jsonl,
    /// The columns of the records. The vectors are added as a column of FixedSizeList.
    Parquet,
    /// The vectors alone, as an npy file: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.
    Npy,
    /// The vectors alone, as one tensor that is named after the vector field.
    Safetensors,
}

impl OutputFormat {
    /// All formats, in the order of the help.
    pub const ALL: [Self; 4] = [Self::Jsonl, Self::Parquet, Self::Npy, Self::Safetensors];

    /// Returns the name of the format, which is also the usual extension of its files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Parquet => "parquet",
            Self::Npy => "npy",
            Self::Safetensors => "safetensors",
        }
    }

    /// Returns whether numbers are written as decimals. Such files are several times as large, and have no data type of numbers.
    pub const fn is_text(self) -> bool {
        match self {
            Self::Jsonl => true,
            Self::Parquet | Self::Npy | Self::Safetensors => false,
        }
    }

    /// Returns the format of files with this extension.
    pub fn from_extension(extension: &str) -> Option<Self> {
        let named = Self::ALL.into_iter().find(|format| format.name() == extension);
        named.or((extension == "ndjson").then_some(Self::Jsonl))
    }
}

/// The type in which the numbers of dense vectors are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmbeddingDtype {
    Float32,
    Float16,
    /// Whole numbers or bits, as the API returns them for `output_dtype`.
    Integers(OutputDtype),
}

impl EmbeddingDtype {
    /// All types, in the order of the help.
    pub const ALL: [Self; 6] = [
        Self::Float32,
        Self::Float16,
        Self::Integers(OutputDtype::Int8),
        Self::Integers(OutputDtype::Uint8),
        Self::Integers(OutputDtype::Binary),
        Self::Integers(OutputDtype::Ubinary),
    ];

    /// Returns the name of the type.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Integers(dtype) => dtype.name(),
        }
    }

    /// Returns the type of the numbers in JSON.
    const fn in_json(self) -> OutputDtype {
        match self {
            Self::Float32 | Self::Float16 => OutputDtype::Float,
            Self::Integers(dtype) => dtype,
        }
    }

    /// Returns the names of the stored numbers in npy and in safetensors, and their size in bytes.
    const fn names(self) -> (&'static str, &'static str, u64) {
        match self {
            Self::Float32 => ("<f4", "F32", 4),
            Self::Float16 => ("<f2", "F16", 2),
            Self::Integers(dtype) if dtype.is_signed_byte() => ("|i1", "I8", 1),
            Self::Integers(_) => ("|u1", "U8", 1),
        }
    }

    /// Returns the number of stored numbers of a vector with this many dimensions.
    const fn columns(self, dimensions: usize) -> usize {
        self.in_json().columns(dimensions)
    }

    /// Returns the bytes of vectors with this many dimensions, row by row, in little-endian order.
    fn bytes(self, vectors: &[f32], dimensions: usize) -> Vec<u8> {
        match self {
            Self::Float16 => vectors.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Self::Float32 | Self::Integers(_) => {
                let dtype = self.in_json();
                let mut out = Vec::with_capacity(vectors.len() / dimensions.max(1) * dtype.bytes(dimensions));
                vectors.chunks(dimensions.max(1)).for_each(|vector| dtype.append(vector, &mut out));
                out
            }
        }
    }
}

/// The layout of the output.
#[derive(Debug, Clone)]
pub struct Layout {
    pub format: OutputFormat,
    pub dtype: EmbeddingDtype,
    pub dimensions: usize,
    /// The name of the column of the vectors.
    pub column: String,
    /// The sparse vectors, if the output has them.
    pub sparse: Option<SparseLayout>,
    /// The fingerprint of the model, which Parquet and safetensors files record under [`FINGERPRINT`].
    pub fingerprint: Fingerprint,
}

/// The key of the model's fingerprint in the metadata of Parquet and safetensors files.
pub const FINGERPRINT: &str = "embedding_fingerprint";

/// The vectors of some texts.
#[derive(Debug, Default)]
pub struct Vectors {
    /// `[texts, dimensions]`
    pub dense: Vec<f32>,
    /// One for each text if the layout has sparse vectors; otherwise empty.
    pub sparse: Vec<SparseVector>,
}

impl Layout {
    /// Returns the columns that are added to the records.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.column.as_str()).chain(self.sparse.as_ref().map(|sparse| sparse.column.as_str()))
    }

    /// Tells whether the output holds the records beside the vectors.
    pub fn writes_records(&self) -> bool {
        match self.format {
            OutputFormat::Jsonl | OutputFormat::Parquet => true,
            OutputFormat::Npy | OutputFormat::Safetensors => false,
        }
    }

    /// Returns JSON lines: each record is a JSON object, to which its vector is added.
    pub fn json<'a>(&self, records: impl Iterator<Item = &'a [u8]>, vectors: &Vectors) -> Vec<u8> {
        let mut out = Vec::with_capacity(vectors.dense.len() * 13);
        let mut sparse_vectors = vectors.sparse.iter();
        for (record, vector) in records.zip(vectors.dense.chunks(self.dimensions)) {
            let open = record.trim_ascii().strip_suffix(b"}").unwrap_or(record).trim_ascii_end();
            out.extend_from_slice(open);
            if !open.ends_with(b"{") {
                out.push(b',');
            }
            // Every string can be written as JSON, so this cannot fail.
            let _ = serde_json::to_writer(&mut out, &self.column);
            out.push(b':');
            decimal::vector(&mut out, vector, self.dtype.in_json());
            if let (Some(sparse), Some(vector)) = (&self.sparse, sparse_vectors.next()) {
                sparse.json(vector, &mut out);
            }
            out.extend_from_slice(b"}\n");
        }
        out
    }

    /// Returns the rows of a batch as JSON lines with their vectors.
    ///
    /// # Errors
    /// Fails if a column has a type that JSON cannot represent.
    pub fn json_of_batch(&self, batch: &RecordBatch, vectors: &Vectors) -> Result<Vec<u8>, UnwritableRows> {
        let lines = table::json_lines(batch)?;
        Ok(self.json(lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()), vectors))
    }

    /// Returns the bytes of the vectors, row by row, in little-endian order, followed by those of the sparse vectors.
    pub fn raw(&self, vectors: &Vectors) -> Vec<u8> {
        let mut out = self.dtype.bytes(&vectors.dense, self.dimensions);
        if self.sparse.is_some() {
            SparseLayout::raw(&vectors.sparse, &mut out);
        }
        out
    }

    /// Returns a Parquet file with the columns of the batch and the vectors, in one row group.
    ///
    /// # Errors
    /// Fails if a column has a type that Parquet cannot represent.
    pub fn parquet(&self, batch: &RecordBatch, vectors: Vectors) -> Result<Vec<u8>, UnwritableRows> {
        let failed = |error: &dyn std::fmt::Display| UnwritableRows(error.to_string());
        let width = i32::try_from(self.dtype.columns(self.dimensions)).map_err(|e| failed(&e))?;
        let sparse = self.sparse.as_ref().map(|sparse| sparse.column(&vectors.sparse)).transpose()?;
        let vectors = vectors.dense;
        let (numbers, item): (ArrayRef, _) = match self.dtype {
            EmbeddingDtype::Float32 => (Arc::new(Float32Array::from(vectors)), DataType::Float32),
            EmbeddingDtype::Integers(dtype) => {
                let bytes = self.dtype.bytes(&vectors, self.dimensions);
                if dtype.is_signed_byte() {
                    let numbers: Vec<i8> = bytes.into_iter().map(u8::cast_signed).collect();
                    (Arc::new(Int8Array::from(numbers)), DataType::Int8)
                } else {
                    (Arc::new(UInt8Array::from(bytes)), DataType::UInt8)
                }
            }
            EmbeddingDtype::Float16 => {
                let numbers: Vec<f16> = vectors.into_iter().map(f16::from_f32).collect();
                (Arc::new(Float16Array::from(numbers)), DataType::Float16)
            }
        };
        let item = Arc::new(Field::new("element", item, false));
        let column = FixedSizeListArray::try_new(Arc::clone(&item), width, numbers, None).map_err(|e| failed(&e))?;
        let field = Field::new(&self.column, DataType::FixedSizeList(item, width), false);
        let schema = batch.schema();
        let mut fields: Vec<_> = schema.fields().iter().cloned().chain([Arc::new(field)]).collect();
        let mut columns: Vec<_> = batch.columns().iter().cloned().chain([Arc::new(column) as ArrayRef]).collect();
        if let Some((field, column)) = sparse {
            fields.push(Arc::new(field));
            columns.push(column);
        }
        let schema = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
        let whole = RecordBatch::try_new(Arc::clone(&schema), columns).map_err(|e| failed(&e))?;
        // Vectors do not compress, and no reader selects rows by the minimum and maximum of a vector column.
        let path = ColumnPath::new(vec![self.column.clone(), "list".to_owned(), "element".to_owned()]);
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_column_compression(path.clone(), Compression::UNCOMPRESSED)
            .set_column_dictionary_enabled(path.clone(), false)
            .set_column_statistics_enabled(path, EnabledStatistics::None)
            .set_max_row_group_row_count(None)
            // This setting writes Date64 as the DATE type of Parquet instead of as a plain number.
            .set_coerce_types(true)
            .set_key_value_metadata(Some(vec![KeyValue::new(FINGERPRINT.to_owned(), self.fingerprint.to_string())]))
            .build();
        let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties)).map_err(|e| failed(&e))?;
        writer.write(&whole).and_then(|()| writer.into_inner()).map_err(|e| failed(&e))
    }

    /// Joins the parts to the file `out`. The file appears complete or not at all.
    ///
    /// # Errors
    /// Fails if a file cannot be read or written, or if the parts do not fit together.
    pub fn join(&self, parts: &[(PathBuf, Part)], rows: u64, out: &Path) -> Result<(), BulkError> {
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let incomplete = out.with_file_name(format!(".{name}.incomplete"));
        let failed = |e: &dyn std::fmt::Display| {
            FileError::new(FileErrorKind::Io, &incomplete, format!("cannot be written: {e}"))
        };
        let file = files::create(&incomplete).map_err(|e| failed(&e))?;
        match self.format {
            OutputFormat::Parquet => join_parquet(parts, &file).map_err(|e| failed(&e))?,
            OutputFormat::Safetensors if self.sparse.is_some() => {
                self.join_sparse(parts, &file).map_err(|e| failed(&e))?;
            }
            _ => self.join_bytes(parts, rows, &file).map_err(|e| failed(&e))?,
        }
        Ok(file.sync_all().and_then(|()| std::fs::rename(&incomplete, out)).map_err(|e| failed(&e))?)
    }

    fn join_sparse(&self, parts: &[(PathBuf, Part)], file: &File) -> io::Result<()> {
        let Some(sparse) = &self.sparse else { return Ok(()) };
        let (_, dtype, number_bytes) = self.dtype.names();
        let columns = self.dtype.columns(self.dimensions) as u64;
        let dense = DenseTensor { name: &self.column, dtype, number_bytes, columns };
        let metadata = [(FINGERPRINT.to_owned(), self.fingerprint.to_string())];
        join_safetensors(sparse, &dense, metadata, parts, file)
    }

    fn join_bytes(&self, parts: &[(PathBuf, Part)], rows: u64, mut file: &File) -> io::Result<()> {
        file.write_all(&self.header(rows))?;
        for (part, _) in parts {
            io::copy(&mut File::open(part)?, &mut file)?;
        }
        Ok(())
    }

    fn header(&self, rows: u64) -> Vec<u8> {
        let (numpy, tensor, size) = self.dtype.names();
        let columns = self.dtype.columns(self.dimensions);
        match self.format {
            OutputFormat::Jsonl | OutputFormat::Parquet => Vec::new(),
            OutputFormat::Npy => {
                let mut text =
                    format!("{{'descr': '{numpy}', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
                text += &" ".repeat((64 - (10 + text.len() + 1) % 64) % 64);
                text.push('\n');
                let length = u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes();
                [b"\x93NUMPY\x01\x00", &length[..], text.as_bytes()].concat()
            }
            OutputFormat::Safetensors => {
                let end = rows * columns as u64 * size;
                let tensor = serde_json::json!({ "dtype": tensor, "shape": [rows, columns], "data_offsets": [0, end] });
                let metadata = serde_json::json!({ FINGERPRINT: self.fingerprint });
                let mut text = serde_json::json!({ "__metadata__": metadata, &self.column: tensor }).to_string();
                text += &" ".repeat((8 - text.len() % 8) % 8);
                [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
            }
        }
    }
}

/// Copies the row groups of the parts unchanged, without decoding them.
fn join_parquet(parts: &[(PathBuf, Part)], file: &File) -> Result<(), Box<dyn std::error::Error>> {
    let mut joined: Option<(SerializedFileWriter<BufWriter<&File>>, Arc<ParquetMetaData>)> = None;
    for (part, _) in parts {
        let input = File::open(part)?;
        let reader = SerializedFileReader::new(input.try_clone()?)?;
        let metadata = Arc::new(reader.metadata().clone());
        let schema = metadata.file_metadata().schema_descr().root_schema_ptr();
        if joined.is_none() {
            let properties = WriterProperties::builder()
                .set_key_value_metadata(metadata.file_metadata().key_value_metadata().cloned())
                .build();
            let writer = SerializedFileWriter::new(BufWriter::new(file), schema.clone(), Arc::new(properties))?;
            joined = Some((writer, Arc::clone(&metadata)));
        }
        let Some((writer, _)) = &mut joined else { continue };
        if *writer.schema_descr().root_schema() != *schema {
            return Err("the inputs' columns differ: give inputs of one schema, or write JSONL".into());
        }
        for group in metadata.row_groups() {
            let mut out = writer.next_row_group()?;
            for column in group.columns() {
                let copied = ColumnCloseResult {
                    bytes_written: u64::try_from(column.compressed_size())?,
                    rows_written: u64::try_from(group.num_rows())?,
                    metadata: column.clone(),
                    bloom_filter: None,
                    column_index: None,
                    offset_index: None,
                };
                out.append_column(&input, copied)?;
            }
            out.close()?;
        }
    }
    if let Some((writer, _)) = joined {
        writer.into_inner()?.flush()?;
    }
    Ok(())
}
