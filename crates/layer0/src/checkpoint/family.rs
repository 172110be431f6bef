//! What each model type means for layer 0: its final norm, the place of the norm's eps, and the factor of its
//! embeddings. This module is data; the only file that it reads is config.json.
//!
//! The source is each model's configuration class and `modeling_*.py` in transformers. `tests/fixtures` holds
//! checkpoints and golden vectors. None of these properties can be inferred from the shapes of tensors, so a model type
//! that is not listed is refused.

pub mod config;
pub mod names;
pub mod overridden;
mod types;

pub use config::ModelConfig;
use types::{FAMILIES, REFUSED, VARIANTS};

use super::Overrides;
use crate::error::LoadError;
use crate::norm::NormKind;

/// How one family of models computes layer 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Family {
    pub norm: NormKind,
    /// Whether the norm has no tensors.
    pub bare: bool,
    /// The norm that the model applies to the embedding before its first layer.
    pub embedding_norm: Option<InnerNorm>,
    eps: Eps,
    scale: Scale,
    mlx: Mlx,
}

/// A norm that stands between the embedding and the first layer. It shares its eps with the final norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InnerNorm {
    pub kind: NormKind,
    /// The names of the norm's module. The list is empty if the norm has no tensors.
    pub modules: &'static [&'static str],
}

impl InnerNorm {
    /// Returns the names that the norm's weight can have, the most likely first. The list is empty if the norm has no
    /// tensors.
    pub fn names(&self) -> Vec<String> {
        names::names(self.modules)
    }
}

/// The factor by which a model multiplies its embeddings.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    One,
    /// The square root of the table's dimensions.
    SqrtHidden,
    /// The key of config.json with its alternative names, and the configuration class's default for a file without the
    /// key.
    Key(&'static [&'static str], f64),
}

/// Where the eps of a norm comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Eps {
    /// The key of config.json and the configuration class's default for a file without the key. The first name is the
    /// class's own; the class also accepts the others.
    Key(&'static [&'static str], f64),
    /// The eps is a constant in the model's code.
    Fixed(f64),
    /// The user named the norm, so the eps can be under any of [`EPS_KEYS`].
    Any,
}

/// How the conversion to MLX stores the weight `w` of a norm that multiplies by `1 + w`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mlx {
    /// The weight is stored unchanged.
    AsStored,
    /// The weight is stored as `1 + w`.
    OneAdded,
    /// mlx-lm and mlx-vlm have no model of this family.
    Unknown,
}

const EPS_KEYS: [&str; 6] =
    ["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps", "layernorm_epsilon"];

/// Returns the family of a model type, or `None` if the type is not known. The config decides between variants of a
/// family.
pub fn known(model_type: &str) -> Option<Family> {
    FAMILIES.iter().find(|(_, types)| types.contains(&model_type)).map(|(family, _)| *family)
}

/// Returns the reason why a model type cannot be served, or `None` if it can be served or is not known.
fn refusal(model_type: &str) -> Option<&'static str> {
    REFUSED.iter().find(|(_, types)| types.contains(&model_type)).map(|(reason, _)| *reason)
}

fn is_listed(model_type: &str) -> bool {
    known(model_type).is_some() || refusal(model_type).is_some()
}

/// Returns the family of a config, or the family that the user's `norm` describes.
///
/// # Errors
/// Returns an error for a model type that is unknown or cannot be served, unless `norm` is set.
pub fn resolve(config: &ModelConfig, overrides: &Overrides) -> Result<Family, LoadError> {
    let model_type = config.model_type();
    let variant = VARIANTS.iter().find(|(name, key, _)| *name == model_type && config.is_set(key));
    let known = variant.map(|(_, _, family)| *family).or_else(|| known(model_type));
    if let Some(norm) = overrides.norm {
        let family = known.unwrap_or(Family {
            norm,
            bare: false,
            embedding_norm: None,
            eps: Eps::Any,
            scale: Scale::One,
            mlx: Mlx::AsStored,
        });
        return Ok(Family { norm, bare: family.bare && overrides.norm_tensor.is_none(), mlx: Mlx::AsStored, ..family });
    }
    if let Some(family) = known {
        return Ok(family);
    }
    if model_type.is_empty() {
        return Err(LoadError::unsupported(config.path(), "has no model_type")
            .expected("the config.json of a model")
            .remedy("set norm and norm_eps for this model"));
    }
    let (problem, expected) = match refusal(model_type) {
        Some(reason) => (
            format!("has model_type {model_type:?}, {reason}"),
            "a model whose layer 0 is a function of the token alone",
        ),
        None => (
            format!("has model_type {model_type:?}, which is not known here"),
            "a model type whose final norm is known",
        ),
    };
    Err(LoadError::unsupported(config.path(), problem).expected(expected).remedy(
        "to serve its table all the same, set norm to \"rms\", \"rms_plus_one\", \"layer\", \"layer_plus_one\" or \"none\", as its modeling code has it",
    ))
}

