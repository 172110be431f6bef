//! Opens a checkpoint with settings.

use std::path::PathBuf;

use super::{Embedder, EmptyInput, Memory, Settings, TokenInput};
use crate::checkpoint::{Checkpoint, Overrides};
use crate::error::LoadError;
use crate::fingerprint::Fingerprint;
use crate::pooling::place::DeviceChoice;

/// The settings with which [`Embedder::builder`] opens a checkpoint. Every setting has a default, which is what the checkpoint says or
/// what OpenAI's API does.
///
/// # Examples
///
/// ```
/// use layer0::{Embedder, TokenInput};
///
/// # let path = "../../tests/fixtures/checkpoints/llama";
/// let embedder = Embedder::builder(path)
///     .dimensions(8)
///     .special_tokens(false)
///     .max_input_tokens(1000)
///     .token_input(TokenInput::Model)
///     .open()?;
/// assert_eq!(embedder.dimensions(), 8);
/// # Ok::<(), layer0::LoadError>(())
/// ```
///
/// A setting that the checkpoint cannot satisfy is an error of [`EmbedderBuilder::open`]:
///
/// ```
/// # use layer0::Embedder;
/// # let path = "../../tests/fixtures/checkpoints/llama";
/// let error = Embedder::builder(path).dimensions(100_000).open().unwrap_err();
/// assert!(error.to_string().contains("cannot have dimensions = 100000"));
/// ```
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it is opened"]
pub struct EmbedderBuilder {
    path: PathBuf,
    overrides: Overrides,
    settings: Settings,
}

impl EmbedderBuilder {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, overrides: Overrides::default(), settings: Settings::default() }
    }

    /// Sets what replaces the checkpoint's own statements, such as the kind of its norm or the path of its tokenizer.
    pub fn overrides(mut self, overrides: Overrides) -> Self {
        self.overrides = overrides;
        self
    }

    /// Sets the length of vectors: a prefix of the mean, which is then scaled to length 1. The default is the number of columns of the table and
    /// of the lexical tail.
    pub const fn dimensions(mut self, dimensions: usize) -> Self {
        self.settings.dimensions = Some(dimensions);
        self
    }

    /// Sets whether vectors are scaled to length 1. The default is what the library that saved the checkpoint does, which is `true` for
    /// LLMs.
    pub const fn normalize(mut self, normalize: bool) -> Self {
        self.settings.normalize = Some(normalize);
        self
    }

    /// Sets whether the special tokens that the tokenizer's template adds, such as BOS, take part in the mean. The default is what the library
    /// that saved the checkpoint does, which is `true` for LLMs.
    pub const fn special_tokens(mut self, special_tokens: bool) -> Self {
        self.settings.special_tokens = Some(special_tokens);
        self
    }

    /// Sets the exponent of token counts, from 0 to 1: a token that occurs `n` times in a text weighs `n` to this power. The default is what the
    /// checkpoint says, which is 1 for most: the vector is the mean of the tokens.
    ///
    /// ```
    /// # use layer0::Embedder;
    /// # let path = "../../tests/fixtures/checkpoints/llama";
    /// // With the exponent 0, every distinct token counts once, and a text that is repeated has the same vector.
    /// let embedder = Embedder::builder(path).token_count_exponent(0.0).open()?;
    /// let vectors = embedder.embed(&["hello hello", "hello hello hello"])?;
    /// assert_eq!(vectors[0], vectors[1]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const fn token_count_exponent(mut self, exponent: f64) -> Self {
        self.overrides.token_count_exponent = Some(exponent);
        self
    }

    /// Sets the number of columns of the lexical tail, which follow those of the table. In them, texts are similar only if they have tokens in
    /// common. The columns take no memory. The default is what the checkpoint says, which is 0 for most.
    ///
    /// ```
    /// # use layer0::Embedder;
    /// # let path = "../../tests/fixtures/checkpoints/llama";
    /// let plain = Embedder::open(path)?;
    /// let tailed = Embedder::builder(path).lexical_dimensions(64).lexical_weight(0.6).open()?;
    /// assert_eq!(tailed.dimensions(), plain.dimensions() + 64);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const fn lexical_dimensions(mut self, columns: usize) -> Self {
        self.overrides.lexical_dimensions = Some(columns);
        self
    }

    /// Sets the length of a token's lexical tail, as a multiple of the length of the token's vector, from 0 to 10. The default is what the
    /// checkpoint says, which is 0.8 for most.
    pub const fn lexical_weight(mut self, weight: f64) -> Self {
        self.overrides.lexical_weight = Some(weight);
        self
    }

    /// Sets the meaning of token IDs in place of a text. The default is cl100k_base, as in OpenAI's API.
    pub const fn token_input(mut self, token_input: TokenInput) -> Self {
        self.settings.token_input = token_input;
        self
    }

    /// Sets the vector of an input without tokens. The default is the first unit vector.
    pub const fn empty_input(mut self, empty_input: EmptyInput) -> Self {
        self.settings.empty_input = empty_input;
        self
    }

    /// Sets the largest number of tokens of an input. A longer input is an error and is never truncated. By default there is no limit.
    pub const fn max_input_tokens(mut self, tokens: usize) -> Self {
        self.settings.max_input_tokens = Some(tokens);
        self
    }

    /// Sets the device that computes the means. The default is the CPU, which is as fast as a device except for large batches.
    pub const fn device(mut self, device: DeviceChoice) -> Self {
        self.settings.device = device;
        self
    }

    /// Sets the number of tokens from which on a batch runs on the device. By default the number is measured when the checkpoint is opened.
    pub const fn device_min_tokens(mut self, tokens: usize) -> Self {
        self.settings.device_min_tokens = Some(tokens);
        self
    }

    /// Sets where the table is kept. The default is a memory map of the file.
    pub const fn memory(mut self, memory: Memory) -> Self {
        self.settings.memory = memory;
        self
    }

    /// Sets the number of threads that read the table while the checkpoint is opened. The default is the number of cores.
    pub const fn load_threads(mut self, threads: usize) -> Self {
        self.settings.load_threads = threads;
        self
    }

    /// Sets the fingerprint that the checkpoint must have with these settings. By default any is accepted.
    pub const fn expect_fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.settings.expect_fingerprint = Some(fingerprint);
        self
    }

    /// Opens the checkpoint, and reads its table once to compute the norm of each row.
    ///
    /// # Errors
    /// Returns an error if there is no checkpoint at the path, if one of its files is broken or does not fit the others, if the table holds a
    /// number that is not finite, or if the checkpoint cannot satisfy a setting. The error names the file, what was expected and what to do.
    ///
    /// # Examples
    ///
    /// ```
    /// use layer0::Embedder;
    ///
    /// let error = Embedder::builder("no/such/model").open().unwrap_err();
    /// assert!(error.to_string().starts_with("no/such/model: does not exist"));
    /// ```
    pub fn open(self) -> Result<Embedder, LoadError> {
        Embedder::new(Checkpoint::open(&self.path, &self.overrides)?, self.settings)
    }
}
