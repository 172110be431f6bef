//! Writes the refined format (`checkpoint/refined.rs`): row by row, beside its place, then renamed into it.

mod quantize;

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::f16;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::frequency::Frequencies;
use super::{Progress, Refinement};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::refined::{EMBEDDINGS, KEY, SCALES};
use crate::error::LoadError;
use crate::table::TableDtype;

/// How the rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowDtype {
    Int4,
    Int8,
    F16,
    F32,
}

impl RowDtype {
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

    /// safetensors' name, and its columns for `dimensions` of the table's.
    const fn stored(self, dimensions: usize) -> (&'static str, usize) {
        match self {
            Self::Int4 => ("U8", dimensions.div_ceil(2)),
            Self::Int8 => ("I8", dimensions),
            Self::F16 => ("F16", dimensions),
            Self::F32 => ("F32", dimensions),
        }
    }
}

/// Writes the directory `out`. With `force`, one that exists is replaced in one rename; a reader never sees half of it.
///
/// # Errors
/// When `out` exists and `force` is not set, or the disk refuses.
pub fn write(
    out: &Path,
    force: bool,
    dtype: RowDtype,
    checkpoint: &Checkpoint,
    frequencies: &Frequencies,
    refinement: &Refinement<'_>,
    progress: Progress<'_>,
) -> Result<(), LoadError> {
    let partial = Partial::create(out, force)?;
    let metadata = provenance(dtype, checkpoint, frequencies, refinement);
    let io = |name: &str| {
        let path = partial.path.join(name);
        move |e: io::Error| LoadError::io(path, &e)
    };
    match &checkpoint.tokenizer.rebuilt {
        Some(json) => fs::write(partial.path.join("tokenizer.json"), json.as_bytes()).map_err(io("tokenizer.json"))?,
        None => {
            fs::copy(&checkpoint.tokenizer_path, partial.path.join("tokenizer.json")).map_err(io("tokenizer.json"))?;
        }
    }
    write_json(&partial.path.join("config.json"), &config(dtype, refinement, &metadata)).map_err(io("config.json"))?;
    if !dtype.table().is_integer() {
        // sentence-transformers finds a static model by this file.
        write_json(&partial.path.join("modules.json"), &modules()).map_err(io("modules.json"))?;
    }
    let rows = rows_written(dtype, checkpoint);
    write_tensors(&partial.path.join("model.safetensors"), dtype, rows, refinement, &metadata, progress)
        .map_err(io("model.safetensors"))?;
    partial.finish(out)
}

/// Model2Vec takes a table of exactly the tokenizer's size: rows that no token has are left off, and an added token
/// without a row gets one of zeros, which adds nothing. Integers, which it does not read, keep the source's rows.
fn rows_written(dtype: RowDtype, checkpoint: &Checkpoint) -> usize {
    let vocabulary = &checkpoint.tokenizer.vocabulary;
    let last = vocabulary.added.last().map_or(0, |token| token.id).max(vocabulary.max_base_id);
    if dtype.table().is_integer() { checkpoint.table.rows() } else { last as usize + 1 }
}

/// What the table was made from and how.
fn provenance(dtype: RowDtype, checkpoint: &Checkpoint, frequencies: &Frequencies, made: &Refinement<'_>) -> Value {
    let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let path = checkpoint.path.canonicalize().unwrap_or_else(|_| checkpoint.path.clone());
    json!({
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
        "parameters": made.parameters(),
        "frequencies": frequencies.source(),
        "made_by": concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")),
    })
}

/// config.json. Model2Vec reads the float dtypes by the keys of its own; the integers are not for it.
fn config(dtype: RowDtype, made: &Refinement<'_>, metadata: &Value) -> Value {
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

fn write_json(path: &Path, value: &Value) -> io::Result<()> {
    fs::write(path, format!("{value:#}\n"))
}

/// One safetensors file: scales first, where there are any, so that both tensors are aligned.
fn write_tensors(
    path: &Path,
    dtype: RowDtype,
    rows: usize,
    made: &Refinement<'_>,
    metadata: &Value,
    progress: Progress<'_>,
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
    // Readers map numbers where they are: the data starts at a multiple of 8.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let data = (size_of::<u64>() + header.len()) as u64;

    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    file.seek(SeekFrom::Start(data + scale_bytes as u64))?;
    let mut scales: Vec<u8> = Vec::with_capacity(scale_bytes);
    made.for_each_block(progress, |first, block| {
        let encoded: Vec<(f32, Vec<u8>)> = block.par_chunks(dimensions).map(|row| encode(dtype, row)).collect();
        for (scale, bytes) in encoded.into_iter().take(rows.saturating_sub(first)) {
            file.write_all(&bytes)?;
            if scale_bytes > 0 {
                scales.extend(scale.to_le_bytes());
            }
        }
        io::Result::Ok(())
    })?;
    let zeros = vec![0; width];
    for _ in made.rows()..rows {
        file.write_all(&zeros)?;
    }
    file.seek(SeekFrom::Start(data))?;
    file.write_all(&scales)?;
    file.into_inner()?.sync_all()
}

/// The scale and the bytes of a row.
fn encode(dtype: RowDtype, row: &[f32]) -> (f32, Vec<u8>) {
    match dtype {
        RowDtype::F32 => (1.0, row.iter().flat_map(|x| x.to_le_bytes()).collect()),
        RowDtype::F16 => (1.0, row.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()),
        RowDtype::Int8 => quantize::int8(row),
        RowDtype::Int4 => quantize::int4(row),
    }
}

/// A directory that is not in its place yet; removed if it never gets there.
struct Partial {
    path: PathBuf,
}

impl Partial {
    fn create(out: &Path, force: bool) -> Result<Self, LoadError> {
        if out.exists() && !force {
            return Err(
                LoadError::new(out, "exists already").remedy("give --force to replace it, or another directory")
            );
        }
        if out.exists() && !out.join("config.json").exists() {
            return Err(LoadError::new(out, "exists and is no checkpoint, so it is not replaced")
                .remedy("remove it, or give another directory"));
        }
        let path = beside(out, "partial").ok_or_else(|| LoadError::new(out, "has no name to write to"))?;
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(|e| LoadError::io(parent, &e))?;
        }
        fs::create_dir(&path).map_err(|e| LoadError::io(&path, &e))?;
        Ok(Self { path })
    }

    fn finish(self, out: &Path) -> Result<(), LoadError> {
        let io = |e: io::Error| LoadError::io(out, &e);
        let old = beside(out, "old").filter(|_| out.exists());
        if let Some(old) = &old {
            fs::rename(out, old).map_err(io)?;
        }
        fs::rename(&self.path, out).map_err(io)?;
        if let Some(old) = &old {
            fs::remove_dir_all(old).map_err(io)?;
        }
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After `finish` nothing is here any more.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// `.NAME.KIND-PID` in the directory of `out`: on its file system, and no other process's.
fn beside(out: &Path, kind: &str) -> Option<PathBuf> {
    let name = out.file_name()?.to_string_lossy();
    Some(out.with_file_name(format!(".{name}.{kind}-{}", std::process::id())))
}
