//! Reads a GGUF file's metadata and tensor directory from the memory map without copying arrays.
//!
//! candle's reader is not used for three reasons. It turns every array element into a 32-byte value, which makes an
//! array of bytes 32 times as large as in the file. It accepts version 1 of the format. It repairs text that is not
//! UTF-8 instead of reporting it. In this module every length is checked against the rest of the file before anything
//! is allocated.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::checkpoint::map::Map;
use crate::error::LoadError;
use layer0_files as files;

const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
/// GGML_MAX_DIMS of ggml.h.
const MAX_DIMENSIONS: u32 = 4;
/// The limit on the nesting of arrays. No known file nests arrays deeper.
const MAX_DEPTH: u8 = 4;

/// Returns whether the file starts with the magic bytes of GGUF.
pub fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    files::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && &magic == MAGIC
}

/// An opened file with a checked header.
pub struct Gguf {
    path: PathBuf,
    map: Map,
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, TensorInfo>,
}

/// One entry of the tensor directory.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    pub name: String,
    /// The shape in row-major order, slowest dimension first: `[rows, columns]`. The file stores the fastest dimension
    /// first.
    pub shape: Vec<u64>,
    /// The number of the tensor's type in ggml.
    pub dtype: u32,
    /// The offset of the tensor's first byte from the start of the file.
    pub start: u64,
}

#[derive(Debug, Clone)]
enum Value {
    Number(f64),
    Bool(bool),
    Text(Bytes),
    Array { kind: u32, count: usize, items: Bytes },
}

impl Gguf {
    /// Maps the file and reads its header.
    ///
    /// # Errors
    /// Returns an error if the file is not a little-endian GGUF file of version 2 or 3, was cut short, or declares more
    /// than it holds.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let map = Map::open(path)?;
        let (metadata, tensors) = Cursor { bytes: map.bytes(), at: 0 }.header().map_err(|problem| {
            LoadError::malformed(path, problem)
                .expected("a complete little-endian GGUF file of version 2 or 3")
                .remedy("download it again, or convert the model again with llama.cpp's convert_hf_to_gguf.py")
        })?;
        let file = Self { path: path.to_owned(), map, metadata, tensors };
        if file.number("split.count").is_some_and(|count| count > 1.0) {
            return Err(LoadError::unsupported(path, "is one part of a split GGUF file")
                .expected("the whole model in one file")
                .remedy("merge the parts with `llama-gguf-split --merge`"));
        }
        Ok(file)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn map(&self) -> &Map {
        &self.map
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Returns the tensor `name`, or an error that names the `setting` with which the user can choose another tensor.
    pub fn require(&self, name: &str, setting: &str) -> Result<&TensorInfo, LoadError> {
        self.tensor(name).ok_or_else(|| {
            LoadError::missing(&self.path, format!("has no tensor {name}"))
                .expected(format!("a language model's GGUF file; this one has {} tensors", self.tensors.len()))
                .remedy(format!("set {setting} if it is named otherwise"))
        })
    }

    /// Returns the first `length` bytes of the tensor.
    ///
    /// # Errors
    /// Returns an error if the bytes extend beyond the end of the file.
    pub fn bytes(&self, tensor: &TensorInfo, length: usize) -> Result<Bytes, LoadError> {
        let all = self.map.bytes();
        let start = usize::try_from(tensor.start).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(length)?)).filter(|r| r.end <= all.len());
        range.map(|range| all.slice(range)).ok_or_else(|| {
            LoadError::malformed(
                &self.path,
                format!("is {} bytes long, but {} takes {length} from byte {}", all.len(), tensor.name, tensor.start),
            )
            .expected("a complete file; this one was cut short: copy or download it again")
        })
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key)? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.metadata.get(key)? {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// # Errors
    /// Returns an error if the text is not UTF-8.
    pub fn text(&self, key: &str) -> Result<Option<&str>, LoadError> {
        match self.metadata.get(key) {
            Some(Value::Text(text)) => std::str::from_utf8(text).map(Some).map_err(|_| self.not_utf8(key)),
            _ => Ok(None),
        }
    }

    /// # Errors
    /// Returns an error if one of the texts is not UTF-8.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, LoadError> {
        let Some(Value::Array { kind: kind::TEXT, count, items }) = self.metadata.get(key) else { return Ok(None) };
        let mut texts = Vec::with_capacity(*count);
        let mut rest = items.as_ref();
        while let Some((length, tail)) = rest.split_first_chunk() {
            let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
            let Some((text, tail)) = tail.split_at_checked(length) else { break };
            texts.push(std::str::from_utf8(text).map_err(|_| self.not_utf8(key))?);
            rest = tail;
        }
        Ok(Some(texts))
    }

    pub fn floats(&self, key: &str) -> Option<Vec<f32>> {
        match self.metadata.get(key)? {
            Value::Array { kind: kind::F32, items, .. } => {
                Some(items.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect())
            }
            _ => None,
        }
    }

    /// Returns the array of 32-bit integers under `key`.
    pub fn integers(&self, key: &str) -> Option<Vec<i32>> {
        match self.metadata.get(key)? {
            Value::Array { kind: kind::I32 | kind::U32, items, .. } => {
                Some(items.as_chunks().0.iter().map(|x| i32::from_le_bytes(*x)).collect())
            }
            _ => None,
        }
    }

    /// Returns whether the file has an entry `key` that is not empty.
    pub fn has(&self, key: &str) -> bool {
        match self.metadata.get(key) {
            Some(Value::Array { count, .. }) => *count > 0,
            Some(_) => true,
            None => false,
        }
    }

    fn not_utf8(&self, key: &str) -> LoadError {
        LoadError::malformed(&self.path, format!("holds text in {key} that is not UTF-8"))
            .expected("a GGUF file's text")
    }
}

