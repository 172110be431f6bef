//! Reads the body of a response: the vectors in the order of their texts, or the server's message about why there are
//! none.

use std::fmt;
use std::sync::OnceLock;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::exchange::shown;
use layer0_files::json;

/// The number of characters of a server's message that an error shows.
const WORDS: usize = 400;

#[derive(Deserialize)]
struct Response {
    data: Option<Vec<Embedding>>,
    error: Option<Value>,
}

/// One vector of a response.
#[derive(Deserialize)]
pub struct Embedding {
    /// The index of the text. Some servers omit it, send 0 for all vectors, or send a string.
    index: Option<Value>,
    embedding: Numbers,
}

/// A vector as an array of numbers, or as base64 of little-endian f32.
enum Numbers {
    Base64(String),
    Floats(Vec<f32>),
}

/// The reason why a body holds no embeddings.
#[derive(Debug, PartialEq)]
pub enum NoEmbeddings {
    /// The body is an error. The value is the HTTP status that the error names, if any.
    Error(Option<u16>),
    /// The body has another problem, which the text describes.
    Other(String),
}

/// The reason why vectors cannot be used.
#[derive(Debug)]
pub struct Unusable {
    /// The problem. It continues a sentence that begins with "it answered".
    pub problem: String,
    /// Whether the numbers of a vector are invalid. The cause may then be the encoding.
    pub by_encoding: bool,
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Numbers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of numbers, or base64")
            }

            fn visit_str<E>(self, text: &str) -> Result<Numbers, E> {
                Ok(Numbers::Base64(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Numbers, A::Error> {
                let mut vector = Vec::with_capacity(numbers.size_hint().unwrap_or(0));
                // Some servers write null for a number that is not finite.
                while let Some(number) = numbers.next_element::<Option<f32>>()? {
                    vector.push(number.unwrap_or(f32::NAN));
                }
                Ok(Numbers::Floats(vector))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Embedding {
    pub fn is_base64(&self) -> bool {
        matches!(self.embedding, Numbers::Base64(_))
    }

    fn index(&self) -> Option<u64> {
        match self.index.as_ref() {
            // The JSON form of protocol buffers omits a zero.
            None | Some(Value::Null) => Some(0),
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(value) => value.as_u64().or_else(|| {
                let number = value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..1e15).contains(x));
                number.map(|x| x as u64)
            }),
        }
    }
}

/// Reads the embeddings of a body.
///
/// # Errors
/// Fails if the body holds no embeddings.
pub fn read(body: &[u8]) -> Result<Vec<Embedding>, NoEmbeddings> {
    let problem = match json::from_slice(body) {
        Ok(Response { data: Some(data), error }) if !data.is_empty() || !is_error(error.as_ref()) => return Ok(data),
        Ok(_) => "it has no \"data\"".to_owned(),
        Err(error) => error.to_string(),
    };
    let value: Value = json::from_slice(body).unwrap_or_default();
    let object = match &value {
        Value::Array(items) => items.first().unwrap_or(&Value::Null),
        value => value,
    };
    let names_error = ["error", "errors", "detail", "message"].iter().any(|key| is_error(object.get(key)));
    if names_error && object.get("data").is_none_or(|data| data.as_array().is_none_or(Vec::is_empty)) {
        return Err(NoEmbeddings::Error(status(object)));
    }
    Err(NoEmbeddings::Other(format!("{problem}: {}", words(body))))
}

fn is_error(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Object(object)) => !object.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(_) => true,
    }
}

/// Returns the HTTP status that the body of an error names.
fn status(error: &Value) -> Option<u16> {
    let inner = error.get("error").unwrap_or(error);
    let codes =
        [inner, error].into_iter().flat_map(|value| ["code", "status", "status_code"].map(|key| value.get(key)));
    codes.flatten().find_map(|code| {
        let code = code.as_u64().or_else(|| code.as_str()?.parse().ok())?;
        u16::try_from(code).ok().filter(|code| (400..600).contains(code))
    })
}

/// Returns the message of a body that is not a list of embeddings: the message of an error in any of the usual forms,
/// the title of an HTML page, or else the body itself.
pub fn words(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let message = match json::from_slice::<Value>(body) {
        Ok(value) if value.is_object() || value.is_array() => message(&value, 0),
        Ok(_) => None,
        Err(_) => title(&text),
    };
    let message = message.unwrap_or_else(|| text.into_owned());
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    message.chars().take(WORDS).collect()
}

