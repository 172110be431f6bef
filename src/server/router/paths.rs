//! Maps the ways in which clients write a path to routes, and advises clients whose path matches no route.

use std::borrow::Cow;

use crate::server::routes::embeddings;

/// The first path segments of the API below `/v1`. They also work without `/v1`, and below `/openai`.
const RESOURCES: [&str; 9] =
    ["embeddings", "models", "engines", "tokenize", "similarity", "rerank", "sparse-embeddings", "files", "batches"];

/// Resources of OpenAI's API and of other servers' APIs that this server does not have.
const FOREIGN: [&str; 18] = [
    "assistants",
    "audio",
    "chat",
    "chat/completions",
    "completions",
    "embed",
    "embed_all",
    "edits",
    "fine_tuning",
    "generate",
    "images",
    "infer",
    "moderations",
    "predict",
    "responses",
    "tags",
    "threads",
    "vector_stores",
];

/// The routes for probes and Prometheus, which call the server directly and not through the proxy that adds the prefix.
const WITHOUT_PREFIX: [&str; 3] = ["/health", "/ready", "/metrics"];

/// A path that matches no route.
const NO_ROUTE: &str = "/-";

/// Paths whose similarity is above this are considered misspellings of each other.
const ALIKE: f64 = 0.9;

/// Returns the path of the route that `path` means, if there is one: repeated slashes and a slash at the end are
/// removed, and `/v1` is added if the client left it out or wrote `/openai/v1`.
pub fn canonical(path: &str) -> Cow<'_, str> {
    let path = single_slashes(path);
    let path = match path.strip_suffix('/') {
        Some("") | None => path,
        Some(shorter) => Cow::from(shorter.to_owned()),
    };
    let below = |prefix: &str| path.strip_prefix(prefix).filter(|rest| rest.starts_with('/'));
    let rest = below("/openai/v1").or_else(|| below("/openai")).unwrap_or(&path);
    if is_of_the_api(rest) { Cow::from(format!("/v1{rest}")) } else { path }
}

/// Like [`canonical`], for a server whose paths all begin with `prefix`, which may be empty. A path without the prefix
/// is mapped to one that matches no route.
pub fn route<'a>(path: &'a str, prefix: &str) -> Cow<'a, str> {
    if prefix.is_empty() {
        // Almost all requests have this path, so it is compared first.
        return if path == embeddings::PATH { Cow::from(path) } else { canonical(path) };
    }
    match without_prefix(path, prefix) {
        Some(Cow::Borrowed(rest)) => canonical(rest),
        Some(Cow::Owned(rest)) => Cow::from(canonical(&rest).into_owned()),
        None => Cow::from(NO_ROUTE),
    }
}

/// Returns the rest of `path` after `prefix`, or `None` if it does not begin with the prefix. The routes for probes and
/// Prometheus need no prefix.
pub fn without_prefix<'a>(path: &'a str, prefix: &str) -> Option<Cow<'a, str>> {
    let path = single_slashes(path);
    if WITHOUT_PREFIX.contains(&path.strip_suffix('/').unwrap_or(&path)) {
        return Some(path);
    }
    let rest = path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'))?.len();
    if rest == 0 {
        return Some(Cow::from("/"));
    }
    Some(match path {
        Cow::Borrowed(path) => Cow::from(path.get(path.len() - rest..)?),
        Cow::Owned(path) => Cow::from(path.get(path.len() - rest..)?.to_owned()),
    })
}

/// Returns the relative URL to which a browser is redirected if the relative links of the page at `route` would not
/// work under the path `asked`: `/docs` must not end in a slash, and `/`, also below a prefix, must.
pub fn redirect(route: &str, asked: &str) -> Option<String> {
    let trimmed = asked.trim_end_matches('/');
    let slashes = asked.len() - trimmed.len();
    let last = trimmed.rsplit('/').next()?;
    match route {
        "/" if slashes == 0 => Some(format!("{last}/")),
        "/docs" if slashes > 0 => Some(format!("{}{last}", "../".repeat(slashes))),
        _ => None,
    }
}

/// Returns whether `path` is a path of the API without its `/v1`.
fn is_of_the_api(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|path| RESOURCES.contains(&path.split('/').next().unwrap_or_default()))
}

/// Replaces repeated slashes by one. A client whose base URL ends in a slash asks for `/v1//embeddings`.
fn single_slashes(path: &str) -> Cow<'_, str> {
    if !path.contains("//") {
        return Cow::from(path);
    }
    let mut single = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !single.ends_with('/') {
            single.push(c);
        }
    }
    Cow::from(single)
}

