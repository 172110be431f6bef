//! What a model type means: its final norm, where its eps is, what scales its embeddings. Data, and no file but
//! config.json.
//!
//! The source is each model's `modeling_*.py` in transformers 5.23; `tests/fixtures` holds a checkpoint and golden
//! vectors for each family. Nothing here can be guessed from shapes, so what is not listed is refused.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Overrides;
use crate::error::LoadError;
use crate::files;
use crate::norm::NormKind;

/// Tensor names, in the order to look for them.
pub type NormNames = &'static [&'static str];

/// What a model multiplies its embeddings with.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    One,
    /// The square root of the table's dimensions.
    SqrtHidden,
    /// A key of config.json, 1 where it is missing.
    Key(&'static str),
}

/// How one family of models ends at layer 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Family {
    pub norm: NormKind,
    /// The norm has no tensors.
    pub bare: bool,
    /// The tensors of a LayerNorm on the embedding itself.
    pub embedding_norm: Option<NormNames>,
    eps: Eps,
    scale: Scale,
}

/// The key of config.json, and the default of the model's config class where the file lacks it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Eps {
    Key(&'static str, f64),
    /// Written in the model's code.
    Fixed(f64),
    /// The user named the norm: any of [`EPS_KEYS`].
    Any,
}

const EPS_KEYS: [&str; 6] =
    ["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps", "layernorm_epsilon"];

const fn rms(key: &'static str, default: f64) -> Family {
    Family { norm: NormKind::Rms, bare: false, embedding_norm: None, eps: Eps::Key(key, default), scale: Scale::One }
}

const fn layer(key: &'static str, default: f64) -> Family {
    Family { norm: NormKind::Layer, ..rms(key, default) }
}

const fn plus_one(key: &'static str, default: f64) -> Family {
    Family { norm: NormKind::RmsPlusOne, ..rms(key, default) }
}

const fn scaled(scale: Scale, family: Family) -> Family {
    Family { scale, ..family }
}

/// Model types whose layer 0 adds positions or token types: no function of the token alone.
#[rustfmt::skip]
const POSITION_DEPENDENT: &[&str] = &[
    "albert", "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt", "blenderbot",
    "blenderbot-small", "camembert", "clip_text_model", "cpmant", "ctrl", "data2vec-text", "deberta", "deberta-v2",
    "distilbert", "electra", "ernie", "git", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "imagegpt", "marian", "mbart",
    "megatron-bert", "mpnet", "mvp", "openai-gpt", "opt", "pegasus", "plbart", "prophetnet", "reformer", "rembert",
    "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "trocr", "whisper", "xglm", "xlm", "xlm-roberta",
    "xlm-roberta-xl", "xlnet", "xmod",
];

