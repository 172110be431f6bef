//! Tests that every implementation of the tokenizer returns the same token IDs as the reference.

use layer0::checkpoint::{Checkpoint, Overrides, tokenizer_json};
use layer0::embedder::{Embedder, Settings};
use layer0_tokenizers::bytebpe::ByteBpe;
use layer0_tokenizers::choose::Tokenizer;
use layer0_tokenizers::reference::HfTokenizer;
use layer0_tokenizers::spbpe::SentencePieceBpe;
use layer0_tokenizers::unigram::Unigram;
use layer0_tokenizers::{DefinitionErrorKind, Tokenize, Vocabulary};
use serde_json::{Value, json};

use crate::common::{checkpoint, copy_of};
use crate::texts::{Texts, pieces};

fn ids(tokenizer: &dyn Tokenize, text: &str, special: bool) -> Vec<u32> {
    let mut ids = Vec::new();
    tokenizer.encode(text, special, &mut ids).unwrap();
    ids
}

fn compare(json: &[u8], candidate: &dyn Tokenize, texts: usize, seed: u64) {
    let reference = HfTokenizer::from_json(json).unwrap();
    let Vocabulary { added, .. } = reference.vocabulary();
    let added: Vec<String> = added.into_iter().map(|token| token.content).collect();
    let pieces = pieces(json, &reference);
    for (text, special) in Texts::new(seed, &pieces, &added, &[]).take(texts).zip([true, false].into_iter().cycle()) {
        assert_eq!(ids(candidate, &text, special), ids(&reference, &text, special), "{}: {text:?}", candidate.name());
    }
}

fn tokenizer_json(name: &str) -> Vec<u8> {
    std::fs::read(checkpoint(name).join("tokenizer.json")).unwrap()
}

/// Returns a changed copy of the Llama tokenizer of the fixtures.
fn changed(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    changed_of("llama", change)
}

fn changed_of(name: &str, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(&tokenizer_json(name)).unwrap();
    change(&mut value);
    serde_json::to_vec(&value).unwrap()
}

/// Gives new added tokens the IDs that the library assigns to them, because it ignores the IDs in the file.
fn renumbered(json: &[u8]) -> Vec<u8> {
    let known = HfTokenizer::from_json(json).unwrap().vocabulary().added;
    let mut value: Value = serde_json::from_slice(json).unwrap();
    for token in value["added_tokens"].as_array_mut().unwrap() {
        token["id"] = json!(known.iter().find(|k| token["content"] == k.content).unwrap().id);
    }
    serde_json::to_vec(&value).unwrap()
}

#[test]
fn the_tokenizer_of_every_checkpoint_gives_the_ids_of_the_reference() {
    let mut seen = std::collections::BTreeMap::new();
    for (seed, entry) in std::fs::read_dir(checkpoint("")).unwrap().enumerate() {
        let path = entry.unwrap().path().join("tokenizer.json");
        let tokenizer = tokenizer_json::open(&path).unwrap();
        let tokenizer = tokenizer.choice;
        assert_eq!(tokenizer.remark(), None, "{}", path.display());
        *seen.entry(tokenizer.implementation.name()).or_insert(0) += 1;
        let json = std::fs::read(&path).unwrap();
        compare(&json, &*tokenizer.implementation, 300, seed as u64);
    }
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), ["bytebpe", "spbpe"], "{seen:?}");
}

#[test]
fn a_tokenizer_that_no_faster_implementation_reads_is_tokenized_by_the_reference_and_named() {
    let grouped = copy_of("qwen2");
    let json = changed_of("qwen2", |value| {
        *value.pointer_mut("/pre_tokenizer/pretokenizers/0/pattern/Regex").unwrap() =
            json!(r"(?:\p{L}|\p{N})+|\s|[^\s\p{L}\p{N}]+");
    });
    std::fs::write(grouped.path().join("tokenizer.json"), json).unwrap();
    let checkpoint = Checkpoint::open(grouped.path(), &Overrides::default()).unwrap();
    let embedder = Embedder::new(checkpoint, Settings::default()).unwrap();
    assert_eq!(embedder.tokenizer(), "tokenizers");
    let remark = embedder.choice().remark().unwrap();
    assert!(remark.contains("is tokenized by tokenizers") && remark.contains("bytebpe: "), "{remark}");
    let texts = ["Hello, world!", "안녕하세요", "", " a  b\n", "<|endoftext|>"];
    assert_eq!(embedder.embed(&texts).unwrap().len(), texts.len());
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
    let json = renumbered(&json);
    let reference = HfTokenizer::from_json(&json).unwrap();
    let candidate = SentencePieceBpe::from_json(&json).unwrap();
    compare(&json, &candidate, 2000, 1);
    for text in ["ab abc x y", "<abc> <ab <abc", "a▁▁▁b", " ab", "é", "x  y", "abab", ""] {
        assert_eq!(ids(&candidate, text, true), ids(&reference, text, true), "{text:?}");
    }
}

