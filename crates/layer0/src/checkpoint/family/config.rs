//! Reads config.json at the level of the language model: finds the settings if they are nested in another model's, and
//! infers the type of the language model if only the type of the outer model is given.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::LoadError;
use layer0_files::{self as files, json};

/// The keys of an outer configuration under which the configuration of a language model, or of a model that holds one,
/// is nested.
const NESTED: [&str; 6] = ["text_config", "llm_config", "language_config", "thinker_config", "vlm_config", "encoder"];

/// Keys that an outer configuration can have while the nested one lacks them. transformers applies them to both.
const SHARED: [&str; 4] = ["tie_word_embeddings", "dtype", "torch_dtype", "transformers_version"];

/// The types of models that hold a language model without naming its type, by the type of that language model. The type
/// is missing if the nested configuration has none, or if the outer configuration is flat.
#[rustfmt::skip]
pub const OUTER: &[(&str, &[&str])] = &[
    ("aimv2_text_model", &["aimv2"]),
    ("align_text_model", &["align"]),
    ("altclip_text_model", &["altclip"]),
    ("apertus1p5_text", &["apertus1p5"]),
    ("aria_text", &["aria"]),
    ("bart", &["florence2", "rag"]),
    ("bert", &["encoder-decoder", "grounding-dino", "mm-grounding-dino", "vision-text-dual-encoder"]),
    ("blip_text_model", &["blip"]),
    ("bridgetower_text_model", &["bridgetower"]),
    ("canary_decoder", &["canary"]),
    ("chinese_clip_text_model", &["chinese_clip"]),
    ("clap_text_model", &["clap"]),
    ("clip_text_model", &["clip", "omdet-turbo", "sam3"]),
    ("clipseg_text_model", &["clipseg"]),
    ("clvp_encoder", &["clvp"]),
    ("cohere2", &["aya_vision", "cohere2_vision"]),
    ("cohere_compass_text", &["cohere_compass"]),
    ("cosmos3_edge_text", &["cosmos3_edge"]),
    ("deepseek_ocr2_text", &["deepseek_ocr2"]),
    ("deepseek_v2", &["deepseek_vl_v2"]),
    ("deepseek_v3", &["kimi_k25", "kimi_vl"]),
    ("diffusion_gemma_text", &["diffusion_gemma"]),
    ("dots3_note_text", &["dots3_note"]),
    ("embedding_gemma2_text", &["embedding_gemma2"]),
    ("emu3_text_model", &["emu3"]),
    ("ernie4_5_vl_moe_text", &["ernie4_5_vl_moe"]),
    ("evolla", &["EvollaModel"]),
    ("exaone4", &["exaone4_5"]),
    ("flava_text_model", &["flava"]),
    ("gemma", &["colpali", "paligemma"]),
    ("gemma3_text", &["gemma3", "shieldgemma2"]),
    ("gemma3n_text", &["gemma3n"]),
    ("gemma4_text", &["gemma4"]),
    ("gemma4_unified_text", &["gemma4_unified"]),
    ("glm4v_moe_text", &["glm4v_moe"]),
    ("glm4v_text", &["glm46v", "glm4v", "glmga"]),
    ("glm5_next_text", &["glm5_next"]),
    ("glm_image_text", &["glm_image"]),
    ("glm_ocr_text", &["glm_ocr"]),
    ("granite", &["granite_speech", "granite_speech_plus"]),
    ("granite4_vision_text", &["granite4_vision"]),
    ("granite_docling_text", &["granite_docling"]),
    ("groupvit_text_model", &["groupvit"]),
    ("hunyuan_vl_text", &["hunyuan_vl"]),
    ("hy_v4_vl_text", &["hy_v4_vl"]),
    ("hyperclovax", &["hyperclovax_vision_v2"]),
    ("inkling2_loop_text", &["inkling2_loop"]),
    ("inkling2_text", &["inkling2"]),
    ("inkling_text", &["inkling_mm_model"]),
    ("kosmos_2_5_text_model", &["kosmos-2.5"]),
    ("kosmos_2_text_model", &["kosmos-2"]),
    ("lfm2", &["lfm2_vl"]),
    ("lfm3", &["lfm3_vl"]),
    ("llama", &[
        "deepseek_vl", "deepseek_vl_hybrid", "glmasr", "idefics3", "janus", "llava", "llava_llama", "llava_next",
        "llava_next_video", "multi_modality", "omniasr", "perception_lm", "smolvlm", "video_llava", "vipllava", "voxtral",
    ]),
    ("llama4_text", &["llama4"]),
    ("metaclip_2_text_model", &["metaclip_2"]),
    ("minimax_m3_vl_text", &["minimax_m3_vl"]),
    ("mistral", &["idefics2", "llava_mistral", "mistral3"]),
    ("mistral_large4_text", &["mistral_large4"]),
    ("mllama_text_model", &["mllama"]),
    ("modernbert", &["colmodernvbert", "modernvbert"]),
    ("molmo2_text", &["molmo2"]),
    ("muse_glimmer_text", &["muse_glimmer"]),
    ("muse_spark_text", &["muse_spark"]),
    ("nemotron_h", &["NemotronH_Nano_VL_V2", "nemo_speechlm", "nemotron_h_omni"]),
    ("opt", &["blip-2", "instructblip", "instructblipvideo"]),
    ("owlv2_text_model", &["owlv2"]),
    ("owlvit_text_model", &["owlvit"]),
    ("paddleocr_vl_text", &["paddleocr_vl"]),
    ("persimmon", &["fuyu"]),
    ("pp_formulanet_text", &["pp_formulanet"]),
    ("qwen2", &[
        "audioflamingo3", "dots_ocr", "fast_vlm", "got_ocr2", "internvl", "llava_onevision", "llava_qwen", "llava_qwen2",
        "musicflamingo", "ovis2", "pp_chart2table", "qwen2_audio", "vibevoice", "vibevoice_asr", "video_llama_3",
        "videollama3_qwen2",
    ]),
    ("qwen2_5_omni_text", &["qwen2_5_omni", "qwen2_5_omni_thinker"]),
    ("qwen2_5_vl_text", &["qwen2_5_vl"]),
    ("qwen2_vl_text", &["colqwen2", "qwen2_vl"]),
    ("qwen3", &["fun_asr_nano", "lighton_ocr", "moss_transcribe_diarize", "qianfan_ocr", "qwen3_asr"]),
    ("qwen3_5_moe_text", &["qwen3_5_moe"]),
    ("qwen3_5_text", &["jev", "minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "qwen3_5"]),
    ("qwen3_omni_moe_text", &["qwen3_omni_moe", "qwen3_omni_moe_thinker"]),
    ("qwen3_vl_moe_text", &["qwen3_vl_moe"]),
    ("qwen3_vl_text", &["cosmos3_omni", "qwen3_vl"]),
    ("qwen4_exp_text", &["qwen4_exp"]),
    ("sam3_lite_text_text_model", &["sam3_lite_text"]),
    ("siglip2_text_model", &["siglip2"]),
    ("siglip_text_model", &["siglip"]),
    ("step3p5", &["step3p7"]),
    ("t5_gemma_module", &["t5gemma"]),
    ("t5gemma2_text", &["t5gemma2", "t5gemma2_encoder"]),
    ("tipsv2_text_model", &["tipsv2"]),
    ("ultrabert", &["ultravbert"]),
    ("unlimited_ocr_text", &["unlimited_ocr"]),
    ("videoprism_text_model", &["videoprism"]),
    ("voxtral_realtime_text", &["voxtral_realtime"]),
    ("xclip_text_model", &["xclip"]),
];

/// The model types whose configuration class ties the output layer to the embedding table unless config.json says
/// otherwise. The source is transformers 5.24.
#[rustfmt::skip]
const TIED_BY_DEFAULT: &[&str] = &[
    "bloom", "cohere", "cohere2", "cohere_compass_text", "ernie4_5", "ernie4_5_moe", "ernie4_5_vl_moe_text", "falcon",
    "falcon_mamba", "gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "gemma4_unified_text",
    "granite_docling_text", "granite_swa", "jetmoe", "lfm2", "lfm2_moe", "lfm3", "mamba", "minicpm3", "mpt",
    "paddleocr_vl_text", "qwen3_vl_moe_text", "recurrent_gemma", "smollm3", "starcoder2", "vaultgemma", "youtu", "zamba",
    "zamba2",
];

/// The configuration of a language model, at whatever level of config.json it is.
#[derive(Debug)]
pub struct ModelConfig {
    path: PathBuf,
    /// The language model's own settings.
    text: Map<String, Value>,
    /// The settings in [`SHARED`] that only the outer configuration has.
    shared: Map<String, Value>,
    model_type: String,
}

impl ModelConfig {
    /// Reads a config.json.
    ///
    /// # Errors
    /// Returns an error if the file is missing, is not a JSON object, or names no model type.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let bytes = files::read(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => LoadError::missing(path, "is missing")
                .expected("the model's config.json: its model_type tells the norm")
                .remedy(
                    "copy it from the model (mergekit leaves it out when it fails), or set config to where it lies",
                ),
            _ => LoadError::io(path, &e),
        })?;
        let invalid = |problem: String| LoadError::malformed(path, problem).expected("the config.json of a model");
        let whole = json::object(&bytes).map_err(|e| invalid(format!("is not a JSON object: {e}")))?;
        Ok(Self::of(path, whole))
    }

    /// Descends to the innermost configuration.
    fn of(path: &Path, mut text: Map<String, Value>) -> Self {
        let mut shared = Map::new();
        let mut types: Vec<String> = model_type_of(&text).into_iter().collect();
        while let Some(nested) = take_nested(&mut text) {
            shared.extend(SHARED.iter().filter_map(|&key| text.remove_entry(key)));
            text = nested;
            types.extend(model_type_of(&text));
        }
        shared.retain(|key, _| !text.contains_key(key));
        let model_type = language_model_type(&types).unwrap_or_default().to_owned();
        Self { path: path.to_owned(), text, shared, model_type }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the `model_type` of the language model, or an empty string if no level names one.
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    /// Returns the language model's settings as a configuration of their own.
    pub fn language_model(&self) -> Map<String, Value> {
        let mut settings = self.text.clone();
        settings.extend(self.shared.clone());
        if !self.model_type.is_empty() {
            settings.insert("model_type".to_owned(), self.model_type.as_str().into());
        }
        settings
    }

    /// Returns the setting `key` if it is a number.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.text.get(key).and_then(Value::as_f64)
    }

    /// Returns the setting `key`, of whatever type.
    pub fn setting(&self, key: &str) -> Option<&Value> {
        self.text.get(key)
    }

    /// Returns whether the output layer shares its weight with the embedding table.
    pub fn ties_word_embeddings(&self) -> bool {
        let key = "tie_word_embeddings";
        match self.text.get(key).or_else(|| self.shared.get(key)) {
            Some(Value::Bool(tied)) => *tied,
            _ => TIED_BY_DEFAULT.contains(&self.model_type.as_str()),
        }
    }

    /// Returns the first of the settings `keys` that is a number.
    pub fn first_number(&self, keys: &[&str]) -> Option<f64> {
        keys.iter().find_map(|key| self.number(key))
    }

    /// Returns whether the setting `key` is present and neither null nor false.
    pub fn is_set(&self, key: &str) -> bool {
        self.text.get(key).is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)))
    }
}

