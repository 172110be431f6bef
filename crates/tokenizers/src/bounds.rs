//! Limits on what a tokenizer.json may cost. A file can ask the `tokenizers` library for any amount of memory or work: by
//! normalizers that double a text repeatedly, by templates of a million tokens, or by false lengths. Such a file is refused
//! before the library reads it.

use serde::de::IgnoredAny;
use serde_json::Value;
use tokenizers::tokenizer::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

use super::json::kind;
use super::panics;
use crate::TokenizerError;

/// The largest number of steps of a normalizer or pre-tokenizer. The longest known has 13.
const MAX_STEPS: usize = 256;
/// The largest number of bytes of a pattern or of its replacement. The longest known has about 500.
const MAX_PATTERN: usize = 16 << 10;
/// The largest factor by which a text may grow. U+FDFA, which grows the most by Unicode's own normalization, becomes 11 times as
/// long. A byte-level alphabet and the escapes of spaces at most quadruple that.
const MAX_GROWTH: usize = 64;
/// The number of bytes that may be added to any text, however short.
const MAX_ADDED: usize = 4 << 10;
/// The largest number of tokens that a template may put around a text. The longest known has 4.
const MAX_SPECIAL: usize = 1024;
/// The largest number of bytes of a prefix or suffix that a model adds to each word or piece.
const MAX_AFFIX: usize = 256;

/// The parts of a tokenizer.json that are checked. The library checks the rest.
#[derive(serde::Deserialize)]
struct Definition {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    model: Option<Model>,
    #[serde(default)]
    #[allow(dead_code, reason = "parsed, so that what is no list is found here")]
    added_tokens: Option<IgnoredAny>,
}

#[derive(serde::Deserialize)]
struct Model {
    continuing_subword_prefix: Option<Value>,
    end_of_word_suffix: Option<Value>,
}

/// Checks that a tokenizer.json stays within these limits.
///
/// # Errors
/// Names the part that exceeds a limit.
pub fn check(json: &[u8]) -> Result<(), TokenizerError> {
    let definition: Definition =
        serde_json::from_slice(json).map_err(|e| TokenizerError::Malformed(format!("is not a tokenizer: {e}")))?;
    definition.check().map_err(TokenizerError::Excessive)
}

impl Definition {
    fn check(&self) -> Result<(), String> {
        let affixes = self.model.iter().flat_map(|model| [&model.continuing_subword_prefix, &model.end_of_word_suffix]);
        if affixes.flatten().any(|affix| affix.as_str().is_some_and(|affix| affix.len() > MAX_AFFIX)) {
            return Err(format!("has a model that adds more than {MAX_AFFIX} bytes to each piece"));
        }
        let normalizers = steps(self.normalizer.as_ref(), "normalizer", "normalizers")?;
        let pre_tokenizers = steps(self.pre_tokenizer.as_ref(), "pre_tokenizer", "pretokenizers")?;
        let decoders = steps(self.decoder.as_ref(), "decoder", "decoders")?;
        for step in [&normalizers, &pre_tokenizers, &decoders].into_iter().flatten() {
            check_lengths(step)?;
            if kind(step) == "Precompiled" {
                check_charsmap(step.get("precompiled_charsmap"))?;
            }
        }
        check_templates(self.post_processor.as_ref())?;
        check_growth(&normalizers, &pre_tokenizers)
    }
}

/// Returns the steps of a normalizer or pre-tokenizer, including those of nested sequences.
fn steps<'a>(part: Option<&'a Value>, what: &str, list: &str) -> Result<Vec<&'a Value>, String> {
    let mut pending: Vec<&Value> = part.into_iter().collect();
    let mut found = Vec::new();
    while let Some(step) = pending.pop() {
        if found.len() + pending.len() > MAX_STEPS {
            return Err(format!("has a {what} of more than {MAX_STEPS} steps"));
        }
        match step.get(list).and_then(Value::as_array) {
            Some(inner) if inner.len() > MAX_STEPS => return Err(format!("has a {what} of {} steps", inner.len())),
            Some(inner) => pending.extend(inner.iter().rev()),
            None if step.is_null() => {}
            None => found.push(step),
        }
    }
    Ok(found)
}

