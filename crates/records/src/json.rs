//! Reads JSON as programs actually write it: splits a file into its objects, keeps the text of their fields, and
//! accepts the non-standard JSON of Python and JavaScript.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufRead};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{BadRecord, MAX_LINE};
use layer0_files::json::{self, NonFinite};

/// The fields of a JSON object in their order. Numbers keep all digits, because values are parsed only when they are
/// needed.
#[derive(Debug)]
pub struct Object<'a> {
    fields: Vec<(String, &'a RawValue)>,
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Object { fields })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl<'a> Object<'a> {
    /// Reads one object, whose text must be valid JSON.
    ///
    /// # Errors
    /// Fails if the text is not an object. The message continues a sentence that begins with "the record".
    pub fn parse(json: &'a str) -> Result<Self, BadRecord> {
        serde_json::from_str(json).map_err(|e| BadRecord::new(format!("is no JSON object: {e}")))
    }

    /// Returns the fields in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// Returns the value of a field. If several fields have the same name, the last one counts, as in most JSON
    /// libraries.
    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.fields.iter().rfind(|(found, _)| found == name).map(|(_, value)| *value)
    }

    /// Returns the value at `path`: that of the field with this name, or else that of a field within the objects that
    /// the path names, as in `a.b`.
    pub fn find(&self, path: &str) -> Option<&'a RawValue> {
        if let Some(value) = self.get(path) {
            return Some(value);
        }
        path.match_indices('.').find_map(|(dot, _)| {
            let (outer, inner) = (path.get(..dot)?, path.get(dot + 1..)?);
            let inner_object: Object<'a> = serde_json::from_str(self.get(outer)?.get()).ok()?;
            inner_object.find(inner)
        })
    }

    /// Returns the string at `path`.
    ///
    /// # Errors
    /// Fails if there is no string. The message continues a sentence that begins with "the record".
    pub fn text(&self, path: &str) -> Result<String, BadRecord> {
        let value = self.find(path).ok_or_else(|| BadRecord::new(format!("has no field {path:?}")))?;
        let wrong = |found: &str| BadRecord::new(format!("has {} in {path:?}, not a string", shortened(found)));
        let text: String = serde_json::from_str(value.get()).map_err(|_| wrong(value.get()))?;
        match json::kept_number(&text) {
            Some(_) => Err(wrong(text.trim_start_matches(|c: char| !c.is_ascii()))),
            None => Ok(text),
        }
    }
}

/// Returns the first 100 characters of `text` for messages, followed by "..." if `text` is longer.
pub fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(100) {
        Some((end, _)) => Cow::Owned(format!("{}...", text.get(..end).unwrap_or_default())),
        None => Cow::Borrowed(text),
    }
}

/// Converts one record of a file to strict JSON, by replacing the extensions that Python and Node write.
///
/// # Errors
/// Fails if the record is not UTF-8 or not one JSON object. The message continues a sentence that begins with "the
/// record".
pub fn strict_object(record: &[u8], non_finite: NonFinite) -> Result<Cow<'_, str>, BadRecord> {
    let not_utf8 = |error: &dyn fmt::Display| BadRecord::new(format!("is not UTF-8: {error}"));
    let text = str::from_utf8(record).map_err(|e| not_utf8(&e))?;
    let is_object = |text: &str| serde_json::from_str::<Object<'_>>(text).map(drop);
    let plain = is_object(text);
    if plain.is_ok() && !has_surrogate(record) {
        return Ok(Cow::Borrowed(text));
    }
    let replaced = match json::strict(record, non_finite) {
        Cow::Owned(replaced) => String::from_utf8(replaced).map(Cow::Owned).map_err(|e| not_utf8(&e))?,
        Cow::Borrowed(_) => Cow::Borrowed(text),
    };
    match is_object(&replaced) {
        Ok(()) => Ok(replaced),
        Err(e) => Err(BadRecord::new(format!("is no JSON object: {}", plain.err().unwrap_or(e)))),
    }
}

/// Tells whether the record contains an escaped surrogate, either alone or as half of a pair.
fn has_surrogate(record: &[u8]) -> bool {
    memchr::memmem::find_iter(record, b"\\u").any(|at| matches!(record.get(at + 2), Some(b'd' | b'D')))
}

