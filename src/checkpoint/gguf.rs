//! GGUF files: token_embd.weight, output_norm.weight and the tokenizer that the metadata describe.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. What its metadata mean is llama.cpp's to
//! say; `convert_hf_to_gguf.py` there is the source of the names and of what happens to norms.

mod decode;
mod header;
mod tokenizer;

use std::path::{Path, PathBuf};

use super::family;
use super::{Checkpoint, Conventions, Kind, Overrides, check_vocabulary, open_tokenizer};
use crate::error::LoadError;
use crate::norm::{FinalNorm, Norm, NormKind};
use crate::tokenize::choose::Tokenizer;
pub use header::is_gguf;
use header::{Gguf, TensorInfo};

const TABLE: &str = "token_embd.weight";
const NORM: &str = "output_norm.weight";

/// llama.cpp's architectures, and the model types of transformers that they are made from. Only those whose final norm
/// is the last thing before the output, as in [`family`], whose scale and norm they share.
#[rustfmt::skip]
const ARCHITECTURES: &[(&str, &str)] = &[
    ("arcee", "arcee"), ("bitnet", "bitnet"), ("cohere2", "cohere2"), ("command-r", "cohere"),
    ("deepseek2", "deepseek_v3"), ("dots1", "dots1"), ("ernie4_5", "ernie4_5"), ("exaone4", "exaone4"),
    ("falcon", "falcon"), ("falcon-h1", "falcon_h1"), ("gemma", "gemma"), ("gemma2", "gemma2"),
    ("gemma3", "gemma3_text"), ("gemma3n", "gemma3n_text"), ("gemma4", "gemma4_text"), ("glm4", "glm4"),
    ("glm4moe", "glm4_moe"), ("gpt-oss", "gpt_oss"), ("gptneox", "gpt_neox"), ("granite", "granite"),
    ("granitehybrid", "granitemoehybrid"), ("granitemoe", "granitemoe"), ("internlm2", "internlm2"), ("llama", "llama"),
    ("llama4", "llama4_text"), ("mamba", "mamba"), ("minicpm", "minicpm"), ("minicpm3", "minicpm3"),
    ("mistral3", "ministral3"), ("mpt", "mpt"), ("nemotron", "nemotron"), ("olmo", "olmo"), ("olmo2", "olmo2"),
    ("olmoe", "olmoe"), ("phi2", "phi"), ("phi3", "phi3"), ("qwen2", "qwen2"), ("qwen2moe", "qwen2_moe"),
    ("qwen2vl", "qwen2_vl_text"), ("qwen3", "qwen3"), ("qwen35", "qwen3_5_text"), ("qwen35moe", "qwen3_5_moe_text"),
    ("qwen3moe", "qwen3_moe"), ("qwen3next", "qwen3_next"), ("qwen3vl", "qwen3_vl_text"),
    ("qwen3vlmoe", "qwen3_vl_moe_text"), ("seed_oss", "seed_oss"), ("smollm3", "smollm3"), ("stablelm", "stablelm"),
    ("starcoder2", "starcoder2"),
];

/// The first GGUF file of a directory that has no config.json beside it: as such models are downloaded.
pub fn alone_in(dir: &Path) -> Option<PathBuf> {
    if dir.join("config.json").exists() {
        return None;
    }
    let files = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    files.filter(|path| path.extension().is_some_and(|e| e == "gguf")).min()
}

/// What the metadata and the small tensors of a file say.
struct Header {
    file: Gguf,
    architecture: String,
    /// As transformers names it.
    model_type: Option<&'static str>,
    tensor: TensorInfo,
    dimensions: usize,
    norm: Norm,
    norm_source: Option<String>,
    embedding_scale: f64,
}

/// Opens the GGUF file `path`.
///
/// # Errors
/// When the file is broken, its architecture is not known, or its tokenizer cannot be rebuilt exactly.
pub fn open(path: &Path, overrides: &Overrides) -> Result<Checkpoint, LoadError> {
    let Header { file, architecture, model_type, tensor, norm, norm_source, embedding_scale, .. } =
        Header::read(path, overrides)?;
    let (table, table_source) = decode::table(&file, &tensor)?;
    let (tokenizer, tokenizer_path) = match overrides.tokenizer {
        Some(_) => open_tokenizer(path, overrides)?,
        None => (Tokenizer::of(tokenizer::rebuild(&file, &architecture)?, path)?, path.to_owned()),
    };
    let mut remarks = Vec::new();
    check_vocabulary(&tokenizer.vocabulary, &table, &tensor.name, &tokenizer_path, &mut remarks)?;
    Ok(Checkpoint {
        path: path.to_owned(),
        kind: Kind::Gguf,
        model_type: model_type.unwrap_or(&architecture).to_owned(),
        table,
        table_source,
        norm: FinalNorm { embedding_scale, embedding_norm: None, norm, row_weights: None },
        norm_source,
        tokenizer,
        tokenizer_path,
        conventions: Conventions::TRANSFORMERS,
        warnings: Vec::new(),
        remarks,
    })
}