fn message(value: &Value, depth: usize) -> Option<String> {
    const KEYS: [&str; 7] = ["error", "message", "msg", "detail", "errors", "error_message", "description"];
    match value {
        _ if depth > 4 => None,
        Value::String(text) => Some(text.clone()).filter(|text| !text.trim().is_empty()),
        Value::Array(items) => items.iter().find_map(|item| message(item, depth + 1)),
        Value::Object(object) => {
            let said = KEYS.iter().filter_map(|key| object.get(*key)).find_map(|value| message(value, depth + 1))?;
            // OpenRouter puts the message of the underlying provider here.
            let raw = object.get("metadata").and_then(|metadata| metadata.get("raw")).and_then(Value::as_str);
            let code = ["code", "type"].iter().filter_map(|key| object.get(*key)?.as_str());
            let mut said = said;
            for more in raw.into_iter().chain(code) {
                if !more.is_empty() && !said.contains(more) {
                    said = format!("{said} ({more})");
                }
            }
            Some(said)
        }
        _ => None,
    }
}

/// Returns the title of an HTML page.
fn title(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    if !lower.trim_start().starts_with('<') {
        return None;
    }
    let start = lower.find("<title")?;
    let start = start + lower.get(start..)?.find('>')? + 1;
    let end = start + lower.get(start..)?.find('<')?;
    text.get(start..end).map(|title| title.trim().to_owned()).filter(|title| !title.is_empty())
}

/// Puts vectors into the order of `texts`: by their indices if the indices are consecutive numbers, and otherwise in
/// the order of the response. All vectors must have the number of dimensions in `dimensions`, which the first response
/// of a run sets.
///
/// # Errors
/// Fails unless there is exactly one valid vector for each text.
pub fn vectors(
    data: Vec<Embedding>,
    texts: &[String],
    dimensions: &OnceLock<usize>,
) -> Result<Vec<Vec<f32>>, Unusable> {
    let wrong = |problem: String, by_encoding| Unusable { problem, by_encoding };
    if data.len() != texts.len() {
        let first = texts.first().map(|text| shown(text)).unwrap_or_default();
        let problem = format!("{} embeddings for {} texts, of which the first is {first:?}", data.len(), texts.len());
        return Err(wrong(problem, false));
    }
    let places = places(&data);
    let mut vectors: Vec<Option<Vec<f32>>> = vec![None; texts.len()];
    for (Embedding { embedding, .. }, place) in data.into_iter().zip(places) {
        let vector = match embedding {
            Numbers::Floats(numbers) => Some(numbers),
            Numbers::Base64(text) => floats(&text),
        };
        if let Some(slot) = vectors.get_mut(place) {
            *slot = vector;
        }
    }
    let mut whole = Vec::with_capacity(texts.len());
    let mut length = dimensions.get().copied();
    for ((index, vector), text) in vectors.into_iter().enumerate().zip(texts) {
        let text = shown(text);
        let vector = vector
            .ok_or_else(|| wrong(format!("no numbers in base64 at index {index}, for the text {text:?}"), true))?;
        let expected = *length.get_or_insert(vector.len());
        if vector.len() != expected || vector.is_empty() {
            let others = if vector.is_empty() { String::new() } else { format!(" where others have {expected},") };
            let problem = format!("{} numbers at index {index},{others} for the text {text:?}", vector.len());
            return Err(wrong(problem, vector.is_empty()));
        }
        if let Some(number) = vector.iter().find(|x| !x.is_finite()) {
            return Err(wrong(format!("{number} among the numbers at index {index}, for the text {text:?}"), true));
        }
        if vector.iter().all(|&x| x == 0.0) {
            let problem = format!("a vector that is all zeros at index {index}, for the text {text:?}");
            return Err(wrong(problem, true));
        }
        whole.push(vector);
    }
    if let Some(length) = length {
        let _ = dimensions.set(length);
    }
    Ok(whole)
}

/// Returns the position of the text of each embedding.
fn places(data: &[Embedding]) -> Vec<usize> {
    let indexes: Option<Vec<u64>> = data.iter().map(Embedding::index).collect();
    let by_index = indexes.and_then(|indexes| {
        let first = *indexes.iter().min()?;
        let places = indexes.iter().map(|index| usize::try_from(index - first).ok()).collect::<Option<Vec<_>>>()?;
        let mut taken = vec![false; places.len()];
        for &place in &places {
            let slot = taken.get_mut(place)?;
            if std::mem::replace(slot, true) {
                return None;
            }
        }
        Some(places)
    });
    by_index.unwrap_or_else(|| (0..data.len()).collect())
}

