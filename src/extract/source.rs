//! Where a checkpoint's tensors come from, and which of them make its layer 0.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::card::Origin;
use crate::checkpoint::Overrides;
use crate::checkpoint::family::{Family, names};
use crate::checkpoint::weights::Weights;
use crate::error::LoadError;
use crate::norm::NormKind;
use crate::table::TableDtype;

/// A tensor that a [`Source`] holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Its size in bytes.
    pub len: u64,
    /// The `format` that its file's metadata name, where it is in a safetensors file: "pt", "mlx".
    pub format: Option<String>,
}

/// Takes the bytes of a tensor, piece by piece.
pub type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), LoadError> + 'a;

/// A model: tensors by name, and a directory that holds config.json and the tokenizer's files.
pub trait Source {
    fn origin(&self) -> &Origin;

    /// Holds the small files.
    fn dir(&self) -> &Path;

    /// The one file that holds it all, where it is not the directory's.
    fn file(&self) -> Option<&Path> {
        None
    }

    /// The names of all tensors.
    ///
    /// # Errors
    /// When the weights cannot be read.
    fn names(&self) -> Result<Vec<String>, LoadError>;

    /// What the tensor `name` is, or `None`.
    ///
    /// # Errors
    /// When the file that should hold it cannot be read.
    fn info(&self, name: &str) -> Result<Option<TensorInfo>, LoadError>;

    /// Gives the bytes of `tensor` from number `from` on to `sink`, in order, in pieces that are small.
    ///
    /// # Errors
    /// The sink's, or when the bytes cannot be read.
    fn copy(&self, tensor: &TensorInfo, from: u64, sink: &mut Sink<'_>) -> Result<(), LoadError>;

    /// Whether [`Source::copy`] is worth going on with where an earlier run stopped, and the bytes are certain to be
    /// the same.
    fn resumable(&self) -> bool {
        false
    }
}

/// A model's directory on this machine.
pub struct LocalSource {
    dir: PathBuf,
    weights: Weights,
    origin: Origin,
}

impl LocalSource {
    /// Opens the directory `dir`; `origin` is for the card.
    ///
    /// # Errors
    /// When it holds no weights.
    pub fn open(dir: &Path, origin: Origin) -> Result<Self, LoadError> {
        if !dir.is_dir() {
            let problem = if dir.exists() { "is not a directory" } else { "does not exist" };
            return Err(LoadError::new(dir, problem).expected(
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

    fn names(&self) -> Result<Vec<String>, LoadError> {
        self.weights.names()
    }

    fn info(&self, name: &str) -> Result<Option<TensorInfo>, LoadError> {
        let found = self.weights.find(&[name])?;
        Ok(found.map(|t| TensorInfo {
            name: t.name,
            dtype: t.dtype,
            shape: t.shape,
            len: t.bytes.len() as u64,
            format: t.format,
        }))
    }

    fn copy(&self, tensor: &TensorInfo, from: u64, sink: &mut Sink<'_>) -> Result<(), LoadError> {
        const PIECE: usize = 1 << 20;
        const RESIDENT: usize = 32;
        let gone = || LoadError::new(self.weights.path(), format!("no longer has the tensor {}", tensor.name));
        let stored = self.weights.find(&[&tensor.name])?.ok_or_else(gone)?;
        let from = usize::try_from(from).map_err(|_| gone())?;
        for (i, piece) in stored.bytes.get(from..).unwrap_or_default().chunks(PIECE).enumerate() {
            sink(piece)?;
            // What was read once would stay resident: a table of 2 GB.
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
    /// The user named a tensor, and will do so of what is written.
    named: bool,
}

impl Selection {
    /// Finds them by the names that families give them, or `overrides`.
    ///
    /// # Errors
    /// When one is missing, or is quantized.
    pub fn find(source: &dyn Source, family: &Family, overrides: &Overrides) -> Result<Self, LoadError> {
        let there_are: HashSet<String> = source.names()?.into_iter().collect();
        let there = |candidates: &[String]| candidates.iter().find(|name| there_are.contains(name.as_str())).cloned();
        let or = |set: &Option<String>, known: Vec<String>| set.clone().map_or(known, |name| vec![name]);
        let missing = |what: &str, key: &str| {
            LoadError::new(source.dir(), format!("has no {what} among its {} tensors", there_are.len()))
                .expected("a language model's checkpoint, as transformers saves it")
                .remedy(format!("for a model of another make, serve its directory with {key} set to the tensor's name"))
        };
        let table = there(&or(&overrides.embedding_tensor, names::embedding_names()));
        let mut wanted = vec![table.ok_or_else(|| missing("embedding table", "embedding_tensor"))?];
        let mut with_bias = |weight: String| {
            let bias = weight.strip_suffix(".weight").map(|stem| format!("{stem}.bias"));
            wanted.push(weight);
            wanted.extend(bias.filter(|bias| there_are.contains(bias)));
        };
        if let Some(inner) = family.embedding_norm.filter(|inner| !inner.modules.is_empty()) {
            with_bias(there(&inner.names()).ok_or_else(|| missing("norm on the embedding", "norm"))?);
        }
        if family.norm != NormKind::None && !family.bare {
            let norm = there(&or(&overrides.norm_tensor, names::norm_names()));
            with_bias(norm.ok_or_else(|| missing("final norm", "norm_tensor"))?);
        }
        let mut found = Vec::new();
        for name in wanted {
            let info = source.info(&name)?.ok_or_else(|| missing(&name, "embedding_tensor"))?;
            if table_dtype(info.dtype).is_none() {
                return Err(LoadError::new(
                    source.dir(),
                    format!("holds {name} as {:?}: a quantized table", info.dtype),
                )
                .expected("BF16, F16 or F32")
                .remedy("extract from the model's original, unquantized checkpoint"));
            }
            found.push(info);
        }
        Ok(Self { tensors: found, named: overrides.embedding_tensor.is_some() || overrides.norm_tensor.is_some() })
    }

    /// The table first.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The name under which a tensor is written.
    pub fn written_name(&self, name: &str) -> String {
        if self.named { name.to_owned() } else { names::without_outer(name) }
    }
}

/// How the numbers of a table or norm are stored, or `None` for what is quantized.
pub fn table_dtype(dtype: Dtype) -> Option<TableDtype> {
    match dtype {
        Dtype::BF16 => Some(TableDtype::Bf16),
        Dtype::F16 => Some(TableDtype::F16),
        Dtype::F32 => Some(TableDtype::F32),
        _ => None,
    }
}