impl Family {
    /// Returns the family that describes the weights after a conversion to MLX.
    ///
    /// # Errors
    /// Returns an error if it is not known whether the conversion adds the 1 of `1 + w`.
    pub fn converted_to_mlx(self, config: &ModelConfig) -> Result<Self, LoadError> {
        match self.mlx {
            Mlx::AsStored => Ok(self),
            Mlx::OneAdded => Ok(Self { norm: self.norm.without_plus_one(), ..self }),
            Mlx::Unknown => Err(LoadError::unsupported(
                config.path(),
                format!(
                    "is of a conversion of {:?} to MLX, which may have added 1 to the weight of the norm",
                    config.model_type()
                ),
            )
            .expected("the model as it was before the conversion")
            .remedy(
                "if the norm's weights lie around 1, set norm to \"rms\"; if they lie around 0, to \"rms_plus_one\"",
            )),
        }
    }

    /// Returns the eps of the norm.
    ///
    /// # Errors
    /// Returns an error if the user named the norm, but neither `norm_eps` nor the config gives an eps.
    pub fn eps(&self, config: &ModelConfig, overrides: &Overrides) -> Result<f64, LoadError> {
        if let Some(eps) = overrides.norm_eps {
            return Ok(eps);
        }
        match self.eps {
            Eps::Fixed(eps) => Ok(eps),
            Eps::Key(keys, default) => Ok(config.first_number(keys).unwrap_or(default)),
            Eps::Any => config.first_number(&EPS_KEYS).ok_or_else(|| {
                LoadError::missing(config.path(), "does not say the eps of its norm")
                    .expected(format!("one of {}", EPS_KEYS.join(", ")))
                    .remedy("set norm_eps")
            }),
        }
    }

