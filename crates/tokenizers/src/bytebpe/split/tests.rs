//! Words are compared with those of the pre-tokenizer of the `tokenizers` crate.

use serde_json::{Value, json};
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

use super::*;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// The letters that DeepSeek-V2 names, of which these ranges are a part.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫ𐐀-𐑏𞤀-𞥃]+";

fn split(expression: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false})
}

/// A sequence of these steps, and `ByteLevel` behind them.
fn steps(steps: &[Value], use_regex: bool) -> Value {
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let all = [steps, &[bytes]].concat();
    json!({"type": "Sequence", "pretokenizers": all})
}

/// The pre-tokenizers of byte-level models, by one that has it.
fn pre_tokenizers() -> Vec<(&'static str, Value)> {
    let digits = |individual: bool| json!({"type": "Digits", "individual_digits": individual});
    let one = |expression: &str| steps(&[split(expression)], false);
    let inverted = |expression: &str| {
        steps(
            &[json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Removed", "invert": true})],
            false,
        )
    };
    vec![
        ("gpt2", json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true})),
        ("gpt-neox", steps(&[], true)),
        ("starcoder, smollm, command-r, granite", steps(&[digits(true)], true)),
        ("digits together", steps(&[digits(false)], true)),
        ("llama 3, glm 4, olmo 2", one(LLAMA3)),
        ("qwen 2, qwen 3, stablelm 2", one(&LLAMA3.replace("{1,3}", ""))),
        (
            "qwen 3.5",
            one(&LLAMA3
                .replace("{1,3}", "")
                .replace(r"?\p{L}+", r"?[\p{L}\p{M}]+")
                .replace(r"\s\p{L}\p", r"\s\p{L}\p{M}\p")),
        ),
        (
            "cl100k",
            inverted(
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
            ),
        ),
        (
            "cl100k, newer",
            one(
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
            ),
        ),
        ("o200k, llama 4", one(O200K)),
        ("tekken", one(&O200K.replace(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", ""))),
        (
            "kimi",
            one(&format!(
                r"[\p{{Han}}]+|{}",
                O200K.replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]").replace("[\\r\\n/]", "[\\r\\n]")
            )),
        ),
        (
            "deepseek v3",
            steps(
                &[
                    split(r"\p{N}{1,3}"),
                    split(r"[一-龥぀-ゟ゠-ヿ]+"),
                    split(
                        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
                    ),
                ],
                false,
            ),
        ),
        (
            "deepseek v2",
            steps(
                &[
                    split(r"[\r\n]"),
                    split(DEEPSEEK_LETTERS),
                    split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
                    split(r"\s+$"),
                    split(r"[一-龥ࠀ-一가-퟿]+"),
                    digits(true),
                ],
                false,
            ),
        ),
        (
            "deepseek coder",
            steps(
                &[split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(r"[一-龥ࠀ-一가-퟿]+"), digits(true)],
                false,
            ),
        ),
    ]
}

/// Returns the number of words that were found without the steps.
fn check(name: &str, splitter: &Splitter, reference: &PreTokenizerWrapper, text: &str) -> usize {
    let mut expected = PreTokenizedString::from(text);
    reference.pre_tokenize(&mut expected).unwrap();
    let expected = expected.get_splits(OffsetReferential::Original, OffsetType::Byte);
    let expected: Vec<&str> = expected.into_iter().map(|(_, (start, end), _)| &text[start..end]).collect();
    let padded = [text.as_bytes(), &[0; 64]].concat();
    let (mut by_steps, mut found, mut quick) = (Vec::new(), Vec::new(), 0);
    let (mut start, mut ends) = (0, Ends::default());
    while start < text.len() {
        let end = splitter.end(text, start, &mut ends);
        assert!(end > start, "{name}: {text:?}");
        by_steps.push(&text[start..end]);
        start = end;
    }
    assert_eq!(by_steps, expected, "{name}: {text:?}");
    let (mut start, mut progress) = (0, Progress::default());
    progress.begin();
    while start < text.len() {
        let by_table = progress.ends;
        let end = splitter.end_of_word(text, &padded, start, &mut progress);
        quick += usize::from(progress.ends == by_table);
        found.push(&text[start..end]);
        start = end;
    }
    assert_eq!(found, expected, "{name}: {text:?}");
    quick
}

fn each(mut check: impl FnMut(&str, &Splitter, &PreTokenizerWrapper)) {
    for (name, json) in pre_tokenizers() {
        let splitter = Splitter::new(Some(&json)).unwrap_or_else(|e| panic!("{name}: {e}"));
        check(name, &splitter, &serde_json::from_value(json).unwrap());
    }
}

#[test]
fn the_words_of_random_texts_are_those_of_the_reference() {
    let characters: Vec<char> = concat!(
        "     \n\n\r\t\u{a0}\u{2028}\u{85}\u{3000}aZsStTmMdDrReEvVlLſKkǅʰ'''’\"/.,!?-_$+(日本あカ한éßÉ\u{301}\u{301}09٣½Ⅳ²👍",
        "\u{200d}\u{0}\u{1}\u{e0100}\u{f0000}。！々ـࠀ"
    )
    .chars()
    .collect();
    let mut rng = fastrand::Rng::with_seed(7);
    each(|name, splitter, reference| {
        for round in 0..3_000 {
            // Of few characters, so that they meet themselves.
            let few: Vec<char> = (0..rng.usize(1..8)).map(|_| characters[rng.usize(..characters.len())]).collect();
            let characters = if round % 2 == 0 { &characters } else { &few };
            let text: String = (0..rng.usize(1..14)).map(|_| characters[rng.usize(..characters.len())]).collect();
            check(name, splitter, reference, &text);
        }
        for _ in 0..1_000 {
            let text: String = (0..rng.usize(1..12)).map(|_| rng.char(..)).collect();
            check(name, splitter, reference, &text);
        }
    });
}

#[test]
fn the_words_of_ascii_are_those_of_the_reference_and_told_soon() {
    let mut rng = fastrand::Rng::with_seed(8);
    each(|name, splitter, reference| {
        let mut quick = 0;
        for _ in 0..1_500 {
            let text: String = (0..rng.usize(1..40))
                .map(|_| match rng.u8(..8) {
                    0 | 1 => ' ',
                    2 => rng.u8(..0x80) as char,
                    3 => rng.u8(b'A'..=b'Z') as char,
                    _ => rng.u8(b'a'..=b'z') as char,
                })
                .collect();
            check(name, splitter, reference, &text);
        }
        for text in
            ["The quick brown fox jumps over the lazy dog, and it does not mind.", " a b c ", "snake_case (word) x.y"]
        {
            quick += check(name, splitter, reference, text);
        }
        assert!(quick >= 15, "{name}: {quick}");
        assert!(splitter.rules.is_some(), "{name}");
    });
}

/// Some of all code points, between letters and between digits.
#[test]
fn every_code_point_is_taken_for_what_it_is() {
    let mut shift = 0;
    each(|name, splitter, reference| {
        shift += 1;
        for c in ('\0'..'\u{32400}').chain('\u{e0000}'..'\u{e0200}').filter(|c| (u32::from(*c) + shift) % 31 == 0) {
            check(name, splitter, reference, &format!("a{c}b 1{c}2 {c}A"));
        }
    });
}

/// In the square of the length it would take minutes.
#[test]
fn long_runs_take_linear_time() {
    for (_, json) in pre_tokenizers() {
        let splitter = Splitter::new(Some(&json)).unwrap();
        for part in [" ", "\n", " \n", "a", "A", "1", "\u{301}", "A\u{301}", "'", "日", ".", "\u{1}", "x y", "\t\u{1}"]
        {
            let text = format!("{}x", part.repeat(100_000));
            let (mut start, mut ends) = (0, Ends::default());
            while start < text.len() {
                start = splitter.end(&text, start, &mut ends);
            }
            let padded = [text.as_bytes(), &[0; 64]].concat();
            let (mut start, mut progress) = (0, Progress::default());
            while start < text.len() {
                start = splitter.end_of_word(&text, &padded, start, &mut progress);
            }
        }
    }
}

#[test]
fn what_is_not_reproduced_is_refused() {
    let refused = |json: &Value| Splitter::new(Some(json)).err().unwrap_or_else(|| panic!("{json} is taken"));
    for expression in [
        r"a|",
        "",
        r"(a|b)+",
        r"\s+?",
        r"\b",
        "a*",
        r"(?=a)b",
        r"\s+(?=a)",
        "a{2,1}",
        "a{100}",
        "a+b+c",
        ".",
        r"[",
        "^a",
        "a$",
    ] {
        refused(&steps(&[split(expression)], false));
    }
    for behavior in ["MergedWithPrevious", "Removed"] {
        let mut wrong = split(LLAMA3);
        wrong["behavior"] = json!(behavior);
        assert!(refused(&steps(&[wrong], false)).to_string().contains(behavior));
    }
    let mut drops = split(r"\p{L}+");
    (drops["behavior"], drops["invert"]) = (json!("Removed"), json!(true));
    refused(&steps(&[drops], false));
    refused(&steps(
        &[json!({"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated", "invert": false})],
        false,
    ));
    refused(&steps(&[json!({"type": "Punctuation", "behavior": "Contiguous"})], true));
    refused(&steps(&[], false));
    refused(&split(LLAMA3));
    refused(&json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true}));
    refused(&json!({"type": "Whitespace"}));
    assert!(Splitter::new(None).is_err());
}
