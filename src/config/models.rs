//! The settings of a section `[[models]]`, and how they reach the library.

use std::path::PathBuf;

use super::ServerConfig;
use super::declare::declare_settings;
use super::server::{DEVICE, TOKENIZER_CACHE};
use super::settings::Flag;
use super::values::InvalidValue;
use super::values::ValueKind::{Form, List, Name, Number, Path, Truth, Whole, Word};
use layer0::Fingerprint;
use layer0::checkpoint::{Overrides, TokenizerCache};
use layer0::embedder::{EmptyInput, Memory, Settings, TokenInput};
use layer0::norm::NormKind;
use layer0::pooling::place::DeviceChoice;

declare_settings! {
    /// One section for each model. Without any, this model is served.
    /// `EMBEDDING_SERVER_MODELS="name=path,name=path"` and `--model NAME=PATH` add models, or change the path of one.
    pub struct ModelConfig in "models", "[[models]]" {
        /// The name that requests give as `model`.
        id: String {
            check: Name,
            unset: "required",
        }
        /// The model. It is one of these:
        /// - "builtin:default", the model inside the program
        /// - a directory with config.json, tokenizer.json, and model.safetensors or shards with their index
        /// - a GGUF file
        /// - the directory of a Model2Vec, sentence-transformers StaticEmbedding or WordLlama table
        /// - a Hub ID, "org/name" or "org/name@revision", which is fetched into the cache of the Hub at the first
        ///   start. A path that exists is never read as an ID.
        path: PathBuf {
            check: Path,
            unset: "required",
        }
        /// Further names for the same model.
        aliases: Vec<String> {
            check: List { item: super::values::name, example: "name", none: false },
        }
        /// The meaning of lists of token IDs. "cl100k_base": as for OpenAI and LangChain, they are decoded and
        /// tokenized again. "model": IDs of the model's own vocabulary. "reject": an error.
        token_input: TokenInput {
            check: Word(&["cl100k_base", "model", "reject"]),
        }
        /// The answer to an input that is empty or has no tokens. "unit_vector": the first unit vector. "reject": 400,
        /// as from OpenAI.
        empty_input: EmptyInput {
            check: Word(&["unit_vector", "reject"]),
        }
        /// Whether the table is mapped from its file or copied into memory. "map" reads the table from the pages of its
        /// file, which other processes share. Replace the file by renaming, and never write into it. "copy" reads the
        /// table into memory, and later changes to the file have no effect.
        memory: Memory {
            check: Word(&["map", "copy"]),
        }
        /// Whether vectors are scaled to length 1, as OpenAI's are. `false` leaves the mean as it is.
        normalize: Option<bool> {
            check: Truth,
            unset: "true, or what a Model2Vec or sentence-transformers table says",
            example: "true",
        }
        /// Whether the special tokens that the tokenizer adds (BOS) are pooled, as by transformers. `false` leaves them
        /// out.
        special_tokens: Option<bool> {
            check: Truth,
            unset: "true, but false for static tables, as in their own libraries",
            example: "true",
        }
        /// The device of this model.
        device: Option<DeviceChoice> {
            check: DEVICE,
            unset: "`server.device`",
            example: "cuda:0",
        }
        /// The number of tokens from which a batch runs on the device. Smaller batches run on the CPU, which then keeps
        /// the table mapped beside the device's copy. 0: all batches run on the device.
        device_min_tokens: Option<usize> {
            check: Whole { least: 0, most: 1_000_000_000 },
            unset: "measured at loading, as the number from which the device is faster than one thread",
            example: "512",
        }
        /// The number of dimensions if a request asks for none: a prefix of the vector, normalized again.
        dimensions: Option<usize> {
            check: Whole { least: 1, most: 65_536 },
            unset: "all",
            example: "256",
        }
        /// The largest number of tokens of an input. A longer input gets 400. Nothing is ever truncated.
        max_input_tokens: Option<usize> {
            check: Whole { least: 1, most: 1_000_000_000 },
            unset: "no limit",
            example: "8192",
        }
        /// The fingerprint that the model must have: 32 hexadecimal digits, as GET /v1/models and `inspect` print it. A model
        /// with another one, whose vectors cannot be compared with those in your index, is refused when it is loaded.
        expect_fingerprint: Option<Fingerprint> {
            check: Form { values: "32 hexadecimal digits", parse: fingerprint },
            unset: "any",
            example: "0123456789abcdef0123456789abcdef",
        }
        /// The tokenizer.json, or a directory with the files of a tokenizer, if the model has no tokenizer or another
        /// one is wanted.
        tokenizer: Option<PathBuf> {
            check: Path,
            flag: Flag::new("--tokenizer", "FILE"),
            unset: "the model's own",
            example: "/models/base/tokenizer.json",
        }
        /// The config.json, if the model has none or another one is wanted.
        config: Option<PathBuf> {
            check: Path,
            flag: Flag::new("--config", "FILE"),
            unset: "the model's own",
            example: "/models/base/config.json",
        }
        /// The kind of the final norm, for an unknown model type: rms, rms_plus_one, layer, layer_plus_one or none.
        /// This setting and the following ones override what follows from the model type.
        norm: Option<NormKind> {
            check: Word(&["rms", "rms_plus_one", "layer", "layer_plus_one", "none"]),
            flag: Flag::new("--norm", "KIND"),
            unset: "by the model type",
            example: "rms",
        }
        /// The epsilon of the final norm, from 0 to 1.
        norm_eps: Option<f64> {
            check: Number { least: 0.0, most: 1.0 },
            flag: Flag::new("--norm-eps", "EPS"),
            unset: "the model's own",
            example: "1e-5",
        }
        /// The factor of the embeddings before the norm, from 1e-6 to 1e6.
        embedding_scale: Option<f64> {
            check: Number { least: 1e-6, most: 1e6 },
            flag: Flag::new("--embedding-scale", "FACTOR"),
            unset: "the model's own",
            example: "1.0",
        }
        /// The exponent of token counts, from 0 to 1. A token that occurs n times in a text weighs n to this power in the
        /// mean of the text's tokens. 1: every occurrence counts. 0: every distinct token counts once.
        token_count_exponent: Option<f64> {
            check: Number { least: 0.0, most: 1.0 },
            flag: Flag::new("--token-count-exponent", "EXPONENT"),
            unset: "the model's own, which is 1 unless its config.json says otherwise",
            example: "0.7",
        }
        /// The number of columns of the lexical tail, which follow those of the table. In them, texts are similar only if
        /// they have tokens in common, which helps a search for exact words. They take no memory. A request for fewer
        /// `dimensions` cuts the tail first. 0: no tail.
        lexical_dimensions: Option<usize> {
            check: Whole { least: 0, most: 65_536 },
            flag: Flag::new("--lexical-dimensions", "COLUMNS"),
            unset: "the model's own, which is 0 unless its config.json says otherwise",
            example: "640",
        }
        /// The length of a token's lexical tail, as a multiple of the length of the token's vector, from 0 to 10.
        lexical_weight: Option<f64> {
            check: Number { least: 0.0, most: 10.0 },
            flag: Flag::new("--lexical-weight", "WEIGHT"),
            unset: "the model's own, which is 0.8 unless its config.json says otherwise",
            example: "0.6",
        }
        /// Where the compiled form of the model's tokenizer is kept: user, off, or a directory. The setting
        /// `tokenizer_cache` of the section `[server]` describes the values.
        tokenizer_cache: Option<TokenizerCache> {
            check: TOKENIZER_CACHE,
            flag: Flag::new("--tokenizer-cache", "DIRECTORY"),
            unset: "the server's",
            example: "/var/cache/embedding-server",
        }
        /// The name of the tensor that holds the embedding table.
        embedding_tensor: Option<String> {
            check: Name,
            flag: Flag::new("--embedding-tensor", "NAME"),
            unset: "found by the names of known models",
            example: "model.embed_tokens.weight",
        }
        /// The name of the tensor that holds the weight of the final norm.
        norm_tensor: Option<String> {
            check: Name,
            flag: Flag::new("--norm-tensor", "NAME"),
            unset: "found by the names of known models",
            example: "model.norm.weight",
        }
    }
}