/// Checks that the patterns and replacements of a step are short.
fn check_lengths(step: &Value) -> Result<(), String> {
    let charsmap = kind(step) == "Precompiled";
    let values =
        step.as_object().into_iter().flatten().filter(|(name, _)| !(charsmap && *name == "precompiled_charsmap"));
    for (name, value) in values {
        let inner = value.as_object().into_iter().flat_map(|inner| inner.values());
        let longest = inner.chain([value]).filter_map(Value::as_str).map(str::len).max();
        // A pattern may match a single byte, or nothing.
        let pattern = step.pointer("/pattern/String").and_then(Value::as_str).map_or(1, |pattern| pattern.len().max(1));
        let most = if name == "content" { (MAX_GROWTH * pattern).min(MAX_PATTERN) } else { MAX_PATTERN };
        if let Some(length) = longest.filter(|&length| length > most) {
            return Err(format!("has a step {} with a {name} of {length} bytes", kind(step)));
        }
    }
    Ok(())
}

/// Checks SentencePiece's compiled rules: the length of a trie, the trie, and the replacement texts.
fn check_charsmap(charsmap: Option<&Value>) -> Result<(), String> {
    let encoded =
        charsmap.and_then(Value::as_str).ok_or("has a normalizer Precompiled without its precompiled_charsmap")?;
    let start = first_bytes(encoded).ok_or("has a precompiled_charsmap that is not base64, or too short")?;
    let trie = u64::from(u32::from_le_bytes(start));
    // Four characters of base64 are three bytes. The length itself takes four bytes.
    let there = encoded.len() as u64 / 4 * 3;
    if trie == 0 || !trie.is_multiple_of(4) || trie + 4 > there {
        return Err(format!("has a precompiled_charsmap of {there} bytes that announces a trie of {trie}"));
    }
    Ok(())
}

/// Decodes the first four bytes from base64.
fn first_bytes(encoded: &str) -> Option<[u8; 4]> {
    let mut bits = 0u64;
    let start = encoded.as_bytes().first_chunk::<8>()?;
    for byte in start {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u64::from(value);
    }
    // Eight characters are 48 bits, of which the first 32 are needed.
    u32::try_from(bits >> 16).ok().map(u32::to_be_bytes)
}

/// Checks that templates put few tokens around a text, and contain the text once.
fn check_templates(post_processor: Option<&Value>) -> Result<(), String> {
    let mut special = 0;
    for step in steps(post_processor, "post_processor", "processors")? {
        let mut texts = 0;
        for piece in step.get("single").and_then(Value::as_array).into_iter().flatten() {
            if let Some(name) = piece.pointer("/SpecialToken/id").and_then(Value::as_str) {
                let token = step.get("special_tokens").and_then(|tokens| tokens.get(name));
                special += token.and_then(|token| token.get("ids")?.as_array()).map_or(1, Vec::len);
            } else {
                texts += 1;
            }
        }
        let pair = step.get("pair").and_then(Value::as_array).map_or(0, Vec::len);
        if special > MAX_SPECIAL || pair > 2 * MAX_SPECIAL {
            return Err(format!("has a post_processor with more than {MAX_SPECIAL} special tokens"));
        }
        if texts > 1 {
            return Err(format!("has a post_processor that repeats the text {texts} times"));
        }
    }
    Ok(())
}

