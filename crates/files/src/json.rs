//! Reads JSON that other programs write and that `serde_json` refuses because RFC 8259 does not allow it.
//!
//! Python's `json` module writes and reads `NaN`, `Infinity` and `-Infinity`, and reads a number that is too large for
//! a double as an infinity. Node writes an unpaired surrogate as an escape. Editors and PowerShell write a byte order
//! mark, or UTF-16. This module refuses everything else that `serde_json` refuses.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

const MARK: &[u8] = b"\xef\xbb\xbf";

/// The first character of a string that stands for a number that is not finite, because `Value` has no such numbers.
/// The character is a noncharacter of Unicode, so no text contains it.
const STAND_IN: char = '\u{fdd0}';

/// How numbers that are not finite are represented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonFinite {
    /// The number becomes `null`. Records that are written as JSON again use this representation.
    Null,
    /// The number stays, and the parser refuses it. Request bodies use this representation.
    Refused,
    /// The number becomes a string that [`to_vec_pretty`] writes as the number again. Code that reads numbers does not
    /// mistake the string for one.
    Kept,
}

/// Parses JSON. A number that is not finite is read as `null`.
///
/// # Errors
/// Returns an error if the bytes are not JSON, or do not have the form of a `T`.
pub fn from_slice<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
    parse(json, NonFinite::Null)
}

/// Parses an object and keeps its numbers that are not finite for [`to_vec_pretty`].
///
/// # Errors
/// Returns an error if the bytes are not a JSON object.
pub fn object(json: &[u8]) -> serde_json::Result<Map<String, Value>> {
    parse(json, NonFinite::Kept)
}

fn parse<T: DeserializeOwned>(json: &[u8], non_finite: NonFinite) -> serde_json::Result<T> {
    let json = utf8(json);
    // Nearly all files are strict JSON, which is parsed without a second pass.
    match serde_json::from_slice(&json) {
        Err(error) if error.is_syntax() => match strict(&json, non_finite) {
            Cow::Owned(strict) => serde_json::from_slice(&strict),
            Cow::Borrowed(_) => Err(error),
        },
        parsed => parsed,
    }
}

/// Returns the object as indented JSON, with Python's spelling of the numbers that [`object`] kept.
///
/// # Errors
/// No input is known for which the function fails: a map of strings is always JSON.
pub fn to_vec_pretty(object: &Map<String, Value>) -> serde_json::Result<Vec<u8>> {
    let mut json = serde_json::to_string_pretty(object)?;
    for word in ["NaN", "Infinity", "-Infinity"] {
        json = json.replace(&format!("\"{STAND_IN}{word}\""), word);
    }
    Ok(json.into_bytes())
}

/// Returns the number that a string stands for if [`strict`] put the string in place of a number.
pub fn kept_number(text: &str) -> Option<f64> {
    match text.strip_prefix(STAND_IN)? {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

/// Returns the JSON with `null` in place of each number that [`strict`] kept.
pub fn nulled(json: &str) -> String {
    if !json.contains(STAND_IN) {
        return json.to_owned();
    }
    ["NaN", "Infinity", "-Infinity"]
        .iter()
        .fold(json.to_owned(), |json, word| json.replace(&format!("\"{STAND_IN}{word}\""), "null"))
}

/// Returns the text without a byte order mark at its beginning.
pub fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(MARK).unwrap_or(text)
}

/// Returns the text as UTF-8 without a byte order mark. The mark at its beginning identifies text in UTF-16.
pub fn utf8(text: &[u8]) -> Cow<'_, [u8]> {
    let unit: fn([u8; 2]) -> u16 = match text {
        [0xff, 0xfe, ..] => u16::from_le_bytes,
        [0xfe, 0xff, ..] => u16::from_be_bytes,
        _ => return Cow::Borrowed(without_mark(text)),
    };
    let (units, rest) = text.get(2..).unwrap_or_default().as_chunks();
    if !rest.is_empty() {
        return Cow::Borrowed(text);
    }
    let characters = char::decode_utf16(units.iter().map(|bytes| unit(*bytes)));
    let decoded: String = characters.map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    Cow::Owned(decoded.into_bytes())
}

/// Returns JSON that a strict parser accepts, from JSON in UTF-8: numbers that are not finite are replaced as
/// `non_finite` says, and the escape of an unpaired surrogate becomes that of U+FFFD, which has the same length. The result is borrowed if nothing had to be replaced.
/// Text that is not JSON at all remains invalid.
pub fn strict(json: &[u8], non_finite: NonFinite) -> Cow<'_, [u8]> {
    let mut out: Option<Vec<u8>> = None;
    // Everything before this offset is already in `out`.
    let mut copied = 0;
    let mut replace = |start: usize, end: usize, with: &str| {
        let out = out.get_or_insert_with(|| Vec::with_capacity(json.len() + 64));
        out.extend_from_slice(json.get(copied..start).unwrap_or_default());
        out.extend_from_slice(with.as_bytes());
        copied = end;
    };
    let mut at = 0;
    let mut in_string = false;
    while let Some(rest) = json.get(at..).filter(|rest| !rest.is_empty()) {
        at += match rest {
            [b'"', ..] => {
                in_string = !in_string;
                1
            }
            [b'\\', b'u', ..] if in_string => {
                let (length, is_paired) = escape(rest);
                if !is_paired {
                    replace(at, at + length, "\\ufffd");
                }
                length
            }
            [b'\\', _, ..] if in_string => 2,
            [b'-' | b'0'..=b'9' | b'N' | b'I', ..] if !in_string => {
                let length = rest.iter().take_while(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b)).count();
                if let Some(word) = rest.get(..length).and_then(non_finite_word) {
                    match non_finite {
                        NonFinite::Refused => {}
                        NonFinite::Null => replace(at, at + length, "null"),
                        NonFinite::Kept => replace(at, at + length, &format!("\"{STAND_IN}{word}\"")),
                    }
                }
                length
            }
            _ => 1,
        };
    }
    match out {
        Some(mut out) => {
            out.extend_from_slice(json.get(copied..).unwrap_or_default());
            Cow::Owned(out)
        }
        None => Cow::Borrowed(json),
    }
}

