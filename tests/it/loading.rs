//! Tests which checkpoints load, which do not, and whether the error says what to do.

use layer0::LoadError;
use layer0::checkpoint::{Checkpoint, Overrides};
use layer0::embedder::{Embedder, Settings};
use layer0::norm::NormKind;
use layer0::pooling::place::DeviceChoice;

use crate::common::{broken, checkpoint, copy_of, difference, settings};

fn load(path: &std::path::Path, overrides: &Overrides, settings: Settings) -> Result<Embedder, LoadError> {
    Embedder::new(Checkpoint::open(path, overrides)?, settings)
}

fn refused(path: &std::path::Path) -> String {
    load(path, &Overrides::default(), Settings::default())
        .err()
        .unwrap_or_else(|| panic!("{} loads", path.display()))
        .to_string()
}

#[test]
fn every_broken_checkpoint_is_refused_with_its_path_and_what_helps() {
    let cases: &[(&str, &[&str])] = &[
        ("no-config", &["config.json", "is missing", "set config"]),
        ("bad-config", &["config.json", "not a JSON object"]),
        ("no-model-type", &["config.json", "no model_type", "set norm"]),
        ("no-tokenizer", &["tokenizer.json", "is missing", "tokenizer.model"]),
        ("bad-tokenizer", &["tokenizer.json", "not a tokenizer"]),
        ("no-weights", &["holds no weights", "model.safetensors"]),
        ("no-table", &["has no embedding table", "set embedding_tensor"]),
        ("no-norm", &["has no final norm", "set norm_tensor"]),
        ("unknown-model-type", &["config.json", "not known", "set norm"]),
        ("gpt2", &["gpt2", "positions", "set norm"]),
        ("opt", &["opt", "positions"]),
        ("bert", &["bert", "positions"]),
        ("quantized", &["quantized", "BF16, F16 or F32"]),
        ("float8", &["quantized", "BF16, F16 or F32"]),
        ("vocabulary-past-table", &["tokenizer.json", "300 rows", "set tokenizer"]),
        ("nan", &["not finite", "row 123"]),
        ("infinity", &["not finite", "row"]),
        ("nan-norm", &["model.norm.weight", "not finite"]),
        ("truncated", &["model.safetensors", "cut short"]),
        ("header-length", &["model.safetensors", "header"]),
        ("lfs-pointer", &["model.safetensors", "git lfs pull"]),
        ("missing-shard", &["model-00002-of-00002.safetensors", "existing file"]),
        ("tensor-not-in-shard", &["has no tensor", "index.json"]),
        ("bad-index", &["index.json", "weight_map"]),
        ("index-escapes", &["index.json", "plain file names"]),
        ("norm-length", &["[17]", "16 finite numbers"]),
        ("flat-table", &["shape", "embedding_tensor"]),
        ("empty-table", &["[0, 16]", "neither zero"]),
    ];
    for (name, parts) in cases {
        let error = refused(&broken(name));
        assert!(error.starts_with(broken(name).to_str().unwrap()), "{name}: {error}");
        for part in *parts {
            assert!(error.contains(part), "{name} says: {error}\nbut not: {part}");
        }
    }
    // This checkpoint is served with a warning, which another test checks.
    let served = ["no-eps"];
    let mut listed: Vec<_> = cases.iter().map(|(name, _)| *name).chain(served).map(str::to_owned).collect();
    let mut there: Vec<_> =
        std::fs::read_dir(broken("")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    listed.sort();
    there.sort();
    assert_eq!(listed, there);
}

#[test]
fn an_eps_taken_from_the_config_class_is_a_warning() {
    let opened = Checkpoint::open(&broken("no-eps"), &Overrides::default()).unwrap();
    assert!(
        opened.warnings.iter().any(|w| w.contains("rms_norm_eps") && w.contains("norm_eps overrides")),
        "{:?}",
        opened.warnings
    );
    let set = Overrides { norm_eps: Some(1e-5), ..Overrides::default() };
    assert!(Checkpoint::open(&broken("no-eps"), &set).unwrap().warnings.is_empty());
}

#[test]
fn a_missing_directory_is_named() {
    assert!(refused(std::path::Path::new("/nowhere/at/all")).starts_with("/nowhere/at/all: does not exist"));
    let file = checkpoint("llama").join("config.json");
    assert!(refused(&file).contains("is not a directory"));
}

#[test]
fn norm_admits_an_unknown_model_type_and_asks_for_its_eps() {
    let known = load(&checkpoint("llama"), &Overrides::default(), Settings::default()).unwrap();
    let dir = copy_of("llama");
    let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    let unknown = config.replace("\"model_type\": \"llama\"", "\"model_type\": \"new_thing\"");
    assert_ne!(config, unknown);
    std::fs::write(dir.path().join("config.json"), unknown).unwrap();
    assert!(refused(dir.path()).contains("new_thing"));
    let norm = Overrides { norm: Some(NormKind::Rms), ..Overrides::default() };
    let admitted = load(dir.path(), &norm, Settings::default()).unwrap();
    assert_eq!(admitted.embed(&["hello"]), known.embed(&["hello"]));
    let other = Overrides { norm: Some(NormKind::RmsPlusOne), ..Overrides::default() };
    assert_ne!(load(dir.path(), &other, Settings::default()).unwrap().embed(&["hello"]), known.embed(&["hello"]));

    std::fs::write(dir.path().join("config.json"), r#"{"model_type": "new_thing"}"#).unwrap();
    let error = load(dir.path(), &norm, Settings::default()).err().unwrap().to_string();
    assert!(error.contains("set norm_eps"), "{error}");
    let with_eps = Overrides { norm_eps: Some(1e-5), ..norm };
    assert!(load(dir.path(), &with_eps, Settings::default()).is_ok());
}

#[test]
fn tensors_and_files_can_be_named_by_hand() {
    let dir = copy_of("llama");
    let elsewhere = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json"] {
        std::fs::rename(dir.path().join(name), elsewhere.path().join(name)).unwrap();
    }
    assert!(refused(dir.path()).contains("set config"));
    let overrides = Overrides {
        config: Some(elsewhere.path().join("config.json")),
        tokenizer: Some(elsewhere.path().to_owned()),
        embedding_tensor: Some("model.embed_tokens.weight".to_owned()),
        norm_tensor: Some("model.norm.weight".to_owned()),
        ..Overrides::default()
    };
    assert!(load(dir.path(), &overrides, Settings::default()).is_ok());
    let wrong = Overrides { embedding_tensor: Some("no.such".to_owned()), ..overrides };
    let error = load(dir.path(), &wrong, Settings::default()).err().unwrap().to_string();
    assert!(error.contains("no.such") && error.contains("model.embed_tokens.weight"), "{error}");
}

#[test]
fn the_full_models_directory_is_the_layer_0_checkpoint() {
    let full = load(&checkpoint("llama-full"), &Overrides::default(), Settings::default()).unwrap();
    assert_eq!(full.dimensions(), 16);
    assert!(full.embed(&["hello"]).is_ok());
}

#[test]
fn a_device_that_this_build_lacks_is_a_clear_error() {
    for (device, name) in [(DeviceChoice::Cuda(0), "cuda"), (DeviceChoice::Metal(0), "metal")] {
        if cfg!(feature = "cuda") && name == "cuda" || cfg!(feature = "metal") && name == "metal" {
            println!("skipped for {name}: this build has it");
            continue;
        }
        let settings = settings(|settings| settings.device = device);
        let error = load(&checkpoint("llama"), &Overrides::default(), settings).err().unwrap().to_string();
        assert!(error.contains(&format!("--features {name}")) && error.contains("device = \"cpu\""), "{error}");
    }
}

#[test]
fn dimensions_beyond_the_table_are_refused_at_load() {
    for dimensions in [0, 17] {
        let settings = settings(|settings| settings.dimensions = Some(dimensions));
        let error = load(&checkpoint("llama"), &Overrides::default(), settings).err().unwrap().to_string();
        assert!(error.contains("between 1 and 16"), "{error}");
    }
}

/// eps changes the vectors noticeably, because the rows of untrained tokens are small.
#[test]
fn eps_and_scale_overrides_change_the_vector() {
    let settings = || settings(|settings| settings.normalize = Some(false));
    let plain = load(&checkpoint("gemma"), &Overrides::default(), settings()).unwrap().embed(&["hello"]).unwrap();
    let eps = Overrides { norm_eps: Some(0.5), ..Overrides::default() };
    let scale = Overrides { embedding_scale: Some(0.01), ..Overrides::default() };
    for overrides in [eps, scale] {
        let other = load(&checkpoint("gemma"), &overrides, settings()).unwrap().embed(&["hello"]).unwrap();
        assert!(difference(&plain[0], &other[0]) > 1e-4, "{overrides:?}");
    }
}
