//! Tests where a model's fingerprint is reported, which settings change it, and that `expect_fingerprint` refuses other models.

use std::path::Path;

use layer0::Embedder;
use layer0::error::LoadErrorKind;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::json;

use crate::common::{TestApp, checkpoint, copy_of};
use crate::process::command;

const OTHER: &str = "00000000000000000000000000000000";

fn fingerprint(path: &Path) -> String {
    Embedder::open(path).unwrap().fingerprint().to_string()
}

#[test]
fn a_fingerprint_is_the_same_in_the_api_the_commands_and_the_files() {
    let llama = checkpoint("llama");
    let expected = fingerprint(&llama);
    let app = TestApp::start(|_| {});
    for path in ["/v1/models/text-embedding-3-small", "/v1/models"] {
        let body = app.get(path).body;
        let entry = body["data"].get(0).unwrap_or(&body);
        assert_eq!(entry["fingerprint"], expected, "{path}");
    }
    // A short response, a long one, and a response to a request with dimensions.
    for body in [json!({"input": "a"}), json!({"input": vec!["a"; 2000]}), json!({"input": "a", "dimensions": 3})] {
        assert_eq!(app.embed(&body).header("embedding-fingerprint"), expected);
    }
    assert_eq!(app.embed(&json!({"input": "a", "model": "none"})).header("embedding-fingerprint"), "");

    let path = llama.to_str().unwrap();
    for args in [&["inspect", path][..], &["check", "--load", "--model", path]] {
        let output = command(args).output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.lines().any(|line| line.contains("fingerprint") && line.ends_with(&expected)), "{text}");
    }

    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.txt");
    std::fs::write(&input, "a\nb\n").unwrap();
    let embed = |name: &str, sparse: &[&str]| {
        let out = dir.path().join(name);
        let args = ["embed", input.to_str().unwrap(), "--model", path, "--output", out.to_str().unwrap()];
        assert!(command(&[&args, sparse].concat()).status().unwrap().success());
        std::fs::read(out).unwrap()
    };
    for (name, sparse) in [("dense.safetensors", &[][..]), ("sparse.safetensors", &["--sparse"])] {
        let bytes = embed(name, sparse);
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["embedding_fingerprint"], expected, "{name}");
    }
    let file = bytes::Bytes::from(embed("out.parquet", &[]));
    let reader = SerializedFileReader::new(file).unwrap();
    let pairs = reader.metadata().file_metadata().key_value_metadata().unwrap();
    let pair = pairs.iter().find(|pair| pair.key == "embedding_fingerprint").unwrap();
    assert_eq!(pair.value.as_deref(), Some(expected.as_str()));
}

#[test]
fn only_settings_that_change_vectors_change_the_fingerprint() {
    let llama = checkpoint("llama");
    let plain = fingerprint(&llama);
    let with = |change: fn(layer0::EmbedderBuilder) -> layer0::EmbedderBuilder| {
        change(Embedder::builder(&llama)).open().unwrap().fingerprint().to_string()
    };
    for same in [
        with(|b| b.normalize(true).special_tokens(true)),
        with(|b| b.dimensions(3)),
        with(|b| b.token_input(layer0::TokenInput::Model).empty_input(layer0::EmptyInput::Reject)),
        with(|b| b.max_input_tokens(5).load_threads(1).memory(layer0::Memory::Copy)),
        fingerprint(copy_of("llama").path()),
    ] {
        assert_eq!(same, plain);
    }
    let overridden =
        |overrides| Embedder::builder(&llama).overrides(overrides).open().unwrap().fingerprint().to_string();
    let eps = layer0::Overrides { norm_eps: Some(0.5), ..Default::default() };
    let scale = layer0::Overrides { embedding_scale: Some(2.0), ..Default::default() };
    let tokenizer = copy_of("llama");
    let path = tokenizer.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text}\n")).unwrap();
    let others = [
        with(|b| b.normalize(false)),
        with(|b| b.special_tokens(false)),
        with(|b| b.token_count_exponent(0.5)),
        overridden(eps),
        overridden(scale),
        fingerprint(tokenizer.path()),
        fingerprint(&checkpoint("llama-f16")),
    ];
    for (i, other) in others.iter().enumerate() {
        assert!(*other != plain && !others[..i].contains(other), "{i}");
    }
}

#[test]
fn extract_keeps_the_fingerprint() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["llama-full", "llama-sharded", "gemma3-text"] {
        let out = dir.path().join(name);
        let source = checkpoint(name);
        let status = command(&["extract", source.to_str().unwrap(), out.to_str().unwrap()]).status().unwrap();
        assert!(status.success(), "{name}");
        assert_eq!(fingerprint(&out), fingerprint(&source), "{name}");
    }
}

#[test]
fn a_model_with_another_fingerprint_than_expected_is_refused() {
    let llama = checkpoint("llama");
    let expected = fingerprint(&llama);
    let error = Embedder::builder(&llama).expect_fingerprint(OTHER.parse().unwrap()).open().unwrap_err();
    assert_eq!(error.kind(), LoadErrorKind::Mismatch);
    assert!(Embedder::builder(&llama).expect_fingerprint(expected.parse().unwrap()).open().is_ok());

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    let config = file.to_str().unwrap().to_owned();
    let write = |fingerprint: &str| {
        let text = format!("[[models]]\nid = \"m\"\npath = {llama:?}\nexpect_fingerprint = \"{fingerprint}\"\n");
        std::fs::write(&file, text).unwrap();
    };
    for (fingerprint, code) in [(expected.to_uppercase().as_str(), 0), (OTHER, 78), ("abc", 78)] {
        write(fingerprint);
        let output = command(&["check", "--load", "--config", &config]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert_eq!(said.contains(&expected), fingerprint == OTHER, "{said}");
    }
    write(OTHER);
    let output = command(&["serve", "--port", "0", "--config", &config]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains(&expected) && said.contains(OTHER), "{said}");
}

#[test]
fn the_built_in_model_has_the_fingerprint_of_its_directory() {
    let output = command(&["inspect", "builtin:default"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default");
    assert!(text.contains(&fingerprint(&directory)), "{text}");
}
