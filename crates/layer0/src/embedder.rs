//! Turns texts or token IDs into vectors. This is the library's main interface. It is synchronous.

mod builder;
mod pool;

use std::cell::Cell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

pub use builder::EmbedderBuilder;

use crate::checkpoint::map::Map;
use crate::checkpoint::{Checkpoint, Conventions};
use crate::cl100k;
use crate::error::{Damage, EmbedError, LoadError};
use crate::fingerprint::{Fingerprint, VectorSpace};
use crate::pooling::place::{DeviceChoice, check_built, place};
use crate::pooling::{CpuPooling, Pooling};
use layer0_tokenizers::EncodeError;
use layer0_tokenizers::choose::Choice;
use layer0_tokenizers::pieces::Pieces;
use layer0_tokenizers::yield_point::{Steps, Stopped, Undisturbed, YieldPoint};

/// The meaning of an array of token IDs in place of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenInput {
    /// Token IDs of cl100k_base, as in OpenAI's API and LangChain. The IDs are decoded, and the text is tokenized by
    /// the model's own tokenizer.
    #[default]
    #[serde(rename = "cl100k_base")]
    Cl100k,
    /// Token IDs of the model's own vocabulary, which are used directly.
    Model,
    /// Token IDs are an error.
    Reject,
}

/// The result for an input that is empty or has no tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmptyInput {
    /// The first unit vector.
    #[default]
    UnitVector,
    /// An error, as in OpenAI's API.
    Reject,
}

/// Where the table is kept while it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// In a memory map of the file. Pages are read when they are touched, and are shared with other processes. The file
    /// must not be changed in place: see [`crate::checkpoint::map`].
    #[default]
    Map,
    /// In a copy in memory, which changes to the file do not affect.
    Copy,
}

/// Settings that determine how vectors are computed from a checkpoint. [`EmbedderBuilder`] sets them.
#[doc(hidden)]
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// Whether vectors are scaled to length 1, as OpenAI's are. `Some(false)` returns the mean unscaled. `None` follows
    /// the checkpoint's [`Conventions`].
    pub normalize: Option<bool>,
    /// Whether the special tokens that the tokenizer's template adds (such as BOS) are pooled. `None` follows the
    /// checkpoint's [`Conventions`].
    pub special_tokens: Option<bool>,
    /// The dimensions of vectors if a request does not ask for a number: a prefix of the vector, which is then scaled
    /// to length 1 again. `None` means all dimensions.
    pub dimensions: Option<usize>,
    pub token_input: TokenInput,
    pub empty_input: EmptyInput,
    /// The limit on the number of tokens of an input. Longer inputs are an error, and `None` means no limit.
    pub max_input_tokens: Option<usize>,
    pub device: DeviceChoice,
    /// The number of tokens from which a batch runs on the device. Smaller batches run on the CPU. `None` means that
    /// the number is measured when the model is loaded.
    pub device_min_tokens: Option<usize>,
    pub memory: Memory,
    /// The number of threads that read the table when the model is loaded.
    pub load_threads: usize,
    /// The fingerprint that the model must have. `None` accepts any.
    pub expect_fingerprint: Option<Fingerprint>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            normalize: None,
            special_tokens: None,
            dimensions: None,
            token_input: TokenInput::default(),
            empty_input: EmptyInput::default(),
            max_input_tokens: None,
            device: DeviceChoice::default(),
            device_min_tokens: None,
            memory: Memory::default(),
            load_threads: std::thread::available_parallelism().map_or(1, usize::from),
            expect_fingerprint: None,
        }
    }
}

impl Settings {
    /// Checks the settings against a table with this number of columns, and against the features of this build. `path`
    /// is the path of the checkpoint for errors.
    ///
    /// # Errors
    /// Returns an error if the table has fewer dimensions, or if this build does not support the device.
    pub fn check(&self, path: &Path, columns: usize) -> Result<(), LoadError> {
        if let Some(dimensions) = self.dimensions.filter(|dimensions| !(1..=columns).contains(dimensions)) {
            return Err(LoadError::setting(path, format!("cannot have dimensions = {dimensions}"))
                .expected(format!("between 1 and {columns}, the dimensions of its vectors")));
        }
        check_built(self.device).map_err(|why| LoadError::setting(path, why.problem).remedy(why.remedy))
    }
}

