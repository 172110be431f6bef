//! The setting `log.level`: a level, or a filter in the syntax of `tracing`. A word that is neither is an error,
//! because as a filter it would match nothing.

use super::values::InvalidValue;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Names of levels in other programs.
const SYNONYMS: [(&str, &str); 6] = [
    ("warning", "warn"),
    ("err", "error"),
    ("crit", "error"),
    ("critical", "error"),
    ("fatal", "error"),
    ("information", "info"),
];

/// The level to suggest for words that are similar to no level's name.
const SUGGESTIONS: [(&str, &str); 9] = [
    ("verbose", "debug"),
    ("finest", "trace"),
    ("all", "trace"),
    ("silent", "off"),
    ("quiet", "off"),
    ("none", "off"),
    ("disabled", "off"),
    ("false", "off"),
    ("notice", "info"),
];

const ADVICE: &str = "write off, error, warn, info, debug or trace, or a filter such as info,hyper=debug";

/// Parses `text` into a filter with `tracing`'s names of levels. If the filter has no level for everything else,
/// `error` is added, so that only `off` hides errors.
///
/// A phrase that says what to write.
/// What to write.
pub fn parse(text: &str) -> Result<String, InvalidValue> {
    let mut directives = Vec::new();
    let mut has_default = false;
    for directive in text.split(',') {
        let directive = directive.trim();
        if directive.is_empty() {
            continue;
        }
        if let Some(level) = level(directive) {
            has_default = true;
            directives.push(level.to_owned());
        } else if directive.contains(['=', '[']) || directive.contains("::") {
            directives.push(target(directive)?);
        } else {
            return Err(did_you_mean(directive));
        }
    }
    if directives.is_empty() {
        return Err(ADVICE.into());
    }
    if !has_default {
        directives.insert(0, "error".to_owned());
    }
    let filter = directives.join(",");
    match tracing_subscriber::EnvFilter::builder().parse(&filter) {
        Ok(_) => Ok(filter),
        Err(_) => Err(ADVICE.into()),
    }
}

fn level(word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    let synonym = SYNONYMS.iter().find(|(name, _)| *name == word).map(|(_, level)| *level);
    synonym.or_else(|| LEVELS.into_iter().find(|level| *level == word))
}

/// Parses a directive for a target: `hyper=debug`, `embedding_server::server`, `[span]=debug`.
fn target(directive: &str) -> Result<String, InvalidValue> {
    let (target, named_level) = match directive.rsplit_once('=') {
        Some((target, level)) if !level.contains([']', '}']) => (target.trim(), Some(level.trim())),
        _ => (directive, None),
    };
    let name = target.split('[').next().unwrap_or_default();
    if name.contains('-') {
        return Err(format!("write {:?}: the names of targets have underscores", name.replace('-', "_")).into());
    }
    if let Some(first) = name.split("::").next()
        && first != env!("CARGO_CRATE_NAME")
        && strsim::jaro_winkler(first, env!("CARGO_CRATE_NAME")) > 0.92
    {
        return Err(format!("did you mean {:?}?", env!("CARGO_CRATE_NAME")).into());
    }
    match named_level {
        None => Ok(target.to_owned()),
        Some(word) => level(word).map(|level| format!("{target}={level}")).ok_or_else(|| did_you_mean(word)),
    }
}

fn did_you_mean(word: &str) -> InvalidValue {
    let lower = word.to_ascii_lowercase();
    let suggested = SUGGESTIONS.iter().find(|(name, _)| *name == lower).map(|(_, level)| *level);
    let nearest = || {
        let names = LEVELS.into_iter().map(|level| (level, level)).chain(SYNONYMS);
        let rated = names.map(|(name, level)| (strsim::jaro_winkler(&lower, name), level));
        rated.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(likeness, _)| *likeness > 0.75).map(|(_, level)| level)
    };
    match suggested.or_else(nearest) {
        Some(level) => format!("did you mean {level}? Otherwise {ADVICE}").into(),
        None => ADVICE.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_case_insensitive_and_have_synonyms() {
        for (text, filter) in [
            ("info", "info"),
            (" WARN ", "warn"),
            ("warning", "warn"),
            ("Err", "error"),
            ("CRITICAL", "error"),
            ("off", "off"),
            ("Trace", "trace"),
            ("info,hyper=debug", "info,hyper=debug"),
            ("WARNING, hyper = DEBUG", "warn,hyper=debug"),
            ("hyper=warning", "error,hyper=warn"),
            ("info,embedding_server::server::access=off", "info,embedding_server::server::access=off"),
            ("info,embedding_server::server", "info,embedding_server::server"),
            ("info,[request{route=a}]=debug", "info,[request{route=a}]=debug"),
            ("debug,", "debug"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(filter), "{text}");
        }
    }

    #[test]
    fn a_word_that_is_not_a_level_is_an_error_with_a_suggestion() {
        for (text, part) in [
            ("warnn", "did you mean warn?"),
            ("warns", "did you mean warn?"),
            ("verbose", "did you mean debug?"),
            ("silent", "did you mean off?"),
            ("inf", "did you mean info?"),
            ("info,hyper", "write off, error"),
            ("hyper", "write off, error"),
            ("3", "write off, error"),
            ("", "write off, error"),
            (" , ", "write off, error"),
            ("info,hyper=loud", "write off, error"),
            ("info,hyper=wrn", "did you mean warn?"),
            ("info,embedding-server=debug", "\"embedding_server\""),
            ("info,embeding_server=debug", "did you mean \"embedding_server\"?"),
            ("info,[span", "write off, error"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