/// Some merges join a letter to a following space, or a space to another space, so texts must not be cut at these
/// places.
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
        let reference = HfTokenizer::from_json(&json).unwrap();
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
        let error = SentencePieceBpe::from_json(&json).err().unwrap().to_string();
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
        assert_eq!(error.kind() == DefinitionErrorKind::Malformed, reason == "same id", "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

/// A word that is in the vocabulary becomes one token, even if its merges produce other tokens or do not produce the
/// word.
#[test]
fn a_model_that_ignores_merges_takes_words_whole() {
    const LONG: &str = "pneumonoultramicroscopical";
    const LONGER: &str = "pneumonoultramicroscopicsilicovolcanoconiosis";
    let json = changed_of("qwen2", |value| {
        value["model"]["ignore_merges"] = json!(true);
        value["normalizer"] = Value::Null;
        let vocabulary = value["model"]["vocab"].as_object_mut().unwrap();
        let next = vocabulary.values().filter_map(Value::as_u64).max().unwrap() + 1;
        for (n, token) in ["Ġquux", "xyzzy", "é", "Ã©Ã©", "ĠÃ©", "ĊĊĊ", LONG, LONGER].iter().enumerate() {
            vocabulary.insert((*token).to_owned(), json!(next + n as u64));
        }
        let split = value.pointer_mut("/pre_tokenizer/pretokenizers/0/pattern/Regex").unwrap();
        *split = json!(split.as_str().unwrap().replace(r"|\p{N}|", r"|\p{N}{1,3}|"));
    });
    let json = renumbered(&json);
    let candidate = ByteBpe::from_json(&json).unwrap();
    compare(&json, &candidate, 4000, 6);
    let reference = HfTokenizer::from_json(&json).unwrap();
    for text in [
        "a quux xyzzy quuxx",
        "éé é éé",
        "a\n\n\nb",
        "12345 1234",
        "e\u{301}",
        "",
        "xyzzyxyzzy",
        LONG,
        LONGER,
        "a pneumonoultramicroscopicall",
    ] {
        assert_eq!(ids(&candidate, text, true), ids(&reference, text, true), "{text:?}");
    }
}

/// The pre-tokenizers of byte-level models return the reference's IDs with any of their normalizers and added tokens.
#[test]
fn byte_level_models_of_every_family_give_the_ids_of_the_reference() {
    let split =
        |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let upper = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]";
    let lower = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]";
    let behind = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?";
    let o200k = format!(
        r"{upper}*{lower}+{behind}|{upper}+{lower}*{behind}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    let deepseek =
        r"[!-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let steps = [
        vec![bytes(true)],
        vec![digits, bytes(true)],
        vec![split(&o200k), bytes(false)],
        vec![split(r"\p{N}{1,3}"), split("[一-龥\u{3040}-ゟ゠-ヿ]+"), split(deepseek), bytes(false)],
    ];
    let normalizers = [
        Value::Null,
        json!({"type": "NFC"}),
        json!({"type": "Sequence", "normalizers": []}),
        json!({"type": "Sequence", "normalizers": [{"type": "NFC"}]}),
    ];
    for (seed, (steps, normalizer)) in steps.iter().zip(normalizers).enumerate() {
        let json = changed_of("qwen2", |value| {
            value["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": steps});
            value["normalizer"] = normalizer;
            let added = value["added_tokens"].as_array_mut().unwrap();
            for (n, (content, normalized)) in
                [("e\u{301}x", true), ("    ", true), ("ab", false), ("abc", true), ("é", true)].iter().enumerate()
            {
                let mut token = added[0].clone();
                (token["id"], token["content"]) = (json!(1000 + n), json!(content));
                (token["normalized"], token["special"]) = (json!(normalized), json!(false));
                added.push(token);
            }
        });
        let json = renumbered(&json);
        let candidate = ByteBpe::from_json(&json).unwrap();
        compare(&json, &candidate, 2000, 20 + seed as u64);
        let reference = HfTokenizer::from_json(&json).unwrap();
        for text in [
            "e\u{301}x éx abc ab abab",
            "a     b      c",
            "HTTPRequest camelCase it's IT'LL 12345",
            "価格1234は#foo #é",
        ] {
            assert_eq!(ids(&candidate, text, true), ids(&reference, text, true), "{text:?}");
        }
    }
}

