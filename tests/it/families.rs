//! Tests of model types as their repositories store them: nested and flat configurations, names of tensors, defaults,
//! variants, and conversions to MLX. `tests/real/families.py` compares every type with transformers; these tests cover
//! the mechanisms.

use std::collections::HashMap;
use std::path::Path;

use layer0::LoadError;
use layer0::checkpoint::{Checkpoint, Overrides};
use layer0::embedder::{Embedder, Input, Settings};
use layer0::extract::source::LocalSource;
use layer0::extract::{Options, card::Origin, extract};
use layer0::norm::NormKind;
use layer0::progress::Silent;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{checkpoint, difference, settings};

const COLUMNS: usize = 8;
const TABLE: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";

/// Returns numbers between -0.01 and 0.01. They are small, so that eps and a multiplier change the vectors.
fn table(rows: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / f32::from(u16::MAX) / 256.0 * 0.02 - 0.01
    };
    (0..rows * COLUMNS).map(|_| next()).collect()
}

const WEIGHT: [f32; COLUMNS] = [1.5, 0.5, -0.75, 2.0, 1.25, 0.25, 1.0, 3.0];

/// A checkpoint of one table and vectors of [`COLUMNS`] numbers, with the tokenizer of the committed Llama.
struct Made {
    dir: TempDir,
}

impl Made {
    fn new(config: &Value, table_name: &str, vectors: &[(&str, [f32; COLUMNS])], format: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let from = checkpoint("llama").join("tokenizer.json");
        std::fs::copy(&from, dir.path().join("tokenizer.json")).unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let rows = 512;
        let mut tensors = vec![(table_name.to_owned(), vec![rows, COLUMNS], bytes(&table(rows)))];
        tensors.extend(vectors.iter().map(|(name, numbers)| ((*name).to_owned(), vec![COLUMNS], bytes(numbers))));
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        let metadata = HashMap::from([("format".to_owned(), format.to_owned())]);
        std::fs::write(dir.path().join("model.safetensors"), serialize(views, Some(metadata)).unwrap()).unwrap();
        Self { dir }
    }

    /// Creates a checkpoint with the tensor names that most families use.
    fn of(config: &Value) -> Self {
        Self::new(config, TABLE, &[(NORM, WEIGHT)], "pt")
    }

    fn vector(&self) -> Result<Vec<f32>, LoadError> {
        vector(self.dir.path(), &Overrides::default())
    }
}

fn vector(dir: &Path, overrides: &Overrides) -> Result<Vec<f32>, LoadError> {
    let settings = settings(|settings| settings.normalize = Some(false));
    let embedder = Embedder::new(Checkpoint::open(dir, overrides)?, settings)?;
    let tokens = embedder.tokens(0, &Input::Text("hello world".to_owned())).unwrap();
    let mut mean = vec![0.0; COLUMNS];
    embedder.pool(&[tokens], COLUMNS, &mut mean).unwrap();
    Ok(mean)
}

/// Returns the vector of a model with a plain RMSNorm, this eps and this embedding scale.
fn rms(eps: f64, scale: f64) -> Vec<f32> {
    Made::of(&json!({"model_type": "granite", "rms_norm_eps": eps, "embedding_multiplier": scale})).vector().unwrap()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    difference(a, b) < 1e-5
}

#[test]
fn the_references_of_these_tests_differ() {
    for (a, b) in [(rms(1e-6, 1.0), rms(1e-5, 1.0)), (rms(1e-5, 12.0), rms(1e-5, 1.0))] {
        assert!(difference(&a, &b) > 1e-2, "{}", difference(&a, &b));
    }
}