/// Checks that no text becomes much longer, by applying the steps one by one to texts that they change.
fn check_growth(normalizers: &[&Value], pre_tokenizers: &[&Value]) -> Result<(), String> {
    let parse = |step: &&Value| serde_json::from_value::<NormalizerWrapper>((*step).clone()).map_err(|e| e.to_string());
    // The library reports the steps that it cannot read.
    let Ok(normalizers) = panics::catch(|| normalizers.iter().map(parse).collect::<Vec<_>>()) else {
        return Err("has a normalizer on which the tokenizers library panics".to_owned());
    };
    let Ok(normalizers) = normalizers.into_iter().collect::<Result<Vec<_>, _>>() else { return Ok(()) };
    let parse = |step: &&Value| serde_json::from_value::<PreTokenizerWrapper>((*step).clone());
    let Ok(pre_tokenizers) = panics::catch(|| pre_tokenizers.iter().map(parse).collect::<Result<Vec<_>, _>>()) else {
        return Err("has a pre_tokenizer on which the tokenizers library panics".to_owned());
    };
    let Ok(pre_tokenizers) = pre_tokenizers else { return Ok(()) };
    for text in probes(&normalizers) {
        let tried = || grown(&text, &normalizers, &pre_tokenizers);
        match panics::catch(tried) {
            Ok(result) => result?,
            // A request with this text fails as well, and affects no other request.
            Err(_) => tracing::debug!(text, "the tokenizers library panics on a text"),
        }
    }
    Ok(())
}

/// Returns texts that the steps change: the strings that they search for, their replacements, and some strings that their
/// patterns may match.
fn probes(normalizers: &[NormalizerWrapper]) -> Vec<String> {
    const LONGEST: usize = 64;
    let mut texts: Vec<String> =
        ["", "a", " ", "\n", "▁", "A1.-'\"", "é가あ漢\u{fdfa}\u{1F600}ﬁ", "\t\0\u{301}  the"].map(str::to_owned).into();
    texts.extend((' '..='~').map(String::from));
    for step in normalizers {
        let written = serde_json::to_value(step).unwrap_or_default();
        let parts = ["/pattern/String", "/pattern/Regex", "/content", "/prepend"];
        texts.extend(parts.iter().filter_map(|part| written.pointer(part)?.as_str()).map(|text| {
            text.chars()
                .scan(0, |length, c| {
                    *length += c.len_utf8();
                    (*length <= LONGEST).then_some(c)
                })
                .collect()
        }));
    }
    texts.sort();
    texts.dedup();
    texts
}

