//! Stores the overrides that a user gave to `extract` in the checkpoint, so that the checkpoint is served without them.
//!
//! A value for which the model type has a key is written under that key, where transformers reads it too. The rest is
//! written as an object `layer0` in config.json, for example
//! `"layer0": {"norm": "rms_plus_one", "embedding_scale": 12.0}`.

use serde_json::{Map, Value, json};

use super::{Family, ModelConfig};
use crate::checkpoint::{Conventions, Overrides};
use crate::error::LoadError;
use crate::norm::NormKind;

const KEY: &str = "layer0";

/// Returns `overrides`, completed by the overrides in config.json.
///
/// # Errors
/// Returns an error if config.json holds an override that has no meaning.
pub fn read(config: &ModelConfig, overrides: &Overrides) -> Result<Overrides, LoadError> {
    let Some(written) = config.setting(KEY) else { return Ok(overrides.clone()) };
    let wrong = || {
        LoadError::malformed(config.path(), format!("has {written} as {KEY:?}"))
            .expected(
                "an object of norm, norm_eps, embedding_scale, token_count_exponent, lexical_dimensions and lexical_weight, as \
                 `embedding-server extract` writes it",
            )
    };
    let written = written.as_object().ok_or_else(wrong)?;
    let number = |key: &str, least: f64, most: f64| match written.get(key) {
        None => Ok(None),
        Some(value) => value.as_f64().filter(|x| (least..=most).contains(x)).map(Some).ok_or_else(wrong),
    };
    let lexical_dimensions = match written.get("lexical_dimensions") {
        None => None,
        Some(columns) => {
            let columns = columns.as_u64().and_then(|columns| usize::try_from(columns).ok());
            Some(columns.filter(|columns| *columns <= Conventions::MAX_LEXICAL_DIMENSIONS).ok_or_else(wrong)?)
        }
    };
    let norm = match written.get("norm") {
        None => None,
        Some(name) => Some(NormKind::ALL.into_iter().find(|kind| *name == kind.name()).ok_or_else(wrong)?),
    };
    Ok(Overrides {
        norm: overrides.norm.or(norm),
        norm_eps: overrides.norm_eps.or(number("norm_eps", 0.0, 1.0)?),
        embedding_scale: overrides.embedding_scale.or(number("embedding_scale", 1e-6, 1e6)?),
        token_count_exponent: overrides.token_count_exponent.or(number("token_count_exponent", 0.0, 1.0)?),
        lexical_dimensions: overrides.lexical_dimensions.or(lexical_dimensions),
        lexical_weight: overrides.lexical_weight.or(number("lexical_weight", 0.0, Conventions::MAX_LEXICAL_WEIGHT)?),
        ..overrides.clone()
    })
}

/// Adds `overrides` to a config.json of `family`.
pub fn write(config: &mut Map<String, Value>, family: &Family, overrides: &Overrides) {
    config.remove(KEY);
    let mut rest = Map::new();
    if let Some(norm) = overrides.norm {
        rest.insert("norm".to_owned(), norm.name().into());
    }
    let numbers = [
        ("norm_eps", family.eps_key(), overrides.norm_eps),
        ("embedding_scale", family.scale_key(), overrides.embedding_scale),
        ("token_count_exponent", None, overrides.token_count_exponent),
        ("lexical_weight", None, overrides.lexical_weight),
    ];
    for (name, key, number) in numbers {
        let Some(number) = number else { continue };
        match key {
            Some(key) => config.insert(key.to_owned(), json!(number)),
            None => rest.insert(name.to_owned(), json!(number)),
        };
    }
    if let Some(columns) = overrides.lexical_dimensions {
        rest.insert("lexical_dimensions".to_owned(), columns.into());
    }
    if !rest.is_empty() {
        config.insert(KEY.to_owned(), rest.into());
    }
}