/// Returns advice for a client whose path matches no route, as a sentence. `base` is the base URL that clients should
/// use, and `known` are the paths of the routes, which are below `prefix`.
pub fn advice(path: &str, base: &str, prefix: &str, known: &[String]) -> Option<String> {
    let Some(path) = without_prefix(path, prefix) else {
        return Some(format!("All paths of this server begin with {prefix}: set base_url to {base}."));
    };
    let path = path.to_ascii_lowercase();
    let path = path.trim_end_matches('/');
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let at_end = |resource: &&str| path.strip_suffix(*resource).is_some_and(|before| before.ends_with('/'));
    // If the base URL is wrong, or already contains the path of the resource, the path still ends in the resource.
    if RESOURCES.iter().any(&at_end) || ["", "/v1", "/openai", "/openai/v1"].contains(&path) {
        return Some(format!("Set base_url to {base}: clients of OpenAI's API append the rest."));
    }
    let of_v1 = segments.iter().find(|segment| !matches!(**segment, "v1" | "v2" | "api" | "openai" | "v1beta"));
    if of_v1.is_some_and(|first| FOREIGN.contains(first)) || FOREIGN.iter().any(at_end) {
        return Some(format!(
            "This server has only the embeddings API, and no other API of OpenAI or other servers: set base_url to {base} \
             and send POST /embeddings."
        ));
    }
    let fixed = known.iter().filter(|known| !known.contains('{'));
    let alike =
        |known: &&String| strsim::jaro_winkler(path, known).max(strsim::jaro_winkler(&format!("/v1{path}"), known));
    let nearest = fixed.map(|known| (alike(&known), known)).max_by(|a, b| a.0.total_cmp(&b.0));
    nearest.filter(|(likeness, _)| *likeness > ALIKE).map(|(_, known)| format!("Did you mean {prefix}{known}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_spellings_of_a_path_mean_the_same_route() {
        for (path, route) in [
            ("/v1/embeddings", "/v1/embeddings"),
            ("/v1/embeddings/", "/v1/embeddings"),
            ("/v1//embeddings", "/v1/embeddings"),
            ("//v1/embeddings//", "/v1/embeddings"),
            ("/embeddings", "/v1/embeddings"),
            ("/embeddings/", "/v1/embeddings"),
            ("/openai/v1/embeddings", "/v1/embeddings"),
            ("/openai/embeddings", "/v1/embeddings"),
            ("/models", "/v1/models"),
            ("/v1/models/", "/v1/models"),
            ("/models/org/name", "/v1/models/org/name"),
            ("/openai/v1/models/a%2Fb", "/v1/models/a%2Fb"),
            ("/engines/a/embeddings", "/v1/engines/a/embeddings"),
            ("/tokenize/", "/v1/tokenize"),
            ("/openai/deployments/a/embeddings/", "/openai/deployments/a/embeddings"),
            ("/health/", "/health"),
            ("/", "/"),
            ("//", "/"),
            ("/v1/v1/embeddings", "/v1/v1/embeddings"),
            ("/embeddingsx", "/embeddingsx"),
            ("/openai/v1", "/openai/v1"),
            ("/openai/v1x/embeddings", "/openai/v1x/embeddings"),
            ("*", "*"),
        ] {
            assert_eq!(canonical(path), route, "{path}");
        }
    }

    #[test]
    fn an_unknown_path_gets_advice() {
        let known =
            ["/v1/embeddings", "/v1/models", "/v1/models/{*id}", "/v1/similarity", "/health", "/metrics", "/docs"];
        let known = known.map(str::to_owned);
        let advice = |path: &str| advice(path, "http://h:1/v1", "", &known);
        for path in [
            "/v1/embeddings/embeddings",
            "/v1/v1/embeddings",
            "/api/embeddings",
            "/api/v1/embeddings/",
            "/V1/Embeddings",
            "/v1/openai/models",
            "/v1",
            "/v1/chat/completions",
            "/chat/completions",
            "/openai/v1/chat/completions",
            "/v1/completions",
            "/v1/responses",
            "/v1/audio/transcriptions",
            "/v1/vector_stores/a",
            "/api/embed",
            "/embed",
            "/v2/embed",
            "/api/generate",
        ] {
            assert!(advice(path).is_some_and(|advice| advice.contains("base_url to http://h:1/v1")), "{path}");
        }
        for (path, meant) in [
            ("/v1/embedding", "/v1/embeddings"),
            ("/v1/embedings", "/v1/embeddings"),
            ("/embedding", "/v1/embeddings"),
            ("/v1/model", "/v1/models"),
            ("/v1/similarities", "/v1/similarity"),
            ("/healthz", "/health"),
            ("/metric", "/metrics"),
        ] {
            assert_eq!(advice(path), Some(format!("Did you mean {meant}?")), "{path}");
        }
        for path in ["/favicon.ico", "/wp-login.php", "/nowhere", "/.env"] {
            assert_eq!(advice(path), None, "{path}");
        }
    }

    #[test]
    fn with_a_prefix_only_probes_are_found_without_it() {
        for (path, expected) in [
            ("/models/a/v1/embeddings", "/v1/embeddings"),
            ("/models/a/embeddings/", "/v1/embeddings"),
            ("//models/a//v1/embeddings", "/v1/embeddings"),
            ("/models/a/models/b", "/v1/models/b"),
            ("/models/a/models/a/v1", "/v1/models/a/v1"),
            ("/models/a", "/"),
            ("/models/a/", "/"),
            ("/models/a/health", "/health"),
            ("/health", "/health"),
            ("/ready/", "/ready"),
            ("/metrics", "/metrics"),
            ("/health/x", NO_ROUTE),
            ("/v1/embeddings", NO_ROUTE),
            ("/models/ab/v1/embeddings", NO_ROUTE),
            ("/models/A/v1/embeddings", NO_ROUTE),
            ("/models", NO_ROUTE),
            ("/docs", NO_ROUTE),
            ("/", NO_ROUTE),
            ("", NO_ROUTE),
            ("*", NO_ROUTE),
        ] {
            assert_eq!(route(path, "/models/a"), expected, "{path}");
        }
    }

    #[test]
    fn pages_are_redirected_so_that_relative_links_work() {
        for (route, asked, location) in [
            ("/", "/", None),
            ("/", "//", None),
            ("/", "/models/a/", None),
            ("/", "/models/a", Some("a/")),
            ("/docs", "/docs", None),
            ("/docs", "/x/docs", None),
            ("/docs", "/x/docs/", Some("../docs")),
            ("/docs", "/docs//", Some("../../docs")),
            ("/v1/models", "/models/", None),
        ] {
            assert_eq!(redirect(route, asked).as_deref(), location, "{asked}");
        }
    }
}