fn grown(text: &str, normalizers: &[NormalizerWrapper], pre_tokenizers: &[PreTokenizerWrapper]) -> Result<(), String> {
    let most = MAX_GROWTH * text.len() + MAX_ADDED;
    let within = |length: usize, what: &str| match length <= most {
        true => Ok(()),
        false => Err(format!("has a {what} that makes {length} bytes and more of a text of {}", text.len())),
    };
    let mut normalized = NormalizedString::from(text);
    for step in normalizers {
        if step.normalize(&mut normalized).is_err() {
            return Ok(());
        }
        within(normalized.len(), "normalizer")?;
    }
    let mut split = PreTokenizedString::from(normalized);
    for step in pre_tokenizers {
        if step.pre_tokenize(&mut split).is_err() {
            return Ok(());
        }
        let splits = split.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
        within(splits.iter().map(|(text, ..)| text.len()).sum(), "pre_tokenizer")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn found(part: &str, value: &Value) -> String {
        let json = json!({"model": {"type": "BPE", "vocab": {}, "merges": []}, part: value}).to_string();
        check(json.as_bytes()).map_or_else(|e| e.to_string(), |()| String::new())
    }

    fn replace(pattern: &str, content: &str) -> Value {
        json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
    }

    fn normalizers(steps: &[Value]) -> Value {
        json!({"type": "Sequence", "normalizers": steps})
    }

    #[test]
    fn normalizers_that_double_a_text_again_and_again_are_refused() {
        let doubling = vec![replace("a", "aa"); 25];
        let by_turns: Vec<Value> =
            (0..30).map(|n| if n % 2 == 0 { replace("a", "bb") } else { replace("b", "aa") }).collect();
        let regex = json!({"type": "Replace", "pattern": {"Regex": "."}, "content": "xx"});
        let nested = normalizers(&vec![normalizers(&vec![replace("q", "qq"); 5]); 6]);
        for bomb in [
            normalizers(&doubling),
            normalizers(&by_turns),
            normalizers(&vec![regex; 20]),
            nested,
            json!({"type": "Prepend", "prepend": "x".repeat(10_000)}),
            normalizers(&vec![json!({"type": "ByteLevel"}); 20]),
            normalizers(&[json!({"type": "NFKC"}), normalizers(&doubling)]),
        ] {
            let error = found("normalizer", &bomb);
            assert!(error.contains("has a normalizer that makes"), "{error}");
        }
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let bomb = json!({"type": "Sequence", "pretokenizers": vec![byte_level; 20]});
        assert!(found("pre_tokenizer", &bomb).contains("has a pre_tokenizer that makes"));
    }

    #[test]
    fn long_parts_and_many_steps_are_refused_unread() {
        for (part, value, problem) in [
            ("normalizer", normalizers(&vec![json!({"type": "NFC"}); 300]), "300 steps"),
            ("normalizer", json!({"type": "Prepend", "prepend": "x".repeat(10_000_000)}), "prepend of 10000000 bytes"),
            ("normalizer", replace("a", &"x".repeat(100_000)), "content of 100000 bytes"),
            (
                "normalizer",
                json!({"type": "Replace", "pattern": {"Regex": "\\p{Greek}"}, "content": "x".repeat(100)}),
                "content of 100 bytes",
            ),
            ("decoder", replace(&"x".repeat(100_000), "a"), "pattern of 100000 bytes"),
            ("model", json!({"continuing_subword_prefix": "#".repeat(1000)}), "more than 256 bytes"),
        ] {
            let error = found(part, &value);
            assert!(error.contains(problem), "{error}");
        }
        let mut nested = json!({"type": "NFC"});
        for _ in 0..50 {
            nested = normalizers(&[nested]);
        }
        assert_eq!(found("normalizer", &nested), "");
        let deep = format!("{{\"normalizer\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(check(deep.as_bytes()).unwrap_err().to_string().contains("recursion limit"));
    }

    #[test]
    fn templates_of_many_tokens_are_refused() {
        let template = |single: Vec<Value>, ids: usize| {
            json!({"type": "TemplateProcessing", "single": single, "pair": [],
                "special_tokens": {"<s>": {"id": "<s>", "ids": vec![1; ids], "tokens": vec!["<s>"; ids]}}})
        };
        let (special, text) =
            (json!({"SpecialToken": {"id": "<s>", "type_id": 0}}), json!({"Sequence": {"id": "A", "type_id": 0}}));
        assert_eq!(found("post_processor", &template(vec![special.clone(), text.clone()], 1)), "");
        for bomb in [
            template(vec![special.clone(); 1_000_000], 1),
            template(vec![special.clone()], 1_000_000),
            json!({"type": "Sequence", "processors": vec![template(vec![special.clone(); 10], 1); 200]}),
        ] {
            assert!(found("post_processor", &bomb).contains("more than 1024 special tokens"));
        }
        assert!(found("post_processor", &template(vec![text; 2], 1)).contains("repeats the text"));
    }

    #[test]
    fn a_charsmap_that_announces_what_it_does_not_have_is_refused() {
        let charsmap =
            |value: Value| found("normalizer", &json!({"type": "Precompiled", "precompiled_charsmap": value}));
        // FF FF FF FF and four more bytes: a trie of 4 GiB, for which 8.6 GB would be reserved.
        assert!(charsmap(json!("/////wAAAAA=")).contains("announces a trie of 4294967295"));
        assert!(charsmap(json!("")).contains("too short"));
        assert!(charsmap(json!("!!!!!!!!!!!!")).contains("not base64"));
        assert!(charsmap(Value::Null).contains("without its precompiled_charsmap"));
        assert_eq!(first_bytes("AQIDBAUG"), Some([1, 2, 3, 4]));
    }

    #[test]
    fn the_fixtures_are_within_the_bounds() {
        let checkpoints = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/checkpoints");
        for entry in std::fs::read_dir(checkpoints).unwrap() {
            let path = entry.unwrap().path().join("tokenizer.json");
            if let Ok(json) = std::fs::read(&path) {
                check(&json).unwrap();
            }
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/default/tokenizer.json");
        check(&std::fs::read(path).unwrap()).unwrap();
    }
}