/// Decodes base64 of little-endian f32, with or without padding, in the standard or the URL-safe alphabet.
fn floats(base64: &str) -> Option<Vec<f32>> {
    let text = base64.trim().trim_end_matches('=');
    let url_safe = text.contains(['-', '_']);
    let decoder = if url_safe { base64_simd::URL_SAFE_NO_PAD } else { base64_simd::STANDARD_NO_PAD };
    let bytes = decoder.decode_to_vec(text).ok()?;
    let (numbers, rest) = bytes.as_chunks();
    rest.is_empty().then(|| numbers.iter().map(|&x| f32::from_le_bytes(x)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("text {n}")).collect()
    }

    fn answered(json: &str, count: usize) -> Result<Vec<Vec<f32>>, String> {
        let data = read(json.as_bytes()).map_err(|e| format!("{e:?}"))?;
        vectors(data, &texts(count), &OnceLock::new()).map_err(|e| e.problem)
    }

    /// Reads a response of the three vectors [1], [2] and [3], to which the server gives these indices.
    fn ordered(indexes: [&str; 3]) -> Vec<f32> {
        let data: Vec<String> = (1..)
            .zip(indexes)
            .map(|(n, index)| match index {
                "" => format!("{{\"embedding\": [{n}]}}"),
                index => format!("{{\"index\": {index}, \"embedding\": [{n}]}}"),
            })
            .collect();
        answered(&format!("{{\"data\": [{}]}}", data.join(", ")), 3).unwrap().concat()
    }

    #[test]
    fn indexes_order_vectors_where_they_say_an_order() {
        assert_eq!(ordered(["2", "0", "1"]), [2.0, 3.0, 1.0]);
        assert_eq!(ordered(["\"2\"", "\"0\"", "\"1\""]), [2.0, 3.0, 1.0]);
        assert_eq!(ordered(["2.0", "0.0", "1.0"]), [2.0, 3.0, 1.0]);
        // The indices are counted from 1, or from the first text of an earlier request.
        assert_eq!(ordered(["3", "1", "2"]), [2.0, 3.0, 1.0]);
        assert_eq!(ordered(["66", "64", "65"]), [2.0, 3.0, 1.0]);
        // An index of zero was omitted.
        assert_eq!(ordered(["2", "", "1"]), [2.0, 3.0, 1.0]);
        for unordered in [
            ["", "", ""],
            ["0", "0", "0"],
            ["null", "null", "null"],
            ["0", "1", "0"],
            ["2", "1", "70"],
            ["-1", "1", "0"],
            ["\"c\"", "\"b\"", "\"a\""],
            ["2", "1", "{}"],
            ["18446744073709551615", "1", "0"],
        ] {
            assert_eq!(ordered(unordered), [1.0, 2.0, 3.0], "{unordered:?}");
        }
    }

    #[test]
    fn numbers_come_in_every_form() {
        let json = r#"{"data": [{"index": 1, "embedding": [3, 4.0]}, {"index": 0, "embedding": "AACAPwAAAEA="}]}"#;
        assert_eq!(answered(json, 2).unwrap(), [[1.0, 2.0], [3.0, 4.0]]);
        assert_eq!(answered(r#"{"error": null, "data": [{"embedding": "AACAPw"}]}"#, 1).unwrap(), [[1.0]]);
        // The bytes 0xfb and 0xff encode to letters that differ between the two alphabets.
        let number = f32::from_le_bytes([0xfb, 0xff, 0xfb, 0x3e]);
        assert_eq!(answered(r#"{"data": [{"embedding": "-__7Pg"}]}"#, 1).unwrap(), [[number]]);
        assert_eq!(answered(r#"{"data": [{"embedding": "+//7Pg=="}]}"#, 1).unwrap(), [[number]]);
    }

    #[test]
    fn answers_that_are_none_are_named_with_their_text() {
        for (json, count, part) in [
            (r#"{"data": [{"index": 0, "embedding": [1]}]}"#, 2, "1 embeddings for 2 texts"),
            (r#"{"data": []}"#, 1, "0 embeddings for 1 texts"),
            (
                r#"{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}]}"#,
                2,
                "2 numbers at index 1, where others have 1, for the text \"text 1\"",
            ),
            (r#"{"data": [{"embedding": []}]}"#, 1, "0 numbers at index 0, for the text \"text 0\""),
            (r#"{"data": [{"embedding": [1e39]}]}"#, 1, "inf among the numbers at index 0"),
            (r#"{"data": [{"embedding": [1, null]}]}"#, 1, "NaN among the numbers at index 0"),
            (r#"{"data": [{"embedding": [1, NaN]}]}"#, 1, "NaN among the numbers at index 0, for the text \"text 0\""),
            (r#"{"data": [{"embedding": [0, 0.0]}]}"#, 1, "all zeros at index 0, for the text \"text 0\""),
            // These are the numbers 1.0 and NaN.
            (r#"{"data": [{"embedding": "AACAPwAAwH8="}]}"#, 1, "NaN among the numbers at index 0"),
            (r#"{"data": [{"embedding": "AACA"}]}"#, 1, "no numbers in base64 at index 0"),
            (r#"{"data": [{"embedding": "?"}]}"#, 1, "no numbers in base64 at index 0"),
            (r#"{"data": [{"embedding": [[1, 2]]}]}"#, 1, "invalid type"),
        ] {
            let error = answered(json, count).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
        let dimensions = OnceLock::from(2);
        let data = read(br#"{"data": [{"embedding": [1]}]}"#).unwrap_or_default();
        let error = vectors(data, &texts(1), &dimensions).unwrap_err().problem;
        assert!(error.contains("1 numbers at index 0, where others have 2"), "{error}");
    }

    #[test]
    fn an_error_is_told_from_vectors_by_what_it_holds() {
        let found = |json: &str| read(json.as_bytes()).err();
        assert_eq!(found(r#"{"error": {"message": "no"}}"#), Some(NoEmbeddings::Error(None)));
        assert_eq!(found(r#"{"error": {"message": "no", "code": 502}}"#), Some(NoEmbeddings::Error(Some(502))));
        assert_eq!(found(r#"{"error": {"message": "no", "code": "429"}}"#), Some(NoEmbeddings::Error(Some(429))));
        assert_eq!(found(r#"{"error": "no", "data": []}"#), Some(NoEmbeddings::Error(None)));
        assert_eq!(found(r#"{"error": "no", "data": null}"#), Some(NoEmbeddings::Error(None)));
        assert_eq!(found(r#"[{"error": {"code": 400, "message": "no"}}]"#), Some(NoEmbeddings::Error(Some(400))));
        assert_eq!(found(r#"{"detail": "no"}"#), Some(NoEmbeddings::Error(None)));
        for other in ["", "{}", "3", "\"<html>\"", "{\"data\": 3}", "{\"error\": null}"] {
            assert!(matches!(found(other), Some(NoEmbeddings::Other(_))), "{other}");
        }
        assert!(found(r#"{"error": {}, "data": [{"embedding": [1]}]}"#).is_none());
    }

    #[test]
    fn a_servers_words_are_found_in_every_form() {
        for (body, said) in [
            (r#"{"error": {"message": "too long"}}"#, "too long"),
            (r#"{"error": "too long"}"#, "too long"),
            (r#"{"message": "too long", "code": 3}"#, "too long"),
            (r#"{"detail": [{"loc": ["body"], "msg": "too long"}]}"#, "too long"),
            (r#"[{"error": {"code": 400, "message": "too\nlong", "status": "INVALID"}}]"#, "too long"),
            (r#"{"error": {"message": "Spent", "code": "insufficient_quota"}}"#, "Spent (insufficient_quota)"),
            (
                r#"{"error": {"message": "Provider returned error", "metadata": {"raw": "too long"}}}"#,
                "Provider returned error (too long)",
            ),
            ("<html><head><TITLE>502 Bad Gateway</title></head><body>x</body>", "502 Bad Gateway"),
            ("<html>x</html>", "<html>x</html>"),
            ("no key\n", "no key"),
            (r#"{"error": {"code": "gone"}}"#, r#"{"error": {"code": "gone"}}"#),
            ("\"words\"", "\"words\""),
        ] {
            assert_eq!(words(body.as_bytes()), said);
        }
        assert_eq!(words("ä".repeat(1000).as_bytes()).chars().count(), WORDS);
    }
}