#[test]
fn what_is_not_reproduced_of_byte_level_bpe_is_refused() {
    let refusals: [(&str, &str, Value); 8] = [
        ("/model/type", "not BPE", json!("Unigram")),
        ("/model/byte_fallback", "byte_fallback", json!(true)),
        ("/model/end_of_word_suffix", "end_of_word_suffix", json!("</w>")),
        ("/added_tokens/0/lstrip", "strips spaces", json!(true)),
        ("/added_tokens/0/single_word", "single_word", json!(true)),
        ("/normalizer", "NFKC", json!({"type": "NFKC"})),
        ("/pre_tokenizer/pretokenizers/1/add_prefix_space", "pre-tokenizer", json!(true)),
        ("/post_processor", "post-processor", json!({"type": "BertProcessing"})),
    ];
    for (pointer, reason, to) in refusals {
        let json = changed_of("qwen2", |value| *value.pointer_mut(pointer).unwrap() = to);
        let error = ByteBpe::from_json(&json).err().unwrap();
        assert_eq!(error.kind(), DefinitionErrorKind::Unsupported, "{pointer}: {error}");
        assert!(error.to_string().contains(reason), "{pointer}: {error}");
    }
    let json = changed_of("qwen2", |value| {
        value["model"]["unk_token"] = json!("!");
        value["model"]["vocab"].as_object_mut().unwrap().remove("Ġ");
    });
    let error = ByteBpe::from_json(&json).err().unwrap().to_string();
    assert!(error.contains("0x20"), "{error}");
}

/// The vocabulary of SmolLM lacks some control characters and some first bytes of rare characters.
/// The vocabulary in this test lacks similar tokens.
#[test]
fn a_byte_that_the_vocabulary_lacks_is_left_out() {
    let json = changed_of("qwen2", |value| {
        value["model"]["unk_token"] = Value::Null;
        let vocabulary = value["model"]["vocab"].as_object_mut().unwrap();
        for lacking in ["Ā", "ĉ", "&", "ñ", "Ã"] {
            vocabulary.remove(lacking).unwrap();
        }
        let merges = value["model"]["merges"].as_array_mut().unwrap();
        merges.retain(|merge| !["Ā", "ĉ", "&", "ñ", "Ã"].iter().any(|lacking| merge.to_string().contains(lacking)));
    });
    let json = renumbered(&json);
    let candidate = ByteBpe::from_json(&json).unwrap();
    compare(&json, &candidate, 3000, 9);
    let reference = HfTokenizer::from_json(&json).unwrap();
    for text in ["&", "a&b", "h&e&l&l&o", "é&é \0é\0", "\t\t\0", " &&&the", "&\t&", "\u{40000}a\u{60000}", "é è éé aé"]
    {
        assert_eq!(ids(&candidate, text, true), ids(&reference, text, true), "{text:?}");
    }
}

const BUILTIN: &str = include_str!("../../models/default/tokenizer.json");

/// This check replaces the comparison at load, which the program skips for its built-in model.
#[test]
fn a_template_that_the_library_would_panic_on_is_refused() {
    let template = |single: Value| {
        changed(|value| {
            let known = json!({"id": "<s>", "ids": [1], "tokens": ["<s>"]});
            value["post_processor"] =
                json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {"<s>": known}});
        })
    };
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.json");
    let open = |single| {
        std::fs::write(&path, template(single)).unwrap();
        tokenizer_json::open(&path).map(|_| ())
    };
    assert!(open(json!([special("<s>"), text])).is_ok());
    for wrong in [json!([special("<x>"), text]), json!([{"Sequence": {"id": "B", "type_id": 0}}])] {
        let error = open(wrong).unwrap_err().to_string();
        assert!(error.contains("t.json") && error.contains("special tokens that it defines"), "{error}");
    }
}

#[test]
fn the_built_in_model_s_tokenizer_is_the_reference_s_in_all() {
    let reference = HfTokenizer::from_json(BUILTIN.as_bytes()).unwrap();
    let Tokenizer { choice, vocabulary, pieces, .. } = Tokenizer::from_static_json(BUILTIN).unwrap();
    assert_eq!((choice.implementation.name(), choice.remark()), ("unigram", None));
    assert_eq!(vocabulary, reference.vocabulary());
    assert!(pieces == reference.pieces());
    compare(BUILTIN.as_bytes(), &*choice.implementation, 5000, 3);
}

