//! Finds single tensors in a directory of safetensors files and opens only the files that are needed.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;
use serde_json::Value;

use super::map::Map;
use crate::error::LoadError;
use crate::table::{EmbeddingTable, TableDtype};
use layer0_files::{self as files, json};
use layer0_files::{FileError, LfsPointer};

/// The name of the weight file of a model that is not sharded.
pub const SINGLE: &str = "model.safetensors";
/// The name of the index that maps tensors to shards.
pub const INDEX: &str = "model.safetensors.index.json";

/// Returns the name of the file that leads to a model's tensors: a safetensors file, or an index of shards. Returns
/// `None` if the model has neither. The order of the candidates is that of transformers
/// (`_get_resolved_checkpoint_files`): the file that config.json names as `transformers_weights`, the single file, the
/// index. Shards and an index that an earlier save left beside a single file are ignored.
///
/// `dir` holds config.json, and `has` says whether the model has a file of a given name.
///
/// # Errors
/// Returns the errors of `has`, and an error if config.json names a file outside of its directory or of another format.
pub fn entry_file(dir: &Path, has: impl Fn(&str) -> Result<bool, LoadError>) -> Result<Option<String>, LoadError> {
    let config = dir.join("config.json");
    // Static tables have no config.json. The code that needs the file reports if it cannot be read.
    let settings = files::read(&config).ok().and_then(|content| json::object(&content).ok()).unwrap_or_default();
    if let Some(name) = settings.get("transformers_weights").and_then(Value::as_str) {
        return match plain_path(name) {
            Some(plain) if plain.ends_with(".safetensors") || is_index(&plain) => Ok(Some(plain)),
            _ => Err(LoadError::malformed(config, format!("names {name:?} as transformers_weights"))
                .expected("a safetensors file, or an index of safetensors files, in the same directory")),
        };
    }
    for name in [SINGLE, INDEX] {
        if has(name)? {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

/// Returns whether a file that [`entry_file`] found is an index of shards.
pub fn is_index(name: &str) -> bool {
    name.ends_with(".safetensors.index.json")
}

/// Returns a relative path without its components "./", which change nothing, or `None` if the path may lead out of its
/// directory.
pub fn plain_path(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => parts.push(part.to_str()?),
            _ => return None,
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// The content of an index of shards.
#[derive(Debug, Deserialize)]
pub struct Index {
    /// The names of the tensors, each with the shard that holds it.
    pub weight_map: HashMap<String, String>,
    /// The writer's metadata. It may list names of tensors that are stored under another name, as
    /// [`StoredTensor::name`] describes.
    #[serde(default)]
    metadata: Option<Value>,
}

impl Index {
    /// Reads the index at `path`. Shards are given as plain paths.
    ///
    /// # Errors
    /// Returns an error if the file is not an index, or if a shard lies outside of its directory.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let text = files::read(path).map_err(|e| LoadError::io(path, &e))?;
        let mut index: Self = json::from_slice(&text).map_err(|e| {
            LoadError::malformed(path, format!("is not a shard index: {e}"))
                .expected("{\"weight_map\": {tensor: file}}")
        })?;
        for shard in index.weight_map.values_mut() {
            let plain = plain_path(shard).ok_or_else(|| {
                LoadError::malformed(path, format!("names the shard {shard:?}"))
                    .expected("plain file names beside the index")
            })?;
            *shard = plain;
        }
        Ok(index)
    }

    /// Returns the names of tensors that share the bytes of another tensor, each with the name under which the bytes
    /// are stored.
    pub fn aliases(&self) -> HashMap<String, String> {
        let pairs = self.metadata.as_ref().and_then(Value::as_object).into_iter().flatten();
        pairs.filter_map(|(name, kept)| Some((name.clone(), kept.as_str()?.to_owned()))).collect()
    }
}

/// One tensor as the file stores it: little-endian and in row-major order.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    /// The name in the file. If several tensors share their bytes, writers store one and list the names of the others
    /// in the metadata of the file or of the index: `{"model.embed_tokens.weight": "lm_head.weight"}`
    /// (`safetensors.torch.save_model`).
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Bytes,
    /// The value of `format` in the file's metadata, for example "pt" or "mlx".
    pub format: Option<String>,
    /// The path of the file that holds the tensor. `map` is the memory map of that file.
    pub path: PathBuf,
    pub map: Map,
}

impl StoredTensor {
    /// Returns the tensor as an embedding table.
    ///
    /// # Errors
    /// Returns an error if the tensor is quantized or not two-dimensional.
    pub fn table(&self) -> Result<EmbeddingTable, LoadError> {
        let dtype = match self.dtype {
            Dtype::BF16 => TableDtype::Bf16,
            Dtype::F16 => TableDtype::F16,
            Dtype::F32 => TableDtype::F32,
            // Vectors are computed in f32, so the numbers are rounded to f32.
            Dtype::F64 => return self.rounded().table(),
            other => return Err(unreadable(&self.path, &self.name, other)),
        };
        self.as_table(dtype).ok_or_else(|| {
            LoadError::malformed(&self.path, format!("holds {} with shape {:?}", self.name, self.shape))
                .expected("a table of shape [vocabulary, dimensions], neither zero")
                .remedy("set embedding_tensor if another tensor is meant")
        })
    }

    /// Returns a tensor of F64 as a tensor of F32 in memory.
    fn rounded(&self) -> Self {
        let numbers = self.bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes) as f32);
        let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
        Self { dtype: Dtype::F32, bytes: bytes.into(), ..self.clone() }
    }

    /// Returns the tensor's bytes as a table of `dtype`, or `None` if the tensor is not two-dimensional or its length
    /// does not fit.
    pub fn as_table(&self, dtype: TableDtype) -> Option<EmbeddingTable> {
        match self.shape.as_slice() {
            &[rows, dimensions] => EmbeddingTable::new(self.bytes.clone(), dtype, rows, dimensions),
            _ => None,
        }
    }

    /// Returns the tensor as `count` finite numbers.
    ///
    /// # Errors
    /// Returns an error if the tensor has another shape or dtype, or holds a number that is not finite.
    pub fn vector(&self, count: usize) -> Result<Vec<f32>, LoadError> {
        let wrong = |what: String| LoadError::malformed(&self.path, what).expected(format!("{count} finite numbers"));
        let as_row = Self { shape: [&[1], self.shape.as_slice()].concat(), ..self.clone() };
        let table = as_row
            .table()
            .ok()
            .filter(|table| table.dimensions() == count)
            .ok_or_else(|| wrong(format!("holds {} as {:?} {:?}", self.name, self.dtype, self.shape)))?;
        let mut numbers = vec![0.0; count];
        table.read_row(0, &mut numbers);
        if numbers.iter().any(|x| !x.is_finite()) {
            return Err(wrong(format!("holds a number in {} that is not finite", self.name)));
        }
        Ok(numbers)
    }
}

