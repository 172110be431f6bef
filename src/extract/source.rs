//! Where a checkpoint's tensors come from, and which of them make its layer 0.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::card::Origin;
use crate::checkpoint::Overrides;
use crate::checkpoint::family::{Family, ModelConfig, names};
use crate::checkpoint::weights::{Weights, unreadable};
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

    /// Names of tensors that share the bytes of another, and the name of that other, as the writer of the files noted them.
    ///
    /// # Errors
    /// When the weights cannot be read.
    fn aliases(&self) -> Result<HashMap<String, String>, LoadError> {
        Ok(HashMap::new())
    }

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

    fn aliases(&self) -> Result<HashMap<String, String>, LoadError> {
        self.weights.aliases()
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
    /// The names that tensors get, where these are not the names in the source.
    written: HashMap<String, String>,
}

/// The names of tensors that a user gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GivenNames {
    /// They are written again, for a reader who has the same overrides: the Hub's cache.
    #[default]
    Kept,
    /// Others take their place, by which a reader without overrides finds the tensors.
    Replaced,
}

impl Selection {
    /// Finds them by the names that families give them, or `overrides`.
    ///
    /// # Errors
    /// When one is missing, or is quantized.
    pub fn find(
        source: &dyn Source,
        config: &ModelConfig,
        family: &Family,
        overrides: &Overrides,
        given: GivenNames,
    ) -> Result<Self, LoadError> {
        let stored: HashSet<String> = source.names()?.into_iter().collect();
        let aliases = source.aliases()?;
        // A name, and the name under which the tensor is stored.
        let there = |candidates: &[String]| {
            let direct = candidates.iter().find(|name| stored.contains(name.as_str())).map(|name| (name, name));
            let shared = || candidates.iter().find_map(|name| Some((name, aliases.get(name)?)));
            direct.or_else(shared).map(|(name, kept)| (name.clone(), kept.clone()))
        };
        let or = |set: &Option<String>, known: Vec<String>| set.clone().map_or(known, |name| vec![name]);
        let missing = |what: &str, key: &str| {
            let flag = key.replace('_', "-");
            LoadError::new(source.dir(), format!("has no {what} among its {} tensors", stored.len()))
                .expected("a language model's checkpoint, as transformers saves it")
                .remedy(format!("if the model has another name for it, give --{flag} (in a configuration file: {key})"))
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
            // The first name is looked for first: another norm of a known name may not stand in the way of a given one.
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
                return Err(unreadable(source.dir(), &name, info.dtype));
            }
            found.push(info);
        }
        Ok(Self { tensors: found, written })
    }

    /// The table first.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The name under which a tensor is written.
    pub fn written_name(&self, name: &str) -> String {
        self.written.get(name).map_or_else(|| name.to_owned(), Clone::clone)
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
