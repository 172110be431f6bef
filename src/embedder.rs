//! Text or token ids to vectors: what a user of the library gets. Sync, knows no HTTP.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use crate::checkpoint::map::Map;
use crate::checkpoint::{Checkpoint, Conventions};
use crate::cl100k;
use crate::error::{Damage, EmbedError, LoadError};
use crate::pooling::place::{DeviceChoice, check_built, place};
use crate::pooling::{self, Pooling, normalize};
use crate::tokenize::EncodeError;
use crate::tokenize::choose::{Choice, Search};
use crate::tokenize::pieces::Pieces;
use crate::yield_point::{Steps, Stopped, Undisturbed, YieldPoint};

/// What an array of token ids in place of a text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenInput {
    /// cl100k_base, as OpenAI's contract and LangChain have it: decoded, then tokenized by the model's own tokenizer.
    #[default]
    #[serde(rename = "cl100k_base")]
    Cl100k,
    /// Ids of the model's own vocabulary, taken as they are.
    Model,
    /// An error.
    Reject,
}

/// What an empty input is answered with, and one without tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmptyInput {
    /// The first unit vector.
    #[default]
    UnitVector,
    /// An error, as OpenAI has it.
    Reject,
}

/// What holds the table while it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// The file's own pages, read as they are touched and shared with other processes. The file must not be changed in
    /// place: see [`crate::checkpoint::map`].
    #[default]
    Map,
    /// A copy, which no change to the file can touch.
    Copy,
}

/// How a checkpoint's vectors are made.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Scale vectors to length 1, as OpenAI's are; `false` leaves the mean as it is. `None`: as the checkpoint's
    /// [`Conventions`] have it.
    pub normalize: Option<bool>,
    /// Pool the special tokens that the tokenizer's template adds (BOS). `None`: as the checkpoint's [`Conventions`] have it.
    pub special_tokens: Option<bool>,
    /// Dimensions of an answer that asks for none: a prefix, renormalized. `None`: all.
    pub dimensions: Option<usize>,
    pub token_input: TokenInput,
    pub empty_input: EmptyInput,
    /// Longer inputs are an error. `None`: any length.
    pub max_input_tokens: Option<usize>,
    pub device: DeviceChoice,
    /// Batches of fewer tokens stay on the CPU. `None`: measured at load.
    pub device_min_tokens: Option<usize>,
    pub memory: Memory,
    /// Threads that read the table at load.
    pub load_threads: usize,
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
        }
    }
}

impl Settings {
    /// Holds them against a table of so many columns, and against this build. `path` is the checkpoint, for errors.
    ///
    /// # Errors
    /// When the table has fewer dimensions, or this build lacks the device.
    pub fn check(&self, path: &Path, columns: usize) -> Result<(), LoadError> {
        if let Some(dimensions) = self.dimensions.filter(|dimensions| !(1..=columns).contains(dimensions)) {
            return Err(LoadError::new(path, format!("cannot have dimensions = {dimensions}"))
                .expected(format!("between 1 and {columns}, the columns of the table")));
        }
        check_built(self.device).map_err(|why| LoadError::new(path, why.problem).remedy(why.remedy))
    }
}

/// One input: a text, or token ids whose meaning [`TokenInput`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    Text(String),
    TokenIds(Vec<u32>),
}

/// The ids that are pooled for one input: each has a row in the table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PooledTokens(Vec<u32>);

impl PooledTokens {
    /// How many tokens are pooled: what `usage` counts.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn ids(&self) -> &[u32] {
        &self.0
    }
}

/// A loaded checkpoint, ready to embed. Shared between threads.
pub struct Embedder {
    /// Replaced at most once, by one that gives the same ids faster. Reading it takes no lock.
    tokenizer: ArcSwap<Choice>,
    pieces: Pieces,
    pooling: Box<dyn Pooling>,
    /// Why [`DeviceChoice::Auto`] is the CPU.
    why_cpu: Option<String>,
    /// The file and its map, where the pooling reads from it.
    mapped: Option<(PathBuf, Map)>,
    /// What was found to have happened to that file, beside being cut short.
    damage: OnceLock<Damage>,
    rows: usize,
    table_dimensions: usize,
    table_bytes: usize,
    settings: Settings,
    conventions: Conventions,
    /// What is put before each text.
    prompt: Option<String>,
    /// Whether every token of a text has a row and counts.
    pools_every_token: bool,
    /// The tokens of an empty text: those of the tokenizer's template.
    template: OnceLock<Vec<u32>>,
}

