//! Reads what static-embedding libraries save: Model2Vec, the StaticEmbedding of sentence-transformers, and WordLlama.
//!
//! Each of their models is one table without a norm, and each library has its own rules for tokens. The rules were
//! taken from the sources of model2vec 0.10 (`model.py`), sentence-transformers 6.2 (`static_embedding.py`) and
//! wordllama 0.4 (`inference.py`).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::weights::{StoredTensor, Weights};
use super::{Checkpoint, Conventions, Kind, Overrides, TableSource, check_vocabulary, open_tokenizer, prompt};
use crate::error::LoadError;
use crate::norm::{FinalNorm, Norm, NormKind};
use crate::table::{EmbeddingTable, TableDtype};
use layer0_files::{self as files, json};
use layer0_tokenizers::Vocabulary;

const TABLES: [&str; 2] = ["embeddings", "embedding.weight"];

/// A directory that was saved by a static-embedding library.
#[derive(Debug)]
pub struct StaticTable {
    kind: Kind,
    /// The directory that holds the table and the tokenizer.
    dir: PathBuf,
    normalize: bool,
    /// The text that is put before each input.
    prompt: Option<String>,
    warnings: Vec<String>,
}

/// One entry of sentence-transformers' modules.json.
#[derive(Deserialize)]
struct Module {
    path: Option<String>,
    r#type: String,
}

/// Returns the static table that the directory holds, or `None` if it holds none.
///
/// # Errors
/// Returns an error if the directory holds a static-embedding model with modules other than a table.
pub fn recognize(dir: &Path, overrides: &Overrides) -> Result<Option<StaticTable>, LoadError> {
    if overrides.norm.is_some() {
        return Ok(None);
    }
    let config_path = overrides.config.clone().unwrap_or_else(|| dir.join("config.json"));
    let config = read_json::<Map<String, Value>>(&config_path, "a JSON object")?;
    if let Some(config) = &config
        && is_model2vec(config)
    {
        // Model2Vec accepts any value and tests it for Python's truth.
        let normalize = config.get("normalize").is_some_and(is_true);
        // Model2Vec's own library does not support prompts.
        let warnings = prompt::default_prompt(dir)?.map(|prompt| prompt::ignored(&prompt)).into_iter().collect();
        let found = StaticTable { kind: Kind::Model2Vec, dir: dir.to_owned(), normalize, prompt: None, warnings };
        return Ok(Some(found));
    }
    let modules = dir.join("modules.json");
    if let Some(list) = read_json::<Vec<Module>>(&modules, "a list of modules")? {
        return sentence_transformers(dir, &modules, &list);
    }
    if config.is_some() {
        return Ok(None);
    }
    // WordLlama ships the two files without a configuration. No other known library saves a single tensor under this
    // name.
    let Ok(weights) = Weights::open(dir) else { return Ok(None) };
    let wordllama = weights.names()? == ["embedding.weight"];
    // In WordLlama each call says whether its vectors are scaled. This server scales them by default, as OpenAI's API
    // does.
    Ok(wordllama.then(|| StaticTable {
        kind: Kind::WordLlama,
        dir: dir.to_owned(),
        normalize: true,
        prompt: None,
        warnings: Vec::new(),
    }))
}

fn sentence_transformers(dir: &Path, file: &Path, list: &[Module]) -> Result<Option<StaticTable>, LoadError> {
    let kind = |module: &Module| module.r#type.rsplit('.').next().unwrap_or_default().to_owned();
    let kinds: Vec<String> = list.iter().map(kind).collect();
    if kinds.first().is_none_or(|first| first != "StaticEmbedding") {
        return Ok(None);
    }
    let normalize = match kinds.get(1..) {
        Some([]) => false,
        Some([only]) if only == "Normalize" => true,
        _ => {
            return Err(LoadError::unsupported(file, format!("lists the modules {}", kinds.join(", ")))
                .expected("StaticEmbedding, and Normalize or nothing after it"));
        }
    };
    let path = list.first().and_then(|module| module.path.as_deref()).unwrap_or_default();
    let plain = Path::new(path)
        .components()
        .all(|c| matches!(c, std::path::Component::Normal(_) | std::path::Component::CurDir));
    if !plain {
        return Err(
            LoadError::malformed(file, format!("has the module path {path:?}")).expected("a directory inside its own")
        );
    }
    let prompt = prompt::default_prompt(dir)?;
    let dir = dir.join(path);
    Ok(Some(StaticTable { kind: Kind::StaticEmbedding, dir, normalize, prompt, warnings: Vec::new() }))
}

/// Returns the content of a JSON file, or `None` if the file does not exist. `what` names the expected content in
/// errors.
fn read_json<T: DeserializeOwned>(path: &Path, what: &str) -> Result<Option<T>, LoadError> {
    let content = match files::read(path) {
        Ok(content) => content,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(LoadError::io(path, &e)),
    };
    let invalid = |e| {
        LoadError::malformed(path, format!("is not {what}: {e}")).expected("the file as the model's library writes it")
    };
    json::from_slice(&content).map(Some).map_err(invalid)
}

fn is_model2vec(config: &Map<String, Value>) -> bool {
    let architectures = config.get("architectures").and_then(Value::as_array);
    config.get("model_type").is_some_and(|name| name == "model2vec")
        || architectures.is_some_and(|names| names.iter().any(|name| name == "StaticModel"))
}

/// Returns whether Python's `if` treats the value as true.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

