//! API keys: reads them from the configuration, and finds the key that a request presents. Only digests stay in memory.
//!
//! Mistakes never open the server: an entry that cannot be read as a key is an error, and is never ignored.

mod error;
mod options;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use layer0_files::hexadecimal;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::text_file;
pub use error::{KeysError, KeysErrorKind};
use options::KeyOptions;
pub use options::{KeyRates, UNNAMED};

/// The API keys as written in the configuration: `KEY`, or `KEY MODEL MODEL...` for a key that may use only these
/// models.
/// Options such as `name=alice` may stand anywhere after the key. `sha256:HEX` stands for the key with this digest. The
/// entries are never printed or logged.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ApiKeys(Vec<String>);

/// The API keys that the server accepts.
pub struct Keys {
    keys: Vec<Key>,
    file: Option<KeyFile>,
}

/// One API key.
pub struct Key {
    digest: [u8; 32],
    /// The IDs or aliases of the only models that the key may use; empty if it may use all.
    models: Vec<String>,
    options: KeyOptions,
    /// Where the key is written, for error messages, such as "line 3 of ...".
    place: String,
}

/// The file that some of the keys were read from.
struct KeyFile {
    path: PathBuf,
    digest: [u8; 32],
    /// Whether the last line ends with a line break. In a file that is still being written it may not.
    complete: bool,
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
    /// Writes the right number of entries, each as "(hidden)".
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|_| "(hidden)"))
    }
}

impl<'de> Deserialize<'de> for ApiKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // An untagged enum is used because serde's other error messages would quote the value.
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a list of API keys: [\"KEY\", \"KEY MODEL\"]")]
        enum Written {
            List(Vec<String>),
        }
        Written::deserialize(deserializer).map(|Written::List(keys)| Self(keys))
    }
}

impl Keys {
    /// Reads the keys of the configuration and of the key file, which has one key per line. `#` begins a comment.
    ///
    /// # Errors
    /// If the file cannot be read or contains no key, if an entry is not a key, if two entries give the same key
    /// different models or options, or if two keys have the same name. No error message quotes a key.
    pub fn read(keys: &ApiKeys, file: Option<&Path>) -> Result<Self, KeysError> {
        let mut known = Self { keys: Vec::new(), file: None };
        for (n, entry) in keys.0.iter().enumerate() {
            let place = format!("entry {} of server.api_keys", n + 1);
            if !known.add(entry, &place)? {
                return Err(KeysError::new(
                    KeysErrorKind::Empty,
                    format!("{place} is empty: remove it, or write a key"),
                ));
            }
        }
        if let Some(path) = file {
            let text = text_file::read(path).map_err(|e| {
                KeysError::new(KeysErrorKind::File, format!("server.api_key_file, {}: {e}", path.display()))
            })?;
            let mut holds_key = false;
            for (n, line) in text.lines().enumerate() {
                holds_key |= known.add(line, &format!("line {} of server.api_key_file, {}", n + 1, path.display()))?;
            }
            if !holds_key {
                return Err(KeysError::new(
                    KeysErrorKind::Empty,
                    format!(
                        "server.api_key_file, {}: the file contains no key; write one key per line, or remove the setting",
                        path.display()
                    ),
                ));
            }
            let complete = text.ends_with('\n');
            known.file = Some(KeyFile { path: path.to_owned(), digest: Sha256::digest(&text).into(), complete });
        }
        known.check_names()?;
        Ok(known)
    }

