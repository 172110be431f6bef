//! Reads GGUF files: the tensors token_embd.weight and output_norm.weight, and the tokenizer that the metadata
//! describe.
//!
//! The format is specified at <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. llama.cpp defines the
//! meaning of the metadata: `architecture` records what its converter and its compute graphs do to layer 0.

mod architecture;
mod decode;
mod header;
mod tokenizer;

use std::path::{Path, PathBuf};

use super::{Checkpoint, Conventions, Kind, Overrides, check_vocabulary, open_tokenizer, tokenizer_json};
use crate::error::LoadError;
use crate::norm::{FinalNorm, Norm, NormKind};
use architecture::{Architecture, EmbeddingNorm, FinalNormKind, Known, Scale};
pub use header::is_gguf;
use header::{Gguf, TensorInfo};
use layer0_tokenizers::choose::Tokenizer;

const TABLE: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";
const RMS_EPS: &str = "attention.layer_norm_rms_epsilon";
const LAYER_EPS: &str = "attention.layer_norm_epsilon";

/// Returns the first GGUF file of a directory without a config.json. Directories into which only GGUF files were
/// downloaded look like this.
pub fn alone_in(dir: &Path) -> Option<PathBuf> {
    if dir.join("config.json").exists() {
        return None;
    }
    let files = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    files.filter(|path| path.extension().is_some_and(|e| e == "gguf")).min()
}

/// The metadata and the small tensors of a file.
struct Header {
    file: Gguf,
    architecture: String,
    /// The model type as transformers names it.
    model_type: Option<&'static str>,
    tensor: TensorInfo,
    dimensions: usize,
    norm: FinalNorm,
    norm_source: Option<String>,
}

/// Opens the GGUF file `path`.
///
/// # Errors
/// Returns an error if the file is broken, its architecture is not known, or its tokenizer cannot be rebuilt exactly.
pub fn open(path: &Path, overrides: &Overrides) -> Result<Checkpoint, LoadError> {
    let Header { file, architecture, model_type, tensor, norm, norm_source, .. } = Header::read(path, overrides)?;
    let (table, table_source) = decode::table(&file, &tensor)?;
    let (tokenizer, tokenizer_path) = match overrides.tokenizer {
        Some(_) => open_tokenizer(path, overrides)?,
        None => {
            let tokenizer = Tokenizer::from_reference(tokenizer::rebuild(&file, &architecture)?);
            (tokenizer.map_err(|error| tokenizer_json::load_error(path, &error))?, path.to_owned())
        }
    };
    let mut remarks = Vec::new();
    check_vocabulary(&tokenizer.vocabulary, &table, &tensor.name, &tokenizer_path, &mut remarks)?;
    Ok(Checkpoint {
        path: path.to_owned(),
        kind: Kind::Gguf,
        model_type: model_type.unwrap_or(&architecture).to_owned(),
        table,
        table_source,
        norm,
        norm_source,
        tokenizer,
        tokenizer_path,
        prompt: None,
        conventions: Conventions::TRANSFORMERS,
        warnings: Vec::new(),
        remarks,
    })
}

/// Returns the number of columns of the table in `path`.
///
/// # Errors
/// Returns the errors of [`open`], except those about the tokenizer or the table's numbers.
pub fn dimensions(path: &Path, overrides: &Overrides) -> Result<usize, LoadError> {
    Ok(Header::read(path, overrides)?.dimensions)
}

impl Header {
    fn read(path: &Path, overrides: &Overrides) -> Result<Self, LoadError> {
        if overrides.config.is_some() {
            return Err(LoadError::setting(path, "is a GGUF file, which carries its own configuration")
                .expected("no config.json beside it")
                .remedy("remove config from this model; norm, norm_eps and embedding_scale override single values"));
        }
        let file = Gguf::open(path)?;
        let architecture = file
            .text("general.architecture")?
            .ok_or_else(|| {
                LoadError::malformed(path, "has no general.architecture").expected("a language model's GGUF file")
            })?
            .to_owned();
        let known = architecture::known(&architecture);
        let layer0 = match known {
            Some(Known::Served(layer0)) => Some(layer0),
            Some(Known::Refused(reason)) if overrides.norm.is_none() => {
                return Err(refused(path, &architecture, reason));
            }
            None if overrides.norm.is_none() => return Err(unknown(path, &architecture)),
            _ => None,
        };
        if let Some(positions) = layer0.and_then(|layer0| layer0.positions)
            && overrides.norm.is_none()
            && file.tensor(positions).is_some()
        {
            return Err(refused(path, &architecture, &format!("it adds positions to its embeddings ({positions})")));
        }

        let name = match (&overrides.embedding_tensor, file.tensor(TABLE), file.tensor(OUTPUT)) {
            (Some(name), _, _) => name.as_str(),
            // CodeShell's files have the table under this name alone. Input and output layer of llama.cpp's graph share
            // it.
            (None, None, Some(_)) if architecture == "codeshell" => OUTPUT,
            (None, _, _) => TABLE,
        };
        let tensor = file.require(name, "embedding_tensor")?.clone();
        let dimensions = decode::columns(&file, &tensor)?;
        let reader = NormReader { file: &file, architecture: &architecture, overrides, dimensions };
        let layer0 = layer0.unwrap_or(architecture::UNKNOWN);
        let (norm, norm_source) = reader.final_norm(&layer0)?;
        let norm = FinalNorm {
            embedding_scale: reader.embedding_scale(layer0.scale)?,
            embedding_norm: layer0.embedding_norm.map(|norm| reader.embedding_norm(norm)).transpose()?,
            norm,
            row_weights: None,
        };
        let model_type = Some(layer0.model_type).filter(|model_type| !model_type.is_empty());
        Ok(Self { file, architecture, model_type, tensor, dimensions, norm, norm_source })
    }
}

