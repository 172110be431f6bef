//! Every implementation of the tokenizer gives the reference's ids.

use std::path::Path;
use std::sync::Arc;

use embedding_server::checkpoint::{Checkpoint, Overrides};
use embedding_server::embedder::{Embedder, Settings};
use embedding_server::tokenize::choose::Tokenizer;
use embedding_server::tokenize::reference::HfTokenizer;
use embedding_server::tokenize::spbpe::SentencePieceBpe;
use embedding_server::tokenize::{Tokenize, Vocabulary};
use serde_json::{Value, json};

use crate::common::checkpoint;
use crate::texts::Texts;

fn ids(tokenizer: &dyn Tokenize, text: &str, special: bool) -> Vec<u32> {
    let mut ids = Vec::new();
    tokenizer.encode(text, special, &mut ids).unwrap();
    ids
}

fn compare(json: &[u8], candidate: &dyn Tokenize, texts: usize, seed: u64) {
    let reference = HfTokenizer::from_json(json, Path::new("")).unwrap();
    let Vocabulary { added, .. } = reference.vocabulary();
    let added: Vec<String> = added.into_iter().map(|token| token.content).collect();
    let value: Value = serde_json::from_slice(json).unwrap();
    let pieces: Vec<String> = value["model"]["vocab"].as_object().unwrap().keys().cloned().collect();
    for (text, special) in Texts::new(seed, &pieces, &added, &[]).take(texts).zip([true, false].into_iter().cycle()) {
        assert_eq!(ids(candidate, &text, special), ids(&reference, &text, special), "{}: {text:?}", candidate.name());
    }
}

fn tokenizer_json(name: &str) -> Vec<u8> {
    std::fs::read(checkpoint(name).join("tokenizer.json")).unwrap()
}

/// The Llama tokenizer of the fixtures, changed.
fn changed(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(&tokenizer_json("llama")).unwrap();
    change(&mut value);
    serde_json::to_vec(&value).unwrap()
}

#[test]
fn the_tokenizer_of_every_checkpoint_gives_the_ids_of_the_reference() {
    let mut seen = std::collections::BTreeMap::new();
    for (seed, entry) in std::fs::read_dir(checkpoint("")).unwrap().enumerate() {
        let path = entry.unwrap().path().join("tokenizer.json");
        let tokenizer = Tokenizer::open(&path).unwrap().settle().choice;
        assert_eq!(tokenizer.remark(), None, "{}", path.display());
        *seen.entry(tokenizer.implementation.name()).or_insert(0) += 1;
        compare(&std::fs::read(&path).unwrap(), &*tokenizer.implementation, 300, seed as u64);
    }
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), ["fastokens", "spbpe"], "{seen:?}");
}

/// The embedder that starts at once serves by the reference; what is found later gives the same ids, and frees it.
#[test]
fn a_faster_tokenizer_replaces_the_reference_while_it_serves() {
    let open = || Checkpoint::open(&checkpoint("qwen2"), &Overrides::default()).unwrap();
    let (embedder, search) = Embedder::start(open(), Settings::default()).unwrap();
    let texts = ["Hello, world!", "안녕하세요", "", " a  b\n", "<|endoftext|>"];
    assert_eq!(embedder.tokenizer(), "tokenizers");
    let before = embedder.embed(&texts).unwrap();

    let reference = Arc::downgrade(&embedder.choice().implementation);
    let replaced = embedder.adopt(search.unwrap().run());
    assert_eq!((embedder.tokenizer(), embedder.choice().remark()), ("fastokens", None));
    assert_eq!(embedder.embed(&texts).unwrap(), before);
    drop(replaced);
    assert!(reference.upgrade().is_none(), "the reference is still in memory");

    assert_eq!(Embedder::new(open(), Settings::default()).unwrap().tokenizer(), "fastokens");
    let llama = Checkpoint::open(&checkpoint("llama"), &Overrides::default()).unwrap();
    let (embedder, search) = Embedder::start(llama, Settings::default()).unwrap();
    assert_eq!((embedder.tokenizer(), search.is_none()), ("spbpe", true));
}