/// Every model type that can be served, by family. Defaults are those of the config classes.
#[rustfmt::skip]
const FAMILIES: &[(Family, &[&str])] = &[
    (rms("rms_norm_eps", 1e-6), &[
        "aria_text", "axk1", "axk2", "bailing_hybrid", "beam", "deepseek_v2", "deepseek_v3", "deepseek_v32", "doge",
        "deepseek_ocr2_text", "dots1", "flex_olmo", "flint", "internlm2", "jamba", "jetmoe", "kolibri1", "laguna",
        "llama", "mellum", "minimax_m2", "ministral", "mistral", "molmo2_text", "olmo_hybrid", "qwen2", "qwen2_moe",
        "qwen3", "qwen3_moe", "qwen3_vl_moe_text", "qwen3_vl_text", "seed_oss", "smollm3", "youtu",
    ]),
    (rms("rms_norm_eps", 1e-5), &[
        "afmoe", "apertus", "arcee", "bamba", "bitnet", "cosmos3_edge_text", "cwm", "diffllama", "dots3_note_text",
        "emu3_text_model", "ernie4_5", "ernie4_5_moe", "ernie4_5_vl_moe_text", "exaone4", "exaone_moe", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa",
        "glm_ocr_text", "gpt_oss", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "internlm3", "iquestcoder",
        "kimi_linear", "llama4_text", "longcat_flash", "mimo_v2_flash", "minimax", "ministral3",
        "mistral_large4_text", "mixtral", "mllama_text_model", "olmo2", "olmo3", "olmoe", "paddleocr_vl_text", "phi3",
        "qwen2_5_vl_text", "qwen2_vl_text", "solar_open", "zamba", "zamba2",
    ]),
    (rms("rms_norm_eps", 1.5625e-7), &["glm", "glm4"]),
    (rms("rms_norm_eps", 1e-8), &["helium"]),
    (rms("layer_norm_epsilon", 1e-5), &["falcon_mamba", "mamba", "mamba2", "nemotron_h"]),
    (rms("layernorm_epsilon", 1e-5), &["chatglm"]),
    (rms("layer_norm_epsilon", 1e-6), &["qwen"]),
    (rms("norm_eps", 1e-5), &["lfm2", "lfm2_moe", "lfm3"]),
    (scaled(Scale::Key("embedding_multiplier"), rms("rms_norm_eps", 1e-6)), &[
        "granite", "granite4_vision_text", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hyperclovax",
    ]),
    (scaled(Scale::Key("embedding_multiplier"), rms("rms_norm_eps", 1e-5)), &[
        "falcon_h1", "granite_docling_text", "granite_swa",
    ]),
    (scaled(Scale::Key("scale_emb"), rms("rms_norm_eps", 1e-5)), &["minicpm", "minicpm3"]),
    // From Gemma 3n on the weight is plain again; 3n's AltUp streams, which come between, are left out here.
    (scaled(Scale::SqrtHidden, rms("rms_norm_eps", 1e-6)), &["gemma3n_text", "gemma4_text", "gemma4_unified_text"]),
    (scaled(Scale::SqrtHidden, plus_one("rms_norm_eps", 1e-6)), &[
        "gemma", "gemma2", "gemma3_text", "recurrent_gemma", "vaultgemma",
    ]),
    (plus_one("rms_norm_eps", 1e-6), &["minimax_m3_vl_text", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"]),
    (layer("layer_norm_eps", 1e-5), &["cohere", "cohere2", "cohere_compass_text", "gpt_neox", "jais2", "persimmon", "phi", "stablelm"]),
    (layer("layer_norm_epsilon", 1e-5), &["codegen", "falcon", "gptj", "mpt"]),
    (layer("norm_epsilon", 1e-5), &["starcoder2"]),
    (layer("rms_norm_eps", 1e-5), &["phimoe"]),
    (Family { eps: Eps::Fixed(1e-5), ..layer("", 0.0) }, &["dbrx"]),
    (Family { eps: Eps::Fixed(1e-5), bare: true, ..layer("", 0.0) }, &["olmo"]),
    (Family { norm: NormKind::LayerPlusOne, ..layer("norm_eps", 1e-5) }, &["nemotron"]),
    (Family { embedding_norm: Some(BLOOM_EMBEDDING_NORM), ..layer("layer_norm_epsilon", 1e-5) }, &["bloom"]),
];

const BLOOM_EMBEDDING_NORM: NormNames =
    &["transformer.word_embeddings_layernorm.weight", "word_embeddings_layernorm.weight"];

/// Where a tensor's module can stand in the whole name: bare, a causal model, and multimodal models old and new.
const PREFIXES: [&str; 10] = [
    "model.",
    "",
    "language_model.model.",
    "model.language_model.",
    "model.text_model.",
    "language_model.",
    "transformer.",
    "gpt_neox.",
    "backbone.",
    "model.decoder.",
];

/// The modules of embedding tables. Whole names only: `embed_tokens_per_layer` and the like are not tables.
const EMBEDDINGS: [&str; 8] = [
    "embed_tokens",
    "wte",
    "embed_in",
    "word_embeddings",
    "tok_embeddings",
    "embeddings",
    "embedding.word_embeddings",
    "token_embd",
];

/// The modules of final norms.
const NORMS: [&str; 9] = [
    "norm",
    "final_layernorm",
    "final_layer_norm",
    "ln_f",
    "embedding_norm",
    "norm_f",
    "final_norm",
    "encoder.final_layernorm",
    "output_norm",
];

/// The names that an embedding table can have, likeliest first.
pub fn embedding_names() -> Vec<String> {
    names(&EMBEDDINGS)
}

/// The names that a final norm's weight can have, likeliest first.
pub fn norm_names() -> Vec<String> {
    names(&NORMS)
}

fn names(modules: &[&str]) -> Vec<String> {
    modules.iter().flat_map(|module| PREFIXES.iter().map(move |prefix| format!("{prefix}{module}.weight"))).collect()
}

/// The config.json of a model, seen at the level of its language model.
#[derive(Debug)]
pub struct ModelConfig {
    path: PathBuf,
    /// `text_config` where there is one, else the whole.
    text: Map<String, Value>,
    model_type: String,
}

impl ModelConfig {
    /// Reads a config.json.
    ///
    /// # Errors
    /// When it is missing, no JSON object, or names no model type.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let json = files::read(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => LoadError::new(path, "is missing")
                .expected("the model's config.json: its model_type tells the norm")
                .remedy(
                    "copy it from the model (mergekit leaves it out when it fails), or set config to where it lies",
                ),
            _ => LoadError::io(path, &e),
        })?;
        let invalid = |problem: String| LoadError::new(path, problem).expected("the config.json of a model");
        let mut whole: Map<String, Value> =
            serde_json::from_slice(&json).map_err(|e| invalid(format!("is not a JSON object: {e}")))?;
        let name = |config: &Map<String, Value>| config.get("model_type").and_then(Value::as_str).map(str::to_owned);
        let outer = name(&whole);
        let text = match whole.remove("text_config") {
            Some(Value::Object(text)) => text,
            _ => whole,
        };
        let model_type = name(&text)
            .or(outer)
            .ok_or_else(|| invalid("has no model_type".to_owned()).remedy("set norm and norm_eps for this model"));
        Ok(Self { path: path.to_owned(), text, model_type: model_type? })
    }

    /// `model_type` of the language model.
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.text.get(key).and_then(Value::as_f64)
    }
}