/// Reads the records of a JSON file one by one: the elements of its array, or the values that follow each other in the
/// file.
#[derive(Debug)]
pub struct Values<R> {
    reader: R,
    place: Place,
    line: u64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Place {
    Start,
    InArray,
    AfterArray,
    Sequence,
}

/// One value: the number of the line on which it begins, and its text or its problem.
pub type Value = (u64, Result<Vec<u8>, BadRecord>);

impl<R: BufRead> Values<R> {
    /// Creates a reader of the values of one file.
    pub fn new(reader: R) -> Self {
        Self { reader, place: Place::Start, line: 1 }
    }

    /// Returns the next value, or `None` after the last one.
    ///
    /// # Errors
    /// Returns the errors of the reader, and `InvalidData` if the file is not JSON.
    pub fn read_value(&mut self) -> io::Result<Option<Value>> {
        let Some(byte) = self.skip_spaces()? else {
            return match self.place {
                Place::InArray => Err(self.wrong("the file ends within the array")),
                _ => Ok(None),
            };
        };
        match (self.place, byte) {
            (Place::Start, b'[') => {
                self.reader.consume(1);
                self.place = Place::InArray;
                match self.skip_spaces()? {
                    Some(b']') => self.end_array(),
                    Some(_) => self.value().map(Some),
                    None => Err(self.wrong("the file ends within the array")),
                }
            }
            (Place::Start | Place::Sequence, _) => {
                self.place = Place::Sequence;
                self.value().map(Some)
            }
            (Place::InArray, b',') => {
                self.reader.consume(1);
                match self.skip_spaces()? {
                    Some(b']') => Err(self.wrong("a comma is followed by the end of the array")),
                    Some(_) => self.value().map(Some),
                    None => Err(self.wrong("the file ends within the array")),
                }
            }
            (Place::InArray, b']') => self.end_array(),
            (Place::InArray, _) => Err(self.wrong("a comma or the end of the array is missing")),
            (Place::AfterArray, _) => Err(self.wrong("something follows the array")),
        }
    }

    fn end_array(&mut self) -> io::Result<Option<Value>> {
        self.reader.consume(1);
        self.place = Place::AfterArray;
        self.read_value()
    }

    fn wrong(&self, problem: &str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, format!("is not JSON: in line {}, {problem}", self.line))
    }

    /// Returns the next byte that is not white space, without consuming the byte.
    fn skip_spaces(&mut self) -> io::Result<Option<u8>> {
        loop {
            let buffer = self.reader.fill_buf()?;
            let Some(&byte) = buffer.first() else { return Ok(None) };
            if !matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                return Ok(Some(byte));
            }
            self.line += u64::from(byte == b'\n');
            self.reader.consume(1);
        }
    }

    fn value(&mut self) -> io::Result<Value> {
        let start = self.line;
        let mut text = Vec::new();
        let (mut depth, mut in_string, mut is_escaped, mut is_long) = (0u64, false, false, false);
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                if depth > 0 || in_string {
                    self.line = start;
                    return Err(self.wrong("a value begins that the file's end cuts"));
                }
                break;
            }
            let mut end = None;
            for (at, &byte) in buffer.iter().enumerate() {
                self.line += u64::from(byte == b'\n');
                if in_string {
                    match byte {
                        _ if is_escaped => is_escaped = false,
                        b'\\' => is_escaped = true,
                        b'"' => in_string = false,
                        _ => {}
                    }
                    continue;
                }
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' if depth > 1 => depth -= 1,
                    b'}' | b']' if depth == 1 => {
                        depth = 0;
                        end = Some((at + 1, true));
                        break;
                    }
                    b'}' | b']' | b',' | b' ' | b'\t' | b'\r' | b'\n' if depth == 0 => {
                        self.line -= u64::from(byte == b'\n');
                        end = Some((at, false));
                        break;
                    }
                    _ => {}
                }
            }
            let taken = end.map_or(buffer.len(), |(end, _)| end);
            is_long |= text.len() + taken > MAX_LINE;
            if is_long {
                text = Vec::new();
            } else {
                text.extend_from_slice(buffer.get(..taken).unwrap_or_default());
            }
            self.reader.consume(taken);
            if end.is_some() {
                break;
            }
        }
        if text.is_empty() && !is_long {
            return Err(self.wrong("a value is missing"));
        }
        Ok((start, if is_long { Err(too_long()) } else { Ok(text) }))
    }
}

