//! Opens a checkpoint: a directory's embedding table, final norm and tokenizer.
//!
//! A layer-0 checkpoint and the full model's directory are alike: two tensors are looked up by name and mapped;
//! `lm_head` and layers are never touched. No network, no HTTP, no pooling here.

pub mod family;
pub mod map;
pub mod refined;
pub mod weights;

use std::path::{Path, PathBuf};

use safetensors::Dtype;

use crate::error::LoadError;
use crate::norm::{FinalNorm, Norm, NormKind};
use crate::table::{EmbeddingTable, TableDtype};
use crate::tokenize::{HfTokenizer, Vocabulary};
use family::{ModelConfig, NormNames};
use weights::{StoredTensor, Weights};

/// What the user sets in place of what the directory says. `Default` overrides nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overrides {
    /// The config.json, where it lies elsewhere.
    pub config: Option<PathBuf>,
    /// The tokenizer.json, or a directory that holds it, where it lies elsewhere.
    pub tokenizer: Option<PathBuf>,
    /// The kind of the final norm; also admits a model type that is unknown or depends on positions.
    pub norm: Option<NormKind>,
    pub norm_eps: Option<f64>,
    pub embedding_scale: Option<f64>,
    /// The names of the two tensors.
    pub embedding_tensor: Option<String>,
    pub norm_tensor: Option<String>,
}

/// An opened checkpoint. The table is mapped, not read.
pub struct Checkpoint {
    pub path: PathBuf,
    /// `model_type` of the (text) config.
    pub model_type: String,
    pub table: EmbeddingTable,
    /// Where the table comes from.
    pub table_source: StoredTensor,
    pub norm: FinalNorm,
    /// The norm's tensor, where it has one.
    pub norm_source: Option<String>,
    pub tokenizer: HfTokenizer,
    pub tokenizer_path: PathBuf,
    pub vocabulary: Vocabulary,
    /// The rows were made to be summed as they are: no special tokens, and vectors of length 1, whatever is configured.
    pub folded: bool,
    /// What a user should know although it is served.
    pub warnings: Vec<String>,
}

impl Checkpoint {
    /// Opens the directory `path`.
    ///
    /// # Errors
    /// [`LoadError`] says which file is at fault, what was expected, and which override helps where one does.
    pub fn open(path: &Path, overrides: &Overrides) -> Result<Self, LoadError> {
        if !path.is_dir() {
            let problem = if path.exists() { "is not a directory" } else { "does not exist" };
            return Err(LoadError::new(path, problem)
                .expected("a checkpoint directory: config.json, tokenizer.json and model.safetensors"));
        }
        if let Some(refined) = refined::open(path, overrides)? {
            return Ok(refined);
        }
        let mut warnings = Vec::new();
        let config_path = overrides.config.clone().unwrap_or_else(|| path.join("config.json"));
        let config = ModelConfig::open(&config_path)?;
        let family = family::resolve(&config, overrides)?;

        let weights = Weights::open(path)?;
        let table_source = find_table(&weights, overrides)?;
        let table = embedding_table(&table_source)?;
        let scale = family.embedding_scale(&config, table.dimensions())?;
        let (norm, norm_source) = find_norm(&weights, &family, &config, overrides, table.dimensions())?;
        let embedding_norm = match family.embedding_norm {
            None => None,
            Some(names) => Some(read_norm(&weights, &family, &config, overrides, names, table.dimensions())?),
        };
        warnings.extend(family.warnings(&config, overrides));

        let tokenizer_path = tokenizer_path(path, overrides);
        if !tokenizer_path.exists() {
            return Err(missing_tokenizer(path, &tokenizer_path));
        }
        let tokenizer = HfTokenizer::open(&tokenizer_path)?;
        let vocabulary = tokenizer.vocabulary();
        check_vocabulary(&vocabulary, &table, &table_source, &tokenizer_path, &mut warnings)?;

        Ok(Self {
            path: path.to_owned(),
            model_type: config.model_type().to_owned(),
            table,
            table_source,
            norm: FinalNorm { embedding_scale: overrides.embedding_scale.unwrap_or(scale), embedding_norm, norm },
            norm_source,
            tokenizer,
            tokenizer_path,
            vocabulary,
            folded: false,
            warnings,
        })
    }
}