/// One input: a text, or token IDs with the meaning that [`TokenInput`] gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A text of any length, in any language that the tokenizer knows.
    Text(String),
    /// Token IDs in place of a text.
    TokenIds(Vec<u32>),
}

/// The token IDs that are pooled for one input. Each of them has a row in the table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PooledTokens(Vec<u32>);

impl PooledTokens {
    /// Returns the number of tokens that are pooled. `usage` counts these tokens.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether no token is pooled.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the token IDs, in the order of the text.
    pub fn ids(&self) -> &[u32] {
        &self.0
    }
}

/// A loaded checkpoint that is ready to embed texts. Threads can share it by reference or in an `Arc`.
///
/// # Examples
///
/// ```
/// use layer0::Embedder;
///
/// # let path = "../../tests/fixtures/checkpoints/llama";
/// let embedder = Embedder::open(path)?;
/// let vectors = embedder.embed(&["a first text", "another text"])?;
/// assert_eq!(vectors.len(), 2);
///
/// // The vectors have length 1, so their dot product is their cosine.
/// let cosine: f32 = vectors[0].iter().zip(&vectors[1]).map(|(a, b)| a * b).sum();
/// assert!(cosine < 1.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// The work can be split: [`Embedder::tokens`] tokenizes and finds every error that an input can have, and [`Embedder::pool`] computes
/// vectors into memory of the caller. The number of tokens is what OpenAI's API reports as `usage`.
///
/// ```
/// # use layer0::{Embedder, Input};
/// # let embedder = Embedder::open("../../tests/fixtures/checkpoints/llama")?;
/// let tokens = embedder.tokens(0, &Input::Text("a first text".to_owned()))?;
/// let mut vector = vec![0.0; embedder.dimensions()];
/// embedder.pool(&[tokens], embedder.dimensions(), &mut vector)?;
/// assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Embedder {
    tokenizer: Arc<Choice>,
    pieces: Pieces,
    pooling: Box<dyn Pooling>,
    /// The reason why [`DeviceChoice::Auto`] selected the CPU.
    why_cpu: Option<String>,
    /// The path and the memory map of the table's file, if vectors are computed from the map.
    mapped: Option<(PathBuf, Map)>,
    /// The damage to the table's file that was detected, other than truncation.
    damage: OnceLock<Damage>,
    fingerprint: Fingerprint,
    rows: usize,
    table_dimensions: usize,
    /// The number of columns of the lexical tail.
    lexical_dimensions: usize,
    table_bytes: usize,
    settings: Settings,
    conventions: Conventions,
    /// The text that is put before each input.
    prompt: Option<String>,
    /// Whether every token of a text has a row and is pooled.
    pools_every_token: bool,
    /// The tokens of an empty text, which are the tokens of the tokenizer's template.
    template: OnceLock<Vec<u32>>,
}

/// Shows the checkpoint's shape and settings, not its rows.
impl fmt::Debug for Embedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedder")
            .field("fingerprint", &self.fingerprint)
            .field("rows", &self.rows)
            .field("dimensions", &self.dimensions())
            .field("device", &self.device())
            .field("tokenizer", &self.tokenizer())
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

const _: () = {
    const fn is_shared_between_threads<T: Send + Sync>() {}
    is_shared_between_threads::<Embedder>();
};

