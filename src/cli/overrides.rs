//! Flags for properties that a model's files lack or state wrongly. They correspond to the settings of the same names
//! of a served model.

use std::path::PathBuf;

use clap::Args;

use crate::checkpoint::Overrides;
use crate::norm::NormKind;

#[derive(Args)]
pub struct OverrideArgs {
    /// The tokenizer.json, or a directory with the files of a tokenizer, if the source has no tokenizer or another one
    /// is wanted.
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// The config.json, if the source has none or another one is wanted.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The kind of the final norm, for an unknown model type: rms, rms_plus_one, layer, layer_plus_one or none.
    #[arg(long, value_name = "KIND", value_parser = norm)]
    pub norm: Option<NormKind>,
    /// The epsilon of the norm, from 0 to 1 [default: the model's own]
    #[arg(long, value_name = "EPS", value_parser = |text: &str| number(text, 0.0, 1.0))]
    pub norm_eps: Option<f64>,
    /// The factor of the embeddings before the norm, from 1e-6 to 1e6 [default: the model's own]
    #[arg(long, value_name = "FACTOR", value_parser = |text: &str| number(text, 1e-6, 1e6))]
    pub embedding_scale: Option<f64>,
    /// The name of the tensor that holds the embedding table [default: found by the names of known models]
    #[arg(long, value_name = "NAME")]
    pub embedding_tensor: Option<String>,
    /// The name of the tensor that holds the weight of the final norm [default: found by the names of known models]
    #[arg(long, value_name = "NAME")]
    pub norm_tensor: Option<String>,
}

impl OverrideArgs {
    pub fn overrides(&self) -> Overrides {
        Overrides {
            config: self.config.clone(),
            tokenizer: self.tokenizer.clone(),
            norm: self.norm,
            norm_eps: self.norm_eps,
            embedding_scale: self.embedding_scale,
            embedding_tensor: self.embedding_tensor.clone(),
            norm_tensor: self.norm_tensor.clone(),
        }
    }
}

fn norm(text: &str) -> Result<NormKind, String> {
    let names = NormKind::ALL.map(NormKind::name).join(", ");
    NormKind::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| format!("must be one of {names}"))
}

fn number(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number = text.parse().ok().filter(|x| (least..=most).contains(x));
    number.ok_or_else(|| format!("must be a number from {least} to {most}"))
}
