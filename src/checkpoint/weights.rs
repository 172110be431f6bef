//! Finds single tensors in a directory of safetensors files, opening no file that is not needed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;

use super::map::Map;
use crate::error::LoadError;
use crate::files;
use crate::table::{EmbeddingTable, TableDtype};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// One tensor as the file holds it: little-endian, row-major.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Bytes,
    /// The `format` that the file's metadata name: "pt", "mlx".
    pub format: Option<String>,
    /// The file that holds it, and the file's map.
    pub path: PathBuf,
    pub map: Map,
}

impl StoredTensor {
    /// The tensor as an embedding table.
    ///
    /// # Errors
    /// When it is quantized, or not two-dimensional.
    pub fn table(&self) -> Result<EmbeddingTable, LoadError> {
        let dtype = match self.dtype {
            Dtype::BF16 => TableDtype::Bf16,
            Dtype::F16 => TableDtype::F16,
            Dtype::F32 => TableDtype::F32,
            other => return Err(quantized(&self.path, &format!("holds {} as {other:?}", self.name))),
        };
        self.as_table(dtype).ok_or_else(|| {
            LoadError::new(&self.path, format!("holds {} with shape {:?}", self.name, self.shape))
                .expected("a table of shape [vocabulary, dimensions], neither zero")
                .remedy("set embedding_tensor if another tensor is meant")
        })
    }

    /// The tensor's bytes as a table of `dtype`; `None` unless it is two-dimensional and as long as that.
    pub fn as_table(&self, dtype: TableDtype) -> Option<EmbeddingTable> {
        match self.shape.as_slice() {
            &[rows, dimensions] => EmbeddingTable::new(self.bytes.clone(), dtype, rows, dimensions),
            _ => None,
        }
    }