impl Embedder {
    /// Opens the checkpoint at `path` with default settings: a Hugging Face directory, a GGUF file, or a table of Model2Vec,
    /// sentence-transformers or WordLlama. No network is used.
    ///
    /// # Errors
    /// Returns the errors of [`EmbedderBuilder::open`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, LoadError> {
        Self::builder(path).open()
    }

    /// Returns a builder for the checkpoint at `path`, for settings other than the defaults.
    pub fn builder(path: impl Into<PathBuf>) -> EmbedderBuilder {
        EmbedderBuilder::new(path.into())
    }

    /// Creates an embedder. The function reads the whole table once, to compute the norm as one number per row and to
    /// find rows that are not finite.
    ///
    /// # Errors
    /// Returns an error if the table is not finite, `settings` do not fit the table, or the device cannot be used.
    #[doc(hidden)]
    pub fn new(checkpoint: Checkpoint, settings: Settings) -> Result<Self, LoadError> {
        if let Some(map) = &checkpoint.table_source.map {
            map.guard();
        }
        let collapsed = checkpoint.collapse_and_digest(settings.load_threads);
        let Checkpoint { path, mut table, table_source, norm, mut tokenizer, conventions: by_kind, prompt, .. } =
            checkpoint;
        let conventions = Conventions {
            normalize: settings.normalize.unwrap_or(by_kind.normalize),
            special_tokens: settings.special_tokens.unwrap_or(by_kind.special_tokens),
            ..by_kind
        };
        settings.check(&path, table.dimensions() + conventions.lexical_dimensions)?;
        if settings.memory == Memory::Copy {
            table = table.copied();
        }
        let check = || table_source.map.as_ref().map_or(Ok(()), |map| map.check(&table_source.path));
        check()?;
        let (collapsed, rows_digest) = collapsed?;
        let space = VectorSpace {
            table: &table,
            rows_digest,
            norm: &norm,
            tokenizer_digest: tokenizer.digest,
            conventions,
            prompt: prompt.as_deref(),
        };
        let fingerprint = space.fingerprint();
        if let Some(expected) = settings.expect_fingerprint.filter(|expected| *expected != fingerprint) {
            return Err(LoadError::mismatch(&path, format!("has the fingerprint {fingerprint}"))
                .expected(format!("{expected}, as expect_fingerprint says"))
                .remedy(
                    "its vectors cannot be compared with those of the expected model: restore the model's files and \
                     settings, or embed all texts again and set expect_fingerprint to the new fingerprint",
                ));
        }
        let (rows, table_dimensions) = (table.rows(), table.dimensions());
        let table_bytes = table.bytes().len();
        let cpu = CpuPooling::new(table, collapsed)
            .with_token_count_exponent(conventions.token_count_exponent)
            .with_lexical_tail(conventions.lexical_dimensions, conventions.lexical_weight, settings.load_threads);
        let (pooling, why_cpu) = place(settings.device, settings.device_min_tokens, cpu)
            .map_err(|why| LoadError::device(&path, why.problem).remedy(why.remedy))?;
        check()?;
        if let Some(map) = &table_source.map {
            map.release();
        }
        let reads_the_file = pooling.reads_the_table() && settings.memory == Memory::Map;
        let mapped = table_source.map.filter(|_| reads_the_file).map(|map| (table_source.path, map));
        let pieces = std::mem::take(&mut tokenizer.pieces);
        let pools_every_token = conventions.left_out.is_none() && tokenizer.vocabulary.max_id() < rows as u64;
        Ok(Self {
            tokenizer: Arc::new(tokenizer.choice),
            pieces,
            pooling,
            why_cpu,
            mapped,
            damage: OnceLock::new(),
            fingerprint,
            rows,
            table_dimensions,
            lexical_dimensions: conventions.lexical_dimensions,
            table_bytes,
            settings,
            conventions,
            prompt,
            pools_every_token,
            template: OnceLock::new(),
        })
    }

    /// Returns the length of vectors for requests that do not ask for a number of dimensions.
    pub fn dimensions(&self) -> usize {
        self.settings.dimensions.unwrap_or(self.max_dimensions())
    }

    /// Returns the largest number of dimensions that a request can ask for: the columns of the table and of the lexical tail.
    pub fn max_dimensions(&self) -> usize {
        self.table_dimensions + self.lexical_dimensions
    }

    /// Returns the number of columns of the table. A prefix of a vector of this length has no lexical tail.
    pub fn table_dimensions(&self) -> usize {
        self.table_dimensions
    }

    /// Returns the largest number of tokens that an input may have, or `None` if there is no limit.
    pub fn max_input_tokens(&self) -> Option<usize> {
        self.settings.max_input_tokens
    }

    /// Returns the highest token ID that an input may contain, or `None` if inputs must be texts.
    pub fn max_token_id(&self) -> Option<u32> {
        match self.settings.token_input {
            TokenInput::Cl100k => Some(cl100k::LAST),
            TokenInput::Model => u32::try_from(self.rows.saturating_sub(1)).ok(),
            TokenInput::Reject => None,
        }
    }

    /// Returns the name of the vector space: vectors of embedders with the same fingerprint and the same length can be compared with each
    /// other.
    ///
    /// # Examples
    ///
    /// ```
    /// use layer0::Embedder;
    ///
    /// # let path = "../../tests/fixtures/checkpoints/llama";
    /// let embedder = Embedder::open(path)?;
    /// let unscaled = Embedder::builder(path).normalize(false).open()?;
    /// assert_ne!(embedder.fingerprint(), unscaled.fingerprint());
    /// assert_eq!(embedder.fingerprint().to_string().len(), 32);
    /// # Ok::<(), layer0::LoadError>(())
    /// ```
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Returns the name of the device, for messages.
    pub fn device(&self) -> String {
        self.pooling.device()
    }

    /// Returns the reason why no device other than the CPU is used, if the settings allow any device.
    pub fn why_cpu(&self) -> Option<&str> {
        self.why_cpu.as_deref()
    }

    /// Returns whether [`Embedder::pool`] is most efficient with many texts per call.
    pub fn wants_whole_batches(&self) -> bool {
        self.pooling.wants_whole_batches()
    }

    /// Returns the name of the tokenizer's implementation, for messages.
    pub fn tokenizer(&self) -> &'static str {
        self.tokenizer.implementation.name()
    }

    /// Returns what each token stands for in a text.
    #[doc(hidden)]
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// Returns the number of rows in the table, each of which belongs to a token.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the size of the table in bytes, as it is stored.
    pub fn table_bytes(&self) -> usize {
        self.table_bytes
    }

    /// Returns [`EmbedError::Damaged`] if the table's file is known to have changed since it was loaded. No correct
    /// vector can be computed after that.
    pub fn damage(&self) -> Option<EmbedError> {
        let (path, map) = self.mapped.as_ref()?;
        let damage = if map.is_damaged() { Damage::CutShort } else { *self.damage.get()? };
        Some(EmbedError::Damaged { path: path.clone(), damage })
    }

    /// Asks the operating system whether the table's file was written to since it was loaded. If so, the embedder is
    /// damaged from now on, and the error is returned.
    pub fn check_file(&self) -> Option<EmbedError> {
        if self.mapped.as_ref().is_some_and(|(_, map)| map.is_changed()) {
            self.damage.get_or_init(|| Damage::Changed);
        }
        self.damage()
    }

    /// Returns the tokenizer in use, with the reason why no faster one is used.
    #[doc(hidden)]
    pub fn choice(&self) -> Arc<Choice> {
        Arc::clone(&self.tokenizer)
    }

    /// Returns the length of the vectors for a request that asks for `requested` dimensions.
    ///
    /// # Errors
    /// Returns [`EmbedError::Dimensions`] for 0 and for more dimensions than the table has.
    pub fn resolve_dimensions(&self, requested: Option<u64>) -> Result<usize, EmbedError> {
        let Some(requested) = requested else { return Ok(self.dimensions()) };
        usize::try_from(requested)
            .ok()
            .filter(|d| (1..=self.max_dimensions()).contains(d))
            .ok_or(EmbedError::Dimensions { requested, max: self.max_dimensions() })
    }

    /// Returns the tokens of one input. `index` is the index of the input for errors. All errors that concern a single
    /// input are found here.
    ///
    /// # Errors
    /// Returns an error if the input is not valid for this model.
    pub fn tokens(&self, index: usize, input: &Input) -> Result<PooledTokens, EmbedError> {
        self.tokens_in_steps(index, input, &Undisturbed)
    }

    /// Returns the tokens of one input that may take seconds to tokenize. The yield point `at` is reached every few
    /// milliseconds.
    ///
    /// # Errors
    /// Returns the errors of [`Embedder::tokens`], and an error if `at` stops the work.
    pub fn tokens_in_steps(
        &self,
        index: usize,
        input: &Input,
        at: &dyn YieldPoint,
    ) -> Result<PooledTokens, EmbedError> {
        let is_empty = match input {
            Input::Text(text) => text.is_empty(),
            Input::TokenIds(ids) => ids.is_empty(),
        };
        if is_empty && self.settings.empty_input == EmptyInput::Reject {
            return Err(EmbedError::Empty { input: index });
        }
        let ids = match (input, self.settings.token_input) {
            (Input::Text(text), _) => self.encode(index, text, at)?,
            (Input::TokenIds(ids), TokenInput::Cl100k) => {
                let text = cl100k::decode(ids).map_err(|e| EmbedError::NotCl100k {
                    input: index,
                    position: e.position,
                    id: e.id,
                })?;
                self.encode(index, &text, at)?
            }
            (Input::TokenIds(ids), TokenInput::Model) => {
                if let Some(position) = ids.iter().position(|&id| id as usize >= self.rows) {
                    let id = ids.get(position).copied().unwrap_or_default();
                    return Err(EmbedError::TokenIdOutOfRange { input: index, position, id, rows: self.rows });
                }
                ids.clone()
            }
            (Input::TokenIds(_), TokenInput::Reject) => return Err(EmbedError::TokenIdsRejected { input: index }),
        };
        self.pooled(index, ids)
    }

    /// Returns the number of bytes of text that are tokenized for an input. A single ID of cl100k_base can stand for
    /// 128 bytes.
    pub fn bytes_of(&self, input: &Input) -> usize {
        match (input, self.settings.token_input) {
            (Input::Text(text), _) => text.len(),
            (Input::TokenIds(ids), TokenInput::Cl100k) => cl100k::bytes_of(ids),
            (Input::TokenIds(ids), TokenInput::Model) => size_of_val(ids.as_slice()),
            (Input::TokenIds(_), TokenInput::Reject) => 0,
        }
    }

    fn pooled(&self, index: usize, mut ids: Vec<u32>) -> Result<PooledTokens, EmbedError> {
        // Added tokens may have IDs beyond the table. Gemma 3 has one such token.
        ids.retain(|&id| (id as usize) < self.rows && Some(id) != self.conventions.left_out);
        if ids.is_empty() && self.settings.empty_input == EmptyInput::Reject {
            return Err(EmbedError::Empty { input: index });
        }
        if let Some(max) = self.settings.max_input_tokens.filter(|&max| ids.len() > max) {
            return Err(EmbedError::TooManyTokens { input: index, tokens: Some(ids.len()), max });
        }
        Ok(PooledTokens(ids))
    }

    fn encode(&self, index: usize, text: &str, at: &dyn YieldPoint) -> Result<Vec<u32>, EmbedError> {
        let prompted = self.prompt.as_ref().map(|prompt| [prompt.as_str(), text].concat());
        let text = prompted.as_deref().unwrap_or(text);
        // Tokenization stops as soon as a text has too many tokens, unless some of its tokens may be left out of the
        // count.
        let max = self.settings.max_input_tokens.filter(|_| self.pools_every_token);
        let is_over = |tokens: usize| max.filter(|&max| tokens > max);
        let over = Cell::new(None);
        let reached = |tokens| {
            over.set(is_over(tokens));
            if over.get().is_some() { Err(Stopped) } else { at.reached() }
        };
        // In most languages a token has more than three bytes.
        let mut ids = Vec::with_capacity(text.len() / 3 + 4);
        let (special, tokenizer) = (self.conventions.special_tokens, &self.tokenizer);
        let encoded = match at.is_needed() {
            true => tokenizer.encode_in_steps(text, special, &mut ids, &Steps::new(&reached)),
            false => tokenizer.implementation.encode(text, special, &mut ids),
        };
        encoded.map_err(|error| match (error, over.get()) {
            (EncodeError::Failed(message), _) => EmbedError::Tokenizer { input: index, message },
            (EncodeError::Stopped(_), Some(max)) => EmbedError::TooManyTokens { input: index, tokens: None, max },
            (EncodeError::Stopped(stopped), None) => stopped.into(),
        })?;
        Ok(ids)
    }
}
