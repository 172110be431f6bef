//! Opens checkpoints. A checkpoint is an embedding table, its final norm and its tokenizer, in any of several formats.
//!
//! Each kind of source has its own file: [`hf`] reads Hugging Face directories, [`gguf`] reads GGUF files,
//! [`static_table`] reads what Model2Vec, sentence-transformers and WordLlama save, [`refined`] reads what `refine`
//! writes. [`EmbeddedCheckpoint`] opens a checkpoint that is a part of the program. This module does not use the network and does not pool.

mod conventions;
mod embedded;
#[doc(hidden)]
pub mod family;
#[doc(hidden)]
pub mod gguf;
#[doc(hidden)]
pub mod hf;
#[doc(hidden)]
pub mod map;
mod preview;
mod prompt;
#[doc(hidden)]
pub mod refined;
#[doc(hidden)]
pub mod static_table;
#[doc(hidden)]
pub mod tokenizer_cache;
#[doc(hidden)]
pub mod tokenizer_json;
#[doc(hidden)]
pub mod weights;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use crate::error::{Diagnostic, LoadError};
use crate::norm::{CollapsedNorm, FinalNorm, NormKind, RowsDigest};
use crate::table::EmbeddingTable;
pub use conventions::Conventions;
pub use embedded::EmbeddedCheckpoint;
use layer0_tokenizers::Vocabulary;
use layer0_tokenizers::choose::Tokenizer;
use map::Map;
pub use preview::Preview;
use static_table::StaticTable;
pub use tokenizer_cache::TokenizerCache;
use weights::StoredTensor;

/// The settings of the user that replace what the checkpoint says. `Default` overrides nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overrides {
    /// The path of config.json if it is not in the checkpoint's directory.
    pub config: Option<PathBuf>,
    /// The path of tokenizer.json, or of a directory that holds one, if it is not in the checkpoint's directory.
    pub tokenizer: Option<PathBuf>,
    /// The kind of the final norm. If it is set, a model type that is unknown or depends on positions is accepted too.
    pub norm: Option<NormKind>,
    /// The number that the final norm adds to the mean square or to the variance.
    pub norm_eps: Option<f64>,
    /// The factor of each row before the final norm.
    pub embedding_scale: Option<f64>,
    /// The name of the embedding table's tensor.
    pub embedding_tensor: Option<String>,
    /// The name of the tensor of the final norm's weight.
    pub norm_tensor: Option<String>,
    /// The exponent of token counts: see [`Conventions::token_count_exponent`].
    pub token_count_exponent: Option<f64>,
    /// The number of columns of the lexical tail: see [`Conventions::lexical_dimensions`].
    pub lexical_dimensions: Option<usize>,
    /// The length of the lexical tail: see [`Conventions::lexical_weight`].
    pub lexical_weight: Option<f64>,
    /// Where the tokenizer's compiled form is kept. It has no effect on vectors.
    pub tokenizer_cache: TokenizerCache,
}

/// The format of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A directory as transformers and mergekit save it.
    HuggingFace,
    /// A GGUF file of llama.cpp.
    Gguf,
    /// A directory of Model2Vec.
    Model2Vec,
    /// A StaticEmbedding of sentence-transformers.
    StaticEmbedding,
    /// A table of WordLlama.
    WordLlama,
    /// A table that the command `refine` or `fit` has written.
    Refined,
}