fn model_type_of(config: &Map<String, Value>) -> Option<String> {
    config.get("model_type").and_then(Value::as_str).map(str::to_owned)
}

fn take_nested(config: &mut Map<String, Value>) -> Option<Map<String, Value>> {
    NESTED.iter().find_map(|&key| match config.remove(key) {
        Some(Value::Object(nested)) => Some(nested),
        _ => None,
    })
}

/// Returns the innermost known type. `types` is ordered from the outside in. If no type is known, an unknown one is
/// returned, so that the error can name what the file says.
fn language_model_type(types: &[String]) -> Option<&str> {
    let inner = |name: &String| OUTER.iter().find(|(_, outer)| outer.contains(&name.as_str())).map(|(inner, _)| *inner);
    let known = types.iter().rev().find_map(|name| match inner(name) {
        Some(inner) => Some(inner),
        None => super::is_listed(name).then_some(name.as_str()),
    });
    known.or_else(|| types.last().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::super::types::FAMILIES;
    use super::*;

    fn open(json: &Value) -> ModelConfig {
        let Value::Object(whole) = json.clone() else { panic!("{json}") };
        ModelConfig::of(Path::new("config.json"), whole)
    }

    fn language_model(json: &Value) -> (String, Option<f64>) {
        let config = open(json);
        (config.model_type().to_owned(), config.number("rms_norm_eps"))
    }

    #[test]
    fn the_language_model_is_found_wherever_it_is_nested() {
        let eps = |key: &str, json: Value| (key.to_owned(), language_model(&json));
        let found = |model_type: &str| (model_type.to_owned(), Some(2e-6));
        for (case, got, expected) in [
            ("plain", serde_json::json!({"model_type": "llama", "rms_norm_eps": 2e-6}), "llama"),
            (
                "flat",
                serde_json::json!({"model_type": "qwen2_5_vl", "rms_norm_eps": 2e-6, "vision_config": {}}),
                "qwen2_5_vl_text",
            ),
            (
                "nested",
                serde_json::json!({"model_type": "gemma3", "rms_norm_eps": 1, "text_config": {"model_type": "gemma3_text", "rms_norm_eps": 2e-6}}),
                "gemma3_text",
            ),
            (
                "no inner type",
                serde_json::json!({"model_type": "mistral3", "text_config": {"rms_norm_eps": 2e-6}}),
                "mistral",
            ),
            (
                "another inner type",
                serde_json::json!({"model_type": "llava", "text_config": {"model_type": "qwen2", "rms_norm_eps": 2e-6}}),
                "qwen2",
            ),
            (
                "an outer type inside",
                serde_json::json!({"model_type": "x", "text_config": {"model_type": "qwen2_vl", "rms_norm_eps": 2e-6}}),
                "qwen2_vl_text",
            ),
            (
                "llm_config",
                serde_json::json!({"model_type": "internvl_chat", "llm_config": {"model_type": "internlm2", "rms_norm_eps": 2e-6}}),
                "internlm2",
            ),
            (
                "language_config",
                serde_json::json!({"model_type": "deepseek_vl_v2", "language_config": {"rms_norm_eps": 2e-6}}),
                "deepseek_v2",
            ),
            (
                "two levels",
                serde_json::json!({"model_type": "qwen2_5_omni", "talker_config": {"text_config": {}}, "thinker_config": {"model_type": "qwen2_5_omni_thinker", "text_config": {"rms_norm_eps": 2e-6}}}),
                "qwen2_5_omni_text",
            ),
            (
                "one of two levels",
                serde_json::json!({"model_type": "qwen2_5_omni", "thinker_config": {"rms_norm_eps": 2e-6}}),
                "qwen2_5_omni_text",
            ),
            (
                "null",
                serde_json::json!({"model_type": "qwen2_vl", "text_config": null, "rms_norm_eps": 2e-6}),
                "qwen2_vl_text",
            ),
            (
                "unknown",
                serde_json::json!({"model_type": "new", "text_config": {"model_type": "newer", "rms_norm_eps": 2e-6}}),
                "newer",
            ),
        ] {
            assert_eq!(eps(case, got), (case.to_owned(), found(expected)));
        }
        assert_eq!(open(&serde_json::json!({"text_config": {}})).model_type(), "");
    }

    #[test]
    fn shared_settings_join_the_language_models_own() {
        let config = open(&serde_json::json!({
            "model_type": "gemma3", "dtype": "bfloat16", "tie_word_embeddings": false, "vision_config": {},
            "text_config": {"tie_word_embeddings": true, "hidden_size": 3},
        }));
        assert_eq!(
            Value::Object(config.language_model()),
            serde_json::json!({"model_type": "gemma3_text", "hidden_size": 3, "tie_word_embeddings": true, "dtype": "bfloat16"})
        );
    }

    #[test]
    fn outer_types_lead_to_listed_ones() {
        let mut seen = std::collections::HashSet::new();
        for (inner, outer) in OUTER {
            assert!(super::super::is_listed(inner), "{inner} is neither served nor refused");
            for name in *outer {
                assert!(seen.insert(name), "{name} is listed twice");
                assert!(!FAMILIES.iter().any(|(_, types)| types.contains(name)), "{name} is a language model too");
            }
        }
    }
}
