//! Reads the values of settings as people write them in a file, a variable or a flag: checks their range and converts
//! them to the form that the configuration types read. Error messages say what to write.

use std::time::Duration;

use toml::Value;

use super::units::{ByteCount, Seconds};

/// Why the value of a setting cannot be used: a phrase that says what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(pub String);

impl From<String> for InvalidValue {
    fn from(problem: String) -> Self {
        Self(problem)
    }
}

impl From<&str> for InvalidValue {
    fn from(problem: &str) -> Self {
        Self(problem.to_owned())
    }
}

/// The kind of values that a setting accepts.
pub enum ValueKind {
    /// A name: text on one line, without white space around it.
    Name,
    Path,
    Truth,
    Whole {
        least: u64,
        most: u64,
    },
    Number {
        least: f64,
        most: f64,
    },
    /// A number of bytes.
    Size {
        least: u64,
        most: u64,
    },
    /// A length of time in milliseconds. `zero` says whether 0 is allowed too.
    Time {
        zero: bool,
        least: u64,
        most: u64,
    },
    /// One of these words, in upper or lower case.
    Word(&'static [&'static str]),
    /// Text that `parse` checks and normalizes. `values` names the values that it accepts.
    Form {
        values: &'static str,
        parse: fn(&str) -> Result<String, InvalidValue>,
    },
    /// A list. `none` says whether a variable may be `none` for the empty list.
    List {
        item: fn(&str) -> Result<String, InvalidValue>,
        example: &'static str,
        none: bool,
    },
    /// API keys, which no error message shows. [`crate::keys`] checks them.
    Keys,
}

