//! Reads Hugging Face directories: config.json, tokenizer.json and safetensors files.
//!
//! A layer-0 checkpoint and the directory of a full model are read in the same way: two tensors are looked up by name
//! and memory-mapped. `lm_head` and the layers are never read, unless the output layer holds the table that both share.

use std::path::Path;

use super::family::{self, Family, InnerNorm, ModelConfig, names, overridden};
use super::weights::{StoredTensor, Weights, quantized};
use super::{Checkpoint, Conventions, Kind, Overrides, TableSource, check_vocabulary, open_tokenizer, prompt};
use crate::error::LoadError;
use crate::norm::{FinalNorm, Norm, NormKind};
use crate::table::EmbeddingTable;

/// Everything that a directory holds except its tokenizer.
struct Parts {
    config: ModelConfig,
    tensor: StoredTensor,
    table: EmbeddingTable,
    norm: FinalNorm,
    norm_source: Option<String>,
    conventions: Conventions,
    warnings: Vec<String>,
}

/// Opens the directory `path`.
///
/// # Errors
/// Returns an error if a file or tensor is missing or broken, or if the model type is not known.
pub fn open(path: &Path, overrides: &Overrides) -> Result<Checkpoint, LoadError> {
    let Parts { config, tensor, table, norm, norm_source, conventions, mut warnings } = Parts::read(path, overrides)?;
    warnings.extend(prompt::default_prompt(path)?.map(|prompt| prompt::ignored(&prompt)));
    let (tokenizer, tokenizer_path) = open_tokenizer(path, overrides)?;
    let mut remarks = Vec::new();
    check_vocabulary(&tokenizer.vocabulary, &table, &tensor.name, &tokenizer_path, &mut remarks)?;
    Ok(Checkpoint {
        path: path.to_owned(),
        kind: Kind::HuggingFace,
        model_type: config.model_type().to_owned(),
        table_source: TableSource::mapped(tensor, &table),
        table,
        norm,
        norm_source,
        tokenizer,
        tokenizer_path,
        conventions,
        prompt: None,
        warnings,
        remarks,
    })
}

/// Returns the number of columns of the table in `path`, and how texts are treated.
///
/// # Errors
/// Returns the errors of [`open`], except those about the tokenizer.
pub fn preview(path: &Path, overrides: &Overrides) -> Result<(usize, Conventions), LoadError> {
    let parts = Parts::read(path, overrides)?;
    Ok((parts.table.dimensions(), parts.conventions))
}

impl Parts {
    fn read(path: &Path, overrides: &Overrides) -> Result<Self, LoadError> {
        let config_path = overrides.config.clone().unwrap_or_else(|| path.join("config.json"));
        let config = ModelConfig::open(&config_path)?;
        let overrides = &overridden::read(&config, overrides)?;
        let family = family::resolve(&config, overrides)?;

        let weights = Weights::open(path)?;
        let tensor = find_table(&weights, &config, overrides)?;
        let table = tensor.table()?;
        let scale = family.embedding_scale(&config, table.dimensions())?;
        let (norm, norm_source) = find_norm(&weights, &family, &config, overrides, table.dimensions())?;
        let embedding_norm = match family.embedding_norm {
            None => None,
            Some(inner) => Some(read_norm(&weights, &family, &config, overrides, inner, table.dimensions())?),
        };
        let warnings = family.warnings(&config, overrides);
        let embedding_scale = overrides.embedding_scale.unwrap_or(scale);
        let norm = FinalNorm { embedding_scale, embedding_norm, norm, row_weights: None };
        let conventions = Conventions::TRANSFORMERS.overridden(path, overrides)?;
        Ok(Self { config, tensor, table, norm, norm_source, conventions, warnings })
    }
}

fn find_table(weights: &Weights, config: &ModelConfig, overrides: &Overrides) -> Result<StoredTensor, LoadError> {
    let found = match &overrides.embedding_tensor {
        Some(name) => weights.find(std::slice::from_ref(name))?,
        None => match weights.find(&names::embedding_names())? {
            // If two tensors share their bytes, writers store only one of the two names.
            None if config.ties_word_embeddings() => weights.find(&names::head_names())?,
            found => found,
        },
    };
    found.ok_or_else(|| {
        let error = LoadError::missing(weights.path(), "has no embedding table");
        if let Some(packed) = weights.names().unwrap_or_default().into_iter().find(|name| is_packed_table(name)) {
            return quantized(weights.path(), &format!("holds {packed}"));
        }
        match &overrides.embedding_tensor {
            Some(name) => error.expected(format!("a tensor {name}, as embedding_tensor says; {}", weights.has())),
            None => error
                .expected(format!(
                    "a tensor named model.embed_tokens.weight or as other families name it; {}",
                    weights.has()
                ))
                .remedy("set embedding_tensor to its name"),
        }
    })
}

/// Returns whether a tensor is a packed table: GPTQ, AWQ and compressed-tensors store packed matrices under these
/// names.
fn is_packed_table(name: &str) -> bool {
    let stem = [".qweight", ".weight_packed"].iter().find_map(|suffix| name.strip_suffix(suffix));
    stem.is_some_and(|stem| names::embedding_names().contains(&format!("{stem}.weight")))
}

fn find_norm(
    weights: &Weights,
    family: &Family,
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
        None => names::norm_names(),
    };
    let Some(tensor) = weights.find(&names)? else {
        return Err(LoadError::missing(weights.path(), "has no final norm")
            .expected(format!("a tensor {}; {}", names.first().map_or("", String::as_str), weights.has()))
            .remedy("set norm_tensor to its name, or norm = \"none\" to serve the rows as they are"));
    };
    let family = if tensor.format.as_deref() == Some("mlx") { family.converted_to_mlx(config)? } else { *family };
    let (weight, bias) = parameters(weights, &tensor, dimensions)?;
    Ok((Norm { kind: family.norm, eps, weight: Some(weight), bias }, Some(tensor.name)))
}

/// Reads the norm that the model applies to the embedding itself, if its family has one, and the final norm.
fn read_norm(
    weights: &Weights,
    family: &Family,
    config: &ModelConfig,
    overrides: &Overrides,
    inner: InnerNorm,
    dimensions: usize,
) -> Result<Norm, LoadError> {
    let eps = family.eps(config, overrides)?;
    let names = inner.names();
    let Some(first) = names.first() else { return Ok(Norm { kind: inner.kind, eps, weight: None, bias: None }) };
    let Some(tensor) = weights.find(&names)? else {
        return Err(
            LoadError::missing(weights.path(), "has no norm on the embedding").expected(format!("a tensor {first}"))
        );
    };
    let (weight, bias) = parameters(weights, &tensor, dimensions)?;
    Ok(Norm { kind: inner.kind, eps, weight: Some(weight), bias })
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
    Ok((weight.vector(dimensions)?, bias.map(|bias| bias.vector(dimensions)).transpose()?))
}