#[test]
fn configurations_are_read_as_they_were_published() {
    let plain = rms(1e-6, 1.0);
    for config in [
        json!({"model_type": "qwen2_5_vl", "rms_norm_eps": 1e-6, "vision_config": {"model_type": "qwen2_5_vl"}}),
        json!({"model_type": "qwen2_vl", "rms_norm_eps": 1e-6}),
        json!({"model_type": "qwen2_5_omni", "thinker_config": {"model_type": "qwen2_5_omni_thinker", "text_config": {"model_type": "qwen2_5_omni_text", "rms_norm_eps": 1e-6}}}),
        json!({"model_type": "qwen2_5_omni", "thinker_config": {"text_config": {}}, "rms_norm_eps": 1}),
        json!({"model_type": "internvl_chat", "llm_config": {"model_type": "qwen2", "rms_norm_eps": 1e-6}, "vision_config": {"layer_norm_eps": 1}}),
        json!({"model_type": "deepseek_vl_v2", "language_config": {"model_type": "deepseek_v2"}}),
        json!({"model_type": "kimi_k25", "text_config": {"model_type": "kimi_k2"}}),
        json!({"model_type": "llava", "text_config": {}}),
        json!({"model_type": "mistral3", "text_config": {"rms_norm_eps": 1e-6}}),
        json!({"model_type": "kimi_vl", "text_config": {"rms_norm_eps": 1e-6}}),
    ] {
        let vector = Made::of(&config).vector().unwrap_or_else(|error| panic!("{config}: {error}"));
        assert!(close(&vector, &plain), "{config}: off by {}", difference(&vector, &plain));
    }
}

#[test]
fn model_types_with_code_of_their_own_are_served() {
    let plain = rms(1e-6, 1.0);
    for name in [
        "bailing_moe",
        "bailing_moe_v2",
        "deepseek",
        "exaone",
        "glm4v_text",
        "hunyuan",
        "internlm",
        "kimi_k2",
        "mimo",
        "minicpmv",
        "minimax_m1",
        "nemotron-nas",
        "phi3_v",
        "phi4mm",
        "xverse",
    ] {
        let vector = Made::of(&json!({"model_type": name, "rms_norm_eps": 1e-6})).vector();
        let vector = vector.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(close(&vector, &plain), "{name}: off by {}", difference(&vector, &plain));
    }
}

#[test]
fn other_names_of_eps_are_read_where_the_class_reads_them() {
    let aliased = Made::of(&json!({"model_type": "exaone", "layer_norm_epsilon": 1e-3})).vector().unwrap();
    assert!(close(&aliased, &rms(1e-3, 1.0)));
    let ignored = Made::of(&json!({"model_type": "llama", "layer_norm_epsilon": 1e-3})).vector().unwrap();
    assert!(close(&ignored, &rms(1e-6, 1.0)));
}

#[test]
fn a_missing_multiplier_is_the_familys_default() {
    let made = Made::of(&json!({"model_type": "granite_docling_text", "rms_norm_eps": 1e-5}));
    assert!(close(&made.vector().unwrap(), &rms(1e-5, 12.0)));
    let warnings = Checkpoint::open(made.dir.path(), &Overrides::default()).unwrap().warnings;
    assert!(warnings.iter().any(|w| w.contains("no embedding_multiplier") && w.contains("12")), "{warnings:?}");

    let minicpm3 = Made::of(&json!({"model_type": "minicpm3", "rms_norm_eps": 1e-5}));
    assert!(close(&minicpm3.vector().unwrap(), &rms(1e-5, 12.0)));
    let granite = Made::of(&json!({"model_type": "granite", "rms_norm_eps": 1e-5, "embedding_multiplier": null}));
    assert!(close(&granite.vector().unwrap(), &rms(1e-5, 1.0)));
}

#[test]
fn multipliers_have_the_names_that_their_families_give_them() {
    for (name, config, expected) in [
        ("grok-1", json!({}), 78.383_671_769_061_69),
        ("grok-1", json!({"embedding_multiplier_scale": 2.0}), 2.0),
        ("minicpm", json!({"scale_emb": 12}), 12.0),
        ("minicpmv", json!({}), 1.0),
    ] {
        let mut whole = config.clone();
        whole["model_type"] = name.into();
        whole["rms_norm_eps"] = 1e-5.into();
        assert!(close(&Made::of(&whole).vector().unwrap(), &rms(1e-5, expected)), "{name} {config}");
    }
    let jais = |config: Value| {
        let mut whole = config;
        whole["model_type"] = "jais".into();
        Made::of(&whole).vector().unwrap()
    };
    let one = jais(json!({"embeddings_scale": 14.5}));
    assert!(close(&one, &jais(json!({"mup_embeddings_scale": 14.5}))));
    assert!(!close(&one, &jais(json!({}))));
}

