//! Reads refined checkpoints, which `refine` writes.
//!
//! A refined checkpoint is a directory with `tokenizer.json`, `config.json` with an object `refined`, and
//! `model.safetensors` with these tensors:
//!
//! * `embeddings`: F32 or F16 `[rows, dimensions]` (the directory is then a Model2Vec model too), I8
//!   `[rows, dimensions]`, or U8 `[rows, ceil(dimensions / 2)]`. U8 holds two columns per byte, the even one in the low
//!   four bits, each stored plus 8.
//! * `scales`: F32 `[rows]`, the step size of each row, for I8 and U8.
//!
//! The rows already include the norm, the token weights and the whitening. The object `refined` holds `dimensions` and, if the
//! table has other [`Conventions`] than its kind, `token_count_exponent`, `lexical_dimensions` and `lexical_weight`; everything else in it is a record of how the table was made.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde::Deserialize;
use serde_json::{Value, json};

use super::weights::{StoredTensor, Weights};
use super::{Checkpoint, Conventions, Kind, Overrides, TableSource, check_vocabulary, open_tokenizer};
use crate::error::LoadError;
use crate::norm::{FinalNorm, Norm, NormKind};
use crate::table::{EmbeddingTable, TableDtype};
use layer0_files::{self as files, json};
use layer0_tokenizers::choose::Tokenizer;

/// The name of the tensor of rows. [`SCALES`] is the name of the tensor of their step sizes.
pub const EMBEDDINGS: &str = "embeddings";
pub const SCALES: &str = "scales";
/// The key of config.json that identifies the refined format. It also records what the table was fitted on.
pub const KEY: &str = "refined";

#[derive(Deserialize)]
pub(super) struct Config {
    pub refined: Header,
}

/// What config.json says about the table.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Header {
    /// The number of columns.
    pub dimensions: usize,
    token_count_exponent: Option<f64>,
    lexical_dimensions: Option<usize>,
    lexical_weight: Option<f64>,
}

impl Header {
    /// Returns the conventions of the table.
    pub fn conventions(&self) -> Conventions {
        let by_kind = Conventions { special_tokens: false, ..Conventions::TRANSFORMERS };
        Conventions {
            token_count_exponent: self.token_count_exponent.unwrap_or(by_kind.token_count_exponent),
            lexical_dimensions: self.lexical_dimensions.unwrap_or(by_kind.lexical_dimensions),
            lexical_weight: self.lexical_weight.unwrap_or(by_kind.lexical_weight),
            ..by_kind
        }
    }
}

/// Returns the entries of `refined` from which [`Header::conventions`] reads these conventions.
pub fn entries(conventions: &Conventions) -> Vec<(&'static str, Value)> {
    let by_kind = Conventions::TRANSFORMERS;
    let mut entries = Vec::new();
    if conventions.token_count_exponent != by_kind.token_count_exponent {
        entries.push(("token_count_exponent", json!(conventions.token_count_exponent)));
    }
    if conventions.lexical_dimensions > 0 {
        entries.push(("lexical_dimensions", json!(conventions.lexical_dimensions)));
        entries.push(("lexical_weight", json!(conventions.lexical_weight)));
    }
    entries
}

/// Returns what config.json says about the table in `path` if it says that the checkpoint is refined.
///
/// # Errors
/// Returns an error if config.json has the key but its value is not understood.
pub fn recognize(path: &Path, overrides: &Overrides) -> Result<Option<Header>, LoadError> {
    let config_path = overrides.config.clone().unwrap_or_else(|| path.join("config.json"));
    // The reader of ordinary checkpoints reports a file that is missing or broken.
    let Ok(text) = files::read(&config_path) else { return Ok(None) };
    let Ok(Value::Object(config)) = json::from_slice(&text) else { return Ok(None) };
    if !config.contains_key(KEY) {
        return Ok(None);
    }
    let config: Config = serde_json::from_value(Value::Object(config)).map_err(|e| {
        LoadError::malformed(&config_path, format!("has {KEY:?}, but {e}"))
            .expected("the config.json that `embedding-server refine` wrote")
    })?;
    config.refined.conventions().check(&config_path)?;
    Ok(Some(config.refined))
}

