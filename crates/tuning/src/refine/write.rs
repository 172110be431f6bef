//! Writes a checkpoint in the refined format (`checkpoint/refined.rs`), row by row.

mod quantize;

use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use half::f16;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::Rows;
use crate::error::RefineError;
use layer0::checkpoint::Checkpoint;
use layer0::checkpoint::refined::{self, EMBEDDINGS, KEY, SCALES};
use layer0::checkpoint::tokenizer_cache;
use layer0::extract::staging::{self, Existing, Staging};
use layer0::progress::Progress;
use layer0::table::TableDtype;
use layer0_files as files;
use layer0_files::FileError;

/// The data type in which the rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowDtype {
    /// Integers of 4 bits with a scale for each row.
    Int4,
    /// Integers of 8 bits with a scale for each row.
    Int8,
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

impl RowDtype {
    /// All types, in the order of the help.
    pub const ALL: [Self; 4] = [Self::Int4, Self::Int8, Self::F16, Self::F32];

    /// Returns the name of the type.
    pub const fn name(self) -> &'static str {
        self.table().name()
    }

    const fn table(self) -> TableDtype {
        match self {
            Self::Int4 => TableDtype::Int4,
            Self::Int8 => TableDtype::Int8,
            Self::F16 => TableDtype::F16,
            Self::F32 => TableDtype::F32,
        }
    }

    /// Replaces the numbers of a row by those that are read from the row once it is stored in this type.
    pub(crate) fn round(self, row: &mut [f32]) {
        match self {
            Self::F32 => {}
            Self::F16 => row.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
            Self::Int8 => quantize::round_int8(row),
            Self::Int4 => quantize::round_int4(row),
        }
    }

    /// Returns the name of the type in safetensors, and the number of stored columns for a table of `dimensions`
    /// columns.
    const fn stored(self, dimensions: usize) -> (&'static str, usize) {
        match self {
            Self::Int4 => ("U8", dimensions.div_ceil(2)),
            Self::Int8 => ("I8", dimensions),
            Self::F16 => ("F16", dimensions),
            Self::F32 => ("F32", dimensions),
        }
    }
}

/// The texts that are written beside the rows.
#[derive(Debug)]
pub struct Description<'a> {
    /// The description of how the rows were made. Its keys become part of `refined` in config.json.
    pub made: Map<String, Value>,
    /// The content of README.md.
    pub card: Option<&'a str>,
}

/// Writes the directory `out`: the table `made` from the table of `checkpoint`, and the tokenizer. The directory
/// appears complete or not at all.
///
/// # Errors
/// Fails if `out` exists and `existing` does not allow it, if another process writes the same directory, or if a file
/// cannot be written.
pub fn write(
    out: &Path,
    existing: Existing,
    dtype: RowDtype,
    checkpoint: &Checkpoint,
    made: &dyn Rows,
    description: &Description<'_>,
    progress: &dyn Progress,
) -> Result<(), RefineError> {
    staging::protect(out, &sources(checkpoint))?;
    let Some(staging) = Staging::begin(out, existing, None, progress)? else { return Ok(()) };
    let at = |name: &str| staging.dir().join(name);
    let io = |name: &str| {
        let path = at(name);
        move |e: io::Error| FileError::writing(path, &e)
    };
    match &checkpoint.tokenizer.rebuilt {
        Some(json) => staging::write(&at("tokenizer.json"), json.as_bytes())?,
        None => staging::copy(&checkpoint.tokenizer_path, &at("tokenizer.json"))?,
    }
    if let Some(compiled) = tokenizer_cache::compiled(staging.dir()) {
        staging::write(&at(tokenizer_cache::BESIDE), &compiled)?;
    }
    let metadata = provenance(dtype, checkpoint, made, &description.made);
    write_json(&at("config.json"), &config(dtype, made, &metadata))?;
    if !dtype.table().is_integer() {
        // sentence-transformers recognizes a static model by this file.
        write_json(&at("modules.json"), &modules())?;
    }
    if let Some(card) = description.card {
        staging::write(&at("README.md"), card.as_bytes())?;
    }
    let rows = rows_written(dtype, checkpoint);
    write_tensors(&at("model.safetensors"), dtype, rows, made, &metadata, progress).map_err(io("model.safetensors"))?;
    checkpoint.check()?;
    Ok(staging.commit()?)
}

/// Returns the paths from which a checkpoint was read. An output must not be one of them or contain one of them.
pub fn sources(checkpoint: &Checkpoint) -> [&Path; 3] {
    [&checkpoint.path, &checkpoint.tokenizer_path, &checkpoint.table_source.path]
}

/// Returns the number of rows to write. Model2Vec requires a table of exactly the size of the tokenizer's vocabulary.
/// For the types that it reads, rows that no token has are therefore left out, and an added token without a row gets a
/// row of zeros, which adds nothing. Model2Vec does not read the integer types, so their tables keep the rows of the
/// source.
fn rows_written(dtype: RowDtype, checkpoint: &Checkpoint) -> usize {
    let vocabulary = &checkpoint.tokenizer.vocabulary;
    let last = vocabulary.added.last().map_or(0, |token| token.id).max(vocabulary.max_base_id);
    if dtype.table().is_integer() { checkpoint.table.rows() } else { last as usize + 1 }
}