/// Returns the value of `format` in a file's metadata.
pub fn format_of(header: &safetensors::tensor::Metadata) -> Option<String> {
    header.metadata().as_ref().and_then(|metadata| metadata.get("format")).cloned()
}

/// Returns the error for a table or norm whose dtype cannot be read.
pub fn unreadable(path: &Path, name: &str, dtype: Dtype) -> LoadError {
    let holds = format!("holds {name} as {dtype:?}");
    match dtype {
        Dtype::BOOL | Dtype::C64 | Dtype::I64 | Dtype::U64 => {
            LoadError::unsupported(path, holds).expected("BF16, F16, F32 or F64").remedy("name another tensor")
        }
        _ => quantized(path, &holds),
    }
}

/// Returns the error for a quantized table. `holds` says what was found in place of rows of numbers.
pub fn quantized(path: &Path, holds: &str) -> LoadError {
    LoadError::unsupported(path, format!("{holds}: a quantized table"))
        .expected("BF16, F16 or F32")
        .remedy("use the model's original, unquantized checkpoint")
}

/// The weight files of a checkpoint directory.
#[derive(Debug)]
pub struct Weights {
    files: Files,
    /// The files whose headers were parsed. They are kept because a header may list hundreds of thousands of tensors.
    opened: Mutex<HashMap<PathBuf, Arc<SafeTensorsFile>>>,
}