/// Returns the length of the `\u` escape, or of the surrogate pair of escapes, at the beginning of `rest`, and whether
/// it is a valid character.
fn escape(rest: &[u8]) -> (usize, bool) {
    let unit = |from: usize| -> Option<u16> {
        let escape = rest.get(from..from + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(str::from_utf8(escape).ok()?, 16).ok()
    };
    match (unit(0), unit(6)) {
        (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (12, true),
        (Some(0xd800..=0xdfff), _) => (6, false),
        // The parser reports an escape without four digits.
        (None, _) => (2, true),
        _ => (6, true),
    }
}

/// Returns Python's word for the token if it is a number that is not finite.
fn non_finite_word(token: &[u8]) -> Option<&'static str> {
    match token {
        b"NaN" => Some("NaN"),
        b"Infinity" => Some("Infinity"),
        b"-Infinity" => Some("-Infinity"),
        // An integer of any length is finite, even if it is too large for a double.
        [b'-' | b'0'..=b'9', .., b'0'..=b'9'] if token.iter().any(|b| b".eE".contains(b)) => {
            match str::from_utf8(token).ok()?.parse::<f64>().ok()? {
                f64::INFINITY => Some("Infinity"),
                f64::NEG_INFINITY => Some("-Infinity"),
                _ => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn value(json: &[u8]) -> Value {
        from_slice(json).unwrap()
    }

    #[test]
    fn words_of_python_are_read_as_null_outside_of_strings() {
        let json = br#"{"a": [0.0, Infinity,-Infinity , NaN], "NaN": "NaN \" Infinity", "b": 1e999, "c": -1E+999, "d": 1e300}"#;
        assert_eq!(
            value(json),
            json!({"a": [0.0, null, null, null], "NaN": "NaN \" Infinity", "b": null, "c": null, "d": 1e300})
        );
        assert_eq!(value(b"NaN"), Value::Null);
    }

    #[test]
    fn numbers_that_are_not_finite_are_written_as_they_were_read() {
        let json = br#"{"a":[0.0,Infinity],"b":{"c":-Infinity,"d":[NaN,"NaN","Infinity"]},"e":1e999}"#;
        let read = object(json).unwrap();
        assert_eq!(read.get("e").and_then(Value::as_f64), None);
        let written = to_vec_pretty(&read).unwrap();
        let compact: String = String::from_utf8(written.clone()).unwrap().split_whitespace().collect();
        assert_eq!(compact, r#"{"a":[0.0,Infinity],"b":{"c":-Infinity,"d":[NaN,"NaN","Infinity"]},"e":Infinity}"#);
        assert_eq!(object(&written).unwrap(), read);
    }

    #[test]
    fn unpaired_surrogates_are_replaced_and_pairs_are_not() {
        for (escaped, text) in [
            (r"cut \ud83d", "cut \u{fffd}"),
            (r"\uDE00 low", "\u{fffd} low"),
            (r"\ud83d\ud83d\ude00", "\u{fffd}\u{1f600}"),
            (r"\ud83d\u0041\\ud83d", "\u{fffd}A\\ud83d"),
            (r"\ud83d\n\ud83d\ude00", "\u{fffd}\n\u{1f600}"),
        ] {
            assert_eq!(value(format!("{{\"a\":\"{escaped}\"}}").as_bytes()), json!({"a": text}), "{escaped}");
        }
    }

    #[test]
    fn one_byte_order_mark_is_skipped_and_utf_16_is_told_by_its_mark() {
        assert_eq!(value(b"\xef\xbb\xbf{\"a\":1}"), json!({"a": 1}));
        assert!(from_slice::<Value>(b"\xef\xbb\xbf\xef\xbb\xbf{\"a\":1}").is_err());
        let units = || "\u{feff}{\"\u{e4}\": Infinity}".encode_utf16();
        let little: Vec<u8> = units().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = units().flat_map(u16::to_be_bytes).collect();
        assert_eq!(value(&little), json!({"\u{e4}": null}));
        assert_eq!(value(&big), json!({"\u{e4}": null}));
    }

    #[test]
    fn what_is_not_json_is_refused_as_before() {
        let large = format!("[{}]", "9".repeat(400));
        for wrong in [
            "",
            "{",
            "{a:1}",
            "{\"a\":nan}",
            "{\"a\":+Infinity}",
            "{\"a\":Infinity1}",
            "{\"a\":--Infinity}",
            "[NaN,]",
            "{\"a\":1e}",
            "{\"a\":01}",
            "{\"a\":\"\\ud8\"}",
            "{\"a\":\"\\u12g4\"}",
            "{\"a\":\"\\",
            "{\"a\":\"\\ud83d",
            "\u{fffe}{}",
            "NaNNaN",
            &large,
        ] {
            assert!(from_slice::<Value>(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(from_slice::<Value>(b"\xff\xfe{").is_err());
        let strict: String = serde_json::from_str::<Value>("{\"a\":\n nul}").unwrap_err().to_string();
        assert_eq!(from_slice::<Value>(b"{\"a\":\n nul}").unwrap_err().to_string(), strict);
    }
}