fn find_table(weights: &Weights, overrides: &Overrides) -> Result<StoredTensor, LoadError> {
    let found = match &overrides.embedding_tensor {
        Some(name) => weights.find(std::slice::from_ref(name))?,
        None => weights.find(&family::embedding_names())?,
    };
    found.ok_or_else(|| {
        let error = LoadError::new(weights.path(), "has no embedding table");
        if let Some(packed) = weights.names().unwrap_or_default().into_iter().find(|name| is_packed_table(name)) {
            return quantized(weights.path(), &format!("holds {packed}"));
        }
        match &overrides.embedding_tensor {
            Some(name) => error.expected(format!("a tensor {name}, as embedding_tensor says; {}", has(weights))),
            None => error
                .expected(format!(
                    "a tensor named model.embed_tokens.weight or as other families name it; {}",
                    has(weights)
                ))
                .remedy("set embedding_tensor to its name"),
        }
    })
}

/// The names that a file does have: two-dimensional guesses are the user's to make.
fn has(weights: &Weights) -> String {
    const SHOWN: usize = 8;
    let mut names = weights.names().unwrap_or_default();
    names.sort();
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    names.truncate(SHOWN);
    format!("it has {}{more}", if names.is_empty() { "no tensors".to_owned() } else { names.join(", ") })
}

fn embedding_table(tensor: &StoredTensor) -> Result<EmbeddingTable, LoadError> {
    let dtype = match tensor.dtype {
        Dtype::BF16 => TableDtype::Bf16,
        Dtype::F16 => TableDtype::F16,
        Dtype::F32 => TableDtype::F32,
        other => {
            return Err(quantized(&tensor.path, &format!("holds {} as {other:?}", tensor.name)));
        }
    };
    let table = match tensor.shape.as_slice() {
        &[rows, dimensions] => EmbeddingTable::new(tensor.bytes.clone(), dtype, rows, dimensions),
        _ => None,
    };
    table.ok_or_else(|| {
        LoadError::new(&tensor.path, format!("holds {} with shape {:?}", tensor.name, tensor.shape))
            .expected("a table of shape [vocabulary, dimensions], neither zero")
            .remedy("set embedding_tensor if another tensor is meant")
    })
}

/// GPTQ, AWQ and compressed-tensors store a packed matrix under these names.
fn is_packed_table(name: &str) -> bool {
    let stem = [".qweight", ".weight_packed"].iter().find_map(|suffix| name.strip_suffix(suffix));
    stem.is_some_and(|stem| family::embedding_names().contains(&format!("{stem}.weight")))
}

fn quantized(path: &Path, holds: &str) -> LoadError {
    LoadError::new(path, format!("{holds}: a quantized table"))
        .expected("BF16, F16 or F32")
        .remedy("use the model's original, unquantized checkpoint")
}

fn find_norm(
    weights: &Weights,
    family: &family::Family,
    config: &ModelConfig,
    overrides: &Overrides,
    dimensions: usize,
) -> Result<(Norm, Option<String>), LoadError> {
    if family.norm == NormKind::None {
        return Ok((Norm { kind: NormKind::None, eps: 0.0, weight: None, bias: None }, None));
    }
    let eps = family.eps(config, overrides)?;
    if family.bare {
        return Ok((Norm { kind: family.norm, eps, weight: None, bias: None }, None));
    }
    let names = match &overrides.norm_tensor {
        Some(name) => vec![name.clone()],
        None => family::norm_names(),
    };
    let Some(tensor) = weights.find(&names)? else {
        return Err(LoadError::new(weights.path(), "has no final norm")
            .expected(format!("a tensor {}; {}", names.first().map_or("", String::as_str), has(weights)))
            .remedy("set norm_tensor to its name, or norm = \"none\" to serve the rows as they are"));
    };
    let (weight, bias) = parameters(weights, &tensor, dimensions)?;
    Ok((Norm { kind: family.norm, eps, weight: Some(weight), bias }, Some(tensor.name)))
}