/// Returns a Unigram model with few letters, so that ties, unknown characters and combining marks are frequent.
fn small_unigram(rng: &mut fastrand::Rng, nfkc: bool, byte_fallback: bool) -> Value {
    const LETTERS: [&str; 8] = ["a", "b", "é", "\u{301}", "▁", "か", "ﷺ", "\0"];
    let mut pieces = vec!["<unk>".to_owned()];
    if byte_fallback {
        pieces.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    }
    for _ in 0..60 {
        let piece: String = (0..rng.usize(1..6)).map(|_| *rng.choice(&LETTERS[..6]).unwrap()).collect();
        let mark = if rng.bool() { "▁" } else { "" };
        pieces.push(format!("{mark}{piece}"));
    }
    // The scores are multiples of a tenth, so sums that are equal in exact arithmetic differ in their last bits.
    let vocab: Vec<Value> = pieces.iter().map(|piece| json!([piece, -0.1 * f64::from(rng.u8(1..40))])).collect();
    let replace = json!({"type": "Replace", "pattern": {"Regex": "[\u{200b}▁]"}, "content": " "});
    let normalizer = json!({"type": "Sequence", "normalizers": [replace, {"type": "NFKC"}]});
    let added = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<unk>"), added(pieces.len(), "</s>")],
        "normalizer": if nfkc { normalizer } else { Value::Null },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [pieces.len()], "tokens": ["</s>"]}},
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": byte_fallback, "vocab": vocab},
    })
}

#[test]
fn unigram_models_with_ties_unknown_characters_and_bytes_give_the_ids_of_the_reference() {
    const PARTS: [&str; 20] = [
        "a", "b", "é", "e", "\u{301}", "\u{327}", "▁", "か", "ﷺ", "\0", " ", "\n", "\u{a0}", "\u{85}", "\u{200b}", "x",
        "😀", "<unk>", "</s>", "，",
    ];
    let mut rng = fastrand::Rng::with_seed(1);
    for round in 0..24 {
        let json = serde_json::to_vec(&small_unigram(&mut rng, round % 2 == 0, round % 3 == 0)).unwrap();
        let (candidate, vocabulary, pieces) = Unigram::with_vocabulary(&json).unwrap();
        let reference = HfTokenizer::from_json(&json).unwrap();
        assert_eq!(vocabulary, reference.vocabulary());
        assert!(pieces == reference.pieces());
        for special in [true, false].into_iter().cycle().take(400) {
            let parts = if rng.bool() { &PARTS[..] } else { &PARTS[..8] };
            let text: String = (0..rng.usize(..40)).map(|_| *rng.choice(parts).unwrap()).collect();
            assert_eq!(ids(&candidate, &text, special), ids(&reference, &text, special), "{round}: {text:?}");
        }
    }
}

#[test]
fn what_is_not_reproduced_of_a_unigram_model_is_refused() {
    let file = || small_unigram(&mut fastrand::Rng::with_seed(2), true, true);
    assert_eq!(Unigram::from_json(&serde_json::to_vec(&file()).unwrap()).err(), None);
    let refusals: [(&str, &str, Value); 12] = [
        ("/model/type", "not Unigram", json!("BPE")),
        ("/model/unk_id", "no unknown token", Value::Null),
        ("/model/unk_id", "no unknown token", json!(1000)),
        ("/model/vocab/7/0", "falls back to bytes", json!("x")),
        ("/normalizer/normalizers/1", "the normalizer NFD", json!({"type": "NFD"})),
        ("/normalizer/normalizers/0/content", "the normalizer Replace", json!("_")),
        ("/normalizer/normalizers/0/pattern", "one class", json!({"Regex": " {2,}"})),
        ("/pre_tokenizer", "pre-tokenizer", json!({"type": "Whitespace"})),
        ("/pre_tokenizer/pretokenizers/1/prepend_scheme", "pre-tokenizer", json!("first")),
        ("/post_processor", "post-processor", json!({"type": "BertProcessing"})),
        ("/added_tokens/0/lstrip", "strips spaces", json!(true)),
        ("/added_tokens/0/normalized", "normalized text", json!(true)),
    ];
    for (pointer, reason, to) in refusals {
        let mut file = file();
        *file.pointer_mut(pointer).unwrap() = to;
        let error = Unigram::from_json(&serde_json::to_vec(&file).unwrap()).err().unwrap().to_string();
        assert!(error.contains(reason), "{pointer}: {error}");
    }
}
