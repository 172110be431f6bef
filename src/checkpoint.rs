//! Opens a checkpoint: an embedding table, its final norm and its tokenizer, whatever they are kept in.
//!
//! Each kind of source has its file: [`hf`] Hugging Face directories, [`gguf`] GGUF files, [`static_table`] what
//! Model2Vec, sentence-transformers and WordLlama save, [`refined`] what `refine` writes, `builtin` the model inside
//! the program. No network, no HTTP, no pooling here.

#[cfg(feature = "default-model")]
pub mod builtin;
pub mod family;
pub mod gguf;
pub mod hf;
pub mod map;
mod preview;
mod prompt;
pub mod refined;
pub mod static_table;
pub mod weights;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use crate::error::LoadError;
use crate::norm::{CollapsedNorm, FinalNorm, NormKind};
use crate::table::EmbeddingTable;
use crate::tokenize::Vocabulary;
use crate::tokenize::choose::Tokenizer;
use map::Map;
pub use preview::Preview;
use static_table::StaticTable;
use weights::StoredTensor;

/// The path that means the model inside the program.
pub const BUILTIN: &str = "builtin:default";

/// What the user sets in place of what the checkpoint says. `Default` overrides nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overrides {
    /// The config.json, where it lies elsewhere.
    pub config: Option<PathBuf>,
    /// The tokenizer.json, or a directory that holds it, where it lies elsewhere.
    pub tokenizer: Option<PathBuf>,
    /// The kind of the final norm; also admits a model type that is unknown or depends on positions.
    pub norm: Option<NormKind>,
    pub norm_eps: Option<f64>,
    pub embedding_scale: Option<f64>,
    /// The names of the two tensors.
    pub embedding_tensor: Option<String>,
    pub norm_tensor: Option<String>,
}

/// What a checkpoint is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    HuggingFace,
    Gguf,
    Model2Vec,
    StaticEmbedding,
    WordLlama,
    Refined,
}

impl Kind {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HuggingFace => "Hugging Face directory",
            Self::Gguf => "GGUF file",
            Self::Model2Vec => "Model2Vec directory",
            Self::StaticEmbedding => "sentence-transformers StaticEmbedding",
            Self::WordLlama => "WordLlama table",
            Self::Refined => "refined table",
        }
    }
}

/// What a kind's own library does with a text, where the user does not say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conventions {
    /// Pool the special tokens of the tokenizer's template.
    pub special_tokens: bool,
    /// Scale vectors to length 1.
    pub normalize: bool,
    /// A token that is never pooled: Model2Vec leaves the unknown token out.
    pub left_out: Option<u32>,
}

impl Conventions {
    /// LLM checkpoints: the transformers library's tokens, and OpenAI's length.
    pub const TRANSFORMERS: Self = Self { special_tokens: true, normalize: true, left_out: None };
}

/// Where a table comes from.
#[derive(Debug, Clone)]
pub struct TableSource {
    /// The tensor's name.
    pub name: String,
    /// The file that holds it.
    pub path: PathBuf,
    /// The tensor's dtype in the file, as that format names it. Another than the table's: it was decoded.
    pub dtype: String,
    /// The file's map, where the table is a part of it; `None`: the table is in memory.
    pub map: Option<Map>,
}

impl TableSource {
    fn mapped(tensor: StoredTensor, table: &EmbeddingTable) -> Self {
        // F64 was rounded to f32, in memory; the other dtypes are read where they are mapped.
        let (dtype, map) = match tensor.dtype {
            Dtype::F64 => ("F64", None),
            _ => (table.dtype().name(), Some(tensor.map)),
        };
        Self { name: tensor.name, path: tensor.path, dtype: dtype.to_owned(), map }
    }
}

/// An opened checkpoint. The table is mapped where the file has rows of plain numbers, else decoded.
pub struct Checkpoint {
    pub path: PathBuf,
    pub kind: Kind,
    /// `model_type` of the (text) config, as transformers names it.
    pub model_type: String,
    pub table: EmbeddingTable,
    pub table_source: TableSource,
    pub norm: FinalNorm,
    /// The norm's tensor, where it has one.
    pub norm_source: Option<String>,
    pub tokenizer: Tokenizer,
    /// The file that the tokenizer was read from, or rebuilt from.
    pub tokenizer_path: PathBuf,
    pub conventions: Conventions,
    /// What is put before each text: sentence-transformers' default prompt.
    pub prompt: Option<String>,
    /// What a user should know although it is served.
    pub warnings: Vec<String>,
    /// What is as it should be, and may still surprise somebody who looks closely.
    pub remarks: Vec<String>,
}