#[test]
fn added_tokens_in_normalized_text_and_those_that_begin_alike() {
    let json = changed(|value| {
        let added = value["added_tokens"].as_array_mut().unwrap();
        for (n, (content, normalized)) in
            [("ab", true), ("abc", true), ("x y", true), ("<ab", false), ("<abc>", false), ("▁▁", false), ("é", true)]
                .iter()
                .enumerate()
        {
            let mut token = added[0].clone();
            token["id"] = json!(1000 + n);
            token["content"] = json!(content);
            token["normalized"] = json!(normalized);
            token["special"] = json!(false);
            added.push(token);
        }
    });
    let reference = HfTokenizer::from_json(&json, Path::new("")).unwrap();
    // The library numbers new tokens itself; write down how.
    let mut value: Value = serde_json::from_slice(&json).unwrap();
    for token in value["added_tokens"].as_array_mut().unwrap() {
        let known = reference.vocabulary().added;
        token["id"] = json!(known.iter().find(|k| token["content"] == k.content).unwrap().id);
    }
    let json = serde_json::to_vec(&value).unwrap();
    let candidate = SentencePieceBpe::from_json(&json).unwrap();
    compare(&json, &candidate, 2000, 1);
    for text in ["ab abc x y", "<abc> <ab <abc", "a▁▁▁b", " ab", "é", "x  y", "abab", ""] {
        assert_eq!(ids(&candidate, text, true), ids(&reference, text, true), "{text:?}");
    }
}

/// Joins a letter to a following space, and a space to itself: nothing may be cut there any more.
#[test]
fn merges_across_spaces_are_kept() {
    let json = changed(|value| {
        let vocabulary = value["model"]["vocab"].as_object_mut().unwrap();
        let next = vocabulary.values().filter_map(Value::as_u64).max().unwrap() + 1;
        for (n, token) in ["e▁", "▁▁", "▁▁▁▁", "e▁t", ".▁", "ee", "eee", "▁e▁"].iter().enumerate()
        {
            vocabulary.insert((*token).to_owned(), json!(next + n as u64));
        }
        let merges = value["model"]["merges"].as_array_mut().unwrap();
        let pairs =
            [("▁", "▁"), ("▁▁", "▁▁"), ("e▁", "t"), (".", "▁"), ("e", "e"), ("ee", "e"), ("▁", "e▁"), ("e", "▁")];
        let mut at = 0;
        for pair in pairs {
            merges.insert(at, json!(pair));
            at = (at * 7 + 3) % merges.len();
        }
        for merge in merges.iter_mut().filter(|merge| merge.is_string()) {
            let (a, b) = merge.as_str().unwrap().split_once(' ').unwrap();
            *merge = json!([a, b]);
        }
    });
    let candidate = SentencePieceBpe::from_json(&json).unwrap();
    compare(&json, &candidate, 4000, 2);
    for text in
        ["the eel. e e  e    e te tee eee", "eeeeeeeeeee", "e e e e e e e e e e e e e e e e e e e e e e e e t t"]
    {
        let reference = HfTokenizer::from_json(&json, Path::new("")).unwrap();
        assert_eq!(ids(&candidate, text, false), ids(&reference, text, false), "{text:?}");
    }
}

#[test]
fn what_is_not_reproduced_is_refused() {
    let refusals: [(&str, &str, Value); 9] = [
        ("/model/type", "not BPE", json!("Unigram")),
        ("/model/byte_fallback", "byte_fallback", json!(false)),
        ("/model/ignore_merges", "ignores merges", json!(true)),
        ("/model/dropout", "dropout", json!(0.1)),
        ("/added_tokens/0/lstrip", "strips spaces", json!(true)),
        ("/added_tokens/0/single_word", "single_word", json!(true)),
        ("/normalizer", "normalizer", json!({"type": "NFC"})),
        ("/pre_tokenizer", "pre-tokenizer", json!({"type": "Whitespace"})),
        ("/post_processor", "post-processor", json!({"type": "BertProcessing"})),
    ];
    for (pointer, reason, to) in refusals {
        let json = changed(|value| *value.pointer_mut(pointer).unwrap() = to);
        let error = SentencePieceBpe::from_json(&json).err().unwrap();
        assert!(error.contains(reason), "{pointer}: {error}");
    }
    for (change, reason) in [
        (
            (|v: &mut Value| drop(v["model"]["vocab"].as_object_mut().unwrap().remove("<0xE2>"))) as fn(&mut Value),
            "0xE2",
        ),
        (|v| drop(v["model"]["vocab"].as_object_mut().unwrap().remove("▁")), ""),
        (|v| v["model"]["vocab"]["<0xE2>"] = json!(5), "same id"),
    ] {
        let error = SentencePieceBpe::from_json(&changed(change)).err().unwrap();
        assert!(error.contains(reason), "{error}");
    }
}