    /// The tensor as `count` finite numbers.
    ///
    /// # Errors
    /// When it has another shape or dtype, or a number that is not finite.
    pub fn vector(&self, count: usize) -> Result<Vec<f32>, LoadError> {
        let wrong = |what: String| LoadError::new(&self.path, what).expected(format!("{count} finite numbers"));
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

/// The `format` that a file's metadata name.
pub fn format_of(header: &safetensors::tensor::Metadata) -> Option<String> {
    header.metadata().as_ref().and_then(|metadata| metadata.get("format")).cloned()
}

/// `holds` says what was found in place of rows of numbers.
pub fn quantized(path: &Path, holds: &str) -> LoadError {
    LoadError::new(path, format!("{holds}: a quantized table"))
        .expected("BF16, F16 or F32")
        .remedy("use the model's original, unquantized checkpoint")
}

/// The weight files of a checkpoint directory.
#[derive(Debug)]
pub struct Weights {
    files: Files,
    /// Files whose headers were parsed: a header may list hundreds of thousands of tensors.
    opened: Mutex<HashMap<PathBuf, Arc<SafeTensorsFile>>>,
}

/// One file, or shards and their index.
#[derive(Debug)]
enum Files {
    Single(PathBuf),
    Sharded {
        dir: PathBuf,
        index: PathBuf,
        weight_map: HashMap<String, String>,
    },
    /// One file that was compiled into the program; the path is for messages.
    Program {
        path: PathBuf,
        map: Map,
    },
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Weights {
    /// One file that was compiled into the program; the path is for messages.
    pub fn of_program(path: PathBuf, map: Map) -> Self {
        Self::of(Files::Program { path, map })
    }

    fn of(files: Files) -> Self {
        Self { files, opened: Mutex::default() }
    }

    /// Looks for `model.safetensors.index.json`, then `model.safetensors`, then the only `*.safetensors` file.
    ///
    /// # Errors
    /// When there is none, or the index cannot be read.
    pub fn open(dir: &Path) -> Result<Self, LoadError> {
        let index = dir.join(INDEX);
        if index.exists() {
            return Self::sharded(dir, index);
        }
        let single = dir.join(SINGLE);
        if single.exists() {
            return Ok(Self::of(Files::Single(single)));
        }
        match other_safetensors(dir)?.as_slice() {
            [only] => Ok(Self::of(Files::Single(only.clone()))),
            [] => Err(LoadError::new(dir, "holds no weights")
                .expected(format!("{SINGLE}, or shards with {INDEX}"))
                .remedy("a model in another format (pytorch_model.bin) must be saved as safetensors first")),
            several => Err(LoadError::new(dir, format!("holds {} safetensors files and no index", several.len()))
                .expected(format!("{SINGLE}, or shards with {INDEX}"))),
        }
    }

    fn sharded(dir: &Path, index: PathBuf) -> Result<Self, LoadError> {
        let text = files::read(&index).map_err(|e| LoadError::io(&index, &e))?;
        let Index { weight_map } = serde_json::from_slice(&text).map_err(|e| {
            LoadError::new(&index, format!("is not a shard index: {e}")).expected("{\"weight_map\": {tensor: file}}")
        })?;
        // A file name from the index is opened: it must not lead out of the directory.
        if let Some(outside) = weight_map.values().find(|file| Path::new(file).file_name() != Some(file.as_ref())) {
            return Err(LoadError::new(&index, format!("names the shard {outside:?}"))
                .expected("plain file names beside the index"));
        }
        Ok(Self::of(Files::Sharded { dir: dir.to_owned(), index, weight_map }))
    }

    /// The file or index that lists the tensors, for messages.
    pub fn path(&self) -> &Path {
        match &self.files {
            Files::Single(path) => path,
            Files::Sharded { index, .. } => index,
            Files::Program { path, .. } => path,
        }
    }

    /// The names of all tensors.
    ///
    /// # Errors
    /// When the file's header is broken.
    pub fn names(&self) -> Result<Vec<String>, LoadError> {
        match &self.files {
            Files::Single(path) | Files::Program { path, .. } => Ok(self.opened(path)?.names()),
            Files::Sharded { weight_map, .. } => Ok(weight_map.keys().cloned().collect()),
        }
    }

    /// The file at `path`, opened the first time that it is asked for.
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

    /// The names that the files do have, for errors: which of them is the table is the user's to say.
    pub fn has(&self) -> String {
        const SHOWN: usize = 8;
        let mut names = self.names().unwrap_or_default();
        names.sort();
        let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
        names.truncate(SHOWN);
        format!("it has {}{more}", if names.is_empty() { "no tensors".to_owned() } else { names.join(", ") })
    }

    /// The first of `names` that exists, or `None`.
    ///
    /// # Errors
    /// When the file or shard that should hold it is missing or broken.
    pub fn find<S: AsRef<str>>(&self, names: &[S]) -> Result<Option<StoredTensor>, LoadError> {
        match &self.files {
            Files::Single(path) | Files::Program { path, .. } => Ok(self.opened(path)?.first(names)),
            Files::Sharded { dir, index, weight_map } => {
                let Some((name, shard)) = names.iter().find_map(|name| weight_map.get_key_value(name.as_ref())) else {
                    return Ok(None);
                };
                let path = dir.join(shard);
                let found = self.opened(&path)?.tensor(name);
                found.map(Some).ok_or_else(|| {
                    LoadError::new(&path, format!("has no tensor {name}"))
                        .expected(format!("it, as {} says", index.display()))
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
        let (header, metadata) = SafeTensors::read_metadata(map.as_ref()).map_err(|e| match e {
            SafeTensorError::MetadataIncompleteBuffer => {
                LoadError::new(path, format!("is {} bytes long, which is not what its header says", map.as_ref().len()))
                    .expected("a complete safetensors file; this one was cut short: copy or download it again")
            }
            e => LoadError::new(path, format!("has no valid safetensors header: {e}"))
                .expected("a safetensors file; a Git LFS pointer in its place needs `git lfs pull`"),
        })?;
        let data_start = header + size_of::<u64>();
        Ok(Self { path: path.to_owned(), map, data_start, metadata })
    }

    fn names(&self) -> Vec<String> {
        self.metadata.tensors().into_keys().collect()
    }

    fn first<S: AsRef<str>>(&self, names: &[S]) -> Option<StoredTensor> {
        names.iter().find_map(|name| self.tensor(name.as_ref()))
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