impl Checkpoint {
    /// Opens a directory, a GGUF file, or [`BUILTIN`], the model inside the program.
    ///
    /// # Errors
    /// [`LoadError`] says which file is at fault, what was expected, and which override helps where one does.
    pub fn open(path: &Path, overrides: &Overrides) -> Result<Self, LoadError> {
        map::guarded(|| Self::open_kind(path, overrides))
    }

    /// To be asked after reading the table, and before what was made of it is believed.
    ///
    /// # Errors
    /// When the table's file was cut short meanwhile.
    pub fn check(&self) -> Result<(), LoadError> {
        self.table_source.map.as_ref().map_or(Ok(()), |map| map.check(&self.table_source.path))
    }

    fn open_kind(path: &Path, overrides: &Overrides) -> Result<Self, LoadError> {
        match Source::of(path, overrides)? {
            #[cfg(feature = "default-model")]
            Source::Builtin => builtin::open(overrides),
            Source::Refined { dimensions } => refined::open(path, dimensions, overrides),
            Source::Static(found) => found.open(path, overrides),
            Source::HuggingFace => hf::open(path, overrides),
            Source::Gguf => gguf::open(path, overrides),
        }
    }

    /// The norm as numbers per row: reads the whole table once, on `threads` threads.
    ///
    /// # Errors
    /// When the table holds a number that is not finite.
    pub fn collapsed_norm(&self, threads: usize) -> Result<CollapsedNorm, LoadError> {
        self.norm.collapse(&self.table, threads).map_err(|bad| {
            LoadError::new(
                &self.table_source.path,
                format!("holds a number that is not finite in row {} of {}", bad.row, self.table_source.name),
            )
            .at_run_time()
            .expected("a finite table; this one is damaged or was trained astray")
        })
    }
}

/// What a path holds.
enum Source {
    #[cfg(feature = "default-model")]
    Builtin,
    Refined {
        dimensions: usize,
    },
    Static(StaticTable),
    HuggingFace,
    Gguf,
}

impl Source {
    fn of(path: &Path, overrides: &Overrides) -> Result<Self, LoadError> {
        if path == Path::new(BUILTIN) {
            #[cfg(feature = "default-model")]
            return Ok(Self::Builtin);
            #[cfg(not(feature = "default-model"))]
            return Err(LoadError::new(path, "is not in this build, which has no default model")
                .remedy("build with the feature `default-model`, or give a checkpoint's directory"));
        }
        let expected = "a checkpoint directory (config.json, tokenizer.json and model.safetensors), or a GGUF file of version 2 or 3";
        let metadata = std::fs::metadata(path).map_err(|e| match e.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => LoadError::new(path, "does not exist")
                .expected(expected)
                .remedy("`embedding-server extract SOURCE OUT` makes a checkpoint of any model"),
            _ => LoadError::io(path, &e),
        })?;
        if metadata.is_file() && gguf::is_gguf(path) {
            return Ok(Self::Gguf);
        }
        if !metadata.is_dir() {
            // A Git LFS pointer in place of a GGUF file.
            if metadata.is_file() && metadata.len() < 1024 {
                crate::files::read(path).map_err(|e| LoadError::io(path, &e))?;
            }
            return Err(LoadError::new(path, "is not a directory, and not a GGUF file").expected(expected));
        }
        if overrides.config.is_none()
            && let Some(file) = gguf::alone_in(path)
        {
            return Err(LoadError::new(path, "holds GGUF files and no config.json")
                .expected("a checkpoint directory")
                .remedy(format!("set path to one of them, such as {}", file.display())));
        }
        // Before the others: in floats it is a Model2Vec directory too.
        if let Some(dimensions) = refined::recognize(path, overrides)? {
            return Ok(Self::Refined { dimensions });
        }
        Ok(static_table::recognize(path, overrides)?.map_or(Self::HuggingFace, Self::Static))
    }
}

/// The tokenizer of the directory `dir`, or the user's, and its file.
fn open_tokenizer(dir: &Path, overrides: &Overrides) -> Result<(Tokenizer, PathBuf), LoadError> {
    let path = tokenizer_file(dir, overrides)?;
    Ok((Tokenizer::open(&path)?, path))
}