    /// Checks that names are unique, and that no name, which the log and the metrics show, is itself a key.
    fn check_names(&self) -> Result<(), KeysError> {
        let is_key = |digest: [u8; 32]| self.keys.iter().any(|key| key.digest == digest);
        let mut places = HashMap::new();
        for key in &self.keys {
            let Some(name) = key.name() else { continue };
            if let Some(place) = places.insert(name, &key.place) {
                return Err(KeysError::new(
                    KeysErrorKind::Conflict,
                    format!("{} and {place} give the same name to different keys: choose another name", key.place),
                ));
            }
            if is_key(Sha256::digest(name).into()) || digest_of_hex(name).is_some_and(is_key) {
                return Err(KeysError::new(
                    KeysErrorKind::Exposed,
                    format!(
                        "{} has a key or the digest of a key as its name, which the log and the metrics would show: choose \
                     another name",
                        key.place
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Adds the key of `line`. Returns whether the line contains one.
    fn add(&mut self, line: &str, place: &str) -> Result<bool, KeysError> {
        let Some(key) = Key::parse(line, place).map_err(|e| e.at(place))? else { return Ok(false) };
        let models = |key: &Key| key.models.iter().cloned().collect::<BTreeSet<_>>();
        if let Some(same) = self.keys.iter().find(|other| other.digest == key.digest) {
            if models(same) != models(&key) {
                return Err(KeysError::new(
                    KeysErrorKind::Conflict,
                    format!(
                        "{place} and {} are the same key with different models: keep one of them, with all models that it \
                     may use",
                        same.place
                    ),
                ));
            }
            if same.options != key.options {
                return Err(KeysError::new(
                    KeysErrorKind::Conflict,
                    format!("{place} and {} are the same key with different options: keep one of them", same.place),
                ));
            }
            return Ok(true);
        }
        self.keys.push(key);
        Ok(true)
    }

    /// Checks the models that keys may use. `names` are all IDs and aliases.
    ///
    /// # Errors
    /// If a key may use a model that is not configured, or if the name of a model stands where a key should be.
    pub fn check_models<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> Result<(), KeysError> {
        for key in &self.keys {
            if let Some(name) = key.models.iter().find(|name| !names.clone().any(|known| known == *name)) {
                return Err(KeysError::new(
                    KeysErrorKind::UnknownModel,
                    format!(
                        "{} allows the model {name:?}, which is not configured; the configured models are {}",
                        key.place,
                        names.collect::<Vec<_>>().join(", ")
                    ),
                ));
            }
            if let Some(name) = names.clone().find(|name| key.digest == <[u8; 32]>::from(Sha256::digest(name))) {
                return Err(KeysError::new(
                    KeysErrorKind::Malformed,
                    format!(
                        "{} has the model name {name:?} where the key should be: write KEY MODEL MODEL, and separate keys \
                     from each other, not models, by commas",
                        key.place
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Checks that these keys may replace the keys `before` while the server is running.
    ///
    /// # Errors
    /// If the key file has changed and its last line has no line break. The file may be only half written, and half
    /// a line is another key, or a key with more rights.
    pub fn may_replace(&self, before: &Self) -> Result<(), KeysError> {
        match &self.file {
            Some(file) if !file.complete && before.file.as_ref().is_none_or(|old| old.digest != file.digest) => {
                Err(KeysError::new(
                    KeysErrorKind::Incomplete,
                    format!(
                        "server.api_key_file, {}: the last line does not end with a line break, so the file may be half \
                     written: end its last line, and reload again",
                        file.path.display()
                    ),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Returns a warning for the operator about keys that are accepted.
    pub fn warning(&self) -> Option<String> {
        let file = self.file.as_ref().filter(|file| !file.complete)?;
        Some(format!(
            "server.api_key_file, {}: the last line does not end with a line break; a reload refuses a changed file \
             like this",
            file.path.display()
        ))
    }

    /// Returns whether there are no keys, so that everyone may use the server.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter()
    }

    /// Returns the index of the key that a request presents. The time that this takes does not depend on the key.
    pub fn find(&self, presented: &[u8]) -> Option<usize> {
        let digest: [u8; 32] = Sha256::digest(presented).into();
        let mut found = None;
        for (n, key) in self.keys.iter().enumerate() {
            if bool::from(key.digest.ct_eq(&digest)) {
                found = Some(n);
            }
        }
        found
    }
}

impl Key {
    /// Parses an entry, or returns `None` if it is empty. Error messages continue a sentence that begins with the
    /// place.
    fn parse(line: &str, place: &str) -> Result<Option<Self>, KeysError> {
        let mut words = line.split_whitespace().take_while(|word| !word.starts_with('#'));
        let Some(key) = words.next() else { return Ok(None) };
        if key.starts_with(['"', '\'', '[']) || key.ends_with(['"', '\'']) {
            return Err(KeysError::new(
                KeysErrorKind::Malformed,
                "has quotation marks or brackets around the key: write the key alone",
            ));
        }
        if options::is_known(key) {
            return Err(KeysError::new(
                KeysErrorKind::Malformed,
                "begins with an option: write the key first and its options after it",
            ));
        }
        if key.chars().any(is_invisible) {
            return Err(KeysError::new(KeysErrorKind::Malformed, "has an invisible character in the key: remove it"));
        }
        let digest = match key.strip_prefix("sha256:") {
            Some(hex) => digest_of_hex(hex).ok_or_else(|| {
                KeysError::new(KeysErrorKind::Malformed, "does not have 64 hexadecimal digits after sha256:")
            })?,
            None => Sha256::digest(key).into(),
        };
        if digest == <[u8; 32]>::from(Sha256::digest("")) {
            return Err(KeysError::new(
                KeysErrorKind::Malformed,
                "is the digest of an empty text: compute the digest of a key",
            ));
        }
        let (mut models, mut options) = (Vec::new(), KeyOptions::default());
        for word in words {
            if !options.take(word)? {
                models.push(word.to_owned());
            }
        }
        Ok(Some(Self { digest, models, options, place: place.to_owned() }))
    }

    /// Returns the name of the key in the log and the metrics.
    pub fn name(&self) -> Option<&str> {
        self.options.name.as_deref()
    }

    /// Returns whom files and batches belong to that this key stores: the name of the key, so that a new secret under the same
    /// name finds them, or else a digest, which does not reveal the key.
    pub fn owner(&self) -> String {
        match self.name() {
            Some(name) => format!("name:{name}"),
            None => format!("digest:{}", hexadecimal(&Sha256::digest(self.digest))),
        }
    }

    pub fn rates(&self) -> KeyRates {
        self.options.rates
    }

    /// Returns the digest, which identifies the key after a reload.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Returns the IDs or aliases of the only models that the key may use; empty if it may use all.
    pub fn models(&self) -> &[String] {
        &self.models
    }
}

/// Returns whether `c` is invisible in an editor: a control character, a byte order mark, or a direction mark.
fn is_invisible(c: char) -> bool {
    c.is_control() || matches!(c, '\u{feff}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{202a}'..='\u{202e}')
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

    fn keys(lines: &[&str]) -> Result<Keys, KeysError> {
        Keys::read(&ApiKeys::new(lines.iter().copied()), None)
    }

    #[test]
    fn only_a_whole_key_is_found() {
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
    fn a_key_file_has_one_key_per_line_and_at_least_one() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let read = |file: &tempfile::NamedTempFile| Keys::read(&ApiKeys::default(), Some(file.path()));
        let error = read(&file).err().unwrap();
        assert!(error.to_string().contains("contains no key") && error.kind() == KeysErrorKind::Empty);
        file.write_all(b"# ours\n\nsk-one\r\n  sk-two  m  # a comment\n").unwrap();
        let known = read(&file).unwrap();
        assert_eq!((known.iter().count(), known.find(b"sk-one"), known.find(b"sk-two")), (2, Some(0), Some(1)));
        assert_eq!(known.find(b"#"), None);
        let error = Keys::read(&ApiKeys::default(), Some(Path::new("/nowhere"))).err().unwrap();
        assert_eq!(error.kind(), KeysErrorKind::File);
        let error = error.to_string();
        assert!(error.contains("server.api_key_file, /nowhere: the file does not exist"), "{error}");
    }

    #[test]
    fn an_invalid_key_file_is_an_error_and_a_byte_order_mark_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let read = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            Keys::read(&ApiKeys::default(), Some(&path))
        };
        assert_eq!(read(b"\xef\xbb\xbfsk-one m\nsk-two\n").unwrap().find(b"sk-one"), Some(0));
        for (content, part) in [
            (&b""[..], "contains no key"),
            (b"\n \n# sk-one\n", "contains no key"),
            (b"\xef\xbb\xbf\n", "contains no key"),
            (b"\xff\xfes\0k\0", "UTF-16"),
            (b"sk-one\nsk-\xff\n", "line 2 is not UTF-8"),
            (b"sk-one\n\"sk-two\"\n", "line 2 of server.api_key_file"),
            (b"sk-\xe2\x80\x8bone\n", "invisible"),
        ] {
            let error = read(content).err().unwrap().to_string();
            assert!(error.contains(part) && !error.contains("sk-"), "{error}");
        }
        let error = Keys::read(&ApiKeys::default(), Some(dir.path())).err().unwrap().to_string();
        assert!(error.contains("server.api_key_file") && error.contains("directory"), "{error}");
    }

    #[test]
    fn a_key_has_one_set_of_models() {
        let hello = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        for lines in [["sk-one a", "sk-one"], ["sk-one", "sk-one a"], ["sk-one a", "sk-one b"], ["hello a", hello]] {
            let error = keys(&lines).err().unwrap();
            assert_eq!(error.kind(), KeysErrorKind::Conflict);
            let error = error.to_string();
            assert!(error.contains("entry 1") && error.contains("entry 2") && !error.contains("sk-"), "{error}");
        }
        let known = keys(&["sk-one a b", "sk-one b a", "sk-two"]).unwrap();
        assert_eq!((known.iter().count(), known.find(b"sk-two")), (2, Some(1)));
    }

    #[test]
    fn options_may_be_anywhere_after_the_key() {
        let hello = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824 name=greeting a";
        let known = keys(&["sk-one a requests_per_minute=6 b name=one", "sk-two", hello, "sk=three name=3"]).unwrap();
        let named = |key: &Key| (key.name().map(str::to_owned), key.models().join(" "), key.rates().requests.is_some());
        let all: Vec<_> = known.iter().map(named).collect();
        let name = |name: &str| Some(name.to_owned());
        let expected =
            [(name("one"), "a b", true), (None, "", false), (name("greeting"), "a", false), (name("3"), "", false)];
        assert_eq!(all, expected.map(|(name, models, limited)| (name, models.to_owned(), limited)));
        assert!(keys(&["sk-one name=a x", "sk-one x name=a"]).is_ok(), "the same key twice, written in another order");

        let digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        for (lines, part) in [
            (&["sk-one", "sk-two name="][..], "entry 2 of server.api_keys has an invalid name"),
            (&["sk-one sk_secret=1"], "entry 1 of server.api_keys has an unknown option"),
            (&["name=alice sk-one"], "entry 1 of server.api_keys begins with an option"),
            (
                &["sk-one name=a", "sk-two name=a"],
                "entry 2 of server.api_keys and entry 1 of server.api_keys give the same",
            ),
            (
                &["sk-one name=a", "sk-one name=b"],
                "entry 2 of server.api_keys and entry 1 of server.api_keys are the same",
            ),
            (&["sk-one", "sk-one tokens_per_minute=1"], "different options"),
            (&["sk-one name=sk-two", "sk-two"], "entry 1 of server.api_keys has a key"),
            (&["sk-one", "sk-two name=sk-two"], "entry 2 of server.api_keys has a key"),
            (&["hello", &format!("sk-two name={digest}")], "entry 2 of server.api_keys has a key or the digest"),
        ] {
            let error = keys(lines).err().unwrap().to_string();
            assert!(error.contains(part), "{lines:?}: {error}");
            assert!(!error.contains("sk-") && !error.contains("secret") && !error.contains(digest), "{error}");
        }
    }

    #[test]
    fn models_of_keys_must_be_configured() {
        let names = || ["small", "big"].into_iter();
        assert_eq!(keys(&["sk-one small", "sk-two"]).unwrap().check_models(names()), Ok(()));
        for (line, part) in [("sk-one other", "\"other\""), ("small", "\"small\""), ("big small", "\"big\"")] {
            let error = keys(&[line]).unwrap().check_models(names()).unwrap_err().to_string();
            assert!(error.contains("entry 1") && error.contains(part) && !error.contains("sk-"), "{error}");
        }
    }

    #[test]
    fn a_changed_key_file_without_a_final_line_break_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let read = |content: &str| {
            std::fs::write(&path, content).unwrap();
            Keys::read(&ApiKeys::default(), Some(&path)).unwrap()
        };
        let (whole, half) = (read("sk-one small\n"), read("sk-one"));
        assert!(whole.warning().is_none() && half.warning().unwrap().contains("line break"));
        let error = half.may_replace(&whole).unwrap_err().to_string();
        assert!(error.contains("line break") && !error.contains("sk-"), "{error}");
        let none = Keys::read(&ApiKeys::default(), None).unwrap();
        assert!(half.may_replace(&none).is_err());
        assert_eq!(whole.may_replace(&half), Ok(()));
        assert_eq!(none.may_replace(&whole), Ok(()));
        assert_eq!(read("sk-one").may_replace(&half), Ok(()), "the file is as it was");
    }

    #[test]
    fn debug_and_serialized_keys_are_hidden() {
        let secret = "sk-secret-0123456789";
        let written = ApiKeys::new([secret]);
        assert!(!format!("{written:?}").contains(secret));
        assert_eq!(serde_json::to_string(&written).unwrap(), r#"["(hidden)"]"#);
        for wrong in [format!("{{\"a\": {secret:?}}}"), format!("{secret:?}"), format!("[{secret:?}, 1]")] {
            let error = serde_json::from_str::<ApiKeys>(&wrong).unwrap_err().to_string();
            assert!(error.contains("a list of API keys") && !error.contains(secret), "{error}");
        }
        let error = keys(&["sha256:sk-secret"]).err().unwrap().to_string();
        assert!(error.contains("entry 1") && !error.contains("secret"), "{error}");
        for entry in [" ", "", "# a"] {
            assert!(
                keys(&["sk-one", entry]).err().unwrap().to_string().contains("entry 2 of server.api_keys is empty")
            );
        }
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for entry in ["'sk-secret'", "[\"sk-secret\"]", "\"sk-secret", "sk-secret\"", "sk-\u{feff}secret", empty] {
            let error = keys(&[entry]).err().unwrap().to_string();
            assert!(error.contains("entry 1 of server.api_keys") && !error.contains("secret"), "{error}");
        }
    }
}