impl ValueKind {
    /// Reads the value of a variable or a flag. `text` is trimmed and not empty.
    ///
    /// # Errors
    /// A phrase that says what to write.
    pub fn from_text(&self, text: &str) -> Result<Value, InvalidValue> {
        match self {
            Self::Truth => match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Ok(Value::Boolean(true)),
                "false" | "0" | "no" | "off" => Ok(Value::Boolean(false)),
                _ => Err(self.advice()),
            },
            Self::Whole { .. } => {
                let number = if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None };
                self.from_value(&Value::Integer(number.ok_or_else(|| self.advice())?))
            }
            Self::Number { .. } => self.from_value(&Value::Float(text.parse().map_err(|_| self.advice())?)),
            Self::List { none: true, .. } if text.eq_ignore_ascii_case("none") => Ok(Value::Array(Vec::new())),
            Self::List { .. } | Self::Keys => {
                let items: Vec<Value> =
                    text.split(',').map(unquoted).filter(|s| !s.is_empty()).map(Value::from).collect();
                if items.is_empty() {
                    return Err(InvalidValue(match self {
                        Self::List { example, none: true, .. } => {
                            format!("it contains no entry: write {example}, or none")
                        }
                        Self::List { example, .. } => format!("it contains no entry: write {example}"),
                        _ => "it contains no API key: write keys separated by commas, or unset it".to_owned(),
                    }));
                }
                self.from_value(&Value::Array(items))
            }
            _ => self.from_value(&Value::from(text)),
        }
    }

    /// Checks a value from the configuration file, and normalizes it.
    ///
    /// # Errors
    /// A phrase that says what to write.
    pub fn from_value(&self, value: &Value) -> Result<Value, InvalidValue> {
        match (self, value) {
            (Self::Name, Value::String(text)) => name(text).map(Value::from),
            (Self::Path, Value::String(text)) if text.is_empty() => {
                Err("write a path, or leave the setting out".into())
            }
            (Self::Path, Value::String(text)) if text.contains('\0') => Err("a path cannot contain a zero \
                                                                             byte"
                .into()),
            (Self::Path, Value::String(_)) | (Self::Truth, Value::Boolean(_)) => Ok(value.clone()),
            (Self::Whole { least, most }, Value::Integer(number))
                if u64::try_from(*number).is_ok_and(|n| (*least..=*most).contains(&n)) =>
            {
                Ok(value.clone())
            }
            (Self::Whole { .. } | Self::Number { .. } | Self::Truth, Value::String(text))
                if self.from_text(text.trim()).is_ok() =>
            {
                Err(format!("write {} without quotation marks", text.trim()).into())
            }
            (Self::Number { least, most }, Value::Float(number)) if (*least..=*most).contains(number) => {
                Ok(value.clone())
            }
            (Self::Number { .. }, Value::Integer(number)) => self.from_value(&Value::Float(*number as f64)),
            (Self::Size { least, most }, Value::Integer(_) | Value::String(_)) => {
                let size = match value {
                    Value::Integer(bytes) => u64::try_from(*bytes).ok().map(ByteCount),
                    _ => value.as_str().and_then(|text| text.trim().parse().ok()),
                };
                let size = size.filter(|size| (*least..=*most).contains(&size.0)).ok_or_else(|| self.advice())?;
                Ok(Value::from(size.exact()))
            }
            (Self::Time { .. }, Value::Integer(number)) => {
                Err(format!("write a unit too, such as \"{number}s\"").into())
            }
            (Self::Time { zero, least, most }, Value::String(text)) => {
                let range = Duration::from_millis(*least)..=Duration::from_millis(*most);
                let time = text.trim().parse::<Seconds>().ok();
                let time = time.filter(|time| range.contains(&time.0) || (*zero && time.0.is_zero()));
                match time {
                    Some(time) => Ok(Value::from(time.to_string())),
                    None if text.trim().parse::<u64>().is_ok_and(|n| n > 0) => {
                        Err(format!("write a unit too, such as {}s", text.trim()).into())
                    }
                    None => Err(self.advice()),
                }
            }
            (Self::Word(words), Value::String(text)) => {
                let lower = text.trim().to_ascii_lowercase();
                words.iter().find(|word| **word == lower).map(|word| Value::from(*word)).ok_or_else(|| self.advice())
            }
            (Self::Form { parse, .. }, Value::String(text)) => parse(text.trim()).map(Value::from),
            (Self::List { item, .. }, Value::Array(items)) => {
                let mut parsed = Vec::new();
                for (n, value) in items.iter().enumerate() {
                    let text = value.as_str().ok_or_else(|| self.advice())?;
                    parsed.push(Value::from(item(text).map_err(|e| format!("entry {} is {text:?}: {e}", n + 1))?));
                }
                Ok(Value::Array(parsed))
            }
            (Self::Keys, Value::Array(items)) if items.iter().all(Value::is_str) => Ok(value.clone()),
            _ => Err(self.advice()),
        }
    }

    /// Returns a phrase that says what to write.
    fn advice(&self) -> InvalidValue {
        InvalidValue(match self {
            Self::Name => "write a name in quotation marks".to_owned(),
            Self::Path => "write a path in quotation marks".to_owned(),
            Self::Truth => "write true or false".to_owned(),
            Self::Whole { least, most } => format!("write a whole number from {least} to {most}"),
            Self::Number { least, most } => format!("write a number from {least} to {most}"),
            Self::Size { least, most } => {
                format!("write a size from {} to {}, such as \"32 MiB\"", ByteCount(*least), ByteCount(*most))
            }
            Self::Time { zero, least, most } => {
                let [least, most] = [least, most].map(|time| Seconds(Duration::from_millis(*time)));
                let zero = if *zero { "\"0s\", or " } else { "" };
                format!("write {zero}a length of time from {least} to {most}, such as \"30s\" or \"1m 30s\"")
            }
            Self::Word(words) => match words.split_last() {
                Some((last, others)) => format!("write {} or {last}", others.join(", ")),
                None => String::new(),
            },
            Self::Form { .. } => "write text in quotation marks".to_owned(),
            Self::List { example, .. } => format!("write a list: [{example:?}]"),
            Self::Keys => "write a list of API keys: [\"KEY\", \"KEY MODEL\"]".to_owned(),
        })
    }

    /// Returns whether error messages must not show the value.
    pub fn is_secret(&self) -> bool {
        matches!(self, Self::Keys)
    }
}