impl Kind {
    /// Returns the name of the format for messages.
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

/// The tensor that a table was read from.
#[derive(Debug, Clone)]
pub struct TableSource {
    /// The tensor's name.
    pub name: String,
    /// The file that holds the tensor.
    pub path: PathBuf,
    /// The tensor's dtype in the file, as the file format names it. If the table's dtype differs, the tensor was
    /// decoded.
    pub dtype: String,
    /// The file's memory map if the table is a part of it, or `None` if the table was decoded into memory.
    pub map: Option<Map>,
}

impl TableSource {
    fn mapped(tensor: StoredTensor, table: &EmbeddingTable) -> Self {
        // F64 was rounded to f32 in memory. Tensors of the other dtypes are read from the memory map.
        let (dtype, map) = match tensor.dtype {
            Dtype::F64 => ("F64", None),
            _ => (table.dtype().name(), Some(tensor.map)),
        };
        Self { name: tensor.name, path: tensor.path, dtype: dtype.to_owned(), map }
    }
}

/// An opened checkpoint. The table is memory-mapped if the file holds rows of plain numbers, and decoded otherwise.
///
/// # Examples
///
/// ```
/// use layer0::{Checkpoint, NormKind, Overrides};
///
/// # let path = "../../tests/fixtures/checkpoints/llama";
/// let checkpoint = Checkpoint::open(path.as_ref(), &Overrides::default())?;
/// assert_eq!(checkpoint.model_type, "llama");
/// assert_eq!(checkpoint.norm.norm.kind, NormKind::Rms);
/// println!("{} rows of {} numbers", checkpoint.table.rows(), checkpoint.table.dimensions());
///
/// let error = Checkpoint::open("Cargo.toml".as_ref(), &Overrides::default()).unwrap_err();
/// println!("{error}");
/// # Ok::<(), layer0::LoadError>(())
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    /// The directory or file that was opened.
    pub path: PathBuf,
    /// The format of the checkpoint.
    pub kind: Kind,
    /// The `model_type` of the config, or of its text config, as transformers names it.
    pub model_type: String,
    /// The embedding table, `[rows, dimensions]`.
    pub table: EmbeddingTable,
    /// The tensor that the table was read from.
    pub table_source: TableSource,
    /// The final norm, and the scaling of rows before it.
    pub norm: FinalNorm,
    /// The name of the norm's tensor, or `None` if the norm has none.
    pub norm_source: Option<String>,
    /// The model's own tokenizer.
    pub tokenizer: Tokenizer,
    /// The file that the tokenizer was read from or rebuilt from.
    pub tokenizer_path: PathBuf,
    /// How the library that saved the checkpoint treats a text.
    pub conventions: Conventions,
    /// The text that is put before each input: the default prompt of sentence-transformers.
    pub prompt: Option<String>,
    /// Messages about problems that do not prevent the checkpoint from being served.
    pub warnings: Vec<String>,
    /// Messages about properties that are correct but may surprise somebody who looks closely.
    pub remarks: Vec<String>,
}

impl Checkpoint {
    /// Opens a directory or a GGUF file.
    ///
    /// # Errors
    /// [`LoadError`] says which file is at fault, what was expected, and, if an override helps, which one.
    pub fn open(path: &Path, overrides: &Overrides) -> Result<Self, LoadError> {
        map::guarded(|| Self::open_kind(path, overrides)?.overridden(overrides))
    }

    /// Checks that the table's file is still whole. A caller that has read the table calls this method before it uses
    /// the results, because pages that the file has lost read as zeros.
    ///
    /// # Errors
    /// Returns an error if the table's file was cut short after it was opened.
    pub fn check(&self) -> Result<(), LoadError> {
        self.table_source.map.as_ref().map_or(Ok(()), |map| map.check(&self.table_source.path))
    }

    fn open_kind(path: &Path, overrides: &Overrides) -> Result<Self, LoadError> {
        match Source::of(path, overrides)? {
            Source::Refined(header) => refined::open(path, &header, overrides),
            Source::Static(found) => found.open(path, overrides),
            Source::HuggingFace => hf::open(path, overrides),
            Source::Gguf => gguf::open(path, overrides),
        }
    }

    /// Returns the checkpoint with the conventions that the user sets.
    fn overridden(mut self, overrides: &Overrides) -> Result<Self, LoadError> {
        self.conventions = self.conventions.overridden(&self.path, overrides)?;
        Ok(self)
    }

    /// Returns the norm as one number per row. The method reads the whole table once, on `threads` threads.
    ///
    /// # Errors
    /// Returns an error if the table holds a number that is not finite.
    pub fn collapsed_norm(&self, threads: usize) -> Result<CollapsedNorm, LoadError> {
        Ok(self.collapse_and_digest(threads)?.0)
    }

    /// Returns the norm like [`Checkpoint::collapsed_norm`], and a digest of the rows from the same pass over the table.
    ///
    /// # Errors
    /// Returns the errors of [`Checkpoint::collapsed_norm`].
    #[doc(hidden)]
    pub fn collapse_and_digest(&self, threads: usize) -> Result<(CollapsedNorm, RowsDigest), LoadError> {
        self.norm.collapse_and_digest(&self.table, threads).map_err(|bad| {
            LoadError::damaged(
                &self.table_source.path,
                format!("holds a number that is not finite in row {} of {}", bad.row, self.table_source.name),
            )
            .expected("a finite table; this one is damaged or was trained astray")
        })
    }
}

/// The format of the files at a path.
enum Source {
    Refined(refined::Header),
    Static(StaticTable),
    HuggingFace,
    Gguf,
}