/// The columns of the table in `path`.
///
/// # Errors
/// As those of [`open`] that are not about the tokenizer or the table's numbers.
pub fn dimensions(path: &Path, overrides: &Overrides) -> Result<usize, LoadError> {
    Ok(Header::read(path, overrides)?.dimensions)
}

impl Header {
    fn read(path: &Path, overrides: &Overrides) -> Result<Self, LoadError> {
        if overrides.config.is_some() {
            return Err(LoadError::new(path, "is a GGUF file, which carries its own configuration")
                .expected("no config.json beside it")
                .remedy("remove config from this model; norm, norm_eps and embedding_scale override single values"));
        }
        let file = Gguf::open(path)?;
        let architecture = file
            .text("general.architecture")?
            .ok_or_else(|| {
                LoadError::new(path, "has no general.architecture").expected("a language model's GGUF file")
            })?
            .to_owned();
        let model_type =
            ARCHITECTURES.iter().find(|(name, _)| *name == architecture).map(|(_, model_type)| *model_type);
        let family = model_type.and_then(family::known);

        let tensor = file.require(overrides.embedding_tensor.as_deref().unwrap_or(TABLE), "embedding_tensor")?.clone();
        let dimensions = decode::columns(&file, &tensor)?;
        let kind = match (overrides.norm, family) {
            (Some(kind), _) => kind,
            (None, Some(family)) => family.norm.without_plus_one(),
            (None, None) => return Err(unknown(path, &architecture)),
        };
        let bare = family.is_some_and(|family| family.bare) && overrides.norm_tensor.is_none();
        let (norm, norm_source) = match (kind, bare) {
            (NormKind::None, _) => (Norm { kind, eps: 0.0, weight: None, bias: None }, None),
            (_, true) => (Norm { kind, eps: eps(&file, &architecture, overrides)?, weight: None, bias: None }, None),
            _ => {
                let tensor = file.require(overrides.norm_tensor.as_deref().unwrap_or(NORM), "norm_tensor")?;
                let eps = eps(&file, &architecture, overrides)?;
                (read_norm(&file, tensor, kind, eps, dimensions)?, Some(tensor.name.clone()))
            }
        };
        let embedding_scale = match (overrides.embedding_scale, family) {
            (Some(scale), _) => scale,
            (None, None) => 1.0,
            (None, Some(family)) => match family.fixed_scale(dimensions) {
                Some(scale) => scale,
                None => scale(&file, &architecture)?,
            },
        };
        Ok(Self { file, architecture, model_type, tensor, dimensions, norm, norm_source, embedding_scale })
    }
}

/// The norm as GGUF has it: the converter has already added the one of `1 + w`.
fn read_norm(file: &Gguf, weight: &TensorInfo, kind: NormKind, eps: f64, dimensions: usize) -> Result<Norm, LoadError> {
    let bias = weight.name.strip_suffix(".weight").and_then(|stem| file.tensor(&format!("{stem}.bias")));
    Ok(Norm {
        kind,
        eps,
        weight: Some(decode::vector(file, weight, dimensions)?),
        bias: bias.map(|bias| decode::vector(file, bias, dimensions)).transpose()?,
    })
}

fn eps(file: &Gguf, architecture: &str, overrides: &Overrides) -> Result<f64, LoadError> {
    let keys = ["layer_norm_rms_epsilon", "layer_norm_epsilon"].map(|key| format!("{architecture}.attention.{key}"));
    let stored = || keys.iter().find_map(|key| file.number(key));
    overrides.norm_eps.or_else(stored).filter(|eps| eps.is_finite() && *eps >= 0.0).ok_or_else(|| {
        LoadError::new(file.path(), "does not say the eps of its norm")
            .expected(keys.join(" or "))
            .remedy("set norm_eps")
    })
}

/// The factor of Granite and MiniCPM, which each model has its own of.
fn scale(file: &Gguf, architecture: &str) -> Result<f64, LoadError> {
    let key = format!("{architecture}.embedding_scale");
    file.number(&key).filter(|scale| scale.is_finite() && *scale > 0.0).ok_or_else(|| {
        LoadError::new(file.path(), "does not say what its embeddings are multiplied with")
            .expected(format!("a positive {key}"))
            .remedy("set embedding_scale to embedding_multiplier or scale_emb of the model's config.json")
    })
}

fn unknown(path: &Path, architecture: &str) -> LoadError {
    LoadError::new(path, format!("has the architecture {architecture:?}, which is not known here"))
        .expected("an architecture whose final norm is known and depends on the token alone")
        .remedy(
            "to serve its table all the same, set norm to \"rms\", \"layer\" or \"none\", as llama.cpp builds its graph",
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_has_a_family() {
        for (architecture, model_type) in ARCHITECTURES {
            let family = family::known(model_type).unwrap_or_else(|| panic!("{architecture}: {model_type}"));
            assert!(family.embedding_norm.is_none(), "{architecture}: a norm on the embedding is not read here");
            assert!(!matches!(family.norm.without_plus_one(), NormKind::RmsPlusOne | NormKind::LayerPlusOne));
        }
        assert!(ARCHITECTURES.is_sorted());
    }
}
