//! Reads the environment variables of Python's huggingface_hub.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::address::without_credentials;
use layer0_files as files;

/// The addresses of the Hub and of its cache, and the settings of requests.
#[derive(Clone)]
#[non_exhaustive]
pub struct Settings {
    /// `HF_ENDPOINT`, without a slash at its end and without credentials, because the endpoint is shown in model cards
    /// and messages.
    pub endpoint: String,
    /// The credentials `NAME:PASSWORD` in `HF_ENDPOINT`, if there are any. They are only sent to that endpoint, only if
    /// no token is set, and never shown.
    pub credentials: Option<String>,
    /// The directory of the cache: `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, or `hub` in `HF_HOME`. The default of
    /// `HF_HOME` is in `XDG_CACHE_HOME` or `~/.cache`.
    pub cache: PathBuf,
    /// The token: `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, or the content of `HF_TOKEN_PATH`, whose default is `token` in
    /// `HF_HOME`.
    pub token: Option<String>,
    /// Whether requests are forbidden (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// The time to wait for the next bytes of a response (`HF_HUB_DOWNLOAD_TIMEOUT`, in seconds).
    pub timeout: Duration,
    /// The delay before a failed request is repeated. The delay doubles with each repetition.
    pub backoff: Duration,
}

/// Shows whether there are credentials and a token, not what they are.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, credentials, cache, token, offline, timeout, backoff } = self;
        f.debug_struct("Settings")
            .field("endpoint", endpoint)
            .field("credentials", &credentials.as_ref().map(|_| "hidden"))
            .field("cache", cache)
            .field("token", &token.as_ref().map(|_| "hidden"))
            .field("offline", offline)
            .field("timeout", timeout)
            .field("backoff", backoff)
            .finish()
    }
}

impl Settings {
    /// Returns the settings that the environment of this process gives.
    pub fn from_env() -> Self {
        Self::new(|name| std::env::var(name).ok(), dirs::home_dir())
    }

    /// Returns the settings that the variables of `get` give.
    pub fn new(get: impl Fn(&str) -> Option<String>, home_dir: Option<PathBuf>) -> Self {
        let get = |name: &str| get(name).map(|value| unquoted(&value).to_owned()).filter(|value| !value.is_empty());
        let home_dir = home_dir.unwrap_or_default();
        let expanded = |path: String| match path.strip_prefix("~/") {
            Some(rest) => home_dir.join(rest),
            None => PathBuf::from(path),
        };
        let path = |name: &str| get(name).map(&expanded);
        let cache_home = || path("XDG_CACHE_HOME").unwrap_or_else(|| home_dir.join(".cache"));
        let home = path("HF_HOME").unwrap_or_else(|| cache_home().join("huggingface"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let stored = || Some(unquoted(&files::read_to_string(&token_file).ok()?).to_owned());
        let truth = |value: String| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
        let seconds = get("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|s| s.parse().ok()).filter(|&s| s > 0);
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let (endpoint, credentials) = without_credentials(endpoint.trim_end_matches('/'));
        let tokens = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];
        Self {
            endpoint,
            credentials,
            cache: path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub")),
            token: tokens.into_iter().find_map(&get).or_else(stored).filter(|token| !token.is_empty()),
            offline: get("HF_HUB_OFFLINE").is_some_and(truth),
            timeout: Duration::from_secs(seconds.unwrap_or(30)),
            backoff: Duration::from_millis(500),
        }
    }
}

/// Returns a value without the white space and the quotes around it. Container runtimes keep the quotes in files of
/// environment variables.
fn unquoted(value: &str) -> &str {
    let value = value.trim();
    let inner = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
    inner.map_or(value, str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Settings::new(get, Some("/home/u".into()))
    }

    #[test]
    fn the_cache_is_where_python_has_it() {
        for (variables, cache) in [
            (&[][..], "/home/u/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")], "/h/hub"),
            (&[("HF_HOME", "~/h")], "/home/u/h/hub"),
            (&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")], "/new"),
        ] {
            assert_eq!(settings(variables).cache, PathBuf::from(cache), "{variables:?}");
        }
    }

    #[test]
    fn the_token_is_the_variables_or_a_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "stored\n").unwrap();
        std::fs::write(dir.path().join("other"), "elsewhere\n").unwrap();
        let (home, other) = (dir.path().to_str().unwrap(), dir.path().join("other"));
        assert_eq!(settings(&[("HF_HOME", home)]).token.as_deref(), Some("stored"));
        let path = ("HF_TOKEN_PATH", other.to_str().unwrap());
        assert_eq!(settings(&[("HF_HOME", home), path]).token.as_deref(), Some("elsewhere"));
        assert_eq!(settings(&[("HF_HOME", home), path, ("HF_TOKEN", " t ")]).token.as_deref(), Some("t"));
        assert_eq!(settings(&[("HF_HOME", "/nowhere")]).token, None);
        // The older variable is only used if the newer one is not set, as in huggingface_hub.
        let older = ("HUGGING_FACE_HUB_TOKEN", "older");
        assert_eq!(settings(&[("HF_HOME", home), older]).token.as_deref(), Some("older"));
        assert_eq!(settings(&[older, ("HF_TOKEN", "newer")]).token.as_deref(), Some("newer"));
        assert_eq!(settings(&[older, ("HF_TOKEN", "\"\"")]).token.as_deref(), Some("older"));
    }

    #[test]
    fn quotes_and_white_space_around_a_token_are_no_part_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        for written in ["hf_x", "\"hf_x\"", "'hf_x'", " \"hf_x\"\r\n", "\" hf_x \"", "hf_x\n\n"] {
            assert_eq!(settings(&[("HF_TOKEN", written)]).token.as_deref(), Some("hf_x"), "{written:?}");
            std::fs::write(dir.path().join("token"), written).unwrap();
            assert_eq!(settings(&[("HF_HOME", home)]).token.as_deref(), Some("hf_x"), "{written:?}");
        }
        assert_eq!(settings(&[("HF_HOME", "'/h'")]).cache, PathBuf::from("/h/hub"));
    }

    #[test]
    fn credentials_of_the_endpoint_are_kept_apart() {
        for (written, endpoint, credentials) in [
            ("http://user:SECRET@mirror/hf/", "http://mirror/hf", Some("user:SECRET")),
            ("https://token@mirror:8080", "https://mirror:8080", Some("token")),
            ("http://u:a@b@mirror", "http://mirror", Some("u:a@b")),
            ("http://mirror/a@b", "http://mirror/a@b", None),
        ] {
            let found = settings(&[("HF_ENDPOINT", written)]);
            assert_eq!((found.endpoint.as_str(), found.credentials.as_deref()), (endpoint, credentials));
        }
    }

    #[test]
    fn offline_and_endpoint_read_as_python_reads_them() {
        for (value, offline) in [("1", true), ("TRUE", true), ("yes", true), ("0", false), ("", false), ("no", false)] {
            assert_eq!(settings(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value:?}");
        }
        assert_eq!(settings(&[]).endpoint, "https://huggingface.co");
        assert_eq!(settings(&[("HF_ENDPOINT", "http://mirror:8080/hf/")]).endpoint, "http://mirror:8080/hf");
        assert_eq!(settings(&[("HF_HUB_DOWNLOAD_TIMEOUT", "3")]).timeout.as_secs(), 3);
    }
}
