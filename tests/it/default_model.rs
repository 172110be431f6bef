//! The model inside the program: its files, their provenance, its vectors.

use std::path::Path;

use embedding_server::builtin::{BUILTIN, open_checkpoint};
use layer0::checkpoint::{Checkpoint, Kind, Overrides};
use layer0::embedder::{Embedder, Input, Settings};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::common::{difference, length};

fn file(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default").join(name)).unwrap()
}

fn open() -> Checkpoint {
    open_checkpoint(Path::new(BUILTIN), &Overrides::default()).unwrap()
}

#[derive(Deserialize)]
struct Golden {
    text: String,
    ids: Vec<u32>,
    vector: Vec<f32>,
}

#[test]
fn its_vectors_are_numpys_over_the_committed_files() {
    let embedder = Embedder::new(open(), Settings::default()).unwrap();
    let golden: Vec<Golden> = serde_json::from_slice(&file("golden.json")).unwrap();
    assert!(golden.len() >= 15);
    for Golden { text, ids, vector } in golden {
        assert_eq!(embedder.tokens(0, &Input::Text(text.clone())).unwrap().ids(), ids, "{text:?}");
        let ours = embedder.embed(&[&text]).unwrap().remove(0);
        assert!(difference(&ours, &vector) < 1e-6, "{text:?}: {}", difference(&ours, &vector));
    }
}

#[test]
fn a_text_that_the_vocabulary_lacks_still_has_a_vector_of_length_one() {
    let embedder = Embedder::new(open(), Settings::default()).unwrap();
    for text in ["", " ", "𒀀𒀁", "\u{0}"] {
        let vector = embedder.embed(&[text]).unwrap().remove(0);
        assert!((length(&vector) - 1.0).abs() < 1e-6, "{text:?}");
    }
}

#[test]
fn the_program_holds_the_committed_files() {
    let checkpoint = open();
    assert_eq!(checkpoint.kind, Kind::Refined);
    assert!(checkpoint.warnings.is_empty(), "{:?}", checkpoint.warnings);
    assert_eq!(checkpoint.table.dimensions(), 384);
    assert!(file("model.safetensors").ends_with(checkpoint.table.bytes()));
    assert_eq!(checkpoint.tokenizer.rebuilt.unwrap().as_bytes(), file("tokenizer.json"));
}

#[test]
fn the_files_are_those_of_the_provenance_and_small() {
    let sums = String::from_utf8(file("SHA256SUMS")).unwrap();
    let mut total = 0;
    for line in sums.lines() {
        let (sum, name) = line.split_once("  ").unwrap();
        let content = file(name);
        let digest: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, sum, "{name}");
        total += content.len();
    }
    assert_eq!(sums.lines().count(), 3);
    assert!(total <= 20_000_000, "{total} bytes");
    let readme = String::from_utf8(file("README.md")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&file("config.json")).unwrap();
    for part in ["source", "fitted_on"] {
        let digest = config["refined"][part]["sha256"].as_str().unwrap();
        assert!(readme.contains(digest), "README.md lacks the digest of {part}");
    }
}
