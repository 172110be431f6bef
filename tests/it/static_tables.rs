//! Compares static tables with the output of their own libraries (`tests/fixtures/make_static.py`).

use std::path::PathBuf;

use layer0::checkpoint::{Checkpoint, Kind, Overrides};
use layer0::embedder::{Embedder, Input, Settings};
use layer0::norm::NormKind;
use layer0::pooling::{CpuPooling, DevicePooling, Pooling};
use serde::Deserialize;

use crate::common::{TestApp, difference, fixtures, length, settings};

#[derive(Deserialize)]
struct Golden {
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    vectors: Vec<Vec<f32>>,
}

fn table(name: &str) -> PathBuf {
    fixtures("static").join(name)
}

fn golden(name: &str) -> Golden {
    serde_json::from_slice(&std::fs::read(table(name).join("golden.json")).unwrap()).unwrap()
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&table(name), &Overrides::default()).unwrap_or_else(|e| panic!("{e}"))
}

const KINDS: [(&str, Kind); 10] = [
    ("model2vec", Kind::Model2Vec),
    ("model2vec-clusters", Kind::Model2Vec),
    ("model2vec-f16", Kind::Model2Vec),
    ("model2vec-int8", Kind::Model2Vec),
    ("model2vec-plain", Kind::Model2Vec),
    ("model2vec-unigram", Kind::Model2Vec),
    ("model2vec-weights", Kind::Model2Vec),
    ("sentence-transformers", Kind::StaticEmbedding),
    ("sentence-transformers-normalize", Kind::StaticEmbedding),
    ("wordllama", Kind::WordLlama),
];

#[test]
fn every_kind_equals_its_own_library() {
    for (name, kind) in KINDS {
        let (golden, opened) = (golden(name), open(name));
        assert_eq!(opened.kind, kind);
        let embedder = Embedder::new(opened, Settings::default()).unwrap();
        let vectors = embedder.embed(&golden.texts).unwrap();
        assert!(golden.texts.contains(&String::new()) && golden.ids.iter().any(|ids| ids.len() > 512));
        for (i, text) in golden.texts.iter().enumerate() {
            let tokens = embedder.tokens(i, &Input::Text(text.clone())).unwrap();
            assert_eq!(tokens.ids(), golden.ids[i], "{name}: {text:?}");
            if tokens.is_empty() {
                // The libraries return zeros for a text without tokens, while this program returns a vector of length
                // 1.
                assert!(length(&golden.vectors[i]) == 0.0 && length(&vectors[i]) == 1.0, "{name}: {text:?}");
                continue;
            }
            let size = golden.vectors[i].iter().fold(1.0, |max: f32, x| x.abs().max(max));
            let off = difference(&vectors[i], &golden.vectors[i]);
            assert!(off < 1e-5 * size, "{name}: {text:?}: off by {off}");
        }
    }
    let there: Vec<_> = std::fs::read_dir(fixtures("static")).unwrap().collect();
    assert_eq!(there.len(), KINDS.len());
}

/// Each of the rules changes some golden vector.
#[test]
fn the_rules_are_each_kinds_own() {
    for (name, unknown, normalize) in [
        ("model2vec", true, true),
        ("model2vec-plain", true, false),
        ("model2vec-unigram", true, true),
        ("sentence-transformers", false, false),
        ("sentence-transformers-normalize", false, true),
        ("wordllama", false, true),
    ] {
        let rules = open(name).conventions;
        assert_eq!(
            (rules.left_out.is_some(), rules.normalize, rules.special_tokens),
            (unknown, normalize, false),
            "{name}"
        );
    }
    let embed = |settings| Embedder::new(open("sentence-transformers"), settings).unwrap().embed(&["hello"]).unwrap();
    let plain = embed(Settings::default());
    assert_ne!(embed(settings(|settings| settings.special_tokens = Some(true))), plain, "the user's word is the last");
    assert!((length(&embed(settings(|settings| settings.normalize = Some(true)))[0]) - 1.0).abs() < 1e-6);
}