    /// Returns the key of config.json that holds the eps, or `None` if the model's code fixes the eps.
    pub fn eps_key(&self) -> Option<&'static str> {
        match self.eps {
            Eps::Key(keys, _) => keys.first().copied(),
            Eps::Fixed(_) | Eps::Any => None,
        }
    }

    /// Returns the key of config.json that holds the embedding scale, or `None` if the family fixes the scale.
    pub fn scale_key(&self) -> Option<&'static str> {
        match self.scale {
            Scale::Key(keys, _) => keys.first().copied(),
            Scale::One | Scale::SqrtHidden => None,
        }
    }

    /// Returns the factor that multiplies the rows before the norm.
    ///
    /// # Errors
    /// Returns an error if the factor in the config is not a positive number.
    pub fn embedding_scale(&self, config: &ModelConfig, dimensions: usize) -> Result<f64, LoadError> {
        let scale = match self.scale {
            Scale::Key(keys, default) => config.first_number(keys).unwrap_or(default),
            Scale::One | Scale::SqrtHidden => self.fixed_scale(dimensions).unwrap_or(1.0),
        };
        if scale.is_finite() && scale > 0.0 {
            Ok(scale)
        } else {
            Err(LoadError::malformed(config.path(), format!("has an embedding scale of {scale}"))
                .expected("a positive number")
                .remedy("set embedding_scale"))
        }
    }

    /// Returns the factor that multiplies the rows before the norm if it is the same for all models of the family.
    pub fn fixed_scale(&self, dimensions: usize) -> Option<f64> {
        match self.scale {
            Scale::One => Some(1.0),
            Scale::SqrtHidden => Some((dimensions as f64).sqrt()),
            Scale::Key(..) => None,
        }
    }

    /// Returns warnings about defaults that were used because config.json lacks the keys.
    pub fn warnings(&self, config: &ModelConfig, overrides: &Overrides) -> Vec<String> {
        let missing = |keys: &[&str], default: f64, setting: &str| {
            config.first_number(keys).is_none().then(|| {
                format!(
                    "{} has no {}: taking {default}, the default of {:?} in transformers ({setting} overrides it)",
                    config.path().display(),
                    keys.first().unwrap_or(&""),
                    config.model_type()
                )
            })
        };
        let eps = match self.eps {
            Eps::Key(keys, default) if overrides.norm_eps.is_none() => missing(keys, default, "norm_eps"),
            _ => None,
        };
        let scale = match self.scale {
            Scale::Key(keys, default) if overrides.embedding_scale.is_none() => {
                missing(keys, default, "embedding_scale")
            }
            _ => None,
        };
        eps.into_iter().chain(scale).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_model_type_is_listed_twice() {
        let served = FAMILIES.iter().flat_map(|(_, types)| *types);
        let refused = REFUSED.iter().flat_map(|(_, types)| *types);
        let mut seen = std::collections::HashSet::new();
        for name in served.chain(refused) {
            assert!(seen.insert(name), "{name}");
        }
        for (name, ..) in VARIANTS {
            assert!(known(name).is_some(), "{name}");
        }
    }

    fn either(keys: &[&str]) -> String {
        keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(" or ")
    }

    impl Family {
        /// Returns the norm in the words of docs/checkpoints.md.
        fn described(&self) -> String {
            let name = |kind| match kind {
                NormKind::Rms => "RMSNorm",
                NormKind::RmsPlusOne => "RMSNorm with `1 + w`",
                NormKind::Layer => "LayerNorm",
                NormKind::LayerPlusOne => "LayerNorm with `1 + w`",
                NormKind::None => "none",
            };
            let bare = |bare: bool| if bare { " without a weight" } else { "" };
            let inner = self.embedding_norm.map_or_else(String::new, |inner| {
                format!(" after {}{} on the embedding", name(inner.kind), bare(inner.modules.is_empty()))
            });
            let scale = match self.scale {
                Scale::One => String::new(),
                Scale::SqrtHidden => " of the row times the square root of its length".to_owned(),
                Scale::Key(keys, default) => format!(" of the row times {} ({default} if missing)", either(keys)),
            };
            format!("{}{}{inner}{scale}", name(self.norm), bare(self.bare))
        }

        /// Returns the place of the eps in the words of docs/checkpoints.md.
        fn described_eps(&self) -> String {
            match self.eps {
                Eps::Key(keys, default) => {
                    format!("{} ({default:e} if missing)", either(keys))
                }
                Eps::Fixed(eps) => format!("{eps:e}"),
                Eps::Any => String::new(),
            }
        }
    }

    fn rows(table: impl Iterator<Item = (Vec<&'static str>, String)>) -> String {
        table
            .map(|(types, rest)| {
                let types: Vec<String> = types.iter().map(|name| format!("`{name}`")).collect();
                format!("| {} | {rest} |\n", types.join(", "))
            })
            .collect()
    }

    /// `tests/real/families.py` reads these tables of the documentation to know which model types are supported.
    #[test]
    fn the_documentation_lists_every_model_type() {
        let served = FAMILIES
            .iter()
            .map(|(family, types)| (types.to_vec(), format!("{} | {}", family.described(), family.described_eps())));
        let variants = VARIANTS.iter().map(|(name, key, family)| {
            (vec![*name], format!("with `{key}`: {} | {}", family.described(), family.described_eps()))
        });
        let outer = config::OUTER.iter().map(|(inner, outer)| (outer.to_vec(), format!("`{inner}`")));
        let refused = REFUSED.iter().map(|(reason, types)| (types.to_vec(), (*reason).to_owned()));
        let text = include_str!("../../../../docs/checkpoints.md");
        for (heading, table) in [
            ("| model type | final norm | eps |\n|---|---|---|\n", rows(served.chain(variants))),
            ("| model type | language model, where its config.json does not say |\n|---|---|\n", rows(outer)),
            ("| model type | why it is refused: it is a model |\n|---|---|\n", rows(refused)),
        ] {
            let table = format!("{heading}{table}\n");
            assert!(text.contains(&table), "docs/checkpoints.md must have this table:\n{table}");
        }
    }

    #[test]
    fn types_are_sorted() {
        let lists = FAMILIES.iter().map(|(_, types)| *types).chain(REFUSED.iter().map(|(_, types)| *types));
        for types in lists.chain(config::OUTER.iter().map(|(_, types)| *types)) {
            assert!(types.is_sorted(), "{types:?}");
        }
    }
}
