//! Reads the tensors of a model on the Hub by way of safetensors headers and byte ranges, and never downloads a whole
//! shard.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;

use super::client::Client;
use crate::checkpoint::weights::{self, Index, format_of};
use crate::error::{ExtractError, HubError, LoadError, RequestError, RequestErrorKind};
use crate::extract::card::Origin;
use crate::extract::source::{Sink, Source, TensorInfo};
use layer0_files::LfsPointer;

/// The header of one safetensors file.
struct Header {
    /// The offset in the file at which the data of its tensors begin.
    data_start: u64,
    size: u64,
    metadata: Metadata,
}

/// The tensors of a model at a commit.
pub struct RemoteSource<'a> {
    client: &'a Client<'a>,
    commit: &'a str,
    /// The directory of the small files, which have been fetched already.
    dir: PathBuf,
    origin: Origin,
    weights: RemoteWeights,
    headers: RefCell<HashMap<String, Header>>,
}

/// The weight files of a model.
enum RemoteWeights {
    Single(String),
    Sharded(Index),
}

impl<'a> RemoteSource<'a> {
    /// Opens the weights of a model. `dir` holds the small files, including the index if the model is sharded. `entry`
    /// is the name of the file that leads to the tensors ([`weights::entry_file`]).
    ///
    /// # Errors
    /// Returns an error if the index cannot be parsed.
    pub fn open(
        client: &'a Client<'a>,
        commit: &'a str,
        dir: PathBuf,
        origin: Origin,
        entry: String,
    ) -> Result<Self, HubError> {
        let weights = if weights::is_index(&entry) {
            let path = dir.join(&entry);
            let index = Index::open(&path)?;
            let plain = |file: &str| {
                file.ends_with(".safetensors") && file.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            };
            if let Some(outside) = index.weight_map.values().find(|file| !plain(file)) {
                let error = LoadError::malformed(&path, format!("names the shard {outside:?}"));
                return Err(error.expected("plain names of safetensors files").into());
            }
            RemoteWeights::Sharded(index)
        } else {
            RemoteWeights::Single(entry)
        };
        Ok(Self { client, commit, dir, origin, weights, headers: RefCell::default() })
    }

    /// Returns, for each file that holds some of `tensors`, its name, its size, and how many of its bytes its header
    /// and these tensors occupy.
    ///
    /// # Errors
    /// Returns an error if the header of a file cannot be fetched.
    pub fn share(&self, tensors: &[TensorInfo]) -> Result<Vec<(String, u64, u64)>, HubError> {
        let mut shares: Vec<(String, u64, u64)> = Vec::new();
        for tensor in tensors {
            let Some(file) = self.file(&tensor.name) else { continue };
            let (data_start, size) = self.with_header(&file, |header| (header.data_start, header.size))?;
            match shares.iter_mut().find(|(name, ..)| *name == file) {
                Some((_, _, wanted)) => *wanted += tensor.len,
                None => shares.push((file, size, data_start + tensor.len)),
            }
        }
        Ok(shares)
    }

    fn file(&self, tensor: &str) -> Option<String> {
        match &self.weights {
            RemoteWeights::Single(file) => Some(file.clone()),
            RemoteWeights::Sharded(index) => index.weight_map.get(tensor).cloned(),
        }
    }

    fn with_header<T>(&self, file: &str, read: impl FnOnce(&Header) -> T) -> Result<T, HubError> {
        if let Some(header) = self.headers.borrow().get(file) {
            return Ok(read(header));
        }
        let header = self.fetch_header(file)?;
        let value = read(&header);
        self.headers.borrow_mut().insert(file.to_owned(), header);
        Ok(value)
    }

    /// Fetches the header of `file` in two requests: eight bytes with the length of the header, then exactly the
    /// header.
    fn fetch_header(&self, file: &str) -> Result<Header, HubError> {
        // The limit is that of the safetensors library.
        const LONGEST: u64 = 100_000_000;
        let url = self.client.file_url(self.commit, file);
        let (length, size) = self.client.bytes(&url, 0, 8)?;
        if LfsPointer::begins_like(&length) {
            let error = RequestError::new(RequestErrorKind::WrongAnswer, &url, LfsPointer.to_string());
            return Err(error.remedy(LfsPointer::REMEDY).into());
        }
        let length = length.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let invalid = |problem: String| {
            HubError::from(
                RequestError::new(RequestErrorKind::WrongAnswer, &url, problem).expected("a safetensors file"),
            )
        };
        if length > LONGEST.min(size) {
            return Err(invalid(format!("begins with a header length of {length} bytes")));
        }
        let (json, _) = self.client.bytes(&url, 8, length)?;
        let metadata: Metadata =
            serde_json::from_slice(&json).map_err(|e| invalid(format!("has no valid safetensors header: {e}")))?;
        let data_start = 8 + length;
        if data_start.checked_add(metadata.data_len() as u64) != Some(size) {
            return Err(invalid(format!("has {size} bytes, which is not what its header says")));
        }
        Ok(Header { data_start, size, metadata })
    }
}

impl Source for RemoteSource<'_> {
    fn origin(&self) -> &Origin {
        &self.origin
    }

    fn dir(&self) -> &Path {
        &self.dir
    }

    fn names(&self) -> Result<Vec<String>, ExtractError> {
        match &self.weights {
            RemoteWeights::Single(file) => {
                Ok(self.with_header(file, |header| header.metadata.tensors().into_keys().collect())?)
            }
            RemoteWeights::Sharded(index) => Ok(index.weight_map.keys().cloned().collect()),
        }
    }

    fn aliases(&self) -> Result<HashMap<String, String>, ExtractError> {
        match &self.weights {
            RemoteWeights::Single(file) => {
                Ok(self.with_header(file, |header| header.metadata.metadata().clone().unwrap_or_default())?)
            }
            RemoteWeights::Sharded(index) => Ok(index.aliases()),
        }
    }

    fn info(&self, name: &str) -> Result<Option<TensorInfo>, ExtractError> {
        let Some(file) = self.file(name) else { return Ok(None) };
        let found = self.with_header(&file, |header| {
            header.metadata.info(name).map(|info| TensorInfo {
                name: name.to_owned(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                len: (info.data_offsets.1 - info.data_offsets.0) as u64,
                format: format_of(&header.metadata),
            })
        })?;
        Ok(found)
    }

    fn copy(&self, tensor: &TensorInfo, from: u64, sink: &mut Sink<'_>) -> Result<(), ExtractError> {
        let gone = || LoadError::missing(&self.dir, format!("has no tensor {}", tensor.name));
        let file = self.file(&tensor.name).ok_or_else(gone)?;
        let range = self.with_header(&file, |header| {
            let (start, end) = header.metadata.info(&tensor.name)?.data_offsets;
            Some((header.data_start + start as u64, header.data_start + end as u64, header.size))
        })?;
        let (start, end, size) = range.ok_or_else(gone)?;
        let url = self.client.file_url(self.commit, &file);
        Ok(self.client.copy(&url, (start + from, end), size, false, sink)?)
    }

    /// A commit never changes, so a download can be continued.
    fn resumable(&self) -> bool {
        true
    }
}
