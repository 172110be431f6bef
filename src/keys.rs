//! API keys: where they are written, and whether one that is presented is known. Only their digests stay in memory.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Keys as the configuration has them, each `KEY`, or `KEY MODEL MODEL...` for one that may use these models alone.
/// `sha256:HEX` stands for a key with that digest. Neither printed nor logged.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ApiKeys(Vec<String>);

/// The keys that open the server.
pub struct Keys(Vec<Key>);

/// One of them.
pub struct Key {
    digest: [u8; 32],
    /// The only models that it may use, by id or alias; empty: all.
    models: Vec<String>,
}

impl ApiKeys {
    pub fn new(lines: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self(lines.into_iter().map(Into::into).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} hidden]", self.0.len())
    }
}

impl Serialize for ApiKeys {
    /// As many as there are, hidden.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|_| "(hidden)"))
    }
}

impl<'de> Deserialize<'de> for ApiKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Untagged: serde's own errors would quote the value.
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a list of API keys: [\"KEY\", \"KEY MODEL\"]")]
        enum Written {
            List(Vec<String>),
        }
        Written::deserialize(deserializer).map(|Written::List(keys)| Self(keys))
    }
}

impl Keys {
    /// The keys of the configuration and those of its file: one a line, `#` begins a comment.
    ///
    /// # Errors
    /// When the file cannot be read or holds no key, or an entry is none. No error quotes a key.
    pub fn read(keys: &ApiKeys, file: Option<&Path>) -> Result<Self, String> {
        let mut known = Vec::new();
        for (n, entry) in keys.0.iter().enumerate() {
            let key = Key::parse(entry).map_err(|e| format!("entry {} of server.api_keys {e}", n + 1))?;
            known.push(key.ok_or_else(|| format!("entry {} of server.api_keys is empty", n + 1))?);
        }
        if let Some(path) = file {
            let failed = |e: &dyn fmt::Display| format!("server.api_key_file, {}: {e}", path.display());
            let text = std::fs::read_to_string(path).map_err(|e| failed(&e))?;
            let before = known.len();
            for (n, line) in text.lines().enumerate() {
                known.extend(Key::parse(line).map_err(|e| failed(&format!("line {} {e}", n + 1)))?);
            }
            if known.len() == before {
                return Err(failed(&"holds no key; expected one a line"));
            }
        }
        Ok(Self(known))
    }

    /// No keys: everybody may use the server.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        self.0.iter()
    }

    /// The place of the key that was presented. Takes the same time whichever it is, and for one that is not known.
    pub fn find(&self, presented: &[u8]) -> Option<usize> {
        let digest: [u8; 32] = Sha256::digest(presented).into();
        let mut found = None;
        for (n, key) in self.0.iter().enumerate() {
            if bool::from(key.digest.ct_eq(&digest)) {
                found = Some(n);
            }
        }
        found
    }
}

impl Key {
    /// `None` for an empty line.
    fn parse(line: &str) -> Result<Option<Self>, &'static str> {
        let mut words = line.split_whitespace().take_while(|word| !word.starts_with('#'));
        let Some(key) = words.next() else { return Ok(None) };
        let digest = match key.strip_prefix("sha256:") {
            Some(hex) => digest_of_hex(hex).ok_or("has not 64 hexadecimal digits after sha256:")?,
            None => Sha256::digest(key).into(),
        };
        Ok(Some(Self { digest, models: words.map(str::to_owned).collect() }))
    }

    /// The only models that it may use, by id or alias; empty: all.
    pub fn models(&self) -> &[String] {
        &self.models
    }
}

fn digest_of_hex(hex: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if pairs.len() != digest.len() || !rest.is_empty() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(pairs) {
        let digit = |b: u8| char::from(b).to_digit(16);
        let [high, low] = *pair;
        *byte = u8::try_from(digit(high)? * 16 + digit(low)?).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn keys(lines: &[&str]) -> Result<Keys, String> {
        Keys::read(&ApiKeys::new(lines.iter().copied()), None)
    }

    #[test]
    fn a_key_is_found_whole_and_nothing_else_is() {
        let known =
            keys(&["sk-one", "sk-two a b", "sha256:2CF24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"]);
        let known = known.unwrap();
        for (key, place) in [("sk-one", 0), ("sk-two", 1), ("hello", 2)] {
            assert_eq!(known.find(key.as_bytes()), Some(place), "{key}");
        }
        for other in ["", "sk-on", "sk-one ", "sk-two a b", "SK-ONE", "a", "sha256:hello"] {
            assert_eq!(known.find(other.as_bytes()), None, "{other}");
        }
        assert_eq!(
            known.iter().map(|key| key.models().to_vec()).collect::<Vec<_>>(),
            [vec![], vec!["a".to_owned(), "b".to_owned()], vec![]]
        );
    }

    #[test]
    fn a_file_has_a_key_a_line_and_must_have_one() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let read = |file: &tempfile::NamedTempFile| Keys::read(&ApiKeys::default(), Some(file.path()));
        assert!(read(&file).err().unwrap().contains("holds no key"));
        file.write_all(b"# ours\n\nsk-one\r\n  sk-two  m  # a comment\n").unwrap();
        let known = read(&file).unwrap();
        assert_eq!((known.iter().count(), known.find(b"sk-one"), known.find(b"sk-two")), (2, Some(0), Some(1)));
        assert_eq!(known.find(b"#"), None);
        assert!(Keys::read(&ApiKeys::default(), Some(Path::new("/nowhere"))).err().unwrap().contains("/nowhere"));
    }

    #[test]
    fn nothing_shows_a_key() {
        let secret = "sk-secret-0123456789";
        let written = ApiKeys::new([secret]);
        assert!(!format!("{written:?}").contains(secret));
        assert_eq!(serde_json::to_string(&written).unwrap(), r#"["(hidden)"]"#);
        for wrong in [format!("{{\"a\": {secret:?}}}"), format!("{secret:?}"), format!("[{secret:?}, 1]")] {
            let error = serde_json::from_str::<ApiKeys>(&wrong).unwrap_err().to_string();
            assert!(error.contains("a list of API keys") && !error.contains(secret), "{error}");
        }
        let error = keys(&["sha256:sk-secret"]).err().unwrap();
        assert!(error.contains("entry 1") && !error.contains("secret"), "{error}");
        assert!(keys(&[" "]).err().unwrap().contains("empty"));
    }
}