fn fingerprint(text: &str) -> Result<String, InvalidValue> {
    let fingerprint = text.parse::<Fingerprint>();
    Ok(fingerprint.map_err(|_| "write the 32 hexadecimal digits that `inspect` prints as the fingerprint")?.to_string())
}

impl ModelConfig {
    /// Returns the configuration of a model with default settings.
    pub fn new(id: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self { id: id.into(), path: path.into(), ..Self::default() }
    }

    /// Returns the model with the server's device and tokenizer cache, if the model has none of its own.
    #[must_use]
    pub fn on(self, server: &ServerConfig) -> Self {
        let tokenizer_cache = self.tokenizer_cache.or_else(|| Some(server.tokenizer_cache.clone()));
        Self { device: self.device.or(Some(server.device)), tokenizer_cache, ..self }
    }

    /// Returns the settings that determine how the model's vectors are computed.
    pub fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.normalize = self.normalize;
        settings.special_tokens = self.special_tokens;
        settings.dimensions = self.dimensions;
        settings.token_input = self.token_input;
        settings.empty_input = self.empty_input;
        settings.max_input_tokens = self.max_input_tokens;
        settings.device = self.device.unwrap_or_default();
        settings.device_min_tokens = self.device_min_tokens;
        settings.memory = self.memory;
        settings.expect_fingerprint = self.expect_fingerprint;
        settings
    }

    /// Returns the settings that replace values of the checkpoint.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            config: self.config.clone(),
            tokenizer: self.tokenizer.clone(),
            norm: self.norm,
            norm_eps: self.norm_eps,
            embedding_scale: self.embedding_scale,
            embedding_tensor: self.embedding_tensor.clone(),
            norm_tensor: self.norm_tensor.clone(),
            token_count_exponent: self.token_count_exponent,
            lexical_dimensions: self.lexical_dimensions,
            lexical_weight: self.lexical_weight,
            tokenizer_cache: self.tokenizer_cache.clone().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use toml::{Table, Value};

    use super::*;
    use crate::config::values::ValueKind;

    #[test]
    fn every_setting_of_a_model_reaches_the_library() {
        let reaches = |model: &ModelConfig| format!("{:?}{:?}", model.settings(), model.overrides());
        for setting in ModelConfig::SECTION.settings {
            // These settings are about the server: where the model is, and how requests name it.
            if matches!(setting.key, "id" | "path" | "aliases") {
                continue;
            }
            let value = match (&setting.check, setting.example) {
                (_, Some(example)) => setting.check.from_text(example).unwrap(),
                (ValueKind::Word(words), None) => Value::from(*words.last().unwrap()),
                (_, None) => panic!("{} has no example", setting.name()),
            };
            let model: ModelConfig = Table::from_iter([(setting.key.to_owned(), value)]).try_into().unwrap();
            assert_ne!(reaches(&model), reaches(&ModelConfig::default()), "{} has no effect", setting.name());
        }
    }
}