/// Opens the checkpoint `path`, in which [`recognize`] found a table.
///
/// # Errors
/// Returns an error if a part is missing or does not fit.
pub fn open(path: &Path, header: &Header, overrides: &Overrides) -> Result<Checkpoint, LoadError> {
    let weights = Weights::open(path)?;
    let tokenizer = open_tokenizer(path, overrides)?;
    join(path, header, &weights, tokenizer)
}

/// Checks the parts of the checkpoint that can be read quickly: all except the tokenizer and the numbers of the table.
///
/// # Errors
/// Returns an error if the table is missing or does not fit.
pub fn check(path: &Path, header: &Header) -> Result<(), LoadError> {
    read_table(&Weights::open(path)?, header.dimensions).map(|_| ())
}

/// Builds a refined table from its parts, wherever they are stored.
///
/// # Errors
/// Returns an error if the parts do not fit each other.
pub(super) fn join(
    path: &Path,
    header: &Header,
    weights: &Weights,
    (tokenizer, tokenizer_path): (Tokenizer, PathBuf),
) -> Result<Checkpoint, LoadError> {
    let (table, table_source) = read_table(weights, header.dimensions)?;
    let mut remarks = Vec::new();
    check_vocabulary(&tokenizer.vocabulary, &table, &table_source.name, &tokenizer_path, &mut remarks)?;
    Ok(Checkpoint {
        path: path.to_owned(),
        kind: Kind::Refined,
        model_type: KEY.to_owned(),
        table_source: TableSource::mapped(table_source, &table),
        table,
        norm: FinalNorm {
            embedding_scale: 1.0,
            embedding_norm: None,
            norm: Norm { kind: NormKind::None, eps: 0.0, weight: None, bias: None },
            row_weights: None,
        },
        norm_source: None,
        tokenizer,
        tokenizer_path,
        prompt: None,
        conventions: header.conventions(),
        warnings: Vec::new(),
        remarks,
    })
}

fn read_table(weights: &Weights, dimensions: usize) -> Result<(EmbeddingTable, StoredTensor), LoadError> {
    let missing = |name: &str| {
        LoadError::missing(weights.path(), format!("has no tensor {name}"))
            .expected("the model.safetensors that `embedding-server refine` wrote")
    };
    let stored = weights.find(&[EMBEDDINGS])?.ok_or_else(|| missing(EMBEDDINGS))?;
    let wrong = || {
        LoadError::mismatch(&stored.path, format!("holds {EMBEDDINGS} as {:?} {:?}", stored.dtype, stored.shape))
            .expected(format!(
                "F32, F16 or I8 of {dimensions} columns, as config.json says, or U8 of {}",
                dimensions.div_ceil(2)
            ))
    };
    let &[rows, columns] = stored.shape.as_slice() else { return Err(wrong()) };
    let dtype = match stored.dtype {
        Dtype::F32 => TableDtype::F32,
        Dtype::F16 => TableDtype::F16,
        Dtype::I8 => TableDtype::Int8,
        Dtype::U8 => TableDtype::Int4,
        _ => return Err(wrong()),
    };
    let stored_columns = if dtype == TableDtype::Int4 { dimensions.div_ceil(2) } else { dimensions };
    if columns != stored_columns {
        return Err(wrong());
    }
    let table = if dtype.is_integer() {
        let scales = weights.find(&[SCALES])?.ok_or_else(|| missing(SCALES))?;
        let (numbers, rest) = scales.bytes.as_chunks();
        if scales.dtype != Dtype::F32 || numbers.len() != rows || !rest.is_empty() {
            return Err(LoadError::mismatch(
                &scales.path,
                format!("holds {SCALES} as {:?} {:?}", scales.dtype, scales.shape),
            )
            .expected(format!("F32 [{rows}], one for each row")));
        }
        let scales: Vec<f32> = numbers.iter().map(|&x| f32::from_le_bytes(x)).collect();
        EmbeddingTable::quantized(stored.bytes.clone(), dtype, dimensions, scales)
    } else {
        EmbeddingTable::new(stored.bytes.clone(), dtype, rows, dimensions)
    };
    Ok((table.ok_or_else(wrong)?, stored))
}
