//! Writes the config.json of a model without its layers.

use std::path::Path;

use serde_json::Value;

use super::source::TensorInfo;
use crate::checkpoint::Overrides;
use crate::checkpoint::family::{Family, ModelConfig, overridden};
use crate::error::LoadError;
use layer0_files::json;

/// The names that families use for the number of layers.
const LAYER_COUNTS: [&str; 5] = ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"];

/// Returns the config.json for a model that consists of `table` and no layers. `path` is the source's config.json. The
/// result holds only the language model's own settings, and lists with one entry per layer become empty, because
/// transformers compares their lengths with the number of layers.
///
/// # Errors
/// Returns an error if the settings cannot be written as JSON.
pub fn layer0(
    path: &Path,
    config: &ModelConfig,
    family: &Family,
    overrides: &Overrides,
    table: &TensorInfo,
) -> Result<Vec<u8>, LoadError> {
    let mut text = config.language_model();
    // These settings describe how layers were quantized, and code files that are not copied.
    for gone in ["quantization_config", "auto_map"] {
        text.remove(gone);
    }

    let layers = LAYER_COUNTS.iter().find_map(|&key| text.get(key)).and_then(Value::as_u64).unwrap_or(0);
    for (key, value) in &mut text {
        if LAYER_COUNTS.contains(&key.as_str()) {
            *value = 0.into();
        } else if is_per_layer(key) {
            match value {
                Value::Array(list) if list.len() as u64 == layers || key == "layer_types" => list.clear(),
                Value::String(pattern) if pattern.chars().count() as u64 == layers => pattern.clear(),
                _ => {}
            }
        }
    }
    if !LAYER_COUNTS.iter().any(|&key| text.contains_key(key)) {
        text.insert("num_hidden_layers".to_owned(), 0.into());
    }
    // A text_config may omit values that equal the defaults of its class. The shape of the table gives these two.
    if let &[rows, dimensions] = table.shape.as_slice() {
        text.insert("vocab_size".to_owned(), rows.into());
        if !["n_embd", "d_model"].iter().any(|&key| text.contains_key(key)) {
            text.insert("hidden_size".to_owned(), dimensions.into());
        }
    }
    let dtype = if text.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    text.insert(dtype.to_owned(), torch_name(table).into());
    overridden::write(&mut text, family, overrides);
    let mut out = json::to_vec_pretty(&text).map_err(|e| LoadError::malformed(path, e.to_string()))?;
    out.push(b'\n');
    Ok(out)
}

/// Returns whether a setting has one entry per layer, such as `layer_types`, `layers_block_type`, `mlp_layer_types` and
/// `hybrid_override_pattern`. The name decides, because the length does not: a list of `eos_token_id` can have as many
/// entries as the model has layers.
fn is_per_layer(key: &str) -> bool {
    ["layer", "pattern", "mixer_types"].iter().any(|part| key.contains(part))
}

fn torch_name(table: &TensorInfo) -> &'static str {
    match table.dtype {
        safetensors::Dtype::F16 => "float16",
        safetensors::Dtype::F32 => "float32",
        _ => "bfloat16",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(config: &Value) -> Value {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let table =
            TensorInfo { name: "t".into(), dtype: safetensors::Dtype::F16, shape: vec![7, 3], len: 42, format: None };
        let config = ModelConfig::open(&path).unwrap();
        let family = crate::checkpoint::family::resolve(&config, &Overrides::default()).unwrap();
        let made = layer0(&path, &config, &family, &Overrides::default(), &table).unwrap();
        serde_json::from_slice(&made).unwrap()
    }

    #[test]
    fn layers_go_and_what_is_as_long_by_chance_stays() {
        let config = serde_json::json!({
            "model_type": "qwen3", "num_hidden_layers": 2, "layer_types": ["full_attention", "full_attention"],
            "mlp_layer_types": ["dense", "sparse"], "eos_token_id": [1, 2], "hidden_size": 3, "rms_norm_eps": 1e-6,
            "torch_dtype": "bfloat16", "quantization_config": {}, "auto_map": {}, "vocab_size": 5,
        });
        assert_eq!(
            made(&config),
            serde_json::json!({
                "model_type": "qwen3", "num_hidden_layers": 0, "layer_types": [], "mlp_layer_types": [],
                "eos_token_id": [1, 2], "hidden_size": 3, "rms_norm_eps": 1e-6, "torch_dtype": "float16", "vocab_size": 7,
            })
        );
    }

    #[test]
    fn a_nested_config_becomes_the_language_models() {
        let config = serde_json::json!({
            "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {"num_hidden_layers": 27},
            "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 26, "rope_scaling": {"factor": 8.0}},
            "dtype": "bfloat16", "transformers_version": "5", "tie_word_embeddings": true,
        });
        assert_eq!(
            made(&config),
            serde_json::json!({
                "model_type": "gemma3_text", "num_hidden_layers": 0, "rope_scaling": {"factor": 8.0}, "dtype": "float16",
                "transformers_version": "5", "tie_word_embeddings": true, "vocab_size": 7, "hidden_size": 3,
            })
        );
    }

    #[test]
    fn other_spellings_are_kept() {
        let config = serde_json::json!({"model_type": "bloom", "n_layer": 24, "n_embd": 3});
        assert_eq!(
            made(&config),
            serde_json::json!({
                "model_type": "bloom", "n_layer": 0, "n_embd": 3, "dtype": "float16", "vocab_size": 7,
            })
        );
        assert_eq!(made(&serde_json::json!({"model_type": "llama"}))["num_hidden_layers"], 0);
    }
}