/// Reads the norms and the scale, which are applied between the lookup of a row and the mean.
struct NormReader<'a> {
    file: &'a Gguf,
    architecture: &'a str,
    overrides: &'a Overrides,
    dimensions: usize,
}

impl NormReader<'_> {
    fn final_norm(&self, layer0: &Architecture) -> Result<(Norm, Option<String>), LoadError> {
        let kind = match (self.overrides.norm, layer0.norm) {
            (Some(kind), _) | (None, FinalNormKind::Is(kind)) => kind,
            (None, FinalNormKind::ByEps) if self.file.number(&self.key(RMS_EPS)).is_some_and(|eps| eps != 0.0) => {
                NormKind::Rms
            }
            (None, FinalNormKind::ByEps) => NormKind::Layer,
        };
        if kind == NormKind::None {
            return Ok((Norm { kind, eps: 0.0, weight: None, bias: None }, None));
        }
        let eps = self.eps(kind)?;
        match self.overrides.norm_tensor.as_deref().or(layer0.norm_tensor) {
            None => Ok((Norm { kind, eps, weight: None, bias: None }, None)),
            Some(name) => Ok((self.norm(kind, eps, name)?, Some(name.to_owned()))),
        }
    }

    fn embedding_norm(&self, norm: EmbeddingNorm) -> Result<Norm, LoadError> {
        match norm {
            EmbeddingNorm::Layer(name) => self.norm(NormKind::Layer, self.eps(NormKind::Layer)?, name),
            EmbeddingNorm::BareRms => {
                let kind = NormKind::Rms;
                Ok(Norm { kind, eps: self.eps(kind)?, weight: None, bias: None })
            }
        }
    }

    /// Returns the norm as GGUF stores it: the converter has already added the 1 of `1 + w`.
    fn norm(&self, kind: NormKind, eps: f64, name: &str) -> Result<Norm, LoadError> {
        let weight = self.file.require(name, "norm_tensor")?;
        let bias = name.strip_suffix(".weight").and_then(|stem| self.file.tensor(&format!("{stem}.bias")));
        Ok(Norm {
            kind,
            eps,
            weight: Some(decode::vector(self.file, weight, self.dimensions)?),
            bias: bias.map(|bias| decode::vector(self.file, bias, self.dimensions)).transpose()?,
        })
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// Returns the eps of the norm. A file can have both keys. The key that is named after the kind of the norm takes
    /// precedence. The other key serves models whose config.json uses its name, such as PhiMoE, which has a LayerNorm
    /// with `rms_norm_eps`.
    fn eps(&self, kind: NormKind) -> Result<f64, LoadError> {
        let keys = match kind {
            NormKind::Layer | NormKind::LayerPlusOne => [LAYER_EPS, RMS_EPS],
            NormKind::Rms | NormKind::RmsPlusOne | NormKind::None => [RMS_EPS, LAYER_EPS],
        }
        .map(|key| self.key(key));
        let stored = || keys.iter().find_map(|key| self.file.number(key));
        self.overrides.norm_eps.or_else(stored).filter(|eps| eps.is_finite() && *eps >= 0.0).ok_or_else(|| {
            LoadError::missing(self.file.path(), "does not say the eps of its norm")
                .expected(keys.join(" or "))
                .remedy("set norm_eps to the eps in the model's config.json")
        })
    }

    fn embedding_scale(&self, scale: Scale) -> Result<f64, LoadError> {
        if let Some(scale) = self.overrides.embedding_scale {
            return Ok(scale);
        }
        let default = match scale {
            Scale::One => return Ok(1.0),
            Scale::SqrtHidden => return Ok((self.dimensions as f64).sqrt()),
            Scale::Key(default) => default,
        };
        let key = self.key("embedding_scale");
        match self.file.number(&key).unwrap_or(default) {
            // llama.cpp multiplies only if the number is not zero.
            0.0 => Ok(1.0),
            scale if scale.is_finite() && scale > 0.0 => Ok(scale),
            scale => Err(LoadError::malformed(self.file.path(), format!("has {key} = {scale}"))
                .expected("a positive number")
                .remedy("set embedding_scale to embedding_multiplier or scale_emb of the model's config.json")),
        }
    }
}

/// Returns the error for an architecture whose layer 0 is known to be something other than a norm over a row. The
/// remedy explains how to serve the file in spite of that, with vectors that are not the model's.
fn refused(path: &Path, architecture: &str, reason: &str) -> LoadError {
    LoadError::unsupported(path, format!("has the architecture {architecture:?}, which cannot be served: {reason}"))
        .expected("an architecture whose final norm depends on the token alone")
        .remedy(
            "take another model; norm = \"none\" serves the bare rows of its table, which are not the model's vectors",
        )
}

fn unknown(path: &Path, architecture: &str) -> LoadError {
    LoadError::unsupported(path, format!("has the architecture {architecture:?}, which is not known here"))
        .expected("an architecture whose final norm is known and depends on the token alone")
        .remedy(
            "to serve its table all the same, set norm to \"rms\", \"layer\" or \"none\", and embedding_scale if it has one, as \
             llama.cpp builds its graph",
        )
}