fn too_long() -> BadRecord {
    BadRecord::new(format!("is longer than {} MiB", MAX_LINE >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_and_node_write_is_strict_json_in_the_end() {
        for (record, expected) in [
            (r#"{"a":NaN,"b":[Infinity,-Infinity],"c":-1}"#, r#"{"a":null,"b":[null,null],"c":-1}"#),
            (r#"{"a":"cut \ud83d"}"#, r#"{"a":"cut \ufffd"}"#),
            (r#"{"a":"\uD83D\uDE00 \ude00"}"#, r#"{"a":"\uD83D\uDE00 \ufffd"}"#),
            (r#"{"\udead":123456789012345678901234567890.10}"#, r#"{"\ufffd":123456789012345678901234567890.10}"#),
        ] {
            assert_eq!(strict_object(record.as_bytes(), NonFinite::Null).unwrap(), expected, "{record}");
        }
        for record in [r#"{"a":Nan}"#, "[1]", "{\"a\":1", "{} {}", "NaN", "\"\\ud83d\"", ""] {
            let problem = strict_object(record.as_bytes(), NonFinite::Null).unwrap_err().to_string();
            assert!(problem.contains("is no JSON object"), "{record}: {problem}");
        }
        assert!(strict_object(b"{\"a\":\"\xff\"}", NonFinite::Null).unwrap_err().to_string().contains("not UTF-8"));
        let kept = strict_object(br#"{"text":NaN}"#, NonFinite::Kept).unwrap();
        assert_eq!(
            Object::parse(&kept).unwrap().text("text").unwrap_err().to_string(),
            "has NaN in \"text\", not a string"
        );
    }

    #[test]
    fn a_path_finds_nested_fields_unless_a_field_has_its_name() {
        let object =
            Object::parse(r#"{"a":{"b":{"c":"1"},"b.c":"2"},"a.d":"3","x.y":{"z":"4"},"n":{"m":5},"t":"6","t":"7"}"#)
                .unwrap();
        for (path, expected) in [("a.b.c", "2"), ("a.d", "3"), ("x.y.z", "4"), ("t", "7")] {
            assert_eq!(object.text(path).as_deref(), Ok(expected), "{path}");
        }
        assert_eq!(object.text("n.m").unwrap_err().to_string(), "has 5 in \"n.m\", not a string");
        for path in ["a.x", "t.u", ".", "", "a.", "a..b"] {
            assert!(object.text(path).unwrap_err().to_string().starts_with("has no field"), "{path}");
        }
    }

    fn values(json: &str) -> Result<Vec<(u64, String)>, String> {
        // With the smallest possible buffer, every token is split across reads.
        let mut values = Values::new(io::BufReader::with_capacity(1, json.as_bytes()));
        let mut found = Vec::new();
        while let Some((line, value)) = values.read_value().map_err(|e| e.to_string())? {
            found.push((line, String::from_utf8(value.unwrap()).unwrap()));
        }
        Ok(found)
    }

    #[test]
    fn a_file_is_an_array_or_a_sequence_of_values() {
        let found = |json: &str| values(json).unwrap();
        let pair = |line: u64, text: &str| (line, text.to_owned());
        assert_eq!(
            found("[{\"a\":\"]\\\"\"},\n {\"b\":[{}]} ,NaN,-1\n]\n"),
            [pair(1, "{\"a\":\"]\\\"\"}"), pair(2, "{\"b\":[{}]}"), pair(2, "NaN"), pair(2, "-1"),]
        );
        assert_eq!(found("{\n\"a\": 1\n}\n{}{}"), [pair(1, "{\n\"a\": 1\n}"), pair(4, "{}"), pair(4, "{}")]);
        assert!(found("").is_empty() && found(" \n").is_empty() && found("[ ]").is_empty());
        for (json, part) in [
            ("[{}", "line 1, the file ends"),
            ("[{},", "ends"),
            ("[\n{},\n{\"a\":\n", "line 3, a value begins"),
            ("[{} {}]", "a comma"),
            ("[{},]", "a comma is followed"),
            ("[{}]\n{}", "line 2, something follows"),
            ("[,{}]", "a value is missing"),
            ("}", "a value is missing"),
            ("{\"a\": \"x", "cuts"),
        ] {
            assert!(values(json).unwrap_err().contains(part), "{json}: {:?}", values(json));
        }
    }
}