/// Checks a name, which may appear in requests, lists and log lines.
///
/// # Errors
/// A phrase that says what to write.
pub fn name(text: &str) -> Result<String, InvalidValue> {
    if text.is_empty() {
        return Err("write a name that is not empty".into());
    }
    if text.trim() != text || text.chars().any(char::is_control) {
        return Err("write a name on one line, without white space around it".into());
    }
    Ok(text.to_owned())
}

/// Returns `text` without white space around it, and without the quotation marks that env files leave around a value.
pub fn unquoted(text: &str) -> &str {
    let text = text.trim();
    for quote in ['"', '\''] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote))
            && !inner.contains(quote)
        {
            return inner.trim();
        }
    }
    text
}

/// Checks the prefix of all paths. The result is empty if `text` is empty or `/`.
///
/// # Errors
/// A phrase that says what to write.
pub fn path_prefix(text: &str) -> Result<String, InvalidValue> {
    if matches!(text, "" | "/") {
        return Ok(String::new());
    }
    if text.len() > 1 && text.ends_with('/') {
        return Err("leave out the slash at the end".into());
    }
    if matches!(text, "/health" | "/ready" | "/metrics") {
        return Err("this is the path of a probe: write another one".into());
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~');
    let is_segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.chars().all(is_plain);
    if text.strip_prefix('/').is_some_and(|segments| segments.split('/').all(is_segment)) {
        return Ok(text.to_owned());
    }
    let advice = "write a path such as /models/a: each segment has a slash before it, is neither . nor .., and consists of \
                  letters, digits and - . _ ~";
    Err(advice.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_and_words_are_case_insensitive() {
        for (text, truth) in [("true", true), ("True", true), ("1", true), ("YES", true), ("On", true)] {
            assert_eq!(ValueKind::Truth.from_text(text), Ok(Value::Boolean(truth)), "{text}");
        }
        for text in ["false", "FALSE", "0", "no", "off"] {
            assert_eq!(ValueKind::Truth.from_text(text), Ok(Value::Boolean(false)), "{text}");
        }
        assert!(ValueKind::Truth.from_text("2").unwrap_err().to_string().contains("true or false"));
        assert!(
            ValueKind::Truth
                .from_value(&Value::from("true"))
                .unwrap_err()
                .to_string()
                .contains("without quotation marks")
        );
        let word = ValueKind::Word(&["text", "json"]);
        assert_eq!(word.from_text("JSON"), Ok(Value::from("json")));
        assert_eq!(word.from_value(&Value::from(" Text ")), Ok(Value::from("text")));
        assert_eq!(word.from_text("xml"), Err("write text or json".into()));
    }

    #[test]
    fn numbers_are_limited_at_both_ends() {
        let whole = ValueKind::Whole { least: 1, most: 100 };
        assert_eq!(whole.from_text("100"), Ok(Value::Integer(100)));
        for text in ["0", "101", "-1", "+1", "1.0", "1e2", "99999999999999999999", "many", "0x10"] {
            assert_eq!(whole.from_text(text), Err("write a whole number from 1 to 100".into()), "{text}");
        }
        assert_eq!(whole.from_value(&Value::from("7")), Err("write 7 without quotation marks".into()));
        let number = ValueKind::Number { least: 0.0, most: 1.0 };
        assert_eq!(number.from_value(&Value::Integer(1)), Ok(Value::Float(1.0)));
        for value in [f64::NAN, f64::INFINITY, -0.1, 1.1, 1e300] {
            assert!(
                number.from_value(&Value::Float(value)).unwrap_err().to_string().contains("from 0 to 1"),
                "{value}"
            );
        }
    }

    #[test]
    fn sizes_and_times_are_limited_at_both_ends_even_on_overflow() {
        let size = ValueKind::Size { least: 1024, most: 4 << 30 };
        assert_eq!(size.from_text("2 MiB"), Ok(Value::from("2.0 MiB")));
        assert_eq!(size.from_value(&Value::Integer(1500)), Ok(Value::from("1500")));
        for text in ["32", "0", "5 GiB", "99999999999 GiB", "-1 MiB", "1e300", "MiB", "32 MBytes", "many"] {
            let error = size.from_text(text).unwrap_err().to_string();
            assert_eq!(error, "write a size from 1.0 KiB to 4.0 GiB, such as \"32 MiB\"", "{text}");
        }
        let time = ValueKind::Time { zero: false, least: 1, most: 86_400_000 };
        assert_eq!(time.from_text("90s"), Ok(Value::from("1m 30s")));
        for text in ["0s", "1ns", "2days", "1e300s", "99999999999999999999s", "-1s", "18446744073709551615s", "soon"] {
            assert!(time.from_text(text).unwrap_err().to_string().contains("from 1ms to 1day"), "{text}");
        }
        for value in [Value::Integer(30), Value::from("30")] {
            assert!(time.from_value(&value).unwrap_err().to_string().contains("30s"), "{value}");
        }
        let zero = ValueKind::Time { zero: true, least: 1, most: 1000 };
        assert_eq!(zero.from_text("0s"), Ok(Value::from("0s")));
    }

    #[test]
    fn a_displayed_size_is_exact() {
        let size = ValueKind::Size { least: 1, most: u64::MAX };
        for bytes in [1, 1023, 20_000, 33_554_433, 32 << 20, 5 << 30] {
            let printed = size.from_value(&Value::Integer(bytes)).unwrap();
            assert_eq!(printed.as_str().unwrap().parse::<ByteCount>().unwrap().0, bytes as u64, "{printed}");
        }
    }

    #[test]
    fn lists_have_no_empty_entries() {
        let list = ValueKind::List { item: name, example: "a", none: true };
        let texts = |value: Result<Value, InvalidValue>| value.unwrap().as_array().unwrap().len();
        assert_eq!(texts(list.from_text("a, \"b\" ,'c',")), 3);
        assert_eq!(texts(list.from_text("None")), 0);
        assert!(list.from_text(" , ,").unwrap_err().to_string().contains("or none"));
        assert!(ValueKind::Keys.from_text(", ,").unwrap_err().to_string().contains("no API key"));
        assert!(list.from_value(&Value::Array(vec![Value::from("")])).unwrap_err().to_string().contains("entry 1"));
        let keys = ValueKind::Keys.from_value(&Value::from("sk-secret")).unwrap_err().to_string();
        assert!(keys.contains("a list of API keys") && !keys.contains("sk-"), "{keys}");
    }

    #[test]
    fn quotation_marks_of_env_files_are_removed() {
        for (text, value) in [
            ("\"a\"", "a"),
            (" ' a ' ", "a"),
            ("\"\"", ""),
            ("\"a\",\"b\"", "\"a\",\"b\""),
            ("\"a", "\"a"),
            ("\"", "\""),
            ("a\"b", "a\"b"),
        ] {
            assert_eq!(unquoted(text), value);
        }
    }

    #[test]
    fn a_path_prefix_is_a_plain_path() {
        for (text, prefix) in
            [("", ""), ("/", ""), ("/a", "/a"), ("/models/a-1.b_c~d", "/models/a-1.b_c~d"), ("/v1", "/v1")]
        {
            assert_eq!(path_prefix(text).as_deref(), Ok(prefix));
        }
        for text in [
            "a",
            "a/b",
            "/a/",
            "//",
            "//a",
            "/a//b",
            "/.",
            "/a/../b",
            "/a?b",
            "/a#b",
            "/a b",
            "/%61",
            "/{a}",
            "/é",
            "http://h/a",
            "/ready",
        ] {
            assert!(path_prefix(text).is_err(), "{text}");
        }
    }
}
