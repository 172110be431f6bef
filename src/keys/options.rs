//! The options of API keys: words of the form `option=value` in a key's entry.

use std::num::NonZeroU64;

use super::{KeysError, KeysErrorKind};

/// The options of one key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyOptions {
    /// The name of the key in the log and the metrics.
    pub name: Option<String>,
    pub rates: KeyRates,
}

/// The rate limits of a key per minute; `None` means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyRates {
    pub requests: Option<NonZeroU64>,
    pub tokens: Option<NonZeroU64>,
}

/// The label that the metrics use for all keys without a name. No key may have it as its name.
pub const UNNAMED: &str = "unnamed";

const NAME: &str = "name";
const REQUESTS: &str = "requests_per_minute";
const TOKENS: &str = "tokens_per_minute";
const LONGEST_NAME: usize = 64;
const HIGHEST_RATE: u64 = 1_000_000_000;

impl KeyOptions {
    /// Reads `word` if it is an option. Returns whether it is one.
    ///
    /// # Errors
    /// If the option is unknown or its value is invalid. The message continues a sentence that begins with the
    /// place of the key. It does not quote the word, which may be a key in the wrong place.
    pub fn take(&mut self, word: &str) -> Result<bool, KeysError> {
        let Some((option, value)) = split(word) else { return Ok(false) };
        let given_before = match option {
            NAME => self.name.replace(name(value)?).is_some(),
            REQUESTS => self.rates.requests.replace(rate(REQUESTS, value)?).is_some(),
            TOKENS => self.rates.tokens.replace(rate(TOKENS, value)?).is_some(),
            _ => {
                return Err(KeysError::new(
                    KeysErrorKind::Option,
                    format!("has an unknown option: the options of a key are {NAME}, {REQUESTS} and {TOKENS}"),
                ));
            }
        };
        if given_before {
            return Err(KeysError::new(
                KeysErrorKind::Option,
                format!("has the option {option} twice: remove one of them"),
            ));
        }
        Ok(true)
    }
}

impl KeyRates {
    pub fn is_limited(self) -> bool {
        self != Self::default()
    }
}

/// Returns whether `word` begins with a known option, as an entry without a key does.
pub fn is_known(word: &str) -> bool {
    split(word).is_some_and(|(option, _)| [NAME, REQUESTS, TOKENS].contains(&option))
}

/// Splits `word` into an option and its value, if it is an option.
fn split(word: &str) -> Option<(&str, &str)> {
    let (option, value) = word.split_once('=')?;
    let is_option = !option.is_empty() && option.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    is_option.then_some((option, value))
}

fn name(value: &str) -> Result<String, KeysError> {
    let is_fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.@".contains(&b);
    if value.is_empty() || value.len() > LONGEST_NAME || !value.bytes().all(is_fine) {
        return Err(KeysError::new(
            KeysErrorKind::Option,
            format!(
                "has an invalid {NAME}: write 1 to {LONGEST_NAME} letters, digits, '-', '_', '.' or '@', without spaces around \
                         the '='"
            ),
        ));
    }
    if value == UNNAMED {
        return Err(KeysError::new(
            KeysErrorKind::Option,
            format!("has the name {UNNAMED}, which stands for all keys without a name: choose another name"),
        ));
    }
    Ok(value.to_owned())
}

fn rate(option: &str, value: &str) -> Result<NonZeroU64, KeysError> {
    let number = if value.bytes().all(|b| b.is_ascii_digit()) { value.parse().ok() } else { None };
    number.filter(|rate: &NonZeroU64| rate.get() <= HIGHEST_RATE).ok_or_else(|| {
        KeysError::new(KeysErrorKind::Option, format!(
                        "has an invalid {option}: write a whole number from 1 to {HIGHEST_RATE} without separators, or leave the option \
                         out"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Result<KeyOptions, KeysError> {
        let mut options = KeyOptions::default();
        for word in words {
            assert!(options.take(word)?, "{word} is no option");
        }
        Ok(options)
    }

    #[test]
    fn options_have_a_name_and_a_value() {
        let rate = |rate| NonZeroU64::new(rate);
        let all =
            options(&["tokens_per_minute=1000000000", "name=Alice-1_b.c@example", "requests_per_minute=1"]).unwrap();
        assert_eq!(all.name.as_deref(), Some("Alice-1_b.c@example"));
        assert_eq!(all.rates, KeyRates { requests: rate(1), tokens: rate(1_000_000_000) });
        assert!(all.rates.is_limited() && !options(&["name=a"]).unwrap().rates.is_limited());
        for model in ["model", "org/model", "Name=alice", "=x", "model2=x", "org/a=b"] {
            assert_eq!(KeyOptions::default().take(model), Ok(false), "{model}");
        }
        assert!(is_known("name=") && is_known("tokens_per_minute=1") && !is_known("key=1") && !is_known("name"));
    }

    #[test]
    fn errors_do_not_quote_the_option() {
        let (longest, too_long) = ("n".repeat(64), "n".repeat(65));
        assert!(options(&[&format!("name={longest}")]).is_ok());
        for (words, part) in [
            (&["secret=1"][..], "unknown option"),
            (&["requests_per_second=77"], "unknown option"),
            (&["name="], "invalid name"),
            (&["name=secret/"], "invalid name"),
            (&["name=\u{e9}secret"], "invalid name"),
            (&["name=\"secret\""], "invalid name"),
            (&["name=a=secret"], "invalid name"),
            (&[&format!("name={too_long}")], "1 to 64"),
            (&["name=unnamed"], "choose another name"),
            (&["name=a", "name=a"], "option name twice"),
            (&["tokens_per_minute=1", "tokens_per_minute=77"], "option tokens_per_minute twice"),
            (&["requests_per_minute="], "invalid requests_per_minute"),
            (&["requests_per_minute=0"], "from 1 to 1000000000"),
            (&["requests_per_minute=00"], "from 1 to"),
            (&["tokens_per_minute=1000000001"], "invalid tokens_per_minute"),
            (&["tokens_per_minute=77777777777777777777777"], "from 1 to"),
            (&["tokens_per_minute=-77"], "from 1 to"),
            (&["tokens_per_minute=+77"], "from 1 to"),
            (&["tokens_per_minute=7.7"], "from 1 to"),
            (&["tokens_per_minute=77k"], "from 1 to"),
        ] {
            let error = options(words).unwrap_err();
            assert_eq!(error.kind(), KeysErrorKind::Option);
            let error = error.to_string();
            assert!(error.contains(part), "{words:?}: {error}");
            assert!(!error.contains("secret") && !error.contains("77"), "{error}");
        }
    }
}
