//! A GGUF file as a source: its decoded table and norm, and the small files that are rebuilt from its metadata.

use std::path::{Path, PathBuf};

use half::bf16;
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::card::Origin;
use super::source::{Sink, Source, TensorInfo};
use super::staging;
use crate::checkpoint::family::{self, Family, ModelConfig, overridden};
use crate::checkpoint::{Checkpoint, Kind, Overrides, map};
use crate::error::{ExtractError, FileError, LoadError};
use crate::norm::{FinalNorm, Norm, NormKind};
use crate::table::TableDtype;
use bytes::Bytes;

const TABLE: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const BIAS: &str = "model.norm.bias";

/// An opened GGUF file.
#[derive(Debug)]
pub struct GgufSource {
    path: PathBuf,
    origin: Origin,
    /// The directory of the rebuilt config.json and tokenizer.json. It is deleted when the source is dropped.
    dir: TempDir,
    tensors: Vec<(TensorInfo, Bytes)>,
    /// The path and the memory map of the file that the table is read from, or `None` if the table was decoded.
    mapped: Option<(PathBuf, map::Map)>,
}

impl GgufSource {
    /// Opens the file `path`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be served, or if no config.json can express its architecture.
    pub fn open(path: &Path, overrides: &Overrides) -> Result<Self, ExtractError> {
        let checkpoint = Checkpoint::open(path, overrides)?;
        let unknown = || {
            LoadError::unsupported(path, format!("holds a model of the type {:?}", checkpoint.model_type))
                .expected("a model type that directories can have, to write its config.json")
                .remedy("serve the GGUF file itself")
        };
        if checkpoint.kind != Kind::Gguf {
            return Err(unknown().into());
        }
        let dir = TempDir::new().map_err(|e| FileError::writing(std::env::temp_dir(), &e))?;
        let config_path = dir.path().join("config.json");
        let is_overridden =
            overrides.norm.is_some() || overrides.norm_eps.is_some() || overrides.embedding_scale.is_some();
        let family = if is_overridden {
            let family = overridden_family(&checkpoint, &config_path)?;
            family.ok_or_else(unknown)?
        } else {
            let family = family::known(&checkpoint.model_type).ok_or_else(unknown)?;
            write_config(&config_path, &config(&checkpoint, &family))?;
            check_config(path, &config_path, &checkpoint, &family)?;
            family
        };
        let to = dir.path().join("tokenizer.json");
        match &checkpoint.tokenizer.rebuilt {
            Some(json) => staging::write(&to, json.as_bytes())?,
            None => staging::copy(&checkpoint.tokenizer_path, &to)?,
        }

        let source = &checkpoint.table_source;
        let decoded = (source.map.is_none())
            .then(|| format!("the table from {}; the norm is as in the GGUF file, where it is F32", source.dtype));
        let origin = Origin { decoded, ..Origin::local(path) };
        let mapped = source.map.clone().map(|map| (source.path.clone(), map));
        Ok(Self { path: path.to_owned(), origin, dir, tensors: tensors(&checkpoint, &family), mapped })
    }
}

fn write_config(path: &Path, config: &Map<String, Value>) -> Result<(), FileError> {
    staging::write(path, &serde_json::to_vec_pretty(config).unwrap_or_default())
}

/// Returns the family that the user's overrides describe and writes a config.json to `path` that contains all settings
/// of the norm. Returns `None` if the checkpoint has a norm on the embedding whose tensor has no name in Hugging Face
/// directories. The norm's weight is written as the GGUF file stores it.
fn overridden_family(checkpoint: &Checkpoint, path: &Path) -> Result<Option<Family>, LoadError> {
    let FinalNorm { embedding_scale, embedding_norm, norm, .. } = &checkpoint.norm;
    let known = family::known(&checkpoint.model_type);
    if embedding_norm.is_some() && known.is_none_or(|family| family.embedding_norm.is_none()) {
        return Ok(None);
    }
    let overrides = Overrides {
        norm: Some(norm.kind),
        norm_eps: Some(norm.eps),
        embedding_scale: Some(*embedding_scale),
        ..Overrides::default()
    };
    let mut config = basic_config(checkpoint);
    write_config(path, &config)?;
    let mut family = family::resolve(&ModelConfig::open(path)?, &overrides)?;
    overridden::write(&mut config, &family, &overrides);
    write_config(path, &config)?;
    family.norm = family.norm.without_plus_one();
    Ok(Some(family))
}

fn basic_config(checkpoint: &Checkpoint) -> Map<String, Value> {
    let mut config = Map::new();
    config.insert("model_type".into(), checkpoint.model_type.clone().into());
    config.insert("hidden_size".into(), checkpoint.table.dimensions().into());
    config.insert("vocab_size".into(), checkpoint.table.rows().into());
    config.insert("num_hidden_layers".into(), 0.into());
    config.insert("tie_word_embeddings".into(), true.into());
    config
}

/// Returns the settings that layer 0 depends on, under the names that the model type's configuration class uses.
fn config(checkpoint: &Checkpoint, family: &Family) -> Map<String, Value> {
    let mut config = basic_config(checkpoint);
    if let Some(key) = family.eps_key() {
        config.insert(key.into(), json!(checkpoint.norm.norm.eps));
    }
    if let Some(key) = family.scale_key() {
        config.insert(key.into(), json!(checkpoint.norm.embedding_scale));
    }
    config
}