/// One file, or an index and its shards.
#[derive(Debug)]
enum Files {
    Single(PathBuf),
    Sharded {
        dir: PathBuf,
        path: PathBuf,
        index: Index,
    },
    /// One file that was compiled into the program. The path is used in messages.
    Program {
        path: PathBuf,
        map: Map,
    },
}

impl Weights {
    /// Returns the weights in one file that was compiled into the program. The path is used in messages.
    pub fn of_program(path: PathBuf, map: Map) -> Self {
        Self::of(Files::Program { path, map })
    }

    fn of(files: Files) -> Self {
        Self { files, opened: Mutex::default() }
    }

    /// Opens the file that [`entry_file`] names, or the only `*.safetensors` file.
    ///
    /// # Errors
    /// Returns an error if the directory has no such file, or if the index cannot be read.
    pub fn open(dir: &Path) -> Result<Self, LoadError> {
        let has = |name: &str| {
            let path = dir.join(name);
            path.try_exists().map(|exists| exists && !path.is_dir()).map_err(|e| LoadError::io(&path, &e))
        };
        if let Some(name) = entry_file(dir, has)? {
            let path = dir.join(&name);
            if is_index(&name) {
                let index = Index::open(&path)?;
                let dir = path.parent().unwrap_or(dir).to_owned();
                return Ok(Self::of(Files::Sharded { dir, path, index }));
            }
            return Ok(Self::of(Files::Single(path)));
        }
        match other_safetensors(dir)?.as_slice() {
            [only] => Ok(Self::of(Files::Single(only.clone()))),
            [] => Err(LoadError::missing(dir, "holds no weights")
                .expected(format!("{SINGLE}, or shards with {INDEX}"))
                .remedy("a model in another format (pytorch_model.bin) must be saved as safetensors first")),
            several => {
                Err(LoadError::unsupported(dir, format!("holds {} safetensors files and no index", several.len()))
                    .expected(format!("{SINGLE}, or shards with {INDEX}")))
            }
        }
    }

    /// Returns the path of the file or index that lists the tensors, for messages.
    pub fn path(&self) -> &Path {
        match &self.files {
            Files::Single(path) => path,
            Files::Sharded { path, .. } => path,
            Files::Program { path, .. } => path,
        }
    }

    /// Returns the names of all tensors.
    ///
    /// # Errors
    /// Returns an error if the file's header is broken.
    pub fn names(&self) -> Result<Vec<String>, LoadError> {
        match &self.files {
            Files::Single(path) | Files::Program { path, .. } => Ok(self.opened(path)?.names()),
            Files::Sharded { index, .. } => Ok(index.weight_map.keys().cloned().collect()),
        }
    }

