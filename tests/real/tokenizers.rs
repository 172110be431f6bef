//! Compares the tokenizer that is chosen for each real tokenizer.json, and the built-in model's tokenizer, with the reference on
//! many generated texts.
//!
//!     REAL_DIR=target/real cargo test --release --test real_tokenizers
//!
//! `TEXTS` is the number of texts per tokenizer (default: 100000). `MORE_TEXTS` names a file whose lines are added to the sentences.

// A test reports a failure by a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "../texts/mod.rs"]
mod texts;

use std::path::Path;

use layer0::checkpoint::tokenizer_json;
use layer0_tokenizers::Tokenize;
use layer0_tokenizers::choose::Tokenizer;
use layer0_tokenizers::reference::HfTokenizer;

fn main() {
    let Ok(dir) = std::env::var("REAL_DIR") else {
        println!("no real tokenizers are compared: REAL_DIR is not set (tests/real/fetch makes that directory)");
        return;
    };
    let count = std::env::var("TEXTS").map_or(100_000, |count| count.parse().unwrap());
    let more: Vec<String> = std::env::var("MORE_TEXTS").map_or_else(
        |_| Vec::new(),
        |file| std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect(),
    );
    compare(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default/tokenizer.json"), count, &more);
    let mut compared = 0;
    for entry in std::fs::read_dir(Path::new(&dir).join("tokenizers")).unwrap() {
        let path = entry.unwrap().path().join("tokenizer.json");
        if path.exists() {
            compare(&path, count, &more);
            compared += 1;
        }
    }
    assert!(compared > 0, "{dir}/tokenizers holds no tokenizer.json");
}

fn compare(path: &Path, count: usize, more: &[String]) {
    let json = std::fs::read(path).unwrap();
    let reference = HfTokenizer::from_json(&json).unwrap();
    let added: Vec<String> = reference.vocabulary().added.into_iter().map(|token| token.content).collect();
    let pieces = texts::pieces(&json, &reference);
    let (opened, compiled, key) = tokenizer_json::open_and_compile(path).unwrap();
    assert_eq!(opened.choice.remark(), None, "{}", path.display());
    // A compiled tokenizer is compared instead of the one that it was compiled from: no table may be lost on the way.
    let opened = match compiled {
        Some(bytes) => Tokenizer::from_compiled(&mut &*bytes, bytes.len() as u64, key).unwrap(),
        None => opened,
    };
    let implementation = opened.choice.implementation;
    let (mut bytes, mut tokens) = (0, 0);
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    let texts = texts::Texts::new(11, &pieces, &added, more).take(count);
    for (text, special) in texts.zip([true, false].into_iter().cycle()) {
        expected.clear();
        reference.encode(&text, special, &mut expected).unwrap();
        found.clear();
        implementation.encode(&text, special, &mut found).unwrap();
        assert_eq!(found, expected, "{} by {}: {text:?}", path.display(), implementation.name());
        bytes += text.len();
        tokens += expected.len();
    }
    println!(
        "{} by {}: {count} texts, {bytes} bytes, {tokens} tokens: all equal",
        path.display(),
        implementation.name()
    );
}
