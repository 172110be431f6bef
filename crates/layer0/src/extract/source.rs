//! The sources of a checkpoint's tensors, and the selection of the tensors that belong to layer 0.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::card::Origin;
use crate::checkpoint::Overrides;
use crate::checkpoint::family::{Family, ModelConfig, names};
use crate::checkpoint::weights::{Weights, unreadable};
use crate::error::{Diagnostic, ExtractError, FileError, LoadError};
use crate::norm::NormKind;
use crate::table::TableDtype;

/// A tensor that a [`Source`] holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// The size of the tensor in bytes.
    pub len: u64,
    /// The value of `format` in the metadata of the tensor's safetensors file, for example "pt" or "mlx". `None` if the
    /// tensor is not in a safetensors file.
    pub format: Option<String>,
}

/// A function that receives the bytes of a tensor, piece by piece.
pub type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), FileError> + 'a;

/// A model: tensors by name, and a directory that holds config.json and the tokenizer's files.
pub trait Source {
    fn origin(&self) -> &Origin;

    /// Returns the directory of the small files.
    fn dir(&self) -> &Path;

    /// Returns the path of the file if the model is a single file that is not in the directory.
    fn file(&self) -> Option<&Path> {
        None
    }

    /// Returns the names of all tensors.
    ///
    /// # Errors
    /// Returns an error if the weights cannot be read.
    fn names(&self) -> Result<Vec<String>, ExtractError>;

    /// Returns the names of tensors that share the bytes of another tensor, each with the name under which the bytes
    /// are stored, as the writer of the files recorded them.
    ///
    /// # Errors
    /// Returns an error if the weights cannot be read.
    fn aliases(&self) -> Result<HashMap<String, String>, ExtractError> {
        Ok(HashMap::new())
    }

    /// Returns the description of the tensor `name`, or `None` if there is no such tensor.
    ///
    /// # Errors
    /// Returns an error if the file that should hold the tensor cannot be read.
    fn info(&self, name: &str) -> Result<Option<TensorInfo>, ExtractError>;

    /// Passes the bytes of `tensor` from offset `from` on to `sink`, in order and in small pieces.
    ///
    /// # Errors
    /// Returns the errors of `sink`, and an error if the bytes cannot be read.
    fn copy(&self, tensor: &TensorInfo, from: u64, sink: &mut Sink<'_>) -> Result<(), ExtractError>;

    /// Returns whether an interrupted [`Source::copy`] should be continued by the next run. That requires that the
    /// bytes cannot have changed, and pays off if copying is slow.
    fn resumable(&self) -> bool {
        false
    }
}

/// A model's directory on this machine.
#[derive(Debug)]
pub struct LocalSource {
    dir: PathBuf,
    weights: Weights,
    origin: Origin,
}

impl LocalSource {
    /// Opens the directory `dir`. `origin` is written to the model card.
    ///
    /// # Errors
    /// Returns an error if the directory holds no weights.
    pub fn open(dir: &Path, origin: Origin) -> Result<Self, LoadError> {
        if !dir.is_dir() {
            let problem = if dir.exists() { "is not a directory" } else { "does not exist" };
            return Err(LoadError::missing(dir, problem).expected(
                "a model's directory, a GGUF file, a Hub id (org/name), or a mergekit recipe (.yaml, .yml)",
            ));
        }
        Ok(Self { dir: dir.to_owned(), weights: Weights::open(dir)?, origin })
    }
}

impl Source for LocalSource {
    fn origin(&self) -> &Origin {
        &self.origin
    }

    fn dir(&self) -> &Path {
        &self.dir
    }

    fn names(&self) -> Result<Vec<String>, ExtractError> {
        Ok(self.weights.names()?)
    }

    fn aliases(&self) -> Result<HashMap<String, String>, ExtractError> {
        Ok(self.weights.aliases()?)
    }

    fn info(&self, name: &str) -> Result<Option<TensorInfo>, ExtractError> {
        let found = self.weights.find(&[name])?;
        Ok(found.map(|t| TensorInfo {
            name: t.name,
            dtype: t.dtype,
            shape: t.shape,
            len: t.bytes.len() as u64,
            format: t.format,
        }))
    }

    fn copy(&self, tensor: &TensorInfo, from: u64, sink: &mut Sink<'_>) -> Result<(), ExtractError> {
        const PIECE: usize = 1 << 20;
        const RESIDENT: usize = 32;
        let gone = || LoadError::damaged(self.weights.path(), format!("no longer has the tensor {}", tensor.name));
        let stored = self.weights.find(&[&tensor.name])?.ok_or_else(gone)?;
        let from = usize::try_from(from).map_err(|_| gone())?;
        for (i, piece) in stored.bytes.get(from..).unwrap_or_default().chunks(PIECE).enumerate() {
            sink(piece)?;
            // Without the release, a table of 2 GB would stay resident after it was read once.
            if i % RESIDENT == RESIDENT - 1 {
                stored.map.release();
            }
        }
        Ok(())
    }
}

/// The tensors of a model's layer 0: the table first, then its norms.
#[derive(Debug, PartialEq, Eq)]
pub struct Selection {
    tensors: Vec<TensorInfo>,
    /// The names under which tensors are written, for tensors whose name differs from the name in the source.
    written: HashMap<String, String>,
}

/// How tensors whose names were given by the user are named in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GivenNames {
    /// The names are kept, for a reader that has the same overrides. The cache of the Hub uses this.
    #[default]
    Kept,
    /// The names are replaced by the usual ones, under which a reader without overrides finds the tensors.
    Replaced,
}