impl StaticTable {
    /// Opens the checkpoint that [`recognize`] found in `path`.
    ///
    /// # Errors
    /// Returns an error if a file or tensor is missing or broken, or if an override does not apply.
    pub fn open(self, path: &Path, overrides: &Overrides) -> Result<Checkpoint, LoadError> {
        let (tensor, table, row_weights) = self.read(path, overrides)?;
        let (tokenizer, tokenizer_path) = open_tokenizer(&self.dir, overrides)?;
        let mut remarks = Vec::new();
        check_vocabulary(&tokenizer.vocabulary, &table, &tensor.name, &tokenizer_path, &mut remarks)?;
        Ok(Checkpoint {
            path: path.to_owned(),
            kind: self.kind,
            model_type: match self.kind {
                Kind::Model2Vec => "model2vec",
                Kind::WordLlama => "wordllama",
                _ => "static_embedding",
            }
            .to_owned(),
            table_source: TableSource::mapped(tensor, &table),
            table,
            norm: FinalNorm {
                embedding_scale: 1.0,
                embedding_norm: None,
                norm: Norm { kind: NormKind::None, eps: 0.0, weight: None, bias: None },
                row_weights,
            },
            norm_source: None,
            conventions: self.conventions(&tokenizer.vocabulary),
            tokenizer,
            tokenizer_path,
            prompt: self.prompt.clone(),
            warnings: self.warnings.clone(),
            remarks,
        })
    }

    /// Returns the directory that holds the table and the tokenizer.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the number of columns of the table.
    ///
    /// # Errors
    /// Returns the errors of [`StaticTable::open`], except those about the tokenizer.
    pub fn dimensions(&self, path: &Path, overrides: &Overrides) -> Result<usize, LoadError> {
        self.read(path, overrides).map(|(_, table, _)| table.dimensions())
    }

    /// Reads the table's tensor, the table, and a weight for each token if the library stores weights.
    fn read(
        &self,
        path: &Path,
        overrides: &Overrides,
    ) -> Result<(StoredTensor, EmbeddingTable, Option<Vec<f32>>), LoadError> {
        self.refuse_norms(path, overrides)?;
        let weights = Weights::open(&self.dir)?;
        let names = overrides
            .embedding_tensor
            .as_ref()
            .map_or_else(|| TABLES.map(str::to_owned).to_vec(), |name| vec![name.clone()]);
        let tensor = weights.find(&names)?.ok_or_else(|| {
            LoadError::missing(weights.path(), "has no embedding table")
                .expected(format!("a tensor {}; {}", names.join(" or "), weights.has()))
                .remedy("set embedding_tensor to its name")
        })?;
        let mut table = table(&tensor)?;
        // sentence-transformers also reads `mapping` and `weights` from files that Model2Vec saved.
        if let Some(mapping) = weights.find(&["mapping"])? {
            table = mapped(table, &mapping)?;
        }
        let row_weights = weights.find(&["weights"])?.map(|weights| weights.vector(table.rows())).transpose()?;
        Ok((tensor, table, row_weights))
    }

    /// Returns the conventions of the library. None of the libraries pools the template's special tokens, and Model2Vec
    /// also leaves out the unknown token.
    fn conventions(&self, vocabulary: &Vocabulary) -> Conventions {
        let left_out = if self.kind == Kind::Model2Vec { vocabulary.unknown } else { None };
        Conventions { special_tokens: false, normalize: self.normalize, left_out, ..Conventions::TRANSFORMERS }
    }

    fn refuse_norms(&self, path: &Path, overrides: &Overrides) -> Result<(), LoadError> {
        let set = [
            ("norm_eps", overrides.norm_eps.is_some()),
            ("norm_tensor", overrides.norm_tensor.is_some()),
            ("embedding_scale", overrides.embedding_scale.is_some()),
        ];
        match set.iter().find(|(_, set)| *set) {
            Some((name, _)) => Err(LoadError::setting(path, format!("is a {}, which has no norm", self.kind.name()))
                .expected(format!("no {name} for this model"))
                .remedy(format!("remove {name}"))),
            None => Ok(()),
        }
    }
}

fn table(tensor: &StoredTensor) -> Result<EmbeddingTable, LoadError> {
    let found = match tensor.dtype {
        // Model2Vec averages the integers without a scale. Its files do not store the scale, and cosines do not depend
        // on it.
        Dtype::I8 => tensor.as_table(TableDtype::Int8),
        _ => Some(tensor.table()?),
    };
    found.ok_or_else(|| {
        LoadError::malformed(&tensor.path, format!("holds {} with shape {:?}", tensor.name, tensor.shape))
            .expected("a table of shape [vocabulary, dimensions], neither zero")
    })
}

/// Returns the table indexed by token ID. Several token IDs can share a row.
fn mapped(table: EmbeddingTable, mapping: &StoredTensor) -> Result<EmbeddingTable, LoadError> {
    let rows: Option<Arc<[u32]>> = match mapping.dtype {
        Dtype::I64 | Dtype::U64 => integers(mapping, |b| u32::try_from(i64::from_le_bytes(b)).ok()),
        Dtype::I32 | Dtype::U32 => integers(mapping, |b| u32::try_from(i32::from_le_bytes(b)).ok()),
        Dtype::U16 => integers(mapping, |b| Some(u16::from_le_bytes(b).into())),
        _ => None,
    };
    let stored = table.stored_rows();
    rows.and_then(|rows| table.with_mapping(rows)).ok_or_else(|| {
        LoadError::malformed(&mapping.path, format!("holds mapping as {:?} {:?}", mapping.dtype, mapping.shape))
            .expected(format!("for each token id, the number of one of the {stored} rows"))
    })
}

fn integers<const N: usize>(tensor: &StoredTensor, read: impl Fn([u8; N]) -> Option<u32>) -> Option<Arc<[u32]>> {
    tensor.bytes.as_chunks().0.iter().map(|bytes| read(*bytes)).collect()
}