/// For a text of unknown words, Model2Vec pools no token, and the others pool the unknown token.
#[test]
fn a_text_of_unknown_words_pools_what_its_kind_pools() {
    for (name, count) in [("model2vec", 0), ("sentence-transformers", 2)] {
        let embedder = Embedder::new(open(name), Settings::default()).unwrap();
        assert_eq!(embedder.tokens(0, &Input::Text("안녕 🦀".to_owned())).unwrap().len(), count, "{name}");
    }
}

#[test]
fn a_mapping_shares_rows_and_a_device_follows_it() {
    for name in ["model2vec-clusters", "model2vec-int8", "model2vec-weights"] {
        let opened = open(name);
        assert_eq!(opened.table.mapping().is_some(), name == "model2vec-clusters");
        if let Some(mapping) = opened.table.mapping() {
            assert_eq!((opened.table.stored_rows(), opened.table.rows()), (20, mapping.len()));
        }
        let collapsed = opened.norm.collapse(&opened.table, 2).unwrap();
        let device = DevicePooling::new(&opened.table, &collapsed, candle_core::Device::Cpu).unwrap();
        let cpu = CpuPooling::new(opened.table.clone(), collapsed);
        let all: Vec<u32> = (0..opened.table.rows() as u32).collect();
        let (mut a, mut b) = (vec![0.0; 24], vec![0.0; 24]);
        cpu.mean(&[&all, &[3, 5, 5]], 12, &mut a).unwrap();
        device.mean(&[&all, &[3, 5, 5]], 12, &mut b).unwrap();
        assert!(difference(&a, &b) < 1e-4, "{name}");
    }
}

#[test]
fn a_broken_table_is_refused_with_what_to_do() {
    let cases: &[(&str, &[&str])] = &[
        ("mapping-negative", &["mapping", "one of the 20 rows"]),
        ("mapping-of-floats", &["mapping", "F32"]),
        ("mapping-past-table", &["mapping", "one of the 20 rows"]),
        ("mapping-short", &["10 rows", "set tokenizer"]),
        ("module-path-escapes", &["modules.json", "../.."]),
        ("more-modules", &["modules.json", "Dense"]),
        ("no-table", &["no embedding table", "embedding_tensor"]),
        ("weights-nan", &["weights", "not finite"]),
        ("weights-short", &["weights", "finite numbers"]),
    ];
    for (name, parts) in cases {
        let error = Checkpoint::open(&fixtures("static-broken").join(name), &Overrides::default()).err();
        let error = error.unwrap_or_else(|| panic!("{name} was opened")).to_string();
        for part in *parts {
            assert!(error.contains(part), "{name} says: {error}\nbut not: {part}");
        }
    }
    assert_eq!(std::fs::read_dir(fixtures("static-broken")).unwrap().count(), cases.len());
}

#[test]
fn an_override_that_does_not_apply_is_refused() {
    for overrides in [
        Overrides { norm_eps: Some(1e-5), ..Overrides::default() },
        Overrides { norm_tensor: Some("x".into()), ..Overrides::default() },
        Overrides { embedding_scale: Some(2.0), ..Overrides::default() },
    ] {
        let error = Checkpoint::open(&table("model2vec"), &overrides).err().unwrap().to_string();
        assert!(error.contains("has no norm") && error.contains("remove"), "{error}");
    }
    // With the override `norm`, the user declares that the directory holds an LLM.
    let norm = Overrides { norm: Some(NormKind::Rms), ..Overrides::default() };
    assert!(Checkpoint::open(&table("wordllama"), &norm).err().unwrap().to_string().contains("config.json"));
}

#[test]
fn a_server_takes_a_static_table_as_path() {
    let app = TestApp::start(|config| config.models[0].path = table("model2vec-plain"));
    let golden = golden("model2vec-plain");
    let texts = &golden.texts[..5];
    let answer = app.embed(&serde_json::json!({"input": texts}));
    assert_eq!(answer.body["usage"]["prompt_tokens"], golden.ids[..5].iter().map(Vec::len).sum::<usize>());
    for (vector, expected) in answer.vectors().iter().zip(&golden.vectors) {
        assert!(length(expected) == 0.0 || difference(vector, expected) < 1e-5);
    }
}