/// Checks that the config.json gives the same norm and scale as the GGUF file. A value in the file can differ from a
/// constant of the model type, which no config.json can change.
fn check_config(path: &Path, config: &Path, checkpoint: &Checkpoint, family: &Family) -> Result<(), LoadError> {
    let config = ModelConfig::open(config)?;
    let FinalNorm { embedding_scale, embedding_norm, norm, .. } = &checkpoint.norm;
    let scale = family.embedding_scale(&config, checkpoint.table.dimensions())?;
    let eps = family.eps(&config, &Overrides::default())?;
    let differs = |a: f64, b: f64| (a - b).abs() > 1e-12 * a.abs();
    let problem = if norm.kind != family.norm.without_plus_one() {
        format!("has the norm {}", norm.kind.name())
    } else if embedding_norm.is_some() != family.embedding_norm.is_some() {
        "has another norm on its embeddings".to_owned()
    } else if differs(*embedding_scale, scale) {
        format!("has the embedding scale {embedding_scale}, not {scale}")
    } else if differs(norm.eps, eps) {
        format!("has the eps {}, not {eps}", norm.eps)
    } else {
        return Ok(());
    };
    Err(LoadError::unsupported(path, problem)
        .expected(format!("what a directory of the model type {:?} has", checkpoint.model_type))
        .remedy("serve the GGUF file itself"))
}

fn tensors(checkpoint: &Checkpoint, family: &Family) -> Vec<(TensorInfo, Bytes)> {
    let table = &checkpoint.table;
    let dtype = match table.dtype() {
        TableDtype::Bf16 => Dtype::BF16,
        TableDtype::F16 => Dtype::F16,
        TableDtype::F32 => Dtype::F32,
        TableDtype::Int8 => Dtype::I8,
        TableDtype::Int4 => Dtype::U8,
    };
    let mut tensors = vec![tensor(TABLE, dtype, vec![table.stored_rows(), table.dimensions()], table.bytes().clone())];
    let Norm { weight, bias, .. } = &checkpoint.norm.norm;
    if let (Some(inner), Some(name)) =
        (&checkpoint.norm.embedding_norm, family.embedding_norm.and_then(|norm| norm.names().into_iter().next()))
    {
        let bias = name.strip_suffix(".weight").map(|stem| format!("{stem}.bias"));
        for (name, numbers) in [(Some(name), &inner.weight), (bias, &inner.bias)] {
            if let (Some(name), Some(numbers)) = (name, numbers) {
                tensors.push(vector(&name, numbers.clone()));
            }
        }
    }
    // The converter to GGUF added the 1 of `1 + w`, while a Hugging Face directory stores `w`.
    let one = if matches!(family.norm, NormKind::RmsPlusOne | NormKind::LayerPlusOne) { 1.0 } else { 0.0 };
    for (name, numbers, less) in [(NORM, weight, one), (BIAS, bias, 0.0)] {
        if let Some(numbers) = numbers {
            tensors.push(vector(name, numbers.iter().map(|x| x - less).collect()));
        }
    }
    tensors
}

/// Returns the vector as bf16 if that is exact, as it is for models that were trained in bf16, and as f32 otherwise.
fn vector(name: &str, numbers: Vec<f32>) -> (TensorInfo, Bytes) {
    let shape = vec![numbers.len()];
    if numbers.iter().all(|&x| bf16::from_f32(x).to_f32() == x) {
        let bytes: Vec<u8> = numbers.into_iter().flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect();
        return tensor(name, Dtype::BF16, shape, bytes.into());
    }
    let bytes: Vec<u8> = numbers.into_iter().flat_map(f32::to_le_bytes).collect();
    tensor(name, Dtype::F32, shape, bytes.into())
}

fn tensor(name: &str, dtype: Dtype, shape: Vec<usize>, bytes: Bytes) -> (TensorInfo, Bytes) {
    (TensorInfo { name: name.to_owned(), dtype, shape, len: bytes.len() as u64, format: None }, bytes)
}

impl Source for GgufSource {
    fn origin(&self) -> &Origin {
        &self.origin
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn file(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn names(&self) -> Result<Vec<String>, ExtractError> {
        Ok(self.tensors.iter().map(|(info, _)| info.name.clone()).collect())
    }

    fn info(&self, name: &str) -> Result<Option<TensorInfo>, ExtractError> {
        Ok(self.tensors.iter().find(|(info, _)| info.name == name).map(|(info, _)| info.clone()))
    }

    fn copy(&self, tensor: &TensorInfo, from: u64, sink: &mut Sink<'_>) -> Result<(), ExtractError> {
        const PIECE: usize = 1 << 20;
        let bytes = self.tensors.iter().find(|(info, _)| info == tensor).map(|(_, bytes)| bytes);
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        bytes.and_then(|bytes| bytes.get(from..)).unwrap_or_default().chunks(PIECE).try_for_each(sink)?;
        Ok(self.mapped.as_ref().map_or(Ok(()), |(path, map)| map.check(path))?)
    }
}