#[test]
fn switches_of_the_configuration_change_the_family() {
    for (key, value, expected) in [
        ("mup_enabled", json!(true), rms(1e-5, (COLUMNS as f64).sqrt())),
        ("mup_enabled", json!(false), rms(1e-5, 1.0)),
        ("mup_enabled", json!(null), rms(1e-5, 1.0)),
    ] {
        let vector = Made::of(&json!({"model_type": "afmoe", "rms_norm_eps": 1e-5, key: value})).vector().unwrap();
        assert!(close(&vector, &expected), "{key} {value}");
    }
    let of = |rms: Value| Made::of(&json!({"model_type": "cohere2_moe", "layer_norm_eps": 1e-5, "rms_norm_eps": rms}));
    assert!(close(&of(json!(1e-6)).vector().unwrap(), &rms(1e-6, 1.0)));
    let layer = Made::of(&json!({"model_type": "cohere", "layer_norm_eps": 1e-5})).vector().unwrap();
    assert!(close(&of(json!(null)).vector().unwrap(), &layer));
}

#[test]
fn conversions_to_mlx_have_their_one_added_already() {
    let mlx =
        |name: &str| Made::new(&json!({"model_type": name, "rms_norm_eps": 1e-6}), TABLE, &[(NORM, WEIGHT)], "mlx");
    let plain = rms(1e-6, 1.0);
    for name in ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_5", "step3p5", "llama", "qwen3"] {
        let vector = mlx(name).vector().unwrap();
        assert!(close(&vector, &plain), "{name}: off by {}", difference(&vector, &plain));
    }
    // mlx-lm's Gemma adds the 1 at run time.
    for name in ["gemma", "gemma2", "gemma3_text", "minimax_m3_vl_text"] {
        let vector = mlx(name).vector().unwrap();
        let original = Made::of(&json!({"model_type": name, "rms_norm_eps": 1e-6})).vector().unwrap();
        assert!(close(&vector, &original), "{name}");
        assert!(!close(&vector, &plain), "{name}");
    }
    let error = mlx("vaultgemma").vector().unwrap_err().to_string();
    assert!(error.contains("MLX") && error.contains("set norm"), "{error}");
    let told = Overrides { norm: Some(NormKind::RmsPlusOne), ..Overrides::default() };
    for name in ["vaultgemma", "qwen3_next"] {
        vector(mlx(name).dir.path(), &told).unwrap();
    }
}

#[test]
fn what_is_extracted_from_an_mlx_conversion_gives_the_same_vectors() {
    let made = Made::new(&json!({"model_type": "qwen3_next", "rms_norm_eps": 1e-6}), TABLE, &[(NORM, WEIGHT)], "mlx");
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("layer0");
    let source = LocalSource::open(made.dir.path(), Origin::default()).unwrap();
    extract(&source, &out, &Options::default(), &Silent).unwrap();
    assert_eq!(vector(&out, &Overrides::default()).unwrap(), made.vector().unwrap());
}

#[test]
fn tensors_are_found_under_the_names_that_were_published() {
    let config = json!({"model_type": "qwen2", "rms_norm_eps": 1e-6});
    let plain = rms(1e-6, 1.0);
    for (table, norm) in [
        ("embed_tokens.weight", "norm.weight"),
        ("language_model.model.embed_tokens.weight", "language_model.model.norm.weight"),
        ("model.language_model.embed_tokens.weight", "model.language_model.norm.weight"),
        ("thinker.model.embed_tokens.weight", "thinker.model.norm.weight"),
        ("llm.model.embed_tokens.weight", "llm.model.norm.weight"),
        ("language.model.embed_tokens.weight", "language.model.norm.weight"),
        ("model.tok_embeddings.weight", "model.norm.weight"),
        ("language_model.model.tok_embeddings.weight", "language_model.model.norm.weight"),
        ("transformer.wte.weight", "transformer.ln_f.weight"),
        ("model.llm.embed.weight", "model.llm.norm.weight"),
        ("shared.weight", "encoder.final_layer_norm.weight"),
        ("model.transformer.wte.embedding", "model.transformer.ln_f.weight"),
        ("wte.embedding", "norm.weight"),
        ("model.language_model.model.embed_tokens.weight", "model.language_model.model.norm.weight"),
        ("language_model.backbone.embeddings.weight", "language_model.backbone.norm_f.weight"),
        ("text_model.ultrabert.embed_tokens.weight", "text_model.ultrabert.norm.weight"),
        ("transformer.token_embeddings.weight", "transformer.norm.weight"),
    ] {
        let vector = Made::new(&config, table, &[(norm, WEIGHT)], "pt").vector();
        let vector = vector.unwrap_or_else(|error| panic!("{table}: {error}"));
        assert!(close(&vector, &plain), "{table}");
    }
}