impl Selection {
    /// Finds the tensors by the usual names of the family, or by the names in `overrides`.
    ///
    /// # Errors
    /// Returns an error if a tensor is missing or quantized.
    pub fn find(
        source: &dyn Source,
        config: &ModelConfig,
        family: &Family,
        overrides: &Overrides,
        given: GivenNames,
    ) -> Result<Self, ExtractError> {
        let stored: HashSet<String> = source.names()?.into_iter().collect();
        let aliases = source.aliases()?;
        // Returns the first candidate that exists, with the name under which its bytes are stored.
        let there = |candidates: &[String]| {
            let direct = candidates.iter().find(|name| stored.contains(name.as_str())).map(|name| (name, name));
            let shared = || candidates.iter().find_map(|name| Some((name, aliases.get(name)?)));
            direct.or_else(shared).map(|(name, kept)| (name.clone(), kept.clone()))
        };
        let or = |set: &Option<String>, known: Vec<String>| set.clone().map_or(known, |name| vec![name]);
        let missing = |what: &str, setting: &'static str| {
            let problem = format!("has no {what} among its {} tensors", stored.len());
            let problem = Diagnostic::new(source.dir(), problem);
            let problem = problem.expected("a language model's checkpoint, as transformers saves it");
            ExtractError::MissingTensor { setting, problem }
        };
        let mut written = HashMap::new();
        let mut rename = |from: &str, to: String| {
            if from != to {
                written.insert(from.to_owned(), to);
            }
        };
        let replaced = |name: Option<&String>| name.is_some() && given == GivenNames::Replaced;
        let kept = |name: Option<&String>| name.is_some() && given == GivenNames::Kept;
        let keeps = kept(overrides.embedding_tensor.as_ref()) || kept(overrides.norm_tensor.as_ref());
        let usual = |name: &str, known: &[String], first: &str| match known.iter().any(|known| known == name) {
            _ if keeps => name.to_owned(),
            true => names::without_outer(name),
            false => first.to_owned(),
        };

        let tables = names::embedding_names();
        let tied = |found: Option<_>| match found {
            None if overrides.embedding_tensor.is_none() && config.ties_word_embeddings() => {
                there(&names::head_names())
            }
            found => found,
        };
        let found = tied(there(&or(&overrides.embedding_tensor, tables.clone())));
        let (name, table) = found.ok_or_else(|| missing("embedding table", "embedding_tensor"))?;
        rename(&table, usual(&name, &tables, "model.embed_tokens.weight"));
        let mut wanted = vec![table];
        let mut with_bias = |(name, weight): (String, String), to: String| {
            let _ = name;
            let bias = |of: &str| of.strip_suffix(".weight").map(|stem| format!("{stem}.bias"));
            let there = bias(&weight).filter(|bias| stored.contains(bias)).zip(bias(&to));
            rename(&weight, to);
            wanted.push(weight);
            if let Some((bias, to)) = there {
                rename(&bias, to);
                wanted.push(bias);
            }
        };
        if let Some(inner) = family.embedding_norm.filter(|inner| !inner.modules.is_empty()) {
            let found = there(&inner.names()).ok_or_else(|| missing("norm on the embedding", "norm"))?;
            let to = if keeps { found.0.clone() } else { names::without_outer(&found.0) };
            with_bias(found, to);
        }
        if family.norm != NormKind::None && !family.bare {
            let norms = names::norm_names();
            let norm = there(&or(&overrides.norm_tensor, norms.clone()));
            let norm = norm.ok_or_else(|| missing("final norm", "norm_tensor"))?;
            // A given norm is written under the name that readers try first, so that another norm with a usual name is
            // not taken instead.
            let to = match replaced(overrides.norm_tensor.as_ref()) {
                true => "model.norm.weight".to_owned(),
                false => usual(&norm.0, &norms, "model.norm.weight"),
            };
            with_bias(norm, to);
        }
        let mut found = Vec::new();
        for name in wanted {
            let info = source.info(&name)?.ok_or_else(|| missing(&name, "embedding_tensor"))?;
            if table_dtype(info.dtype).is_none() && info.dtype != Dtype::F64 {
                return Err(unreadable(source.dir(), &name, info.dtype).into());
            }
            found.push(info);
        }
        Ok(Self { tensors: found, written })
    }

    /// Returns the selected tensors, the table first.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Returns the name under which a tensor is written.
    pub fn written_name(&self, name: &str) -> String {
        self.written.get(name).map_or_else(|| name.to_owned(), Clone::clone)
    }
}

/// Returns the dtype of a table or norm, or `None` if it is quantized.
pub fn table_dtype(dtype: Dtype) -> Option<TableDtype> {
    match dtype {
        Dtype::BF16 => Some(TableDtype::Bf16),
        Dtype::F16 => Some(TableDtype::F16),
        Dtype::F32 => Some(TableDtype::F32),
        _ => None,
    }
}