/// The numbers of the value types in the file.
mod kind {
    pub const BOOL: u32 = 7;
    pub const TEXT: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;

    /// Returns the size in bytes of a number or a truth value.
    pub const fn size(kind: u32) -> Option<usize> {
        match kind {
            0 | 1 | BOOL => Some(1),
            2 | 3 => Some(2),
            U32 | I32 | F32 => Some(4),
            10..=12 => Some(8),
            _ => None,
        }
    }
}

type Header = (HashMap<String, Value>, HashMap<String, TensorInfo>);

/// A reader that continues at the offset `at`. Its errors are predicates that follow the file's path in messages.
struct Cursor {
    bytes: Bytes,
    at: usize,
}

impl Cursor {
    fn header(mut self) -> Result<Header, String> {
        if self.take(4)?.as_ref() != MAGIC {
            return Err("does not start as GGUF does".to_owned());
        }
        match self.u32()? {
            2 | 3 => {}
            version if (1..=3).contains(&version.swap_bytes()) => return Err("is a big-endian GGUF file".to_owned()),
            version => return Err(format!("is a GGUF file of version {version}")),
        }
        let (tensors, entries) = (self.u64()?, self.u64()?);
        // The smallest tensor entry is a name, a rank, a type and an offset; the smallest metadata entry is an empty
        // name, four bytes of type and one byte of value.
        let tensors = self.count(tensors, 8 + 4 + 4 + 8, "tensors")?;
        let entries = self.count(entries, 8 + 4 + 1, "metadata entries")?;
        let mut metadata = HashMap::new();
        for _ in 0..entries {
            let key = self.name()?;
            let kind = self.u32()?;
            let value = self.value(kind)?;
            metadata.insert(key, value);
        }
        let mut directory = Vec::new();
        for _ in 0..tensors {
            directory.push(self.tensor()?);
        }
        let alignment = match metadata.get("general.alignment") {
            Some(Value::Number(bytes)) => *bytes as u64,
            _ => DEFAULT_ALIGNMENT,
        };
        // Blocks of quantized numbers are read in place and need an alignment of 4.
        if !alignment.is_power_of_two() || alignment < 4 {
            return Err(format!("has an alignment of {alignment}, which is no power of two from 4 on"));
        }
        let data = (self.at as u64).checked_next_multiple_of(alignment).ok_or("has an alignment past any file")?;
        let mut named = HashMap::new();
        for mut tensor in directory {
            if tensor.start % alignment != 0 {
                return Err(format!("has the tensor {:?} off its alignment of {alignment} bytes", tensor.name));
            }
            tensor.start = tensor.start.checked_add(data).ok_or("has a tensor past any file")?;
            named.insert(tensor.name.clone(), tensor);
        }
        Ok((metadata, named))
    }

