//! Compares GGUF files of every architecture with the models that they are made from
//! (`tests/fixtures/make_architectures.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use layer0::checkpoint::{Checkpoint, Overrides};
use layer0::embedder::Embedder;
use layer0::error::LoadError;
use layer0::extract::gguf::GgufSource;
use layer0::extract::{Options, extract};
use layer0::norm::NormKind;
use layer0::progress::Silent;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Deserialize;
use serde_json::Value;

use crate::common::{difference, fixtures, settings};

#[derive(Deserialize)]
struct Golden {
    texts: Vec<String>,
    cases: Vec<Case>,
    /// The architectures that are refused, by a part of the reason in the message.
    refused: BTreeMap<String, Vec<String>>,
    #[serde(flatten)]
    numbers: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Case {
    file: String,
    config: Value,
    tensors: BTreeMap<String, String>,
    directory: bool,
    vectors: Vec<Vec<f32>>,
}

fn folder() -> PathBuf {
    fixtures("gguf-architectures")
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(folder().join("golden.json")).unwrap()).unwrap()
}

fn overrides() -> Overrides {
    Overrides { tokenizer: Some(folder().join("tokenizer.json")), ..Overrides::default() }
}

fn vectors(path: &Path, overrides: &Overrides, texts: &[String]) -> Result<Vec<Vec<f32>>, LoadError> {
    let settings = settings(|settings| settings.normalize = Some(false));
    let embedder = Embedder::new(Checkpoint::open(path, overrides)?, settings)?;
    Ok(embedder.embed(texts).unwrap())
}

/// Returns the largest error of the vectors, relative to the largest number of the right ones.
fn error(found: &[Vec<f32>], right: &[Vec<f32>]) -> f32 {
    let size = right.iter().flatten().fold(0.0f32, |max, x| x.abs().max(max));
    found.iter().zip(right).map(|(found, right)| difference(found, right) / size).fold(0.0, f32::max)
}

/// Writes the directory that the GGUF file was converted from.
fn write_directory(dir: &Path, golden: &Golden, case: &Case) {
    let numbers = |name: &String| -> (Vec<usize>, Vec<u8>) {
        let value = &golden.numbers[name];
        let rows: Vec<Vec<f32>> = serde_json::from_value(value.clone())
            .unwrap_or_else(|_| vec![serde_json::from_value(value.clone()).unwrap()]);
        let shape = if value[0].is_array() { vec![rows.len(), rows[0].len()] } else { vec![rows[0].len()] };
        (shape, rows.concat().into_iter().flat_map(f32::to_le_bytes).collect())
    };
    let data: BTreeMap<&String, _> = case.tensors.iter().map(|(name, which)| (name, numbers(which))).collect();
    let views = data
        .iter()
        .map(|(name, (shape, bytes))| ((*name).clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    std::fs::write(dir.join("config.json"), case.config.to_string()).unwrap();
    std::fs::copy(folder().join("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
}

#[test]
fn every_architecture_has_the_vectors_of_its_model() {
    let golden = golden();
    let mut wrong = Vec::new();
    for case in &golden.cases {
        match vectors(&folder().join(&case.file).with_extension("gguf"), &overrides(), &golden.texts) {
            Ok(found) if error(&found, &case.vectors) < 1e-5 => {}
            Ok(found) => wrong.push(format!("{}: off by {}", case.file, error(&found, &case.vectors))),
            Err(error) => wrong.push(format!("{}: {error}", case.file)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(golden.cases.len() > 120);
}

/// The list of model types for directories and the list of architectures for GGUF files agree on every model that is in
/// both.
#[test]
fn the_directory_of_a_model_has_the_same_vectors() {
    let golden = golden();
    let (mut compared, mut wrong) = (0, Vec::new());
    for case in golden.cases.iter().filter(|case| case.directory) {
        let dir = tempfile::tempdir().unwrap();
        write_directory(dir.path(), &golden, case);
        match vectors(dir.path(), &Overrides::default(), &golden.texts) {
            Ok(found) if error(&found, &case.vectors) < 1e-5 => compared += 1,
            Ok(found) => wrong.push(format!("{}: off by {}", case.file, error(&found, &case.vectors))),
            Err(error) if error.to_string().contains("which is not known here") => {}
            Err(error) => wrong.push(format!("{}: {error}", case.file)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared > 75, "only {compared} of the models are known in both forms");
}

/// `extract` either writes the same model or reports an error that does not lead the user to wrong vectors.
#[test]
fn an_extracted_architecture_has_the_same_vectors() {
    let golden = golden();
    let mut extracted = 0;
    for case in &golden.cases {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        match GgufSource::open(&folder().join(&case.file).with_extension("gguf"), &overrides()) {
            Ok(source) => {
                extract(&source, &out, &Options::default(), &Silent).unwrap_or_else(|e| panic!("{}: {e}", case.file));
                let found = vectors(&out, &Overrides::default(), &golden.texts)
                    .unwrap_or_else(|e| panic!("{}: {e}", case.file));
                let error = error(&found, &case.vectors);
                assert!(error < 1e-5, "{}: off by {error}", case.file);
                extracted += 1;
            }
            Err(error) => assert!(error.to_string().contains("serve the GGUF file itself"), "{}: {error}", case.file),
        }
    }
    assert!(extracted > 75, "only {extracted}");
}

#[test]
fn what_is_no_norm_over_a_row_is_refused_with_the_reason() {
    let golden = golden();
    let texts = &golden.texts;
    for (reason, architectures) in &golden.refused {
        for architecture in architectures {
            let path = folder().join("refused").join(architecture).with_extension("gguf");
            let error = vectors(&path, &overrides(), texts).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("take another model"), "{architecture}: {error}");
            // No remedy may lead to wrong vectors.
            assert!(!error.contains("embedding_scale") && !error.contains("\"rms\""), "{architecture}: {error}");
            let rows = Overrides { norm: Some(NormKind::None), ..overrides() };
            assert!(vectors(&path, &rows, texts).is_ok(), "{architecture}");
        }
    }
}

/// Each setting replaces one value of the file.
#[test]
fn overrides_replace_what_the_architecture_says() {
    let open = |name: &str, overrides: Overrides| {
        Checkpoint::open(&folder().join(name), &overrides).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    assert_eq!(open("falcon-h1.gguf", overrides()).norm.embedding_scale, 1.0);
    let scaled = Overrides { embedding_scale: Some(2.0), norm_eps: Some(0.5), ..overrides() };
    let opened = open("gemma.gguf", scaled.clone());
    assert_eq!((opened.norm.embedding_scale, opened.norm.norm.eps), (2.0, 0.5));
    let opened = open("bloom.gguf", scaled);
    assert_eq!(opened.norm.embedding_norm.map(|norm| norm.eps), Some(0.5));
    let other =
        Overrides { norm: Some(NormKind::Rms), norm_tensor: Some("token_embd_norm.weight".into()), ..overrides() };
    let opened = open("bloom.gguf", other);
    assert_eq!((opened.norm.norm.kind, opened.norm_source.as_deref()), (NormKind::Rms, Some("token_embd_norm.weight")));
}
