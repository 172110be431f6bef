//! The environment variables of Python's huggingface_hub.

use std::path::PathBuf;
use std::time::Duration;

/// Where the Hub and its cache are, and how to ask.
#[derive(Clone)]
pub struct Settings {
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, or `hub` in `HF_HOME`, itself in `XDG_CACHE_HOME` or `~/.cache`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, or the content of `HF_TOKEN_PATH`, itself `token` in `HF_HOME`.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`: nothing is ever requested.
    pub offline: bool,
    /// `HF_HUB_DOWNLOAD_TIMEOUT`, in seconds: how long to wait for the next bytes.
    pub timeout: Duration,
    /// The wait before a failed request is repeated; it doubles each time.
    pub backoff: Duration,
}

impl Settings {
    /// From the environment of this process.
    pub fn from_env() -> Self {
        Self::new(|name| std::env::var(name).ok(), dirs::home_dir())
    }

    /// From the variables that `get` has.
    pub fn new(get: impl Fn(&str) -> Option<String>, home_dir: Option<PathBuf>) -> Self {
        let get = |name: &str| get(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let home_dir = home_dir.unwrap_or_default();
        let expanded = |path: String| match path.strip_prefix("~/") {
            Some(rest) => home_dir.join(rest),
            None => PathBuf::from(path),
        };
        let path = |name: &str| get(name).map(&expanded);
        let cache_home = || path("XDG_CACHE_HOME").unwrap_or_else(|| home_dir.join(".cache"));
        let home = path("HF_HOME").unwrap_or_else(|| cache_home().join("huggingface"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let stored = || std::fs::read_to_string(token_file).ok().map(|token| token.trim().to_owned());
        let truth = |value: String| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
        let seconds = get("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|s| s.parse().ok()).filter(|&s| s > 0);
        Self {
            endpoint: get("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".to_owned())
                .trim_end_matches('/')
                .to_owned(),
            cache: path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub")),
            token: get("HF_TOKEN").or_else(stored).filter(|token| !token.is_empty()),
            offline: get("HF_HUB_OFFLINE").is_some_and(truth),
            timeout: Duration::from_secs(seconds.unwrap_or(30)),
            backoff: Duration::from_millis(500),
        }
    }
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