    fn take(&mut self, length: usize) -> Result<Bytes, String> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("is cut short: {length} more bytes at byte {}", self.at))?;
        let taken = self.bytes.slice(self.at..end);
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let taken = self.take(N)?;
        taken.as_ref().try_into().map_err(|_| "is cut short".to_owned())
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// Returns `count` as a `usize` if that many items of at least `size` bytes fit into the rest of the file.
    fn count(&self, count: u64, size: usize, what: &str) -> Result<usize, String> {
        let fits = (self.bytes.len() - self.at) / size;
        usize::try_from(count)
            .ok()
            .filter(|&count| count <= fits)
            .ok_or_else(|| format!("claims {count} {what}, more than a file of {} bytes holds", self.bytes.len()))
    }

    fn text(&mut self) -> Result<Bytes, String> {
        let length = self.u64()?;
        let length = self.count(length, 1, "letters in a text")?;
        self.take(length)
    }

    fn name(&mut self) -> Result<String, String> {
        let name = self.text()?;
        std::str::from_utf8(&name).map(str::to_owned).map_err(|_| "has a name that is not UTF-8".to_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Number(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Number(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Number(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Number(i16::from_le_bytes(self.array()?).into()),
            kind::U32 => Value::Number(self.u32()?.into()),
            kind::I32 => Value::Number(i32::from_le_bytes(self.array()?).into()),
            // The number is converted by way of its shortest decimal form: the writer meant 1e-6, not the nearest f32.
            kind::F32 => Value::Number(as_written(f32::from_le_bytes(self.array()?))),
            kind::BOOL => Value::Bool(self.array::<1>()? != [0]),
            kind::TEXT => Value::Text(self.text()?),
            kind::ARRAY => self.elements(0)?,
            10 => Value::Number(self.u64()? as f64),
            11 => Value::Number(i64::from_le_bytes(self.array()?) as f64),
            12 => Value::Number(f64::from_le_bytes(self.array()?)),
            _ => return Err(format!("has a value of type {kind}, which GGUF does not have")),
        })
    }

    fn elements(&mut self, depth: u8) -> Result<Value, String> {
        let (kind, count) = (self.u32()?, self.u64()?);
        let start;
        let count = match (kind, kind::size(kind)) {
            (_, Some(size)) => {
                let count = self.count(count, size, "numbers in an array")?;
                start = self.at;
                self.take(count * size)?;
                count
            }
            (kind::TEXT, _) => {
                let count = self.count(count, 8, "texts in an array")?;
                start = self.at;
                for _ in 0..count {
                    self.text()?;
                }
                count
            }
            (kind::ARRAY, _) if depth < MAX_DEPTH => {
                let count = self.count(count, 12, "arrays in an array")?;
                start = self.at;
                for _ in 0..count {
                    self.elements(depth + 1)?;
                }
                count
            }
            _ => return Err(format!("has an array of type {kind} that cannot be read")),
        };
        Ok(Value::Array { kind, count, items: self.bytes.slice(start..self.at) })
    }

    fn tensor(&mut self) -> Result<TensorInfo, String> {
        let name = self.name()?;
        let rank = self.u32()?;
        if rank > MAX_DIMENSIONS {
            return Err(format!("has a tensor {name:?} of {rank} dimensions"));
        }
        let mut shape = (0..rank).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        Ok(TensorInfo { name, shape, dtype: self.u32()?, start: self.u64()? })
    }
}

fn as_written(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