impl Source {
    fn of(path: &Path, overrides: &Overrides) -> Result<Self, LoadError> {
        let expected = "a checkpoint directory (config.json, tokenizer.json and model.safetensors), or a GGUF file of version 2 or 3";
        let metadata = std::fs::metadata(path).map_err(|e| match e.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => LoadError::missing(path, "does not exist")
                .expected(expected)
                .remedy("`embedding-server extract SOURCE OUT` makes a checkpoint of any model"),
            _ => LoadError::io(path, &e),
        })?;
        if metadata.is_file() && gguf::is_gguf(path) {
            return Ok(Self::Gguf);
        }
        if !metadata.is_dir() {
            // The file can be a Git LFS pointer in place of a GGUF file. `files::read` reports that case.
            if metadata.is_file() && metadata.len() < 1024 {
                layer0_files::read(path).map_err(|e| LoadError::io(path, &e))?;
            }
            return Err(LoadError::unsupported(path, "is not a directory, and not a GGUF file").expected(expected));
        }
        if overrides.config.is_none()
            && let Some(file) = gguf::alone_in(path)
        {
            return Err(LoadError::unsupported(path, "holds GGUF files and no config.json")
                .expected("a checkpoint directory")
                .remedy(format!("set path to one of them, such as {}", file.display())));
        }
        // This check comes before the others: a refined directory whose table holds floats is a Model2Vec directory as
        // well.
        if let Some(header) = refined::recognize(path, overrides)? {
            return Ok(Self::Refined(header));
        }
        Ok(static_table::recognize(path, overrides)?.map_or(Self::HuggingFace, Self::Static))
    }
}

/// Opens the tokenizer of the directory `dir`, or the one that the user named, and returns it with the path of its
/// file.
fn open_tokenizer(dir: &Path, overrides: &Overrides) -> Result<(Tokenizer, PathBuf), LoadError> {
    let path = tokenizer_file(dir, overrides)?;
    Ok((tokenizer_cache::open(&path, &overrides.tokenizer_cache)?, path))
}

/// Returns the path of the tokenizer.json of the directory `dir`, or of the one that the user named.
fn tokenizer_file(dir: &Path, overrides: &Overrides) -> Result<PathBuf, LoadError> {
    let path = match &overrides.tokenizer {
        Some(dir) if dir.is_dir() => dir.join("tokenizer.json"),
        Some(file) => file.clone(),
        None => dir.join("tokenizer.json"),
    };
    if path.try_exists().map_err(|e| LoadError::io(&path, &e))? {
        return Ok(path);
    }
    let (problem, remedy) = missing_tokenizer(path, dir);
    Err(LoadError::from_missing(problem.remedy(format!("{remedy} set tokenizer to where it lies"))))
}

/// Returns the problem of a tokenizer.json that is missing at `path`, and the beginning of the remedy, which ends in how
/// to name another file. `dir` is the directory of the model.
pub(crate) fn missing_tokenizer(path: PathBuf, dir: &Path) -> (Diagnostic, &'static str) {
    let (problem, remedy) = match other_tokenizer(dir) {
        Some((file, format)) => (
            format!("is missing: the directory has {file}, {format}, which is another format"),
            "AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers writes a tokenizer.json; then",
        ),
        None => ("is missing".to_owned(), "copy it from the model, or"),
    };
    (Diagnostic::new(path, problem).expected("the model's tokenizer.json"), remedy)
}

/// Returns the name of a file in `dir` that holds a tokenizer in a format other than tokenizer.json, and the name of
/// the format.
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
    let entries = layer0_files::entries(dir).ok()?;
    let names: Vec<&str> = entries.iter().filter_map(|(path, _)| path.file_name()?.to_str()).collect();
    let (file, format) = match FORMATS.into_iter().find(|(file, _)| names.contains(file)) {
        Some(found) => found,
        None => (*names.iter().find(|name| name.ends_with(".tiktoken"))?, TIKTOKEN),
    };
    // Meta's Llama 3 keeps a text in tiktoken's format, lines of base64, under this name. A SentencePiece model is
    // binary.
    let is_tiktoken = || {
        let content = layer0_files::read(&dir.join(file)).unwrap_or_default();
        let line = content.split(|&b| b == b'\n').next().unwrap_or_default();
        line.iter().rev().take_while(|b| b.is_ascii_digit()).count() > 0 && line.contains(&b' ') && line.is_ascii()
    };
    let format = if file == "tokenizer.model" && is_tiktoken() { TIKTOKEN } else { format };
    Some((file.to_owned(), format))
}

/// Checks that every token ID of the tokenizer has a row. Added tokens may lack one; a remark then says so.
fn check_vocabulary(
    vocabulary: &Vocabulary,
    table: &EmbeddingTable,
    table_name: &str,
    tokenizer: &Path,
    remarks: &mut Vec<String>,
) -> Result<(), LoadError> {
    let rows = table.rows();
    if vocabulary.max_base_id as usize >= rows {
        return Err(LoadError::mismatch(
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