impl Embedder {
    /// Reads the whole table once: the norm becomes numbers per row, and a row that is not finite is found. Waits for
    /// the fastest tokenizer, which for byte-level BPE takes a second more than [`Embedder::start`].
    ///
    /// # Errors
    /// When the table is not finite, `settings` do not fit it, or the device cannot take it.
    pub fn new(checkpoint: Checkpoint, settings: Settings) -> Result<Self, LoadError> {
        let (embedder, search) = Self::start(checkpoint, settings)?;
        if let Some(search) = search {
            embedder.adopt(search.run());
        }
        Ok(embedder)
    }

    /// As [`Embedder::new`], but with the tokenizer that loads soonest. Give the result of the [`Search`], if there is
    /// one, to [`Embedder::adopt`] when it is found, from any thread: vectors stay the same, and come faster.
    ///
    /// # Errors
    /// As [`Embedder::new`].
    pub fn start(checkpoint: Checkpoint, settings: Settings) -> Result<(Self, Option<Search>), LoadError> {
        if let Some(map) = &checkpoint.table_source.map {
            map.guard();
        }
        let collapsed = checkpoint.collapsed_norm(settings.load_threads);
        let Checkpoint { path, mut table, table_source, mut tokenizer, conventions: by_kind, prompt, .. } = checkpoint;
        let conventions = Conventions {
            normalize: settings.normalize.unwrap_or(by_kind.normalize),
            special_tokens: settings.special_tokens.unwrap_or(by_kind.special_tokens),
            ..by_kind
        };
        settings.check(&path, table.dimensions())?;
        if settings.memory == Memory::Copy {
            table = table.copied();
        }
        let check = || table_source.map.as_ref().map_or(Ok(()), |map| map.check(&table_source.path));
        check()?;
        let collapsed = collapsed?;
        let (rows, table_dimensions) = (table.rows(), table.dimensions());
        let table_bytes = table.bytes().len();
        let (pooling, why_cpu) = place(settings.device, settings.device_min_tokens, table, collapsed)
            .map_err(|why| LoadError::new(&path, why.problem).remedy(why.remedy).at_run_time())?;
        check()?;
        if let Some(map) = &table_source.map {
            map.release();
        }
        let reads_the_file = pooling.reads_the_table() && settings.memory == Memory::Map;
        let mapped = table_source.map.filter(|_| reads_the_file).map(|map| (table_source.path, map));
        let pieces = std::mem::take(&mut tokenizer.pieces);
        let pools_every_token = conventions.left_out.is_none() && tokenizer.vocabulary.max_id() < rows as u64;
        let (choice, search) = tokenizer.split();
        let tokenizer = ArcSwap::from_pointee(choice);
        let embedder = Self {
            tokenizer,
            pieces,
            pooling,
            why_cpu,
            mapped,
            damage: OnceLock::new(),
            rows,
            table_dimensions,
            table_bytes,
            settings,
            conventions,
            prompt,
            pools_every_token,
            template: OnceLock::new(),
        };
        Ok((embedder, search))
    }

    /// Tokenizes by `choice` from now on: the result of the [`Search`] that came with this embedder. Returns what it
    /// replaces, for whoever has the time to free it.
    pub fn adopt(&self, choice: impl Into<Arc<Choice>>) -> Arc<Choice> {
        self.tokenizer.swap(choice.into())
    }

    /// The length of a vector when a request asks for no other.
    pub fn dimensions(&self) -> usize {
        self.settings.dimensions.unwrap_or(self.table_dimensions)
    }

    /// The dimensions of the table: the most that a request can ask for.
    pub fn max_dimensions(&self) -> usize {
        self.table_dimensions
    }

    /// The highest token id that an input may hold; `None` where inputs are texts only.
    pub fn max_token_id(&self) -> Option<u32> {
        match self.settings.token_input {
            TokenInput::Cl100k => Some(cl100k::LAST),
            TokenInput::Model => u32::try_from(self.rows.saturating_sub(1)).ok(),
            TokenInput::Reject => None,
        }
    }

    /// The device's name, for people.
    pub fn device(&self) -> String {
        self.pooling.device()
    }

    /// Why the CPU is all there is, where any device would have done.
    pub fn why_cpu(&self) -> Option<&str> {
        self.why_cpu.as_deref()
    }

    /// Whether each call of [`Embedder::pool`] should be given many texts.
    pub fn wants_whole_batches(&self) -> bool {
        self.pooling.wants_whole_batches()
    }