/// The tokenizer.json of the directory `dir`, or the user's.
fn tokenizer_file(dir: &Path, overrides: &Overrides) -> Result<PathBuf, LoadError> {
    let path = match &overrides.tokenizer {
        Some(dir) if dir.is_dir() => dir.join("tokenizer.json"),
        Some(file) => file.clone(),
        None => dir.join("tokenizer.json"),
    };
    if path.try_exists().map_err(|e| LoadError::io(&path, &e))? {
        return Ok(path);
    }
    Err(missing_tokenizer(path, dir, "set tokenizer to where it lies"))
}

/// The error of a `path` to a tokenizer.json where there is none. It names the tokenizer of another format that `dir` holds, and
/// how to `give` a tokenizer.json that lies elsewhere.
pub fn missing_tokenizer(path: PathBuf, dir: &Path, give: &str) -> LoadError {
    match other_tokenizer(dir) {
        Some((file, format)) => {
            LoadError::new(path, format!("is missing: the directory has {file}, {format}, which is another format"))
                .expected("the model's tokenizer.json")
                .remedy(format!(
                    "AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers writes a tokenizer.json; then {give}"
                ))
        }
        None => LoadError::new(path, "is missing")
            .expected("the model's tokenizer.json")
            .remedy(format!("copy it from the model, or {give}")),
    }
}

/// A file in `dir` that holds a tokenizer in another format than tokenizer.json, and what the format is.
fn other_tokenizer(dir: &Path) -> Option<(String, &'static str)> {
    const SENTENCEPIECE: &str = "a SentencePiece model";
    const TIKTOKEN: &str = "a vocabulary of tiktoken";
    const FORMATS: [(&str, &str); 7] = [
        ("tekken.json", "a tokenizer of mistral-common"),
        ("tiktoken.model", TIKTOKEN),
        ("tokenizer.model", SENTENCEPIECE),
        ("sentencepiece.bpe.model", SENTENCEPIECE),
        ("spiece.model", SENTENCEPIECE),
        ("merges.txt", "the merges of a byte-pair encoding"),
        ("vocab.txt", "a WordPiece vocabulary"),
    ];
    let entries = crate::files::entries(dir).ok()?;
    let names: Vec<&str> = entries.iter().filter_map(|(path, _)| path.file_name()?.to_str()).collect();
    let (file, format) = match FORMATS.into_iter().find(|(file, _)| names.contains(file)) {
        Some(found) => found,
        None => (*names.iter().find(|name| name.ends_with(".tiktoken"))?, TIKTOKEN),
    };
    // Meta's Llama 3 keeps tiktoken's lines of base64 under this name; a SentencePiece model is binary.
    let is_tiktoken = || {
        let content = crate::files::read(&dir.join(file)).unwrap_or_default();
        let line = content.split(|&b| b == b'\n').next().unwrap_or_default();
        line.iter().rev().take_while(|b| b.is_ascii_digit()).count() > 0 && line.contains(&b' ') && line.is_ascii()
    };
    let format = if file == "tokenizer.model" && is_tiktoken() { TIKTOKEN } else { format };
    Some((file.to_owned(), format))
}

/// Every id of the tokenizer must have a row; added tokens may lack one, with a remark.
fn check_vocabulary(
    vocabulary: &Vocabulary,
    table: &EmbeddingTable,
    table_name: &str,
    tokenizer: &Path,
    remarks: &mut Vec<String>,
) -> Result<(), LoadError> {
    let rows = table.rows();
    if vocabulary.max_base_id as usize >= rows {
        return Err(LoadError::new(
            tokenizer,
            format!("has token ids up to {}, but {table_name} has {rows} rows", vocabulary.max_base_id),
        )
        .expected("the tokenizer of the same model")
        .remedy("set tokenizer to where that lies"));
    }
    let beyond: Vec<&str> =
        vocabulary.added.iter().filter(|token| token.id as usize >= rows).map(|token| token.content.as_str()).collect();
    if !beyond.is_empty() {
        let tokens = match beyond.len() {
            1 => "1 added token has no row in the table and is".to_owned(),
            count => format!("{count} added tokens have no row in the table and are"),
        };
        remarks.push(format!("{tokens} left out of the mean: {}", beyond.join(" ")));
    }
    Ok(())
}