/// The norm on the embedding itself, of the families that have one: always a LayerNorm.
fn read_norm(
    weights: &Weights,
    family: &family::Family,
    config: &ModelConfig,
    overrides: &Overrides,
    names: NormNames,
    dimensions: usize,
) -> Result<Norm, LoadError> {
    let eps = family.eps(config, overrides)?;
    let Some(tensor) = weights.find(names)? else {
        return Err(LoadError::new(weights.path(), "has no norm on the embedding")
            .expected(format!("a tensor {}", names.first().unwrap_or(&""))));
    };
    let (weight, bias) = parameters(weights, &tensor, dimensions)?;
    Ok(Norm { kind: NormKind::Layer, eps, weight: Some(weight), bias })
}

fn parameters(
    weights: &Weights,
    weight: &StoredTensor,
    dimensions: usize,
) -> Result<(Vec<f32>, Option<Vec<f32>>), LoadError> {
    let bias = match weight.name.strip_suffix(".weight") {
        Some(stem) => weights.find(&[format!("{stem}.bias")])?,
        None => None,
    };
    Ok((vector(weight, dimensions)?, bias.map(|bias| vector(&bias, dimensions)).transpose()?))
}

fn vector(tensor: &StoredTensor, dimensions: usize) -> Result<Vec<f32>, LoadError> {
    let wrong = |what: String| {
        LoadError::new(&tensor.path, what).expected(format!("{dimensions} finite numbers, as the table has columns"))
    };
    let as_row = StoredTensor { shape: [&[1], tensor.shape.as_slice()].concat(), ..tensor.clone() };
    let table = embedding_table(&as_row)
        .ok()
        .filter(|table| table.dimensions() == dimensions)
        .ok_or_else(|| wrong(format!("holds {} as {:?} {:?}", tensor.name, tensor.dtype, tensor.shape)))?;
    let mut numbers = vec![0.0; dimensions];
    table.read_row(0, &mut numbers);
    if numbers.iter().any(|x| !x.is_finite()) {
        return Err(wrong(format!("holds a number in {} that is not finite", tensor.name)));
    }
    Ok(numbers)
}

fn tokenizer_path(path: &Path, overrides: &Overrides) -> PathBuf {
    match &overrides.tokenizer {
        Some(dir) if dir.is_dir() => dir.join("tokenizer.json"),
        Some(file) => file.clone(),
        None => path.join("tokenizer.json"),
    }
}

fn missing_tokenizer(dir: &Path, path: &Path) -> LoadError {
    let error = LoadError::new(path, "is missing").expected("the model's tokenizer.json");
    if dir.join("tokenizer.model").exists() {
        error.remedy(
            "a SentencePiece tokenizer.model alone cannot be read: AutoTokenizer.from_pretrained(...).save_pretrained(...) writes a tokenizer.json",
        )
    } else {
        error.remedy("copy it from the model, or set tokenizer to where it lies")
    }
}

fn check_vocabulary(
    vocabulary: &Vocabulary,
    table: &EmbeddingTable,
    source: &StoredTensor,
    tokenizer: &Path,
    warnings: &mut Vec<String>,
) -> Result<(), LoadError> {
    let rows = table.rows();
    if vocabulary.max_base_id as usize >= rows {
        return Err(LoadError::new(
            tokenizer,
            format!("has token ids up to {}, but {} has {rows} rows", vocabulary.max_base_id, source.name),
        )
        .expected("the tokenizer of the same model")
        .remedy("set tokenizer to where that lies"));
    }
    let beyond: Vec<&str> =
        vocabulary.added.iter().filter(|token| token.id as usize >= rows).map(|token| token.content.as_str()).collect();
    if !beyond.is_empty() {
        warnings.push(format!(
            "{} added tokens have no row in the table of {rows} and are left out of the mean: {}",
            beyond.len(),
            beyond.join(" ")
        ));
    }
    Ok(())
}