#[test]
fn norms_on_the_embedding_are_applied() {
    let first: [f32; COLUMNS] = [0.5, 2.0, 1.0, -1.0, 3.0, 0.75, 1.5, 1.0];
    let row_mean = |f: &dyn Fn(&[f64]) -> Vec<f64>| -> Vec<f32> {
        let opened = Checkpoint::open(checkpoint("llama").as_path(), &Overrides::default()).unwrap();
        let embedder = Embedder::new(opened, Settings::default()).unwrap();
        let tokens = embedder.tokens(0, &Input::Text("hello world".to_owned())).unwrap();
        let table = table(512);
        let mut mean = [0.0; COLUMNS];
        for &id in tokens.ids() {
            let row: Vec<f64> = table[id as usize * COLUMNS..][..COLUMNS].iter().map(|&x| f64::from(x)).collect();
            mean.iter_mut().zip(f(&row)).for_each(|(sum, x)| *sum += x / tokens.ids().len() as f64);
        }
        mean.iter().map(|&x| x as f32).collect()
    };
    let rms = |x: &[f64], w: &[f32; COLUMNS]| -> Vec<f64> {
        let inverse = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + 1e-5).sqrt();
        x.iter().zip(w).map(|(x, w)| x * inverse * f64::from(*w)).collect()
    };
    let ones = [1.0; COLUMNS];
    let config = |name: &str| json!({"model_type": name, "rms_norm_eps": 1e-5, "norm_eps": 1e-5});

    let inner = ("model.llm.embed_norm.weight", first);
    let inkling =
        Made::new(&config("inkling_text"), "model.llm.embed.weight", &[inner, ("model.llm.norm.weight", WEIGHT)], "pt");
    assert!(close(&inkling.vector().unwrap(), &row_mean(&|row| rms(&rms(row, &first), &WEIGHT))));
    let muse = Made::of(&config("muse_glimmer_text"));
    assert!(close(&muse.vector().unwrap(), &row_mean(&|row| rms(&rms(row, &ones), &WEIGHT))));
    let nanochat = Made::new(&config("nanochat"), TABLE, &[], "pt");
    assert!(close(&nanochat.vector().unwrap(), &row_mean(&|row| rms(&rms(row, &ones), &ones))));

    let layer = |x: &[f64], w: &[f32; COLUMNS]| -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        rms(&x.iter().map(|x| x - mean).collect::<Vec<_>>(), w)
    };
    let names = [("model.embeddings.norm.weight", first), ("model.final_norm.weight", WEIGHT)];
    let modernbert = Made::new(&config("modernbert"), "model.embeddings.tok_embeddings.weight", &names, "pt");
    assert!(close(&modernbert.vector().unwrap(), &row_mean(&|row| layer(&layer(row, &first), &WEIGHT))));
}

#[test]
fn a_type_that_cannot_be_served_is_refused_with_the_reason() {
    for (config, reason) in [
        (json!({"model_type": "bert"}), "positions"),
        (json!({"model_type": "clip"}), "positions"),
        (json!({"model_type": "blip-2", "text_config": {"model_type": "opt"}}), "positions"),
        (json!({"model_type": "zaya"}), "bias"),
        (json!({"model_type": "brand_new"}), "not known"),
    ] {
        let error = Made::of(&config).vector().unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("set norm"), "{config}: {error}");
    }
}