/// Returns the record of what the table was made from, and how.
fn provenance(dtype: RowDtype, checkpoint: &Checkpoint, made: &dyn Rows, how: &Map<String, Value>) -> Value {
    let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let path = checkpoint.path.canonicalize().unwrap_or_else(|_| checkpoint.path.clone());
    let mut metadata = json!({
        "dimensions": made.dimensions(),
        "dtype": dtype.name(),
        "source": {
            "name": name(&path),
            "model_type": checkpoint.model_type,
            "tensor": checkpoint.table_source.name,
            "rows": checkpoint.table.rows(),
            "dimensions": checkpoint.table.dimensions(),
            "dtype": checkpoint.table.dtype().name(),
        },
        "made_by": concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")),
    });
    if let Some(metadata) = metadata.as_object_mut() {
        metadata
            .extend(refined::entries(&checkpoint.conventions).into_iter().map(|(key, value)| (key.to_owned(), value)));
        metadata.extend(how.clone());
    }
    metadata
}

/// Returns the content of config.json. Model2Vec reads the floating-point types and needs its own keys for them. It
/// does not read the integer types.
fn config(dtype: RowDtype, made: &dyn Rows, metadata: &Value) -> Value {
    if dtype.table().is_integer() {
        return json!({ "model_type": "refined_embeddings", KEY: metadata });
    }
    json!({
        "model_type": "model2vec",
        "architectures": ["StaticModel"],
        "hidden_dim": made.dimensions(),
        "normalize": true,
        "embedding_dtype": if dtype == RowDtype::F16 { "float16" } else { "float32" },
        KEY: metadata,
    })
}

fn modules() -> Value {
    json!([
        { "idx": 0, "name": "0", "path": ".", "type": "sentence_transformers.models.StaticEmbedding" },
        { "idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize" },
    ])
}

fn write_json(path: &Path, value: &Value) -> Result<(), RefineError> {
    Ok(staging::write(path, format!("{value:#}\n").as_bytes())?)
}

/// Writes one safetensors file. The scales of an integer type come first, so that both tensors are aligned.
fn write_tensors(
    path: &Path,
    dtype: RowDtype,
    rows: usize,
    made: &dyn Rows,
    metadata: &Value,
    progress: &dyn Progress,
) -> io::Result<()> {
    let dimensions = made.dimensions();
    let (name, columns) = dtype.stored(dimensions);
    let width = dtype.table().row_bytes(dimensions).unwrap_or(usize::MAX);
    let scale_bytes = if dtype.table().is_integer() { rows * size_of::<f32>() } else { 0 };
    let end = rows.checked_mul(width).and_then(|n| n.checked_add(scale_bytes)).ok_or(io::ErrorKind::FileTooLarge)?;
    let mut header = json!({
        "__metadata__": { "format": "pt", KEY: metadata.to_string() },
        EMBEDDINGS: { "dtype": name, "shape": [rows, columns], "data_offsets": [scale_bytes, end] },
    });
    if let (true, Some(header)) = (scale_bytes > 0, header.as_object_mut()) {
        header.insert(SCALES.to_owned(), json!({ "dtype": "F32", "shape": [rows], "data_offsets": [0, scale_bytes] }));
    }
    let mut header = header.to_string();
    // Readers map the numbers in place, so the data must start at a multiple of 8 bytes.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let data = (size_of::<u64>() + header.len()) as u64;

    let mut file = BufWriter::with_capacity(1 << 20, files::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    file.seek(SeekFrom::Start(data + scale_bytes as u64))?;
    let mut scales: Vec<u8> = Vec::with_capacity(scale_bytes);
    progress.start_counted("writing rows", made.rows() as u64);
    made.for_each_block(&mut |first, block| {
        let encoded: Vec<(f32, Vec<u8>)> = block.par_chunks(dimensions).map(|row| encode(dtype, row)).collect();
        for (scale, bytes) in encoded.into_iter().take(rows.saturating_sub(first)) {
            file.write_all(&bytes)?;
            if scale_bytes > 0 {
                scales.extend(scale.to_le_bytes());
            }
        }
        progress.advance((block.len() / dimensions) as u64);
        Ok(())
    })?;
    progress.finish();
    let zeros = vec![0; width];
    for _ in made.rows()..rows {
        file.write_all(&zeros)?;
    }
    file.seek(SeekFrom::Start(data))?;
    file.write_all(&scales)?;
    file.into_inner()?.sync_all()
}

/// Returns the scale and the bytes of a row.
fn encode(dtype: RowDtype, row: &[f32]) -> (f32, Vec<u8>) {
    match dtype {
        RowDtype::F32 => (1.0, row.iter().flat_map(|x| x.to_le_bytes()).collect()),
        RowDtype::F16 => (1.0, row.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()),
        RowDtype::Int8 => quantize::int8(row),
        RowDtype::Int4 => quantize::int4(row),
    }
}