    /// The tokenizer's implementation, for people.
    pub fn tokenizer(&self) -> &'static str {
        self.tokenizer.load().implementation.name()
    }

    /// What each token stands for in a text.
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// The number of tokens that have a row in the table.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The size of the table as stored.
    pub fn table_bytes(&self) -> usize {
        self.table_bytes
    }

    /// [`EmbedError::Damaged`], if the table's file is known to be another than the one that was loaded: no vector can be
    /// had any more.
    pub fn damage(&self) -> Option<EmbedError> {
        let (path, map) = self.mapped.as_ref()?;
        let damage = if map.is_damaged() { Damage::CutShort } else { *self.damage.get()? };
        Some(EmbedError::Damaged { path: path.clone(), damage })
    }

    /// Asks the system whether the table's file was written to since it was loaded; then it is damaged from here on.
    pub fn check_file(&self) -> Option<EmbedError> {
        if self.mapped.as_ref().is_some_and(|(_, map)| map.is_changed()) {
            self.damage.get_or_init(|| Damage::Changed);
        }
        self.damage()
    }

    /// The tokenizer in use, and why not a faster one.
    pub fn choice(&self) -> Arc<Choice> {
        self.tokenizer.load_full()
    }

    /// The length of the vectors that `requested` asks for.
    ///
    /// # Errors
    /// [`EmbedError::Dimensions`] for 0 and for more than the table has.
    pub fn resolve_dimensions(&self, requested: Option<u64>) -> Result<usize, EmbedError> {
        let Some(requested) = requested else { return Ok(self.dimensions()) };
        usize::try_from(requested)
            .ok()
            .filter(|d| (1..=self.table_dimensions).contains(d))
            .ok_or(EmbedError::Dimensions { requested, max: self.table_dimensions })
    }

    /// The tokens of one input; `index` is for errors. All errors of an input come from here.
    ///
    /// # Errors
    /// When the input is not one that this model takes.
    pub fn tokens(&self, index: usize, input: &Input) -> Result<PooledTokens, EmbedError> {
        self.tokens_in_steps(index, input, &Undisturbed)
    }

    /// The same, where the input may take seconds: `at` is reached every few milliseconds.
    ///
    /// # Errors
    /// As [`Embedder::tokens`], and when `at` ends the work.
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

    /// The bytes of text that an input is tokenized from. Ids of cl100k_base may stand for 128 bytes each.
    pub fn bytes_of(&self, input: &Input) -> usize {
        match (input, self.settings.token_input) {
            (Input::Text(text), _) => text.len(),
            (Input::TokenIds(ids), TokenInput::Cl100k) => cl100k::bytes_of(ids),
            (Input::TokenIds(ids), TokenInput::Model) => size_of_val(ids.as_slice()),
            (Input::TokenIds(_), TokenInput::Reject) => 0,
        }
    }

    fn pooled(&self, index: usize, mut ids: Vec<u32>) -> Result<PooledTokens, EmbedError> {
        // Added tokens may lie beyond the table (Gemma 3 has one).
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
        // A text of too many tokens is given up where that is known, unless some of them may be left out.
        let max = self.settings.max_input_tokens.filter(|_| self.pools_every_token);
        let is_over = |tokens: usize| max.filter(|&max| tokens > max);
        let over = Cell::new(None);
        let reached = |tokens| {
            over.set(is_over(tokens));
            if over.get().is_some() { Err(Stopped) } else { at.reached() }
        };
        // In most languages a token has more bytes than three.
        let mut ids = Vec::with_capacity(text.len() / 3 + 4);
        let (special, tokenizer) = (self.conventions.special_tokens, self.tokenizer.load());
        let encoded = match at.is_needed() {
            true => tokenizer.encode_in_steps(text, special, &mut ids, &Steps::new(&reached)),
            false => tokenizer.implementation.encode(text, special, &mut ids).map_err(EncodeError::Failed),
        };
        encoded.map_err(|error| match (error, over.get()) {
            (EncodeError::Failed(message), _) => EmbedError::Tokenizer { input: index, message },
            (EncodeError::Stopped(_), Some(max)) => EmbedError::TooManyTokens { input: index, tokens: None, max },
            (EncodeError::Stopped(stopped), None) => stopped.into(),
        })?;
        Ok(ids)
    }

    /// Writes the vectors of `texts` to `out` (texts x `dimensions`). One without tokens is the first unit vector.
    ///
    /// # Errors
    /// When a device fails, the table's file was changed under its map, or a vector cannot be told in f32.
    pub fn pool(&self, texts: &[PooledTokens], dimensions: usize, out: &mut [f32]) -> Result<(), EmbedError> {
        self.pool_in_steps(0, texts, dimensions, out, &Undisturbed)
    }

    /// The same of the texts from `first` on, where one of them may take long: `at` is reached every millisecond or so.
    ///
    /// # Errors
    /// As [`Embedder::pool`], and when `at` ends the work.
    pub fn pool_in_steps(
        &self,
        first: usize,
        texts: &[PooledTokens],
        dimensions: usize,
        out: &mut [f32],
        at: &dyn YieldPoint,
    ) -> Result<(), EmbedError> {
        let ids: Vec<&[u32]> = texts.iter().map(PooledTokens::ids).collect();
        self.pooling.mean_in_steps(&ids, dimensions, out, at)?;
        if let Some(damage) = self.damage() {
            return Err(damage);
        }
        for (input, (text, vector)) in texts.iter().zip(out.chunks_mut(dimensions.max(1))).enumerate() {
            if text.is_empty() {
                pooling::first_unit_vector(vector);
                continue;
            }
            let finite =
                if self.conventions.normalize { normalize(vector).is_ok() } else { pooling::is_finite(vector) };
            if !finite {
                self.pool_exactly(first + input, text, vector, at)?;
            }
        }
        Ok(())
    }

    /// The vector of a text whose sum in f32 is not finite.
    fn pool_exactly(
        &self,
        input: usize,
        text: &PooledTokens,
        vector: &mut [f32],
        at: &dyn YieldPoint,
    ) -> Result<(), EmbedError> {
        let Some(exact) = self.pooling.exact_mean(text.ids(), vector.len(), at)? else {
            return Err(EmbedError::NotFinite { input });
        };
        if exact.iter().all(|x| x.is_finite()) {
            return pooling::rounded(&exact, self.conventions.normalize, vector)
                .map_err(|_| EmbedError::TooLarge { input });
        }
        // Every row was finite when the table was loaded.
        self.damage.get_or_init(|| Damage::NotFinite);
        Err(self.damage().unwrap_or(EmbedError::NotFinite { input }))
    }

    /// Writes the vector of each token alone to `out` (tokens x [`Embedder::max_dimensions`]), not scaled to length 1: its length is what
    /// the table says of the token's importance. Tokens past the table have zeros. `out` may have room for more tokens.
    ///
    /// # Errors
    /// As [`Embedder::pool_in_steps`].
    pub fn token_vectors(&self, ids: &[u32], out: &mut [f32], at: &dyn YieldPoint) -> Result<(), EmbedError> {
        let texts: Vec<&[u32]> = ids.iter().map(std::slice::from_ref).collect();
        self.pooling.mean_in_steps(&texts, self.table_dimensions, out, at)?;
        self.damage().map_or(Ok(()), Err)
    }

    /// The tokens of a text without those that the tokenizer's template puts around it (BOS, EOS).
    pub fn without_template<'a>(&self, ids: &'a [u32]) -> &'a [u32] {
        let template = self.template.get_or_init(|| {
            let mut ids = Vec::new();
            // A tokenizer that fails on an empty text has no template.
            let _ = self.tokenizer.load().implementation.encode("", self.conventions.special_tokens, &mut ids);
            ids.retain(|&id| (id as usize) < self.rows && Some(id) != self.conventions.left_out);
            ids
        });
        let (mut ids, mut template) = (ids, template.as_slice());
        while let (Some((first, rest)), Some((expected, after))) = (ids.split_first(), template.split_first()) {
            if first != expected {
                break;
            }
            (ids, template) = (rest, after);
        }
        while let (Some((last, rest)), Some((expected, before))) = (ids.split_last(), template.split_last()) {
            if last != expected {
                break;
            }
            (ids, template) = (rest, before);
        }
        ids
    }

    /// The vectors of `texts`, on this thread.
    ///
    /// # Errors
    /// When a text cannot be tokenized, is longer than `max_input_tokens`, or the device fails.
    pub fn embed<S: AsRef<str>>(&self, texts: &[S]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let texts = texts.iter().enumerate();
        let tokens: Vec<PooledTokens> = texts
            .map(|(index, text)| self.pooled(index, self.encode(index, text.as_ref(), &Undisturbed)?))
            .collect::<Result<_, _>>()?;
        let dimensions = self.dimensions();
        if self.wants_whole_batches() {
            let mut vectors = vec![0.0; tokens.len() * dimensions];
            self.pool(&tokens, dimensions, &mut vectors)?;
            return Ok(vectors.chunks(dimensions.max(1)).map(<[f32]>::to_vec).collect());
        }
        let vector = |tokens| {
            let mut vector = vec![0.0; dimensions];
            self.pool(std::slice::from_ref(tokens), dimensions, &mut vector).map(|()| vector)
        };
        tokens.iter().map(vector).collect()
    }
}