/// The family of a model type, or `None` for one that is not known.
pub fn known(model_type: &str) -> Option<Family> {
    FAMILIES.iter().find(|(_, types)| types.contains(&model_type)).map(|(family, _)| *family)
}

/// The family of a config, or the one that the user's `norm` makes.
///
/// # Errors
/// For a model type that is unknown or depends on positions, unless `norm` is set.
pub fn resolve(config: &ModelConfig, overrides: &Overrides) -> Result<Family, LoadError> {
    let model_type = config.model_type();
    let known = known(model_type);
    if let Some(norm) = overrides.norm {
        let family = known.unwrap_or(Family { eps: Eps::Any, ..rms("", 0.0) });
        return Ok(Family { norm, bare: family.bare && overrides.norm_tensor.is_none(), ..family });
    }
    if let Some(family) = known {
        return Ok(family);
    }
    let (problem, expected) = if POSITION_DEPENDENT.contains(&model_type) {
        (
            format!("has model_type {model_type:?}, whose embeddings depend on positions or segments"),
            "a model whose layer 0 is a function of the token alone",
        )
    } else {
        (format!("has model_type {model_type:?}, which is not known here"), "a model type whose final norm is known")
    };
    Err(LoadError::new(&config.path, problem).expected(expected).remedy(
        "to serve its table all the same, set norm to \"rms\", \"rms_plus_one\", \"layer\", \"layer_plus_one\" or \"none\", as its modeling code has it",
    ))
}

impl Family {
    /// The eps of the norm.
    ///
    /// # Errors
    /// When the norm is the user's and neither `norm_eps` nor the config says.
    pub fn eps(&self, config: &ModelConfig, overrides: &Overrides) -> Result<f64, LoadError> {
        if let Some(eps) = overrides.norm_eps {
            return Ok(eps);
        }
        match self.eps {
            Eps::Fixed(eps) => Ok(eps),
            Eps::Key(key, default) => Ok(config.number(key).unwrap_or(default)),
            Eps::Any => EPS_KEYS.iter().find_map(|key| config.number(key)).ok_or_else(|| {
                LoadError::new(&config.path, "does not say the eps of its norm")
                    .expected(format!("one of {}", EPS_KEYS.join(", ")))
                    .remedy("set norm_eps")
            }),
        }
    }

    /// The key of config.json that holds the eps; `None` where the model's code does.
    pub fn eps_key(&self) -> Option<&'static str> {
        match self.eps {
            Eps::Key(key, _) => Some(key),
            Eps::Fixed(_) | Eps::Any => None,
        }
    }

    /// The key of config.json that holds the embedding scale, where each model has its own.
    pub fn scale_key(&self) -> Option<&'static str> {
        match self.scale {
            Scale::Key(key) => Some(key),
            Scale::One | Scale::SqrtHidden => None,
        }
    }

    /// What multiplies the rows before the norm.
    ///
    /// # Errors
    /// When the config's own factor is no positive number.
    pub fn embedding_scale(&self, config: &ModelConfig, dimensions: usize) -> Result<f64, LoadError> {
        let scale = match self.scale {
            Scale::Key(key) => config.number(key).unwrap_or(1.0),
            Scale::One | Scale::SqrtHidden => self.fixed_scale(dimensions).unwrap_or(1.0),
        };
        if scale.is_finite() && scale > 0.0 {
            Ok(scale)
        } else {
            Err(LoadError::new(&config.path, format!("has an embedding scale of {scale}"))
                .expected("a positive number")
                .remedy("set embedding_scale"))
        }
    }

    /// What multiplies the rows before the norm, where that is not the single model's to say.
    pub fn fixed_scale(&self, dimensions: usize) -> Option<f64> {
        match self.scale {
            Scale::One => Some(1.0),
            Scale::SqrtHidden => Some((dimensions as f64).sqrt()),
            Scale::Key(_) => None,
        }
    }

    /// What to tell the user of defaults that were taken.
    pub fn warnings(&self, config: &ModelConfig, overrides: &Overrides) -> Option<String> {
        match self.eps {
            Eps::Key(key, default) if overrides.norm_eps.is_none() && config.number(key).is_none() => Some(format!(
                "{} has no {key}: taking {default}, the default of {:?} in transformers (norm_eps overrides it)",
                config.path.display(),
                config.model_type
            )),
            _ => None,
        }
    }
}