    /// Returns the file at `path`, which is opened when it is requested for the first time.
    fn opened(&self, path: &Path) -> Result<Arc<SafeTensorsFile>, LoadError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = opened.get(path) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(match &self.files {
            Files::Program { path, map } => SafeTensorsFile::of(map.clone(), path)?,
            Files::Single(_) | Files::Sharded { .. } => SafeTensorsFile::open(path)?,
        });
        opened.insert(path.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    /// Returns a list of the names in the files for error messages, from which the user can choose the table.
    pub fn has(&self) -> String {
        const SHOWN: usize = 8;
        let mut names = self.names().unwrap_or_default();
        names.sort();
        let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
        names.truncate(SHOWN);
        format!("it has {}{more}", if names.is_empty() { "no tensors".to_owned() } else { names.join(", ") })
    }

    /// Returns the names of tensors that share the bytes of another tensor, each with the name under which the bytes
    /// are stored, as the writer of the files recorded them.
    ///
    /// # Errors
    /// Returns an error if the file's header is broken.
    pub fn aliases(&self) -> Result<HashMap<String, String>, LoadError> {
        match &self.files {
            Files::Single(path) | Files::Program { path, .. } => Ok(self.opened(path)?.aliases()),
            Files::Sharded { index, .. } => Ok(index.aliases()),
        }
    }

    /// Returns the first of `names` that exists as a tensor, or that the writer recorded as another name of an existing
    /// tensor.
    ///
    /// # Errors
    /// Returns an error if the file or shard that should hold the tensor is missing or broken.
    pub fn find<S: AsRef<str>>(&self, names: &[S]) -> Result<Option<StoredTensor>, LoadError> {
        for name in names {
            if let Some(found) = self.stored(name.as_ref())? {
                return Ok(Some(found));
            }
        }
        let aliases = self.aliases()?;
        let kept = names.iter().find_map(|name| aliases.get(name.as_ref()));
        kept.map_or(Ok(None), |kept| self.stored(kept))
    }

    /// Returns the tensor that is stored under `name`.
    fn stored(&self, name: &str) -> Result<Option<StoredTensor>, LoadError> {
        match &self.files {
            Files::Single(path) | Files::Program { path, .. } => Ok(self.opened(path)?.tensor(name)),
            Files::Sharded { dir, path: index_path, index } => {
                let Some(shard) = index.weight_map.get(name) else { return Ok(None) };
                let path = dir.join(shard);
                let found = self.opened(&path)?.tensor(name);
                found.map(Some).ok_or_else(|| {
                    LoadError::missing(&path, format!("has no tensor {name}"))
                        .expected(format!("it, as {} says", index_path.display()))
                })
            }
        }
    }
}

fn other_safetensors(dir: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let entries = std::fs::read_dir(dir).map_err(|e| LoadError::io(dir, &e))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    found.sort();
    Ok(found)
}

/// One mapped safetensors file with a checked header.
#[derive(Debug)]
struct SafeTensorsFile {
    path: PathBuf,
    map: Map,
    data_start: usize,
    metadata: safetensors::tensor::Metadata,
}

impl SafeTensorsFile {
    fn open(path: &Path) -> Result<Self, LoadError> {
        Self::of(Map::open(path)?, path)
    }

    fn of(map: Map, path: &Path) -> Result<Self, LoadError> {
        if LfsPointer::check(map.as_ref()).is_err() {
            return Err(FileError::lfs_pointer(path).into());
        }
        let (header, metadata) = SafeTensors::read_metadata(map.as_ref()).map_err(|e| match e {
            SafeTensorError::MetadataIncompleteBuffer => LoadError::malformed(
                path,
                format!("is {} bytes long, which is not what its header says", map.as_ref().len()),
            )
            .expected("a complete safetensors file; this one was cut short: copy or download it again"),
            e => LoadError::malformed(path, format!("has no valid safetensors header: {e}"))
                .expected("a safetensors file"),
        })?;
        let data_start = header + size_of::<u64>();
        Ok(Self { path: path.to_owned(), map, data_start, metadata })
    }

    fn names(&self) -> Vec<String> {
        self.metadata.tensors().into_keys().collect()
    }

    fn aliases(&self) -> HashMap<String, String> {
        self.metadata.metadata().clone().unwrap_or_default()
    }

    fn tensor(&self, name: &str) -> Option<StoredTensor> {
        let info = self.metadata.info(name)?;
        let (start, end) = info.data_offsets;
        Some(StoredTensor {
            name: name.to_owned(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            bytes: self.map.bytes().slice(self.data_start + start..self.data_start + end),
            format: format_of(&self.metadata),
            path: self.path.clone(),
            map: self.map.clone(),
        })
    }
}
