//! Compares GGUF files with the output of the `gguf` package and of the same models' own tokenizers
//! (`tests/fixtures/make_static.py`).

use std::path::{Path, PathBuf};

use layer0::checkpoint::{Checkpoint, Kind, Overrides};
use layer0::embedder::{Embedder, Input, Settings};
use layer0::extract::gguf::GgufSource;
use layer0::extract::{Options, extract};
use layer0::norm::NormKind;
use layer0::progress::Silent;
use layer0_tokenizers::Tokenize;
use layer0_tokenizers::reference::HfTokenizer;
use serde::Deserialize;
use serde_json::json;

use crate::common::{TestApp, checkpoint, difference, fixtures, length, settings};

#[derive(Deserialize)]
struct Golden {
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    /// The mean vector of each text, or null for a text without tokens.
    mean: Vec<Option<Vec<f32>>>,
}

fn gguf(name: &str) -> PathBuf {
    fixtures("gguf").join(format!("{name}.gguf"))
}

fn broken(name: &str) -> PathBuf {
    fixtures("gguf-broken").join(format!("{name}.gguf"))
}

fn golden(path: &Path) -> Golden {
    serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap()
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, &Overrides::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn refused(path: &Path, overrides: &Overrides) -> String {
    let result = Checkpoint::open(path, overrides).and_then(|c| Embedder::new(c, Settings::default()));
    result.err().unwrap_or_else(|| panic!("{} was served", path.display())).to_string()
}

fn names(dir: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(fixtures(dir))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "gguf"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn every_type_and_tokenizer_equals_the_judge() {
    let names = names("gguf");
    assert_eq!(names.len(), 15);
    for name in names {
        let path = gguf(&name);
        let (golden, opened) = (golden(&path), open(&path));
        let plain = ["llama-f32", "llama-f16", "llama-bf16", "qwen2-f16"].contains(&name.as_str());
        assert_eq!(opened.kind, Kind::Gguf);
        assert_eq!(
            opened.table_source.map.is_some(),
            plain,
            "{name}: mapped where it is plain, decoded where it is not"
        );
        assert_eq!(
            opened.table.dtype().name() == "f16",
            !["llama-f32", "llama-bf16"].contains(&name.as_str()),
            "{name}"
        );
        let settings = settings(|settings| settings.normalize = Some(false));
        let embedder = Embedder::new(opened, settings).unwrap();
        for (i, text) in golden.texts.iter().enumerate() {
            let tokens = embedder.tokens(i, &Input::Text(text.clone())).unwrap();
            assert_eq!(tokens.ids(), golden.ids[i], "{name}: {text:?}");
            let Some(expected) = &golden.mean[i] else { continue };
            let mut mean = vec![0.0; embedder.dimensions()];
            embedder.pool(&[tokens], embedder.dimensions(), &mut mean).unwrap();
            let size = length(expected) as f32;
            // f16 rounds a decoded number by at most 2^-12 of its size, while a plain number is unchanged.
            let tolerance = if plain { 1e-6 } else { 2e-4 };
            let off = difference(&mean, expected) / size;
            assert!(off < tolerance, "{name}: {text:?}: off by {off} of its length");
        }
    }
}

#[test]
fn what_the_header_says_is_what_is_served() {
    let gemma = open(&gguf("gemma3-q8_0"));
    assert_eq!(
        (gemma.model_type.as_str(), gemma.norm.norm.kind),
        ("gemma3_text", NormKind::Rms),
        "1 + w is in the file"
    );
    assert!((gemma.norm.embedding_scale - 32f64.sqrt()).abs() < 1e-12);
    assert_eq!(gemma.norm.norm.eps, 3e-5, "the decimal that was meant, not the f32 beside it");
    assert_eq!((gemma.table_source.name.as_str(), gemma.table_source.dtype.as_str()), ("token_embd.weight", "Q8_0"));
    assert_eq!(gemma.norm_source.as_deref(), Some("output_norm.weight"));
    assert_eq!(open(&gguf("llama-f16")).norm.embedding_scale, 1.0);
}

/// `extract` writes the rebuilt tokenizer as tokenizer.json.
#[test]
fn a_rebuilt_tokenizer_is_a_tokenizer_json() {
    for name in ["gemma3-q8_0", "llama-f16", "qwen2-f16"] {
        let opened = open(&gguf(name));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokenizer.json");
        std::fs::write(&file, opened.tokenizer.rebuilt.as_deref().unwrap()).unwrap();
        let overrides = Overrides { tokenizer: Some(file), ..Overrides::default() };
        let again = Checkpoint::open(&gguf(name), &overrides).unwrap();
        assert_eq!(again.tokenizer.vocabulary, opened.tokenizer.vocabulary);
        let golden = golden(&gguf(name));
        let embedder = Embedder::new(again, Settings::default()).unwrap();
        for (text, ids) in golden.texts.iter().zip(&golden.ids) {
            assert_eq!(embedder.tokens(0, &Input::Text(text.clone())).unwrap().ids(), ids, "{name}: {text:?}");
        }
    }
}

#[test]
fn a_broken_file_is_refused_with_what_to_do() {
    let cases: &[(&str, &[&str])] = &[
        ("arrays-of-arrays", &["array of type 9"]),
        ("big-endian", &["big-endian", "version 2 or 3"]),
        ("bos-without-token", &["add_bos_token", "set tokenizer"]),
        ("empty-header", &["cut short"]),
        ("few-rows", &["9 rows", "set tokenizer"]),
        ("flat-table", &["shape [64]", "embedding_tensor"]),
        ("huge-array", &["claims 2305843009213693952 numbers"]),
        ("huge-array-of-texts", &["claims 2305843009213693952 texts"]),
        ("huge-entry-count", &["claims 1099511627776 metadata entries"]),
        ("huge-tensor-count", &["claims 9223372036854775808 tensors"]),
        ("huge-text", &["claims 4611686018427387904 letters"]),
        ("integers", &["ggml type 24", "another quantization"]),
        ("name-not-utf8", &["not UTF-8"]),
        ("nan-norm", &["output_norm.weight", "not finite"]),
        ("nine-dimensions", &["9 dimensions"]),
        ("no-eps", &["layer_norm_rms_epsilon", "set norm_eps"]),
        ("no-norm", &["output_norm.weight", "norm_tensor"]),
        ("no-table", &["token_embd.weight", "embedding_tensor"]),
        ("no-tokens", &["tokenizer.ggml.tokens", "set tokenizer"]),
        ("odd-alignment", &["alignment of 3"]),
        ("short-norm", &["[7]", "32 finite numbers"]),
        ("split", &["split", "llama-gguf-split --merge"]),
        ("truncated-data", &["cut short"]),
        ("truncated-metadata", &["convert the model again"]),
        ("unknown-architecture", &["mystery", "set norm"]),
        ("unknown-pre", &["brand-new", "set tokenizer"]),
        ("unknown-tokenizer", &["\"t5\"", "set tokenizer"]),
        ("unknown-value-type", &["type 99"]),
        ("version-1", &["version 1", "version 2 or 3"]),
    ];
    for (name, parts) in cases {
        let error = refused(&broken(name), &Overrides::default());
        for part in *parts {
            assert!(error.contains(part), "{name} says: {error}\nbut not: {part}");
        }
    }
    assert_eq!(cases.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names("gguf-broken"));
}

/// Files that were converted without SentencePiece's model do not determine the order of the merges.
#[test]
fn scores_that_are_placeholders_are_refused() {
    let key = b"tokenizer.ggml.scores";
    let mut bytes = std::fs::read(gguf("llama-f16")).unwrap();
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 8;
    let count = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    for i in 0..count {
        bytes[at + 8 + 4 * i..][..4].copy_from_slice(&(-1000f32).to_le_bytes());
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let error = refused(&path, &Overrides::default());
    assert!(error.contains("placeholders") && error.contains("set tokenizer"), "{error}");
}

/// Every prefix of a header, and every header with one byte inverted, gives an error or a checkpoint, but never a
/// panic.
#[test]
fn no_cut_and_no_flipped_byte_is_a_panic() {
    let whole = std::fs::read(gguf("llama-q4_0")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mut served = 0;
    let mut attempt = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        served += usize::from(Checkpoint::open(&path, &Overrides::default()).is_ok());
    };
    for length in (5..whole.len()).step_by(311) {
        attempt(&whole[..length]);
    }
    for at in (4..600).chain((600..whole.len()).step_by(197)) {
        for flip in [0xff, 0x01] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            attempt(&bytes);
        }
    }
    assert!(served > 0, "a flipped byte of the table's data is another table");
}

#[test]
fn what_the_file_lacks_can_be_set() {
    let tokenizer = Some(checkpoint("llama").join("tokenizer.json"));
    let set = |overrides| Checkpoint::open(&broken("unknown-tokenizer"), &overrides);
    let opened = set(Overrides { tokenizer: tokenizer.clone(), ..Overrides::default() }).unwrap();
    assert_eq!(opened.tokenizer_path, checkpoint("llama").join("tokenizer.json"));

    let rms = Overrides { norm: Some(NormKind::Rms), ..Overrides::default() };
    assert!(refused(&broken("unknown-architecture"), &rms).contains("mystery.attention.layer_norm_rms_epsilon"));
    let with_eps = Overrides { norm_eps: Some(1e-5), ..rms };
    let admitted = Checkpoint::open(&broken("unknown-architecture"), &with_eps).unwrap();
    assert_eq!((admitted.model_type.as_str(), admitted.norm.norm.eps), ("mystery", 1e-5));
    let none = Overrides { norm: Some(NormKind::None), ..Overrides::default() };
    assert!(Checkpoint::open(&broken("no-norm"), &none).unwrap().norm.norm.weight.is_none());
    assert!(Checkpoint::open(&broken("no-eps"), &Overrides { norm_eps: Some(0.1), ..Overrides::default() }).is_ok());

    let error = refused(&fixtures("gguf"), &Overrides::default());
    assert!(error.contains("no config.json") && error.contains("gemma3-q8_0.gguf"), "{error}");
    let config = Overrides { config: Some("config.json".into()), ..Overrides::default() };
    assert!(refused(&gguf("llama-f16"), &config).contains("remove config"));
    let wrong = Overrides { embedding_tensor: Some("no.such".into()), ..Overrides::default() };
    assert!(refused(&gguf("llama-f16"), &wrong).contains("no tensor no.such"));
}

#[test]
fn a_server_takes_a_gguf_file_as_path() {
    let app = TestApp::start(|config| config.models[0].path = gguf("gemma3-q8_0"));
    let golden = golden(&gguf("gemma3-q8_0"));
    let answer = app.embed(&json!({"input": golden.texts}));
    assert_eq!(answer.body["usage"]["prompt_tokens"], golden.ids.iter().map(Vec::len).sum::<usize>());
    for (vector, mean) in answer.vectors().iter().zip(&golden.mean) {
        let mean = mean.as_ref().unwrap();
        let unit: Vec<f32> = mean.iter().map(|x| (f64::from(*x) / length(mean)) as f32).collect();
        assert!(difference(vector, &unit) < 1e-3);
    }
}

/// `extract` turns a GGUF file into a directory with the same vectors. The 1 in Gemma's norm is subtracted when the
/// directory is written and added again when it is read.
#[test]
fn an_extracted_file_is_a_directory_of_the_same_vectors() {
    let vectors = |path: &Path, texts: &[String]| {
        let settings = settings(|settings| settings.normalize = Some(false));
        Embedder::new(open(path), settings).unwrap().embed(texts).unwrap()
    };
    for name in names("gguf") {
        let path = gguf(&name);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let source = GgufSource::open(&path, &Overrides::default()).unwrap();
        extract(&source, &out, &Options::default(), &Silent).unwrap();
        let texts = golden(&path).texts;
        for (file, directory) in vectors(&path, &texts).iter().zip(vectors(&out, &texts)) {
            let size = file.iter().fold(1.0f32, |max, x| x.abs().max(max));
            assert!(difference(file, &directory) <= 1e-6 * size, "{name}: {}", difference(file, &directory));
        }
        let card = std::fs::read_to_string(out.join("README.md")).unwrap();
        assert_eq!(card.contains("Decoded: the table from"), open(&path).table_source.map.is_none(), "{name}: {card}");
    }
}

/// The texts are runs, with lengths from 1 to 100, of every character of the vocabulary and of every token that repeats
/// itself.
#[test]
fn runs_of_one_token_are_tokenized_as_by_the_models_own_file() {
    for (name, judge) in [("gemma", "gemma"), ("gemma-2024", "gemma"), ("gemma2", "gemma2"), ("gemma3", "gemma3")] {
        let path = fixtures("gguf-runs").join(name);
        let json = fixtures("gguf-runs").join(judge).with_extension("json");
        let judge = HfTokenizer::from_json(&std::fs::read(&json).unwrap()).unwrap();
        let embedder = Embedder::new(open(&path.with_extension("gguf")), Settings::default()).unwrap();
        let parts = [" ", "\n", "\t", "a", "ab", "=", "x", " t", "the ", "\n\t", " \n", "in", "  t", "\u{2581}"];
        for part in parts {
            for count in 1..=100 {
                for text in [part.repeat(count), format!("the{}x", part.repeat(count))] {
                    let mut expected = Vec::new();
                    judge.encode(&text, true, &mut expected).unwrap();
                    let tokens = embedder.tokens(0, &Input::Text(text)).unwrap();
                    assert_eq!(tokens.ids(), expected, "{name}: {count} times {part:?}");
                }
            }
        }
    }
}
